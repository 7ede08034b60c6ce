"""Harnesses: programs that ask a model in a sandbox, whose files the environment's own checks grade."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import tiny
from api_playing import KEY, Playing
from api_server import Api, Say, completion

from envkit import Env, Task, check
from envkit.agents.local import LocalAgent
from envkit.agents.scripted import ScriptedAgent
from envkit.engine.chat import ChatRenderer
from envkit.engine.protocol import Completion, Engine, Request, Sampling
from envkit.env.authored import ActionResult
from envkit.env.harness import Harness, harnessed
from envkit.env.harness.chats import read_request
from envkit.env.harness.relay import Ended, HttpAnswer, HttpRequest, Relay
from envkit.environments.sql_desk.env import SqlDeskEnv
from envkit.errors import ConfigError, ContractError, UsageError
from envkit.rollout import Rollouts
from envkit.runtime.stop import ShouldStop, never
from envkit.sandbox import ExecResult, Limits, SandboxBackend, StopReason
from envkit.sandbox.choice import sandbox_backend
from envkit.training.learner.packing import training_row
from envkit.types import EpisodeKey, Outcome, Tokens

#: Asks a model, with the standard library alone.
ASK = """
import http.client, json, os, sys, urllib.request, urllib.error
def ask(path="/chat/completions", **body):
    data = json.dumps({"model": "policy", **body}).encode() if body else None
    url, headers = os.environ["OPENAI_BASE_URL"] + path, {"Content-Type": "application/json"}
    request = urllib.request.Request(url, data, headers)
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.read().decode()
    except urllib.error.HTTPError as error:
        return str(error.code) + error.read().decode()
def chat(*texts, **options):
    roles = ("user", "assistant") * len(texts)
    messages = [{"role": role, "content": text} for role, text in zip(roles, texts)]
    return json.loads(ask(messages=messages, **options))["choices"][0]["message"]
"""
#: Runs what the model says, turn after turn.
OBEY = f"""{ASK}
said = [sys.argv[1]]
while True:
    said.append(chat(*said)["content"])
    exec(said[-1])
    said.append("done")
