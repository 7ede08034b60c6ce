"""Environments whose tools are an MCP server's: discovery, calls, mistakes and servers that fail."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any, ClassVar

import pytest
from notes_env import PROGRAM, TASKS, Notes

from envkit import ContractError, Env, SandboxBackend, SandboxError
from envkit.audit.audited_env import AuditedEnv, AuditFailure
from envkit.audit.runner import AUDIT_CHECKS
from envkit.audit.suite import EnvSuite
from envkit.env.tools import ToolCall, parse_calls
from envkit.env.wrappers.mcp import MCP_LIMITS, McpEnv, McpSession
from envkit.sandbox import PYTHON_OPTIONS


@pytest.fixture
def env(backend: SandboxBackend) -> Iterator[Notes]:
    made = Notes(tasks=TASKS, sandbox=backend, max_turns=9)
    yield made
    made.close()


class TestNotes(EnvSuite):
    kind: ClassVar[type[Env]] = Notes


def test_the_servers_tools_are_the_environments(env: Notes) -> None:
    seen, _ = env.reset(options={"task": "train/tea"})
    assert seen.split("\n") == [
        "Note tea.",
        "",
        "Say one call per turn, such as add(text=..., urgent=..., kind=...):",
        "add(text: str, urgent: bool | None = None, kind: Literal['plain', 'list'] = 'plain')  Add a note.",
        "show(number: int)  Show a note.",
        "done()  End it.",
    ]
    assert (
        env.tools[0].schema()["function"]["parameters"]["properties"]["text"]["description"] == "what to note"
    )
    assert Notes.tools == env.tools[-1:], "another instance has its own server's tools"


def test_an_episode(env: Notes) -> None:
    env.reset(options={"task": "train/tea"})
    assert env.step("add('tea')")[0] == '{"text": "tea"} is note 1\n[image]'
    added = env.step(
        '<tool_call>{"name": "add", "arguments": {"text": "a\\nb", "kind": "list", "urgent": true}}'
    )
    assert added[0].startswith('{"text": "a\\nb", "urgent": true, "kind": "list"} is note 2')
    assert env.step("show(2)")[0] == "a\nb\n[image]"
    for more, solved in ((False, True), (True, False)):
        env.reset(options={"task": "train/tea"})
        env.step("add('tea')")
        if more:
            env.step("add('milk')")
        _, reward, terminated, _, info = env.step("done()")
        assert (reward, terminated, info["solved"]) == (float(solved), True, solved)


@pytest.mark.parametrize(
    ("action", "seen"),
    [
        ("show(7)", "there is no such note"),
        ("show(0)", "numbers begin at 1"),
        ("show()", "show: number: Field required. It is show(number: int)  Show a note."),
        ("add('a', kind='round')", "add: kind: Input should be 'plain' or 'list'."),
        ("stop_server()", "No call of a tool in that."),
    ],
)
def test_mistakes_are_observations(env: Notes, action: str, seen: str) -> None:
    env.reset(seed=1)
    assert env.step(action)[0].startswith(seen)


def changed(old: str, new: str, **attributes: Any) -> type[Notes]:
    """The environment with another server: one text in its program is replaced."""
    assert old in PROGRAM

    class Changed(Notes):
        id: ClassVar[str] = "changed"

        def server(self) -> Sequence[str]:
            return [self.sandbox.python, *PYTHON_OPTIONS, "-c", PROGRAM.replace(old, new)]

    for name, value in attributes.items():
        setattr(Changed, name, value)
    return Changed


@pytest.mark.parametrize(
    "call",
    [
        *(f"show({literal})" for literal in ("1j", "b'a'", "{1}", "...", "[1j]", "1e999", "{(1, 2): 3}")),
        '<tool_call>{"name": "show", "arguments": {"number": [NaN]}}',
    ],
)
def test_an_argument_that_is_no_json_is_an_observation(backend: SandboxBackend, call: str) -> None:
    kind = changed('"number": {"type": "integer"}', '"number": {}')
    with closing(kind(tasks=TASKS, sandbox=backend)) as env:
        env.reset(seed=0)
        assert env.step(call)[0].startswith("show takes arguments that JSON can hold, such as texts, ")


#: Does not answer a call until the next one, and notes that it was told not to.
_PATIENT = """
        case "notifications/cancelled":
            NOTES.append(f"call {params['requestId']} was cancelled")
        case "tools/call" if params["name"] == "add" and not NOTES:
            NOTES.append(request["id"])
        case "tools/call" if NOTES and isinstance(NOTES[0], int):
            say(id=NOTES[0], result=text("too late"))
            NOTES[0] = str(NOTES[0])
            say(id=request["id"], result=text(" ".join(NOTES)))
