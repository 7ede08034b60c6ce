"""The service desk: rewards, a slow or failing service, and its secret token."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.resources
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import envkit.env.wrappers.service
from envkit import EpisodeKey, Outcome, Rollouts, SandboxBackend, SandboxError
from envkit.agents.scripted import ScriptedAgent, oracle
from envkit.audit import certificate
from envkit.audit.leaks.scanner import SandboxScanner
from envkit.audit.suite import EnvSuite
from envkit.env.registry import make, sandbox_backend
from envkit.environments.service_desk import ServiceDeskEnv, service
from envkit.environments.service_desk.tasks import STORE, generate, tickets_of
from envkit.runtime.store import RunFolder, trajectory_to_json

STARTERS = generate("starter")
BY_KIND = {str(task.metadata["source"]).partition(" ")[2]: task for task in STARTERS}
CANARY = "canary-of-a-token-c0ffee"


@pytest.fixture(scope="module", params=["bubblewrap", "docker", "zygote"])
def each_backend(request: pytest.FixtureRequest) -> SandboxBackend:
    return request.getfixturevalue("docker") if request.param == "docker" else sandbox_backend(request.param)


@pytest.fixture
def env(backend: SandboxBackend) -> Iterator[ServiceDeskEnv]:
    made = ServiceDeskEnv(tasks=STARTERS, sandbox=backend, warm_up_s=0.0)
    yield made
    made.close()


def ending(env: ServiceDeskEnv, kind: str, *actions: str) -> tuple[float, str]:
    """Return reward and evidence of an episode with these actions."""
    env.reset(seed=4, options={"task": BY_KIND[kind].id})
    step: Any = None
    for action in actions:
        step = env.step(action)
    assert step[2] or step[3], "the episode has not ended"
    return step[1], step[4]["evidence"]["left_as_asked"]


def service_processes() -> list[int]:
    """Return this process's services: in a sandbox of its own, what its first command has started."""
    found: list[int] = []
    own = len(namespaces(os.getpid()))
    for path in Path("/proc").glob("[0-9]*"):
        process = int(path.name)
        with contextlib.suppress(OSError):
            inner = namespaces(process)
            # In its innermost namespace, 1 is the init process and 2 the command.
            if len(inner) > own and inner[-1] > 2 and os.getpid() in ancestors(process):
                found.append(process)
    return found