"""


class Words(Env):
    """Write a word into a file."""

    id = "words"

    @classmethod
    def make_task(cls, split: str, number: int, draw: Any) -> Task:
        word = f"word{number}"
        return Task(f"{split}/{number}", split, f"Write {word} into word.txt.", {}, hidden={"word": word})

    def setup(self, task: Task) -> str:
        return f"{task.prompt} Answer with the word."

    def apply(self, action: str) -> ActionResult:
        self.sandbox.write("word.txt", action.encode())
        return ActionResult("Written.", done=True)

    @check()
    def is_written(self) -> bool:
        return self.sandbox.read("word.txt", 100).decode() == self.task.hidden["word"]


@pytest.fixture(scope="module")
def backend() -> SandboxBackend:
    return sandbox_backend()


@pytest.fixture
def play(backend: SandboxBackend) -> Iterator[Callable[..., Any]]:
    """Make an environment that a program plays, and begin an episode."""
    made: list[Env] = []

    def begin(program: str | tuple[str, ...], **options: Any) -> tuple[Env, dict[str, Any]]:
        command = ("python3", "-c", program, "{prompt}") if isinstance(program, str) else program
        kind = harnessed(Words, Harness("test", command, **options))
        env = kind(tasks=kind.tasks_of("train", backend), sandbox=backend)
        made.append(env)
        seen, _ = env.reset(seed=0, options={"task": "train/3"})
        return env, json.loads(seen)

    yield begin
    for env in made:
        env.close()


def test_a_program_asks_works_and_is_graded_by_its_files(play: Callable[..., Any]) -> None:
    env, seen = play(OBEY)
    assert seen == {"messages": [{"role": "user", "content": "Write word3 into word.txt."}]}
    seen, reward, ended, truncated, _ = env.step("open('word.txt', 'w').write('other')")
    assert (reward, ended, truncated) == (0.0, False, False)
    assert [message["role"] for message in json.loads(seen)["messages"]] == ["user", "assistant", "user"]
    seen, reward, ended, _, info = env.step("open('word.txt', 'w').write('word3'); sys.exit()")
    assert (seen, reward, ended, info["solved"]) == ("it ended with status 0", 1.0, True, True)


def test_an_episode_ends_after_the_last_request_and_the_last_answer_counts(play: Callable[..., Any]) -> None:
    env, _ = play(OBEY, max_calls=2)
    env.step("pass")
    _, reward, ended, truncated, _ = env.step("open('word.txt', 'w').write('word3')")
    assert (reward, ended, truncated) == (1.0, False, True)


@pytest.mark.parametrize(
    "end", ["sys.exit(3)", "1/0", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"]
)
def test_a_program_that_fails_is_graded_as_it_leaves_the_files(play: Callable[..., Any], end: str) -> None:
    env, _ = play(OBEY)
    _, reward, ended, _, _ = env.step(f"open('word.txt', 'w').write('word3'); {end}")
    assert (reward, ended) == (1.0, True)


def test_nothing_of_the_program_runs_while_files_are_graded(backend: SandboxBackend) -> None:
    class Still(Words):
        id = "still"

        @check()
        def is_written(self) -> bool:
            first = self.sandbox.read("word.txt", 2**20)
            time.sleep(0.3)
            return self.sandbox.read("word.txt", 2**20) == first != b""

    writes = "import subprocess, time; subprocess.Popen(['sh', '-c', 'while :; do echo >> word.txt; done'])"
    writes += "; time.sleep(0.2)"
    for calls, end in ((9, "; sys.exit()"), (1, "")):  # the program ends, or has asked often enough
        kind = harnessed(Still, Harness("test", ("python3", "-c", OBEY, "{prompt}"), max_calls=calls))
        with closing(kind(tasks=kind.tasks_of("train", backend), sandbox=backend)) as env:
            env.reset(seed=0)
            _, reward, *_ = env.step(writes + end)
            assert reward == 1.0


def test_a_silent_program_ends_the_episode(play: Callable[..., Any]) -> None:
    env, _ = play(OBEY, timeout_s=1.0)
    seen, reward, ended, _, _ = env.step("import time; time.sleep(60)")
    assert (reward, ended) == (0.0, True)
    assert seen == "it asked no model within 1 s"


def test_time_in_which_the_model_answers_does_not_count(
    play: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    env, _ = play(OBEY)
    clock = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: clock() + 24 * 3600)
    _, reward, *_ = env.step("open('word.txt', 'w').write('word3'); sys.exit()")
    assert reward == 1.0


def test_a_client_that_asks_again_gets_the_answer_that_came_too_late(play: Callable[..., Any]) -> None:
    program = f"""{ASK}
import http.client, pathlib, time
body = json.dumps({{"model": "policy", "messages": [{{"role": "user", "content": "a"}}]}})
def send():
    connection = http.client.HTTPConnection("127.0.0.1", 8000)
    connection.request("POST", "/v1/chat/completions", body)
    return connection
first = send()
while not os.path.exists("asked"):
    time.sleep(0.01)
first.close()
send().close()
open("gone", "w")
said = json.load(send().getresponse())["choices"][0]["message"]["content"]
open("word.txt", "w").write(said + chat("and now?")["content"])
"""
    env, _ = play(program)
    env.sandbox.write("asked", b"")
    while "gone" not in env.sandbox.export(["gone"], 1):
        time.sleep(0.01)
    seen, _, ended, *_ = env.step("wor")
    assert not ended
    assert json.loads(seen)["messages"] == [{"role": "user", "content": "and now?"}]
    _, reward, ended, *_ = env.step("d3")
    assert (reward, ended) == (1.0, True)


def module(code: str) -> tuple[str, ...]:
    """A command of the form ``python3 -m MODULE`` that runs code."""
    return ("python3", "-m", "timeit", "-n1", "-r1", f"exec({code!r}, {{}})")


@pytest.mark.parametrize(("end", "status"), [("", 0), ("1/0", 1)])
def test_a_module_ends_as_in_an_interpreter_of_its_own(
    play: Callable[..., Any], end: str, status: int
) -> None:
    """Its threads and what it registered with `atexit` have run."""
    code = f"""{ASK}
