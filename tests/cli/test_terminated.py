"""SIGTERM and SIGHUP end a command like Ctrl-C: no sandbox is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from envkit.sandboxes._linux import cgroup
from envkit.sandboxes.zygote import ZygoteBackend

#: Ignores SIGHUP and becomes a command, as ``nohup`` does.
NOHUP = """
import os, signal, sys
signal.signal(signal.SIGHUP, signal.SIG_IGN)
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.fixture(autouse=True)
def usable() -> None:
    if missing := ZygoteBackend().available():
        pytest.skip(missing)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder for temporary files that every user can reach, as /tmp is."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


def start(folder: Path, *before: str) -> subprocess.Popen[str]:
    """`envkit sandbox check`, with its temporary files in ``folder``, once it has begun a sandbox."""
    command = [*before, sys.executable, "-m", "envkit.cli", "sandbox", "check", "zygote"]
    environment = {**os.environ, "TMPDIR": str(folder)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (groups(folder) if cgroup.parents() else leases(folder)):
        assert process.poll() is None, process.stderr
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


def leases(folder: Path) -> list[str]:
    return [path.name for path in folder.glob("envkit-lease-*")]


def groups(folder: Path) -> list[str]:
    """Control groups that are named after a lease in ``folder``."""
    found = [name for parent in cgroup.parents() for name in os.listdir(parent)]
    return [name for name in found if name.rpartition("-")[0] in leases(folder)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_terminated_command_leaves_nothing(number: signal.Signals, folder: Path) -> None:
    with start(folder) as process:
        names = leases(folder)
        process.send_signal(number)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "Traceback" not in error
    assert [*folder.iterdir()] == []
    left = [name for parent in cgroup.parents() for name in os.listdir(parent)]
    assert [name for name in left if name.rpartition("-")[0] in names] == []


def test_a_command_that_ignores_sighup_continues(folder: Path) -> None:
    with start(folder, sys.executable, "-c", NOHUP) as process:
        process.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=1)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