def namespaces(process: int) -> list[int]:
    """The process's number in each namespace of processes, the innermost last."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next([*map(int, line.split()[1:])] for line in lines if line.startswith("NSpid:"))


def ancestors(process: int) -> Iterator[int]:
    while process > 1:
        yield (process := parent(process))


def parent(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


# Tasks.


def test_tasks_are_of_three_levels() -> None:
    for split, count in (("train", 120), ("heldout", 72), ("starter", 6)):
        tasks = generate(split)
        assert len(tasks) == count
        assert [task.metadata["level"] for task in tasks[:6]] == [1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_the_oracles_first_action_earns_the_full_reward_and_the_noop_none(
    backend: SandboxBackend, split: str
) -> None:
    tasks = generate(split, 1)[-6:]
    env = ServiceDeskEnv(tasks=tasks, sandbox=backend, max_turns=1, warm_up_s=0.0)
    for task in tasks:
        for action, earned in ((env.oracle(task)[0], 1.0), (env.noop_action, 0.0)):
            env.reset(options={"task": task.id})
            assert env.step(action)[1] == earned, task.id
    env.close()


def test_an_episode_on_every_backend(each_backend: SandboxBackend) -> None:
    env = ServiceDeskEnv(tasks=STARTERS, sandbox=each_backend, max_turns=4)
    seen, _ = env.reset(options={"task": BY_KIND["urgent"].id})
    assert seen.startswith(f"{BY_KIND['urgent'].prompt}\n\nno | state | priority | owner | title\n1 | ")
    assert "assign(tickets: list[int], person: str)  Give open tickets to a person." in seen
    first = tickets_of(BY_KIND["urgent"])[0]
    assert env.step("show(1)")[0].endswith(f" | {first['title']}\n{first['text']}")
    right, done = env.oracle(BY_KIND["urgent"])
    assert env.step(right)[:2][1] == 0.0
    seen, reward, terminated, truncated, info = env.step(done)
    assert (seen, reward, terminated, truncated) == ("The tickets are looked at.", 1.0, True, False)
    assert info["evidence"] == {"left_as_asked": "all 10 tickets are as asked"}
    env.close()


@pytest.mark.parametrize(
    ("action", "seen"),
    [
        ("show(99)", "Not done: there is no ticket 99"),
        ("show(-1)", "Not done: there is nothing at this address"),
        ("search('no such word')", "no | state | priority | owner | title\n(0 tickets)"),
        (f"search({'x' * 101!r})", "a word of 101 characters; expected at most 100"),
        ("search('&word=printer#?/../..')", "no | state | priority | owner | title\n(0 tickets)"),
        ("assign([1], 'Eve')", "Not done: {'owner': 'Eve'} cannot be; people are Ada, Ben, Cleo, Dan"),
        ("assign([], 'Ada')", "no | state | priority | owner | title\n(0 tickets)"),
        ("close_tickets([1, 99])", "Not done: there is no ticket 99"),
        ("close_tickets('all')", "close_tickets: tickets: Input should be a valid list"),
    ],
)
def test_invalid_requests_are_explained(env: ServiceDeskEnv, action: str, seen: str) -> None:
    env.reset(options={"task": STARTERS[0].id})
    assert env.step(action)[0].startswith(seen)
    found = env.step("list_tickets()")[0]
    assert found in env.reset(options={"task": STARTERS[0].id})[0], "something has changed"


def test_search_finds_words_with_any_characters(backend: SandboxBackend) -> None:
    tickets = tickets_of(STARTERS[0])
    tickets[0]["text"] = "Caf\N{LATIN SMALL LETTER E WITH ACUTE} & co: 100% \N{SNOWMAN}?"
    files = {STORE: json.dumps({"people": [], "tickets": tickets})}
    task = dataclasses.replace(STARTERS[0], files=files)
    env = ServiceDeskEnv(tasks=[task], sandbox=backend, warm_up_s=0.0)
    env.reset()
    assert env.step("search('CAF\N{LATIN CAPITAL LETTER E WITH ACUTE} & CO: 100% \N{SNOWMAN}?')")[0].endswith(
        "(1 tickets)"
    )
    env.close()


def test_a_wrong_final_state_is_explained(env: ServiceDeskEnv) -> None:
    [right] = BY_KIND["close one"].hidden["tickets"]  # pyright: ignore[reportGeneralTypeIssues]
    assert ending(env, "close one", f"close_tickets([{right}])", "done") == (
        1.0,
        "all 10 tickets are as asked",
    )
    reward, evidence = ending(env, "close one", "done()")
    assert (reward, evidence[:34]) == (0.0, "1 tickets are wrong; first: found ")
    assert ending(env, "close one", *["list_tickets()"] * 3)[0] == 0.0


def test_exploits_earn_no_reward_on_any_task(backend: SandboxBackend) -> None:
    env = ServiceDeskEnv(tasks=STARTERS, sandbox=backend, warm_up_s=0.0)
    for task in STARTERS:
        for exploit in env.exploits(task):
            env.reset(options={"task": task.id})
            assert [env.step(action)[1] for action in exploit.actions][-1] == 0.0, (task.id, exploit.name)
    env.close()


# The service.


@contextlib.contextmanager
def running(folder: Path) -> Iterator[int]:
    """Run the service on this machine and yield its port."""
    (folder / STORE).write_text(STARTERS[0].files[STORE])
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    argv = [sys.executable, str(service.__file__), STORE, str(port), "0"]
    with subprocess.Popen(argv, cwd=folder, stdin=subprocess.PIPE) as process:
        try:
            assert process.stdin is not None
            process.stdin.write(f"{CANARY}\n".encode())
            process.stdin.close()
            for _ in range(400):
                with contextlib.suppress(OSError):
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                time.sleep(0.05)
            yield port
        finally:
            process.kill()


def request(port: int, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    with contextlib.closing(HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        data = answer.read()
        return answer.status, json.loads(data) if data else None


def test_the_service_requires_its_token_and_listens_on_loopback_only(tmp_path: Path) -> None:
    with running(tmp_path) as port:
        token_header = {"Authorization": f"Bearer {CANARY}"}
        for headers in (
            {},
            {"Authorization": CANARY},
            {"Authorization": "Bearer x"},
            {"Authorization": "\xff"},
        ):
            for method, path in (
                ("GET", "/health"),
                ("GET", "/tickets"),
                ("POST", "/tickets"),
                ("GET", "/x"),
            ):
                refused = request(port, method, path, {}, **headers)
                assert refused == (401, {"error": "the token is missing or wrong"})
        assert request(port, "GET", "/health", **token_header) == (204, None)
        assert request(port, "GET", "/tickets/1", **token_header)[1] == tickets_of(STARTERS[0])[0]
        both = {"numbers": [1], "change": {"owner": "Ada", "state": "closed"}}
        assert request(port, "POST", "/tickets", both, **token_header)[0] == 422
        assert request(port, "GET", "/tickets", **token_header)[1]["tickets"] == tickets_of(STARTERS[0])
        listening = [
            line.split()[1]
            for line in Path("/proc/net/tcp").read_text().splitlines()
            if line.split()[3] == "0A" and line.split()[1].endswith(f":{port:04X}")
        ]
        assert listening == [f"0100007F:{port:04X}"]


# A service that is slow or does not start.


def test_a_slow_start_is_waited_for(backend: SandboxBackend) -> None:
    env = ServiceDeskEnv(tasks=STARTERS, sandbox=backend, warm_up_s=1.0)
    began = time.monotonic()
    env.reset()
    assert time.monotonic() - began >= 1.0
    assert env.step("list_tickets()")[0].endswith("(10 tickets)")
    env.close()


def test_a_service_that_is_not_ready_in_time_makes_the_episode_void(backend: SandboxBackend) -> None:
    def too_slow() -> ServiceDeskEnv:
        return ServiceDeskEnv(tasks=STARTERS, sandbox=backend, warm_up_s=60.125, ready_s=0.5)

    env = too_slow()
    with pytest.raises(SandboxError, match=r"^the service failed: it was not ready in time: .*refused"):
        env.reset()
    assert service_processes() == []
    task = STARTERS[0]
    with Rollouts(too_slow, workers=1) as rollouts:
        [played] = rollouts.play(oracle({task.id: env.oracle(task)}), [EpisodeKey(0, 0, 0, 0, task.id)])
    assert played.outcome is Outcome.VOID
    assert (played.scores, [step.reward for step in played.steps]) == ({}, [])
    assert service_processes() == []


def test_the_error_quotes_the_output_of_a_service_that_ended(backend: SandboxBackend) -> None:
    broken = dataclasses.replace(STARTERS[0], files={STORE: "no JSON"})
    env = ServiceDeskEnv(tasks=[broken], sandbox=backend)
    with pytest.raises(
        SandboxError, match=r"it ended with status 1; its last output: .*JSONDecodeError"
    ) as caught:
        env.reset()
    assert "\n" not in str(caught.value)


def test_a_dead_service_makes_the_episode_void_but_not_the_next(backend: SandboxBackend) -> None:
    env = ServiceDeskEnv(tasks=STARTERS, sandbox=backend, warm_up_s=0.0)
    env.reset()
    [process] = service_processes()
    os.kill(process, signal.SIGKILL)
    with pytest.raises(SandboxError, match="the service failed: "):
        env.step("done()")
    env.reset()
    assert env.step("list_tickets()")[0].endswith("(10 tickets)")
    [process] = service_processes()
    env.close()
    assert service_processes() == [], "it has outlived its sandbox"


@pytest.fixture
def other_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of a file that replaces the real service."""
    source = Path(str(service.__file__))
    launcher = Path(str(envkit.env.wrappers.service.__file__)).with_name("guest_launcher.py")
    (tmp_path / launcher.name).write_text(launcher.read_text())
    (tmp_path / "service.py").write_text(source.read_text())
    monkeypatch.setattr(importlib.resources, "files", lambda _: tmp_path)
    return tmp_path / "service.py"