import atexit, threading, time
chat("a")
def write(text):
    open("word.txt", "a").write(text)
atexit.register(write, "d3")
threading.Thread(target=lambda: (time.sleep(0.2), write("wor"))).start()
{end}
"""
    env, _ = play(module(code))
    seen, reward, *_ = env.step("go on")
    assert (seen, reward) == (f"it ended with status {status}", 1.0)


@pytest.mark.parametrize(
    ("then", "limits", "words"),
    [
        ("import time; time.sleep(60)", {"timeout_s": 2.0}, "it asked no model within 2 s"),
        ("while True: pass", {"cpu_s": 0.5}, "it exceeded its cpu limit"),
        # Without a control group, the program gets a `MemoryError`.
        (
            "all = [' ' * 2**20 for _ in range(900)]",
            {"memory_mb": 200},
            "it exceeded its memory limit|it ended with status 1",
        ),
        ("while True: print('Are you sure?' * 9999)", {}, "it exceeded its output limit"),
    ],
    ids=["time", "cpu", "memory", "output"],
)
def test_what_a_program_printed_before_it_was_ended_is_told(
    play: Callable[..., Any], then: str, limits: dict[str, float], words: str
) -> None:
    asked = rf"asked no model: ({words}); its last output: .*Are you sure\?"
    with pytest.raises(ContractError, match=asked):
        play(module(f"print('Are you sure?')\n{then}"), **limits)


@pytest.mark.parametrize("name", ["zygote", "bubblewrap"])
@pytest.mark.parametrize(("file", "mode"), [("fd/1", "wb"), ("mem", "r+b")])
def test_a_program_cannot_write_in_place_of_its_relay(name: str, file: str, mode: str) -> None:
    kind = harnessed(Words, Harness("test", ("python3", "-c", OBEY, "{prompt}")))
    isolated = sandbox_backend(name)
    with closing(kind(tasks=kind.tasks_of("train", isolated), sandbox=isolated)) as env:
        env.reset(seed=0)
        seen, *_ = env.step(f"""
try: found = open("/proc/" + str(os.getppid()) + "/{file}", "{mode}", 0)
except OSError as error: found = error
chat(repr(found))
""")
    assert json.loads(seen)["messages"][0]["content"] == "PermissionError(13, 'Permission denied')"


class OddSandbox(tiny.MemorySandbox):
    """Its programs answer with one line, whatever they are asked."""

    def __init__(self, line: bytes) -> None:
        super().__init__()
        self.line, self.closed = line, False

    def open(self, argv: Sequence[str], *, limits: Limits = Limits()) -> Any:
        return self

    def ask(self, line: bytes, timeout_s: float) -> bytes:
        return self.line

    def close(self) -> Any:
        self.closed = True
        return ExecResult(StopReason.SIGNALED, None, b"", b"", False, 0.0, 0.0)


@pytest.mark.parametrize("line", [b"no JSON", b"[]", b"7", b'{"ended": 0}', b'{"method": 1}', b"\xff"])
def test_a_line_that_no_relay_writes_ends_the_harness(line: bytes) -> None:
    sandbox = OddSandbox(line)
    relay = Relay(sandbox, Harness("test", ("run",)), "prompt")  # pyright: ignore[reportArgumentType]
    assert isinstance(relay.event, Ended)
    assert sandbox.closed


def test_a_program_that_asks_nothing_is_a_fault_of_the_setup(play: Callable[..., Any]) -> None:
    with pytest.raises(
        ContractError, match=r"harness test asked no model: it ended with status 1; .*No module"
    ):
        play("import nothing_of_the_kind")
    with pytest.raises(ContractError, match="its last output: Hm"):
        play("open('/dev/stderr', 'w').write('Hm')")
    kind = harnessed(Words, Harness("absent", ("no-such-program",)))
    env = kind(tasks=kind.tasks_of("train"), sandbox=sandbox_backend())
    with closing(env), pytest.raises(ContractError, match="no-such-program cannot be started"):
        env.reset(seed=0)


def test_streams_stops_and_tools_are_answered_in_openais_form(play: Callable[..., Any]) -> None:
    program = f"""{ASK}
