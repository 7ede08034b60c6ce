"""Exit codes and error lines: 0 done, 1 failed, 2 bad input or storage, 128 + number after a signal."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest

from envkit.audit import certificate
from envkit.cli import main
from envkit.errors import (
    ContractError,
    EnvkitError,
    MissingExtraError,
    SandboxError,
    StoreError,
    TrainingError,
    UsageError,
)
from envkit.runs.interrupts import Interrupted, stopping_on_signal


def failing(error: BaseException) -> object:
    def fail(*_: object, **__: object) -> NoReturn:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (UsageError("bad"), 2, "error: bad"),
        (StoreError("full"), 2, "error: full"),
        (MissingExtraError("torch", "train"), 2, "'.[train]'"),
        (TrainingError("diverged"), 1, "error: diverged"),
        (SandboxError("died"), 1, "error: died"),
        (ContractError("two\nlines"), 1, "error: two lines"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x.jsonl"), 2, "x.jsonl: No space left on device"),
        (MemoryError(), 1, "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 1, "out of memory; try"),
        (RecursionError("maximum recursion depth exceeded"), 2, "nested too deeply"),
        (KeyError("loss"), 1, "a fault in envkit, not in your input: KeyError: 'loss'; run it again as"),
        (KeyboardInterrupt(), 130, "interrupted by SIGINT"),
        (Interrupted(signal.SIGTERM), 143, "interrupted by SIGTERM"),
        (Interrupted(signal.SIGHUP), 129, "interrupted by SIGHUP"),
    ],
)
def test_an_error_is_one_line_and_its_exit_code(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    words: str,
) -> None:
    monkeypatch.setattr("envkit.runtime.plugins.names", failing(error))
    assert main.run(["list"]) == code
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert "Traceback" not in said


def test_verbose_prints_the_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("envkit.runtime.plugins.names", failing(EnvkitError("broken")))
    assert main.run(["-v", "list"]) == 1
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert said.endswith("error: broken\n")
    assert main.run(["list"]) == 1
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_asks_to_stop_and_the_second_ends_at_once(number: signal.Signals) -> None:
    said: list[str] = []
    before = signal.getsignal(number)
    with stopping_on_signal(said.append, "stopping; kept in runs/x") as request:
        assert not request.should_stop()
        signal.raise_signal(number)
        assert request.should_stop()
        assert request.signal is number
        with pytest.raises(Interrupted) as interrupted:
            signal.raise_signal(number)
        assert interrupted.value.signal is number
    assert said == ["stopping; kept in runs/x"]
    assert signal.getsignal(number) is before


#: Works in one call that no signal handler can interrupt, as a matrix product does, until it is told to end.
UNINTERRUPTED = """
import ctypes, sys, threading, time
from envkit.runs.interrupts import Interrupted, stopping_on_signal

libc, mutex, locked = ctypes.CDLL(None), ctypes.create_string_buffer(64), threading.Event()

def say(line):
    print(line, flush=True)

def hold():
    libc.pthread_mutex_lock(mutex)
    locked.set()
    sys.stdin.readline()
    time.sleep(0.5)  # the thread that counts signals goes first
    libc.pthread_mutex_unlock(mutex)

threading.Thread(target=hold, daemon=True).start()
locked.wait()
try:
    with stopping_on_signal(say, "stopping"):
        say("begun")
        libc.pthread_mutex_lock(mutex)
        say("ended")
except Interrupted:
    say("interrupted")