def test_another_listener_is_not_taken_for_the_service(backend: SandboxBackend, other_service: Path) -> None:
    stranger = other_service.read_text().replace("readline().strip()", "readline().strip()[::-1]")
    other_service.write_text(stranger)
    env = ServiceDeskEnv(tasks=STARTERS, sandbox=backend, ready_s=1.0)
    with pytest.raises(SandboxError, match="not ready in time: it answers with status 401"):
        env.reset()


# The token.


SAYS_AT_ITS_END = "sys.exit(token + 'x' * {})"
SAYS_AS_AN_ANSWER = """
import socket
with socket.create_server(("127.0.0.1", int(sys.argv[2]))) as server:
    while True:
        client, _ = server.accept()
        client.recv(9999)
        client.sendall(token.encode() + b"\\r\\n\\r\\n")
        client.close()
"""


@pytest.mark.parametrize(
    "does", [SAYS_AS_AN_ANSWER, *(SAYS_AT_ITS_END.format(count) for count in (0, 478, 490, 600))]
)
def test_a_token_in_the_services_output_is_removed(
    backend: SandboxBackend, other_service: Path, monkeypatch: pytest.MonkeyPatch, does: str
) -> None:
    monkeypatch.setattr(envkit.env.wrappers.service, "secrets", SimpleNamespace(token_hex=lambda _: CANARY))
    other_service.write_text(f"import sys; token = sys.stdin.readline().strip(); {does.lstrip()}")
    # Only what answers needs the time to start, which may be long on a busy machine.
    ready_s = 5.0 if does == SAYS_AS_AN_ANSWER else 1.0
    with pytest.raises(SandboxError) as caught:
        ServiceDeskEnv(tasks=STARTERS, sandbox=backend, ready_s=ready_s).reset()
    if does == SAYS_AS_AN_ANSWER:
        assert "not ready in time: [token]" in str(caught.value)
    assert not [CANARY[i : i + 6] for i in range(len(CANARY) - 5) if CANARY[i : i + 6] in str(caught.value)]