"""


def test_a_call_that_takes_too_long_is_an_observation_and_its_late_answer_is_dropped(
    backend: SandboxBackend,
) -> None:
    start = '        case "tools/call" if params["name"] == "stop_server":'
    kind = changed(start, _PATIENT + start, timeout_s=0.5)
    with closing(kind(tasks=TASKS, sandbox=backend, max_turns=9)) as env:
        env.reset(seed=0)
        assert env.step("add('a')")[0] == "add took longer than 0.5 s and was cancelled."
        seen, *_ = env.step("show(1)")
        number = seen.partition(" ")[0]
        assert seen == f"{number} call {number} was cancelled\n[image]"


def test_a_check_is_not_told_a_timeout_as_an_error_of_the_tool(backend: SandboxBackend) -> None:
    start = '        case "tools/call" if params["name"] == "stop_server":'
    silent = '        case "tools/call" if params["name"] == "show":\n            pass\n'
    with closing(changed(start, silent + start, timeout_s=0.5)(tasks=TASKS, sandbox=backend)) as env:
        env.reset(seed=0)
        with pytest.raises(
            SandboxError, match=r"the MCP server failed: no answer to tools/call within 0\.5 s"
        ):
            env.step("done()")


def test_a_class_sets_the_limits_of_its_server(backend: SandboxBackend) -> None:
    kind = changed(
        "NOTES: list[str] = []", "NOTES = [_ for _ in iter(int, 1)]", limits=replace(MCP_LIMITS, cpu_s=0.5)
    )
    with pytest.raises(SandboxError, match="the MCP server failed: a limit ended it: cpu limit"):
        kind(tasks=TASKS, sandbox=backend).reset(seed=0)


def test_a_server_cannot_write_in_place_of_its_launcher(backend: SandboxBackend) -> None:
    found = """
        case "tools/call" if params["name"] == "add":
            found = []
            for name, mode in (("fd/1", "wb"), ("mem", "r+b")):
                try: found.append(repr(open(f"/proc/{__import__('os').getppid()}/{name}", mode, 0)))
                except OSError as error: found.append(type(error).__name__)
            say(id=request["id"], result={"content": [{"type": "text", "text": " ".join(found)}]})
