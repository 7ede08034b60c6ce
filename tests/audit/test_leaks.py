"""Hidden values in what a sandbox holds: each way in is found and named, and what is no leak is none."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import random
import re
import subprocess
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, final

import pytest
from echo_env import Echo

from envkit import (
    ActionResult,
    Limits,
    PeerGone,
    Sandbox,
    SandboxBackend,
    SandboxError,
    StopReason,
    Task,
    tool,
)
from envkit.audit.leaks import decompress, scanner
from envkit.audit.leaks.decompress import decompressed
from envkit.audit.leaks.scanner import SandboxScanner
from envkit.audit.runner import AUDIT_CHECKS, AuditedEnv, AuditFailure, NotApplicable
from envkit.sandbox import Contents
from envkit.sandbox.choice import sandbox_backend
from envkit.sandboxes.process import ProcessBackend


@pytest.fixture(scope="module", params=["bubblewrap", "docker", "zygote"])
def each_backend(request: pytest.FixtureRequest) -> SandboxBackend:
    return request.getfixturevalue("docker") if request.param == "docker" else sandbox_backend(request.param)


def looked_at(kind: type[Echo], backend: SandboxBackend) -> str:
    """What the audit says of hidden values."""
    subject = AuditedEnv(kind, kind.make_tasks("starter")[:1], backend, 3)
    try:
        return AUDIT_CHECKS["hidden values do not leak"](subject)
    except AuditFailure as fault:
        return str(fault)


class Keeping(Echo):
    """Keeps a program running, which is told what is hidden so that it takes a program to read it."""

    #: What the program does with it: bytes in `said`, or the buffer `decoded`. This one overwrites that,
    #: because memory that is only freed may still hold it.
    does: ClassVar[str] = "decoded[:] = bytes(len(decoded))"

    def setup(self, task: Task) -> str:
        first = super().setup(task)
        said = "said = bytes(decoded)\n" if "said" in self.does else ""
        self.peer = self.sandbox.open(
            [self.sandbox.python, "-c", f"{_BEGIN}{said}{self.does}{_ANSWER}", hidden(task).hex()]
        )
        assert self.peer.ask(b"are you there", 20) == b"ok"
        return first


_BEGIN = """
import ctypes, os, subprocess, sys
decoded = bytearray.fromhex(sys.argv[1])
for at in range(len(decoded)): decoded[at] ^= 1
"""
_ANSWER = """
for line in sys.stdin:
    print("ok", flush=True)
"""
_WAITS = "for line in __import__('sys').stdin: print('ok', flush=True)"


def hidden(task: Task) -> bytes:
    """What is hidden, scrambled."""
    return bytes(byte ^ 1 for byte in str(task.hidden["said"]).encode())


class InMemory(Keeping):
    does = "kept = [said + b'!']"


class InWideMemory(Keeping):
    does = "kept = said.decode() + chr(0x2603); del said"


class InCommandLine(Keeping):
    does = f"os.execv(sys.executable, [sys.executable, '-c', {_WAITS!r}, said])"


class InEnvironment(Keeping):
    does = f"os.execve(sys.executable, [sys.executable, '-c', {_WAITS!r}], {{'SAID': said}})"


class InOpenFile(Keeping):
    does = f"""
with open('/tmp/notes', 'wb+') as file: file.write(said)
os.dup2(os.open('/tmp/notes', os.O_RDONLY), 9)
os.unlink('/tmp/notes')
os.set_inheritable(9, True)
os.execv(sys.executable, [sys.executable, '-c', {_WAITS!r}])
"""


class InScratchFile(Keeping):
    does = f"""
with open('/tmp/notes', 'wb') as file: file.write(said)
os.execv(sys.executable, [sys.executable, '-c', {_WAITS!r}])
"""


class InFileName(Keeping):
    does = f"""