"""


@contextmanager
def computing() -> Generator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", UNINTERRUPTED]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        guard = threading.Timer(60, process.kill)
        guard.start()
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "stopping\n"
        yield process
        guard.cancel()
        process.kill()


def test_the_answer_does_not_wait_for_the_end_of_a_computation() -> None:
    with computing():
        pass


def test_two_signals_in_one_computation_end_the_work_after_it() -> None:
    with computing() as process:
        process.send_signal(signal.SIGINT)
        assert process.communicate("go on\n")[0] == "interrupted\n"


def test_a_signal_that_the_parent_switched_off_stays_off() -> None:
    """As under ``nohup``."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopping_on_signal(print, "") as request:
            signal.raise_signal(signal.SIGHUP)
            assert not request.should_stop()
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_command_that_keeps_nothing(tmp_path: Path, number: signal.Signals) -> None:
    """While it waits for a player, which stands for any work before there is a run folder."""
    command = [sys.executable, "-m", "envkit.cli", "play", "sql-desk", "--seed", "1"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=tmp_path, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        while "turn 1 of 3" not in process.stdout.readline():
            assert process.poll() is None
        started = time.monotonic()
        process.send_signal(number)
        assert process.wait(timeout=20) == 128 + number
        assert process.stderr is not None
        said = process.stderr.read()
    assert f"interrupted by {number.name}" in said
    assert "Traceback" not in said
    assert time.monotonic() - started < 20


def test_an_existing_output_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("envkit.sandbox.choice.sandbox_backend", failing(AssertionError("work began")))
    there = tmp_path / "there"
    there.touch()
    for arguments in (
        ["tasks", "mine", "toolz", "-o", str(there)],
        ["tasks", "build", "recipe.json", "-o", str(there)],
        ["train", "--sft-only", str(there)],
    ):
        assert main.run(arguments) == 2
        assert "exists; choose another" in capsys.readouterr().err


def test_tasks_that_an_environment_cannot_pose_leave_its_certificate_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from envkit.env.taskfile import write_tasks
    from envkit.environments.code_editor import starter_tasks

    monkeypatch.setenv("ENVKIT_CACHE", str(tmp_path / "cache"))
    write_tasks(tmp_path / "bad.jsonl", [replace(starter_tasks()[0], hidden={})], seed=0)
    write_tasks(tmp_path / "other.jsonl", starter_tasks()[:1], seed=0)
    for env, file in (("code-editor", "bad.jsonl"), ("sql-desk", "other.jsonl")):
        assert main.run(["audit", env, "--tasks", str(tmp_path / file)]) == 2
        assert f"not a task of {env}" in capsys.readouterr().err
    assert not (tmp_path / "cache" / "certificates").exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cert.md", "cert.md: expected a name that ends in .json"),
        ("README", "README: expected a name that ends in .json"),
        ("README.json", "README.md exists, and is of no certificate; choose another name"),
        ("data.json", "data.json exists, and is of no certificate; choose another name"),
        ("text.json", "text.json exists and is no certificate"),
        ("folder.json", "folder.json: cannot be written"),
        ("none/cert.json", "cert.json: cannot be written; expected a file in a folder that is there"),
    ],
)
def test_a_certificate_replaces_no_other_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, words: str
) -> None:
    files = {"README.md": "# mine\n", "data.json": "{}", "text.json": "no JSON"}
    for file, text in files.items():
        (tmp_path / file).write_text(text)
    (tmp_path / "folder.json").mkdir()
    assert main.run(["audit", "sql-desk", "-o", str(tmp_path / name)]) == 2
    assert words in capsys.readouterr().err
    assert {file.name: file.read_text() for file in tmp_path.iterdir() if file.is_file()} == files


def test_a_later_certificate_replaces_an_earlier_one(tmp_path: Path) -> None:
    place = tmp_path / "certificate.json"
    shutil.copy(
        Path(certificate.__file__).parents[2] / "environments" / "sql_desk" / "certificate.json", place
    )
    place.with_suffix(".md").write_text("its table")
    certificate.require_place(place)


def test_no_audit_has_no_turns(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["audit", "sql-desk", "--max-turns", "0"]) == 2
    assert "--max-turns is 0; it must be at least 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--minutes", "3"], "add --attack-by-training"),
        (["--attack-by-training", "--minutes", "0"], "--minutes is 0.0; it must be positive and finite"),
        (["--attack-by-training", "--minutes", "nan"], "--minutes is nan; it must be positive and finite"),
        (["--attack-by-training", "--minutes", "inf"], "--minutes is inf; it must be positive and finite"),
    ],
)
def test_the_minutes_of_an_attack_are_a_time(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("envkit.sandbox.choice.sandbox_backend", failing(AssertionError("work began")))
    assert main.run(["audit", "sql-desk", *words]) == 2
    assert said in capsys.readouterr().err


def test_an_audit_of_other_turns_does_not_replace_the_certificate_of_a_standard_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("envkit.sandbox.choice.sandbox_backend", failing(AssertionError("work began")))
    place = tmp_path / "certificate.json"
    shutil.copy(
        Path(certificate.__file__).parents[2] / "environments" / "sql_desk" / "certificate.json", place
    )
    before = place.read_bytes()
    for words in (["--max-turns", "1"], ["--tasks", "some.jsonl"]):
        assert main.run(["audit", "sql-desk", *words, "-o", str(place)]) == 2
        assert "an audit of sql-desk's own tasks and turns; choose another name" in capsys.readouterr().err
    assert place.read_bytes() == before


def test_output_that_nobody_reads_ends_as_for_other_programs() -> None:
    code = "import sys; from envkit.cli.main import run; print('x', flush=True); sys.exit(run(['list']))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == b"x\n"
        program.stdout.close()
        assert program.wait() == 128 + signal.SIGPIPE


def test_some_checks_of_an_audit_write_no_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ENVKIT_CACHE", str(tmp_path / "cache"))
    assert main.run(["audit", "sql-desk", "--only", "splits"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("pass splits share no task: ")
    assert shown.endswith("\ncertificate: none: these are some of the checks\n")
    assert shown.count("\n") == 2
    assert main.run(["audit", "sql-desk", "--only", "luck"]) == 2
    assert "no check is named like 'luck'; there are: Gymnasium accepts it, " in capsys.readouterr().err
    assert main.run(["audit", "sql-desk", "--only", "splits", "-o", str(tmp_path / "c.json")]) == 2
    assert "leave out --output" in capsys.readouterr().err
    assert not (tmp_path / "cache" / "certificates").exists()


def test_held_out_tasks_are_no_training_tasks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from envkit.env.taskfile import write_tasks
    from envkit.environments.code_editor import starter_tasks

    file = tmp_path / "heldout.jsonl"
    write_tasks(file, [replace(starter_tasks()[0], split="heldout")], seed=0)
    assert main.run(["train", "--tasks", str(file), "--sft-only", str(tmp_path / "adapter")]) == 2
    assert "is of split 'heldout'; expected 'train'" in capsys.readouterr().err
