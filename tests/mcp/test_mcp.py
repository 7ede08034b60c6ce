"""Environments whose tools are an MCP server's: discovery, calls, mistakes and servers that fail."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import pytest
from notes_env import PROGRAM, TASKS, Notes

from envkit import ContractError, Env, SandboxBackend, SandboxError
from envkit.audit.audited_env import AuditedEnv, AuditFailure
from envkit.audit.runner import AUDIT_CHECKS
from envkit.audit.suite import EnvSuite
from envkit.mcp import McpSession
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


def test_a_tool_with_a_name_of_the_environment_is_refused(backend: SandboxBackend) -> None:
    class Clash(Notes):
        def server(self) -> Sequence[str]:
            program = PROGRAM.replace('"name": "show"', '"name": "reset"')
            return [self.sandbox.python, *PYTHON_OPTIONS, "-c", program]

        only = ("reset",)

    with pytest.raises(ContractError, match="the MCP server's tool 'reset' cannot be called by that name"):
        Clash(tasks=TASKS, sandbox=backend).reset(seed=0)


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("raise SystemExit('no token')", "the server ended with status 1; its last output: no token"),
        ("print('Welcome!', flush=True); input(); input()", "the MCP server failed: Expecting value"),
        ("input(); import time; time.sleep(60)", "the MCP server failed: .*did not answer within 1 s"),
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