os.mkdir(b'/tmp/' + said)
open(b'/tmp/' + said + b'/' + said, 'w').close()
os.execv(sys.executable, [sys.executable, '-c', {_WAITS!r}])
"""


class AfterAnAction(Keeping):
    """The program learns it late."""

    @tool
    def say(self, words: str) -> str:
        """Say some words."""
        self.peer.ask(self.task.hidden["said"].encode(), 20)  # pyright: ignore[reportAttributeAccessIssue]
        return super().say(words)


class InArgument(Echo):
    def setup(self, task: Task) -> str:
        self.sandbox.run([self.sandbox.python, "-c", "pass", str(task.hidden["said"])])
        return super().setup(task)


class InInput(Echo):
    def setup(self, task: Task) -> str:
        self.sandbox.run([self.sandbox.python, "-c", "pass"], stdin=str(task.hidden["said"]).encode())
        return super().setup(task)


class InHistory(Echo):
    """An object as git writes it, of a commit before the present one."""

    def setup(self, task: Task) -> str:
        blob = f"blob {len(str(task.hidden['said']))}\0{task.hidden['said']}".encode()
        name = hashlib.sha1(blob).hexdigest()
        self.sandbox.write(f".git/objects/{name[:2]}/{name[2:]}", zlib.compress(blob))
        return super().setup(task)


SABOTAGED: Mapping[type[Echo], str] = {
    InMemory: r"the memory of process \d+, python",
    InWideMemory: r"the memory of process \d+, python",
    InCommandLine: r"the command line of process \d+, python",
    InEnvironment: r"the environment of process \d+, python",
    InOpenFile: r"an open file of process \d+, python",
    InScratchFile: r"the file /tmp/notes",
    InFileName: r"the name of a file",
    AfterAnAction: r"a request to a program",
    InArgument: r"the command line of a program",
    InInput: r"the standard input of a program",
    InHistory: r"the git history in the workspace's \.git/objects/",
}


@pytest.mark.parametrize("kind", SABOTAGED, ids=lambda kind: kind.__name__)
def test_each_way_in_is_found_and_named(kind: type[Echo], backend: SandboxBackend) -> None:
    task = kind.make_tasks("starter")[0]
    said, start = (
        looked_at(kind, backend),
        f"task {task.id}: the hidden value {task.hidden['said']!r} can be ",
    )
    assert said.startswith(start)
    assert re.match(f"read in {SABOTAGED[kind]}", said.removeprefix(start)), said


@pytest.mark.parametrize("kind", [InMemory, InEnvironment, InScratchFile], ids=lambda kind: kind.__name__)
def test_wherever_it_runs(kind: type[Echo], each_backend: SandboxBackend) -> None:
    assert re.search(SABOTAGED[kind], looked_at(kind, each_backend))


class InUnreadableMemory(Keeping):
    """Lets no program of the same user look inside: ``PR_SET_DUMPABLE``."""

    does = "kept = [said]; assert ctypes.CDLL(None).prctl(4, 0, 0, 0, 0) == 0"


class Brief(Keeping):
    """The program has ended by the time somebody looks."""

    def setup(self, task: Task) -> str:
        first = super().setup(task)
        self.sandbox.open([self.sandbox.python, "-c", "pass"])  # nobody asks how it has ended
        self.peer.close()
        with pytest.raises(PeerGone):
            self.peer.ask(b"are you there", 20)
        return first


@pytest.mark.parametrize("kind", [Echo, Keeping, InUnreadableMemory, Brief], ids=lambda kind: kind.__name__)
def test_what_is_no_leak(kind: type[Echo], backend: SandboxBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scanner, "_START_TIMEOUT_S", 3.0)
    assert looked_at(kind, backend).startswith("1 hidden values, in no observation, and in no file")


class OneAction(InMemory):
    """Whatever is said ends the episode, and with it all that could be looked into."""

    @tool(ends=True)
    def over(self) -> str:
        """End."""
        return "Over."

    @tool
    def say(self, words: str) -> ActionResult:
        """Say some words."""
        return ActionResult(super().say(words), done=True)


def test_what_ends_at_once_is_looked_into_before(backend: SandboxBackend) -> None:
    assert re.search(SABOTAGED[InMemory], looked_at(OneAction, backend))


def test_words_that_every_interpreter_knows_are_no_secrets(backend: SandboxBackend) -> None:
    class Wordy(InMemory):
        @classmethod
        def make_tasks(cls, split: str, **_: Any) -> Sequence[Task]:
            return [Task("a", split, "Which error is it?", {}, hidden={"said": "ZeroDivisionError"})]

    assert looked_at(Wordy, backend).startswith("1 hidden values, in no observation")


def test_what_a_task_shows_is_no_secret(backend: SandboxBackend) -> None:
    class Open(Echo):
        @classmethod
        def make_tasks(cls, split: str, **_: Any) -> Sequence[Task]:
            lines = "first line\nsecond 'line'\n"
            files = {"lines.txt": lines, "lines.json": json.dumps([f"another:\n{lines}"])}
            hidden = {"said": lines, "other": f"another:\n{lines}"}
            return [Task("a", split, "Say them backwards.", files, hidden=hidden)]

    with pytest.raises(NotApplicable, match="no task hides"):
        looked_at(Open, backend)


@final
class Littered(SandboxBackend):
    """Sandboxes in which a file lies from the beginning."""

    name, isolated = "littered", True

    def __init__(self, inner: SandboxBackend, text: str) -> None:
        self.inner, self.text = inner, text

    def available(self) -> str | None:
        return self.inner.available()

    def create(self) -> Sandbox:
        sandbox = self.inner.create()
        sandbox.write("answers.txt", self.text.encode())
        return sandbox


def test_what_lies_in_every_sandbox_is_found(backend: SandboxBackend) -> None:
    class Long(Echo):
        @classmethod
        def make_tasks(cls, split: str, **_: Any) -> Sequence[Task]:
            return [Task("a", split, "Say it.", {}, hidden={"said": "whatever it may be"})]

    found = looked_at(Long, Littered(backend, "It is whatever it may be."))
    assert found.startswith(
        "the hidden value 'whatever it may be' can be read in every sandbox, in the file /"
    )
    assert found.endswith("/answers.txt")


def test_nobody_looks_around_where_nothing_is_isolated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SandboxScanner, "find", lambda *_: pytest.fail("looked around this machine"))
    assert looked_at(Echo, ProcessBackend()).startswith("1 hidden values")


# Programs beside which somebody looks.


def test_a_program_beside_a_guest_source_ends_as_it_would_alone(each_backend: SandboxBackend) -> None:
    with each_backend.create() as sandbox:
        lookout = SandboxScanner(sandbox)
        python = [sandbox.python, "-c"]
        for program, reason, stop in (
            ("input(); raise SystemExit(3)", r"ended \(exited, status 3\)", StopReason.EXITED),
            ("input(); import os; os.kill(os.getpid(), 9)", "signaled", StopReason.SIGNALED),
            ("input(); print('x' * 99_999)", "output limit", StopReason.OUTPUT),
            ("input(); print(1); print(2)", "more than one line", StopReason.SIGNALED),
        ):
            peer = lookout.open([*python, program], limits=Limits(output_bytes=9_999))
            with pytest.raises(PeerGone, match=reason):
                peer.ask(b"go on", 20)
            assert peer.close().stop in (stop, StopReason.EXITED)
        peer = lookout.open(["/no/such/program"])
        with pytest.raises(PeerGone, match="status 127"):
            peer.ask(b"go on", 20)
        assert lookout.find([b"no such text anywhere"]) == {}


def test_a_program_that_cannot_be_looked_into_is_an_error(
    backend: SandboxBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scanner, "_START_TIMEOUT_S", 0.2)
    for program, reason in (
        ("print(input(), flush=True); import time; time.sleep(99)", "it does not answer"),
        ("pass", r"the program ended \(exited, status 0\)"),
    ):
        monkeypatch.setattr(scanner, "_guest_source", lambda program=program: program)
        with (
            backend.create() as sandbox,
            pytest.raises(SandboxError, match=f"could not be scanned: .*{reason}"),
        ):
            SandboxScanner(sandbox).find([b"some text"])


# What is compressed.


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A repository, and what only an old version of a file holds, spread over what both versions share."""
    here = tmp_path_factory.mktemp("repository")
    draw = random.Random(1)
    lines = [f"{draw.getrandbits(256):x}\n" for _ in range(200)]
    git(here, "init", "--quiet")
    for middle in ("the answer is here\n", "nothing is here\n", "nothing at all\n"):
        (here / "notes.txt").write_text("".join([*lines[:100], middle, *lines[100:]]))
        git(here, "add", ".")
        git(here, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "-m", "a message")
    return here, (lines[99] + "the answer is here\n" + lines[100]).encode()