tool = {{"type": "function", "function": {{"name": "add", "parameters": {{"type": "object"}}}}}}
messages, options = [{{"role": "user", "content": "a"}}], {{"include_usage": True}}
open("0", "w").write(ask(messages=messages, stream=True, stream_options=options))
open("1", "w").write(json.dumps(chat("b", stop=["end>", "<end>"])))
open("2", "w").write(json.dumps(chat("c", tools=[tool])))
chat("last")
"""
    env, seen = play(program)
    assert "tools" not in seen
    env.step("x y")
    events = env.sandbox.read("0", 10_000).decode().split("\n\n")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    assert events[-2:] == ["data: [DONE]", ""]
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"]) == "x y"
    assert "usage" in chunks[-1]
    seen, *_ = env.step("said <end> more")
    assert json.loads(env.sandbox.read("1", 1000))["content"] == "said "
    assert json.loads(seen)["tools"][0]["function"]["name"] == "add"
    env.step('<tool_call>\n{"name": "add", "arguments": {"n": 1}}\n</tool_call>')
    [call] = json.loads(env.sandbox.read("2", 1000))["tool_calls"]
    assert call["function"] == {"name": "add", "arguments": '{"n": 1}'}


def test_a_program_that_is_answered_the_same_reads_the_same(play: Callable[..., Any]) -> None:
    program = f"""{ASK}
tool = {{"type": "function", "function": {{"name": "add", "parameters": {{"type": "object"}}}}}}
asked = [{{"role": "user", "content": "a"}}]
for number in range(2):
    open(str(number), "w").write(ask(messages=asked, tools=[tool], stream=bool(number)))
chat("last")
"""
    call = '<tool_call>\n{"name": "add", "arguments": {}}\n</tool_call>'
    read: list[list[bytes]] = []
    for _ in range(2):
        env, _ = play(program)
        env.step(call * 2)
        env.step(call)
        read.append([env.sandbox.read(name, 10_000) for name in "01"])
    assert read[0] == read[1]
    ids = [each["id"] for each in json.loads(read[0][0])["choices"][0]["message"]["tool_calls"]]
    assert len({*ids}) == 2
    assert not any(name.encode() in read[0][1] for name in ids)


def test_requests_that_no_model_answers_are_answered_at_once(play: Callable[..., Any]) -> None:
    program = f"""{ASK}
open("0", "w").write(ask("/models"))
open("1", "w").write(ask("/embeddings", input="x"))
open("2", "w").write(ask(messages=[]))
open("3", "w").write(ask(messages=[{{"role": "user", "content": "a"}}], n=2))
open("4", "w").write(ask(messages=[{{"role": "user", "content": "a"}}], temperature="hot"))
open("5", "w").write(ask(messages=[{{"role": "user", "content": "a" * (4 * 2**20)}}]))
chat("last")
"""
    env, seen = play(program)
    assert seen["messages"][-1]["content"] == "last"
    found = [env.sandbox.read(str(number), 10_000).decode() for number in range(6)]
    assert json.loads(found[0])["data"][0]["id"] == "policy"
    assert [text[:3] for text in found[1:]] == ["404", "400", "400", "400", "413"]
    assert "temperature" in json.loads(found[4][3:])["error"]["message"]


def test_a_body_that_comes_in_chunks_is_read(play: Callable[..., Any]) -> None:
    program = f"""{ASK}