"""
    start = '        case "tools/call" if params["name"] == "stop_server":'
    with closing(changed(start, found + start)(tasks=TASKS, sandbox=backend, max_turns=9)) as env:
        env.reset(options={"task": "train/tea"})
        assert env.step("add('tea')")[0] == "PermissionError PermissionError"


@pytest.mark.parametrize(
    "name", ["reset", "is_noted", "done", "oracle", "server", "session", "only", "class", "a-b"]
)
def test_a_tool_with_a_name_of_the_environment_is_refused(backend: SandboxBackend, name: str) -> None:
    kind = changed('"name": "show"', f'"name": "{name}"', only=(name,))
    message = f"the MCP server's tool '{name}' cannot be called by that name, .* in `only`"
    env = kind(tasks=TASKS, sandbox=backend)
    for _ in range(2):
        with pytest.raises(ContractError, match=message):
            env.reset(seed=0)


@pytest.mark.parametrize("argument", ["max-results", "class", "self", ""])
def test_an_argument_that_no_call_can_name_is_refused(backend: SandboxBackend, argument: str) -> None:
    kind = changed('"number": {"type": "integer"}', f'"number": {{}}, "{argument}": {{"type": "integer"}}')
    with pytest.raises(ContractError, match=f"tool 'show' has an argument '{argument}', .* in `only`"):
        kind(tasks=TASKS, sandbox=backend).reset(seed=0)
    kind.only = ("add",)
    with closing(kind(tasks=TASKS, sandbox=backend)) as env:
        env.reset(seed=0)


def test_a_tool_that_the_server_lacks_is_named(backend: SandboxBackend) -> None:
    kind = changed("", "", only=("ad", "show"))
    message = r"Changed\.only names 'ad'; the MCP server has: add, show, stop_server"
    with pytest.raises(ContractError, match=message):
        kind(tasks=TASKS, sandbox=backend).reset(seed=0)
    with pytest.raises(ContractError, match="the MCP server has no tools"):
        changed('"tools": [ADD], "nextCursor": "2"', '"tools": []', only=())(
            tasks=TASKS, sandbox=backend
        ).reset()


class Bare(McpEnv):
    """Has no tool of its own."""

    id: ClassVar[str] = "bare"
    only = ("add",)
    max_turns = 1
    server = Notes.server
    is_noted = Notes.is_noted


def test_an_environment_needs_no_tool_beside_the_servers(backend: SandboxBackend) -> None:
    env = Bare(tasks=TASKS, sandbox=backend)
    for _ in range(2):
        env.reset(options={"task": "train/tea"})
        assert [tool.name for tool in env.tools] == ["add"]
        assert env.step("add('tea')")[4]["solved"]
    env.close()


@pytest.mark.parametrize(
    ("schema", "signature", "takes", "refuses"),
    [
        ('{"type": ["string", "null"]}', "(number: str | None)", ["'a'", "None"], ["[]"]),
        ('{"type": ["integer", "boolean"]}', "(number: int | bool)", ["1", "True"], ["[]"]),
        ('{"enum": [1, None, "a"]}', "(number: Literal[1, None, 'a'])", ["1", "None", "'a'"], ["2"]),
        ('{"enum": [1.5, [1]]}', "(number: Any)", ["1.5", "[1]"], []),
        ('{"anyOf": [{"type": "string"}]}', "(number: Any)", ["'a'"], []),
        ("True", "(number: Any)", ["'a'", "{}"], []),
    ],
)
def test_schemas_become_types(
    backend: SandboxBackend, schema: str, signature: str, takes: Sequence[str], refuses: Sequence[str]
) -> None:
    kind = changed('"number": {"type": "integer"}', f'"number": {schema}')
    env = kind(tasks=TASKS, sandbox=backend)
    env.reset(seed=0)
    show = env.tools[1]
    assert show.signature.replace("typing.", "") == signature
    assert show.schema()["function"]["name"] == "show"
    for text, fits in (*((each, True) for each in takes), *((each, False) for each in refuses)):
        [call] = parse_calls(f"show({text})", env.tools)
        assert isinstance(call, ToolCall) is fits, call
    env.close()


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("raise SystemExit('no token')", "the server ended with status 1; its last output: no token"),
        ("print('Welcome!', flush=True); input(); input()", "the MCP server failed: Expecting value"),
        (
            "input(); import time; time.sleep(60)",
            "the MCP server failed: no answer to initialize within 1 s; its last",
        ),
    ],
)
def test_a_server_that_does_not_speak_mcp_says_why(backend: SandboxBackend, program: str, why: str) -> None:
    with backend.create() as sandbox, pytest.raises(SandboxError, match=why):
        McpSession(sandbox, [sandbox.python, *PYTHON_OPTIONS, "-c", program], timeout_s=1.0)


def test_a_server_that_ends_breaks_the_episode(backend: SandboxBackend) -> None:
    with backend.create() as sandbox:
        session = McpSession(sandbox, [sandbox.python, *PYTHON_OPTIONS, "-c", PROGRAM])
        with pytest.raises(SandboxError, match="the server ended with status 1; its last output: stopped"):
            session.call("stop_server", {})


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        ("", r"an answer to tools/call that is {'jsonrpc.*}; expected an object with 'result', a dict"),
        ("result=5", "'result': 5}; expected an object with 'result', a dict"),
        ("result={}", "a result of tools/call that is {}; expected an object with 'content', a list"),
        ("result={'content': [5]}", "a part of a result that is 5; expected an object with 'type', a str"),
        ("result={'content': [{}]}", "a part of a result that is {}; expected an object with 'type', a str"),
        ("result={'content': [{'type': 'text'}]}", "expected an object with 'text', a str"),
        ("error='no'", "'error': 'no'}; expected an object with 'error', a dict"),
    ],
)
def test_a_malformed_answer_to_a_call_breaks_the_episode(
    backend: SandboxBackend, reply: str, why: str
) -> None:
    answered = "result=text(f\"{json.dumps(params['arguments'])} is note {len(NOTES)}\")"
    with closing(changed(answered, reply)(tasks=TASKS, sandbox=backend)) as env:
        env.reset(seed=0)
        with pytest.raises(SandboxError, match=f"the MCP server sent .*{why}"):
            env.step("add('tea')")


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ('"tools": [ADD]', '"tools": 5', "expected an object with 'tools', a list"),
        ('"tools": [ADD]', '"tools": [{}]', "a tool that is {}; expected an object with 'name', a str"),
        ('"tools": [ADD]', '"tools": [{"name": "a", "inputSchema": 5}]', "with 'inputSchema', a dict"),
        ('say(method="notifications/message",', 'print(5, flush=True); dict(a="",', "it sent 5, expected an"),
    ],
)
def test_a_malformed_list_of_tools_breaks_the_episode(
    backend: SandboxBackend, old: str, new: str, why: str
) -> None:
    with pytest.raises(SandboxError, match=why):
        changed(old, new)(tasks=TASKS, sandbox=backend).reset(seed=0)


class Hinting(Notes):
    """Its server has a tool that tells the word, which it knows in another form."""

    id: ClassVar[str] = "hinting"
    only = ()

    def server(self) -> Sequence[str]:
        turned = str(self.task.hidden["word"])[::-1]
        program = PROGRAM.replace("[SHOW, STOP]", "[SHOW, {'name': 'hint'}]").replace(
            'case "tools/call" if params["name"] == "stop_server":\n            sys.exit("stopped")',
            f'case "tools/call" if params["name"] == "hint":\n'
            f'            say(id=request["id"], result=text("{turned}"[::-1]))',
        )
        return [self.sandbox.python, *PYTHON_OPTIONS, "-c", program]


def test_an_audit_calls_the_servers_tools(backend: SandboxBackend) -> None:
    audited = AuditedEnv(Hinting, TASKS, backend, 3)
    assert [tool.name for tool in audited.tools] == ["add", "show", "hint", "done"]
    with pytest.raises(AuditFailure, match=r"hint.* tell the value of hidden\.word"):
        AUDIT_CHECKS["what is shown depends on nothing hidden"](audited)


def test_random_calls_are_of_the_servers_tools_too(backend: SandboxBackend) -> None:
    [chance] = Notes.baselines
    drawn = [call for seed in range(20) for call in chance.actions(TASKS[0], seed, backend)]
    assert {call.partition("(")[0] for call in drawn} == {"add", "show", "done"}