def git(here: Path, *words: str) -> None:
    subprocess.run(["git", *words], cwd=here, check=True, capture_output=True)


def inside(folder: Path) -> bytes:
    return b"\0".join(
        part for path in folder.rglob("*") if path.is_file() for part in decompressed(path.read_bytes())
    )


@pytest.mark.parametrize("by_name", [False, True], ids=["bases by offset", "bases by name"])
def test_git_objects_are_read_loose_and_packed(repository: tuple[Path, bytes], by_name: bool) -> None:
    here, secret = repository
    assert secret in inside(here / ".git")
    git(here, "-c", f"repack.useDeltaBaseOffset={str(not by_name).lower()}", "repack", "-adfq", "--depth=9")
    git(here, "prune-packed")
    [pack] = here.glob(".git/objects/pack/*.pack")
    assert sum(len(part) for part in decompressed(pack.read_bytes())) > 3 * pack.stat().st_size / 1.5
    assert secret in inside(here / ".git")
    assert b"a message" in inside(here / ".git")
    git(here, "bundle", "create", "all.bundle", "--all")
    assert secret in b"".join(decompressed((here / "all.bundle").read_bytes()))


def test_what_is_broken_is_read_as_far_as_it_goes(repository: tuple[Path, bytes]) -> None:
    here, _ = repository
    git(here, "repack", "-adfq")
    [pack] = here.glob(".git/objects/pack/*.pack")
    data = pack.read_bytes()
    whole = len([*decompressed(data)])
    assert whole == 9
    for end in range(0, len(data), 97):
        assert len([*decompressed(data[:end])]) <= whole
    draw = random.Random(2)
    for _ in range(100):
        torn = bytearray(data)
        for _ in range(5):
            torn[draw.randrange(12, len(torn))] ^= 1 << draw.randrange(8)
        assert len([*decompressed(bytes(torn))]) <= whole
    assert [*decompressed(b"PACK\0\0\0\2")] == [*decompressed(b"xyz")] == [*decompressed(b"")] == []
    assert [*decompressed(gzip.compress(b"a text"))] == [b"a text"]


