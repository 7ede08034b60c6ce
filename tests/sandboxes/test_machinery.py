"""Errors of the system, such as too many open files, are a `SandboxError`, which voids the episode."""

from __future__ import annotations

import errno
import os
import selectors
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from envkit.errors import SandboxError
from envkit.sandbox import SandboxBackend
from envkit.sandboxes import bubblewrap, process, zygote
from envkit.sandboxes._linux import bwrap, cgroup
from envkit.sandboxes._workspace import mounted_sandbox
from envkit.sandboxes._zygote import host as zygote_host
from envkit.sandboxes.bubblewrap import BubblewrapBackend
from envkit.sandboxes.process import ProcessBackend
from envkit.sandboxes.zygote import ZygoteBackend

BACKENDS = (ProcessBackend, BubblewrapBackend, ZygoteBackend)
#: Of each backend, what its sandboxes are made with, and its commands started with.
MADE: dict[type[SandboxBackend], tuple[Any, str]] = {
    ProcessBackend: (process, "Lease"),
    BubblewrapBackend: (mounted_sandbox, "Workspace"),
    ZygoteBackend: (zygote, "shared_zygote"),
}
STARTED: dict[type[SandboxBackend], tuple[Any, str]] = {
    ProcessBackend: (process, "launch"),
    BubblewrapBackend: (bubblewrap, "launch"),
    ZygoteBackend: (zygote, "pipes"),
}


def refusing(number: int) -> Callable[..., NoReturn]:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    return refuse


@pytest.mark.parametrize("kind", BACKENDS)
def test_a_sandbox_that_cannot_be_made(kind: type[SandboxBackend], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*MADE[kind], refusing(errno.ENOSPC))
    with pytest.raises(SandboxError, match=r"cannot make a sandbox: .*No space left"):
        kind().create()


@pytest.mark.parametrize("kind", BACKENDS)
def test_a_command_that_cannot_be_started(
    kind: type[SandboxBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    with kind().create() as sandbox:
        with monkeypatch.context() as patched:
            patched.setattr(*STARTED[kind], refusing(errno.EMFILE))
            with pytest.raises(SandboxError, match=r"cannot start a command: .*Too many open files"):
                sandbox.run([sandbox.python, "-c", "pass"])
        assert sandbox.run([sandbox.python, "-c", "pass"]).ok


def test_a_control_group_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bwrap, "group_parents", lambda: (tmp_path,))
    monkeypatch.setattr(cgroup.Cgroup, "__init__", refusing(errno.ENOSPC))
    monkeypatch.setattr(zygote_host, "_made", zygote_host._made.__wrapped__)  # whose forks all lack a group
    for kind in (BubblewrapBackend, ZygoteBackend):
        with kind().create() as sandbox:
            with pytest.raises(SandboxError, match=r"cannot start a command: .*No space left"):
                sandbox.run([sandbox.python, "-c", "pass"])
            if isinstance(sandbox, zygote._ZygoteSandbox):
                sandbox._zygote.close()


@pytest.mark.parametrize("kind", BACKENDS)
def test_a_command_that_nobody_could_watch_is_ended(
    kind: type[SandboxBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    with kind().create() as sandbox:
        waits = "import time; open('began', 'w'); time.sleep(0.5); open('went-on', 'w')"
        with monkeypatch.context() as patched:
            patched.setattr(selectors, "DefaultSelector", refusing(errno.EMFILE))
            with pytest.raises(SandboxError, match=r"cannot start a command: .*Too many open files"):
                sandbox.open([sandbox.python, "-c", waits])
        sandbox.run([sandbox.python, "-c", "import time; time.sleep(1)"])
        assert "went-on" not in sandbox.export(["*"], 100)