connection = http.client.HTTPConnection(os.environ["OPENAI_BASE_URL"].split("/")[2])
for number in range(2):
    data = json.dumps({{"model": "policy", "messages": [{{"role": "user", "content": f"é{{number}}"}}]}})
    connection.request("POST", "/v1/chat/completions", body=iter([data[:9].encode(), data[9:].encode()]))
    answer = json.load(connection.getresponse())
    open(str(number), "w").write(answer["choices"][0]["message"]["content"])
chat("last")
"""
    env, seen = play(program)
    assert seen["messages"][-1]["content"] == "é0"
    seen, *_ = env.step("one")
    assert json.loads(seen)["messages"][-1]["content"] == "é1"
    env.step("two")
    assert [env.sandbox.read(name, 100) for name in "01"] == [b"one", b"two"]


@pytest.mark.parametrize(
    "arguments",
    [
        '{"a": "\\ud800"}',
        '{"a": NaN}',
        '{"a":' * 990 + "1" + "}" * 990,
        '{"a":' * 800 + "1" + "}" * 800,  # which Python reads here, but not within many calls
        "{",
    ],
)
def test_a_tool_call_whose_arguments_cannot_be_read_is_refused(arguments: str) -> None:
    call = {"id": "a", "type": "function", "function": {"name": "add", "arguments": arguments}}
    body = {"model": "policy", "messages": [{"role": "assistant", "tool_calls": [call]}]}
    found = read_request(HttpRequest("POST", "/v1/chat/completions", json.dumps(body)), 0)
    assert isinstance(found, HttpAnswer)
    assert (found.status, "arguments" in found.body) == (400, True)


@pytest.mark.parametrize("number", ["NaN", "1e999", "-Infinity"])
def test_a_number_that_json_has_not_is_refused(number: str) -> None:
    """The client of an API would not send it."""
    function = f'{{"name": "add", "parameters": {{"n": {number}}}}}'
    body = (
        '{"model": "policy", "messages": [{"role": "user", "content": "a"}], '
        f'"tools": [{{"type": "function", "function": {function}}}]}}'
    )
    found = read_request(HttpRequest("POST", "/v1/chat/completions", body), 0)
    assert isinstance(found, HttpAnswer)
    assert (found.status, "JSON compliant" in found.body) == (400, True)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ('{"model": "policy", "messages": [{"role": "user", "content": {}}]}', "messages.0.content: "),
        ("{", "Invalid JSON"),
    ],
)
def test_a_refusal_names_the_field_as_the_program_wrote_it(body: str, words: str) -> None:
    found = read_request(HttpRequest("POST", "/v1/chat/completions", body), 0)
    assert isinstance(found, HttpAnswer)
    assert found.status == 400
    assert json.loads(found.body)["error"]["message"].startswith(words)


def test_a_program_that_asks_no_model_again_ends_the_episode(play: Callable[..., Any]) -> None:
    env, _ = play(OBEY)
    seen, reward, ended, *_ = env.step("while True: ask('/models')")
    assert (seen, reward, ended) == ("it sent 50 requests that no model answers", 0.0, True)


def test_requests_that_no_model_answers_do_not_lengthen_a_turn(play: Callable[..., Any]) -> None:
    env, _ = play(OBEY, timeout_s=1.5)
    began_s = time.monotonic()
    seen, _, ended, *_ = env.step("import time\nwhile True: time.sleep(1); ask('/models')")
    assert (seen, ended) == ("it asked no model within 1.5 s", True)
    assert time.monotonic() - began_s < 10


class Says(Engine):
    """Answers each row with a text of its own. Its model reads chats of fewer than 1,000 tokens."""

    longest = 1000

    def __init__(self, renderer: ChatRenderer, texts: Sequence[str]) -> None:
        self._answers = [renderer.answer(text) for text in texts]

    def stream(
        self, requests: Sequence[Request], sampling: Sampling, should_stop: ShouldStop = never
    ) -> Iterator[tuple[int, Completion]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        for index, request in enumerate(requests):
            ids = self._answers[request.rng_key[3]]
            yield index, Completion(ids, (0.0,) * len(ids), "stop")


def test_a_chat_that_the_model_cannot_read_has_an_empty_answer(backend: SandboxBackend) -> None:
    renderer = ChatRenderer(tiny.tokenizer())
    write = "open('word.txt', 'w').write('word3')"
    engine = Says(renderer, ["import sys; sys.exit()", f"{write}; print(chat('a' * 20_000)); sys.exit()"])
    agent = LocalAgent("model", engine, renderer, Sampling(1.0, 64), max_turns=8)
    kind = harnessed(Words, Harness("test", ("python3", "-c", OBEY, "{prompt}")))
    tasks = kind.tasks_of("train", backend)
    with Rollouts(lambda: kind(tasks=tasks, sandbox=backend)) as rollouts:
        keys = [EpisodeKey(0, 0, 0, row, "train/3") for row in (0, 1)]
        ended, long = rollouts.play(agent, keys)
    assert (ended.outcome, long.outcome) == (Outcome.FAILED, Outcome.SOLVED)
    first, last = (step.turn for step in long.steps)
    assert (last.text, last.tokens, last.stop) == ("", Tokens((), (), ()), "length")
    assert first.tokens is not None
    row = training_row(long, [1.0, 1.0])  # nothing was drawn, so nothing is learned
    assert row.ids == first.tokens.completion_ids


def test_requests_that_come_together_wait_for_each_other(play: Callable[..., Any]) -> None:
    program = f"""{ASK}
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor() as pool:
    found = [*pool.map(lambda n: chat(str(n))["content"], range(4))]