def test_little_that_becomes_much_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decompress, "MAX_STREAM_BYTES", 2**20)
    [made] = decompressed(zlib.compress(bytes(2**28)))
    assert len(made) == 2**20
    monkeypatch.setattr(decompress, "_MAX_FILE_BYTES", 2**22)
    many = [*decompressed(gzip.compress(bytes(2**20)) * 100)]
    assert 2**22 <= sum(map(len, many)) <= 2**22 + 2**20


def test_every_member_of_a_compressed_file_is_read() -> None:
    assert [*decompressed(gzip.compress(b"first") + gzip.compress(b"second"))] == [b"first", b"second"]


# What the class's data holds.


def with_data(path: Path, text: str, backend: SandboxBackend) -> SandboxBackend:
    """A backend whose sandboxes hold a file, as that of a class that declares it."""
    path.write_text(text)
    return backend.with_contents(Contents(data=(path,)))


class Reading(Echo):
    """Its tool shows the data."""

    @tool
    def read(self) -> str:
        """Read all data."""
        program = "import pathlib; print(*(path.read_text() for path in pathlib.Path('/data').iterdir()))"
        return self.sandbox.run([self.sandbox.python, "-c", program]).stdout.decode()


def test_answers_in_data_beside_their_tasks_are_found(backend: SandboxBackend, tmp_path: Path) -> None:
    [task, *_] = Reading.make_tasks("starter")
    filled = with_data(tmp_path / "said.csv", f"{task.id[:-4]}\n{task.id},{task.hidden['said']}", backend)
    unnamed = [dataclasses.replace(task, prompt="Say it backwards.")]
    with pytest.raises(AuditFailure, match=r"the file /data/said\.csv holds hidden\.said .*beside their ids"):
        AUDIT_CHECKS["hidden values do not leak"](AuditedEnv(Reading, unnamed, filled, 3))


def test_short_words_that_data_happens_to_hold_are_no_leak_where_it_is_read(
    backend: SandboxBackend, tmp_path: Path
) -> None:
    [task, *_] = Reading.make_tasks("starter")
    filled = with_data(tmp_path / "words.txt", f"some words\n{task.hidden['said']}\nothers\n", backend)
    assert looked_at(Reading, filled).endswith("; 1 others in `data`, where nothing names their tasks")

    class Telling(Reading):
        def setup(self, task: Task) -> str:
            return f"{super().setup(task)} Not {task.hidden['said']}."

    assert looked_at(Telling, filled).endswith("can be read in observation 0 of episode 0")