def test_each_episode_has_a_token_of_its_own(
    backend: SandboxBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    genuine = envkit.env.wrappers.service.secrets.token_hex
    noting = SimpleNamespace(token_hex=lambda size: made.append(genuine(size)) or made[-1])
    monkeypatch.setattr(envkit.env.wrappers.service, "secrets", noting)
    env = ServiceDeskEnv(tasks=STARTERS, sandbox=backend, warm_up_s=0.0)
    for _ in range(2):
        env.reset(seed=1)
    env.close()
    assert len({*made}) == 2
    assert {len(token) for token in made} == {32}


def test_the_token_is_visible_to_no_other_program(
    backend: SandboxBackend,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A known token is searched for in all outputs, files and processes of an episode."""
    monkeypatch.setattr(envkit.env.wrappers.service, "secrets", SimpleNamespace(token_hex=lambda _: CANARY))
    caplog.set_level(logging.DEBUG)
    tools = ["list_tickets()", "search('token')", "show(1)", "assign([1], 'Eve')", "show(2 / 0)", "done()"]
    agent = ScriptedAgent("asks all", lambda key, turn, observation: tools[turn])
    seen: list[str] = []
    env = ServiceDeskEnv(tasks=STARTERS, sandbox=backend, max_turns=9, render_mode="ansi")
    observation, info = env.reset(seed=1)
    seen += [observation, repr(info), repr(env), repr(vars(env)), str(env.render())]
    files = env.sandbox.export(["**"], 2**24)
    assert [*files] == [STORE]
    seen += [data.decode() for data in files.values()]
    programs = service_processes()
    assert programs, "the service is not where it was looked for"
    for process in (programs[0], parent(programs[0])):
        for name in ("cmdline", "environ"):
            with contextlib.suppress(PermissionError):
                seen.append(Path(f"/proc/{process}/{name}").read_bytes().decode(errors="replace"))
    env.close()
    with Rollouts(
        lambda: ServiceDeskEnv(tasks=STARTERS, sandbox=backend, max_turns=9), workers=1
    ) as rollouts:
        [played] = rollouts.play(agent, [EpisodeKey(0, 0, 0, 0, STARTERS[0].id)])
    assert len(played.steps) == len(tools)
    folder = RunFolder.create(tmp_path, "play", {})
    with folder.journal("trajectories") as journal:
        journal.append(trajectory_to_json(played))
    seen += [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    out, err = capfd.readouterr()
    seen += [repr(played), out, err, caplog.text]
    assert [text for text in seen if CANARY in text] == []


def test_the_token_reaches_launcher_and_service(
    backend: SandboxBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A control: the search finds the token in the service's memory, and in no command line or file."""
    monkeypatch.setattr(envkit.env.wrappers.service, "secrets", SimpleNamespace(token_hex=lambda _: CANARY))
    with backend.create() as sandbox:
        sandbox.write(STORE, STARTERS[0].files[STORE].encode())
        scanner = SandboxScanner(sandbox)
        sandbox.open = scanner.open  # pyright: ignore[reportAttributeAccessIssue]
        program = Path(str(service.__file__)).read_text()
        argv = [sandbox.python, "-c", program, STORE, "8000", "0.0"]
        envkit.env.wrappers.service.Service(sandbox, argv, ready_path="/health", with_token=True)
        assert {way for way, data in scanner.inputs if CANARY.encode() in data} == {"a request to a program"}
        scanner.inputs.clear()
        [(_, place)] = scanner.find([CANARY.encode()]).items()
        assert place.startswith("the memory of process ")


# As a whole.


def test_the_environment_is_made_by_its_name(backend: SandboxBackend) -> None:
    env = make("service-desk", sandbox=backend, warm_up_s=0.0)
    assert isinstance(env, ServiceDeskEnv)
    assert env.isolation == "sandbox"


class TestServiceDesk(EnvSuite):
    kind = ServiceDeskEnv


def test_the_shipped_certificate_is_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a change: envkit audit service-desk -o environments/service_desk/certificate.json."""
    monkeypatch.setattr(certificate, "cache_dir", lambda: tmp_path)
    assert certificate.certificate_problem(ServiceDeskEnv) == ""