open("word.txt", "w").write("word3" if found == [f"so {{n}}" for n in range(4)] else str(found))
"""
    env, seen = play(program)
    reward, ended = 0.0, False
    while not ended:
        text, reward, ended, *_ = env.step(f"so {seen['messages'][0]['content']}")
        seen = {} if ended else json.loads(text)
    assert reward == 1.0


def test_an_agent_without_chats_is_refused(backend: SandboxBackend) -> None:
    kind = harnessed(Words, Harness("test", ("python3", "-c", OBEY, "{prompt}")))
    tasks = kind.tasks_of("train", backend)
    agent = ScriptedAgent("script", lambda key, turn, seen: "x")
    with (
        Rollouts(lambda: kind(tasks=tasks, sandbox=backend)) as rollouts,
        pytest.raises(UsageError, match="agent script cannot answer the chats of a harness"),
    ):
        rollouts.play(agent, [EpisodeKey(0, 0, 0, 0, tasks[0].id)])


def test_an_api_plays_a_harness(
    backend: SandboxBackend, serve: Callable[[Say], Api], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_API_KEY", KEY)
    api = serve(lambda body, n: completion("open('word.txt', 'w').write('word3'); sys.exit()"))
    kind = harnessed(Words, Harness("test", ("python3", "-c", OBEY, "{prompt}")))
    tasks = kind.tasks_of("train", backend)
    with (
        Playing(tmp_path / "calls.jsonl")(api.url) as agent,
        Rollouts(lambda: kind(tasks=tasks, sandbox=backend)) as rollouts,
    ):
        [played] = rollouts.play(agent, [EpisodeKey(0, 0, 0, 0, "train/3")])
    assert played.reward == 1.0
    assert api.asked[0]["messages"] == [{"role": "user", "content": "Write word3 into word.txt."}]


def test_an_environment_with_tools_is_refused() -> None:
    with pytest.raises(ConfigError, match="sql-desk is played by tools; harness test works on the files"):
        harnessed(SqlDeskEnv, Harness("test", ("true",)))
