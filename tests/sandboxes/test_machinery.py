"""System errors, such as too many open files, become a `SandboxError`, which voids the episode."""

from __future__ import annotations

import errno
import os
import selectors
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from envkit.errors import SandboxError, SandboxUnavailable
from envkit.sandbox import SandboxBackend
from envkit.sandbox.choice import sandbox_backend
from envkit.sandboxes import bubblewrap, process, zygote
from envkit.sandboxes._linux import bwrap, cgroup
from envkit.sandboxes._workspace import mounted_sandbox
from envkit.sandboxes._zygote import host as zygote_host
from envkit.sandboxes.bubblewrap import BubblewrapBackend
from envkit.sandboxes.process import ProcessBackend
from envkit.sandboxes.zygote import ZygoteBackend

BACKENDS = (ProcessBackend, BubblewrapBackend, ZygoteBackend)
#: Per backend, the module and name of a call that creates a sandbox, and of one that starts a command.
CREATE_CALLS: dict[type[SandboxBackend], tuple[Any, str]] = {
    ProcessBackend: (process, "Lease"),
    BubblewrapBackend: (mounted_sandbox, "Workspace"),
    ZygoteBackend: (zygote, "shared_zygote"),
}
START_CALLS: dict[type[SandboxBackend], tuple[Any, str]] = {
    ProcessBackend: (process, "launch"),
    BubblewrapBackend: (bubblewrap, "launch"),
    ZygoteBackend: (zygote, "pipes"),
}


def raising(number: int) -> Callable[..., NoReturn]:
    def raise_error(*_: object, **__: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    return raise_error


@pytest.mark.parametrize("kind", BACKENDS)
def test_a_failure_to_create_a_sandbox_raises_a_sandbox_error(
    kind: type[SandboxBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(*CREATE_CALLS[kind], raising(errno.ENOSPC))
    with pytest.raises(SandboxError, match=r"cannot make a sandbox: .*No space left"):
        kind().create()


@pytest.mark.parametrize("kind", BACKENDS)
def test_a_failure_to_start_a_command_raises_a_sandbox_error(
    kind: type[SandboxBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    with kind().create() as sandbox:
        with monkeypatch.context() as patched:
            patched.setattr(*START_CALLS[kind], raising(errno.EMFILE))
            with pytest.raises(SandboxError, match=r"cannot start a command: .*Too many open files"):
                sandbox.run([sandbox.python, "-c", "pass"])
        assert sandbox.run([sandbox.python, "-c", "pass"]).ok


def test_a_failure_to_create_a_control_group_raises_a_sandbox_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bwrap, "group_parents", lambda: (tmp_path,))
    monkeypatch.setattr(cgroup.Cgroup, "__init__", raising(errno.ENOSPC))
    monkeypatch.setattr(
        zygote_host, "_made", zygote_host._made.__wrapped__
    )  # a new zygote: a running one has forks with groups
    for kind in (BubblewrapBackend, ZygoteBackend):
        with kind().create() as sandbox:
            with pytest.raises(SandboxError, match=r"cannot start a command: .*No space left"):
                sandbox.run([sandbox.python, "-c", "pass"])
            if isinstance(sandbox, zygote._ZygoteSandbox):
                sandbox._zygote.close()


@pytest.mark.parametrize("kind", BACKENDS)
def test_a_command_whose_output_cannot_be_watched_is_killed(
    kind: type[SandboxBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    with kind().create() as sandbox:
        wait_then_write = "import time; open('began', 'w'); time.sleep(0.5); open('went-on', 'w')"
        with monkeypatch.context() as patched:
            patched.setattr(selectors, "DefaultSelector", raising(errno.EMFILE))
            with pytest.raises(SandboxError, match=r"cannot start a command: .*Too many open files"):
                sandbox.open([sandbox.python, "-c", wait_then_write])
        sandbox.run([sandbox.python, "-c", "import time; time.sleep(1)"])
        assert "went-on" not in sandbox.export(["*"], 100)


@pytest.mark.parametrize("call", ["memfd_create", "pidfd_open"])
def test_a_python_without_needed_calls_is_named_with_the_cure(
    monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    monkeypatch.delattr(os, call)
    for kind in (ProcessBackend, BubblewrapBackend, ZygoteBackend):
        problem = kind().available()
        assert problem is not None
        assert f"was built without os.{call}" in problem
    with pytest.raises(SandboxUnavailable, match=r"make setup PYTHON=/usr/bin/python3"):
        sandbox_backend()


#: Many sandboxes of a process that may have few files open, as an ordinary user's may have 1,024.
MANY_SANDBOXES = """
import contextlib, resource, sys
from envkit.sandbox.choice import sandbox_backend

_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
with contextlib.ExitStack() as stack:
    backend = sandbox_backend(sys.argv[1])
    sandboxes = [stack.enter_context(backend.create()) for _ in range(40)]
    print({sandbox.run(["/bin/sh", "-c", "echo here"]).stdout for sandbox in sandboxes})
"""


@pytest.mark.parametrize("name", ["zygote", "bubblewrap"])
def test_many_sandboxes_of_a_user_who_may_have_few_files_open(name: str) -> None:
    argv = [sys.executable, "-c", MANY_SANDBOXES, name]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120)
    assert done.stdout == "{b'here\\n'}\n", done.stderr
