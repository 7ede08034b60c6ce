"""No isolation: a child process under resource limits, for development on machines without a sandbox.

UNSAFE. The code runs as the current user, with this user's files, processes and network, and it can leave its
process tree. Use it only with code that you would run yourself.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, final

from envkit.errors import SandboxError, SandboxUnavailable
from envkit.runtime.lease import Lease
from envkit.sandbox import Limits, Sandbox, SandboxBackend
from envkit.sandboxes._linux import procfs
from envkit.sandboxes._linux.child import Child, launch
from envkit.sandboxes._sandbox import FolderSandbox, require_system_calls, system_errors, temporary
from envkit.sandboxes._supervisor import Ending, Tree, Usage
from envkit.sandboxes._workspace.files import Workspace

_MARK: Final = "ENVKIT_TREE"
_PATIENCE_S = 30.0


@final
class ProcessBackend(SandboxBackend):
    """Runs code as a plain child process."""

    name = "process"
    isolated = False

    def available(self) -> str | None:
        """See `envkit.sandbox.SandboxBackend.available`."""
        try:
            require_system_calls()
        except SandboxUnavailable as error:
            return str(error)
        return None if shutil.which("prlimit") else "prlimit is not installed; apt install util-linux"

    def create(self) -> Sandbox:
        """See `envkit.sandbox.SandboxBackend.create`."""
        missing = self.available()
        if missing is not None:
            raise SandboxUnavailable(missing)
        with system_errors("make a sandbox"):
            return _ProcessSandbox(Lease(temporary()))


@final
class _ProcessSandbox(FolderSandbox):
    """A sandbox whose workspace is a folder on disk without a limit: `SandboxBackend.quota` is ``None``."""

    def __init__(self, lease: Lease) -> None:
        self._lease, self._folder = lease, lease.path / "work"
        self._folder.mkdir(mode=0o700)
        super().__init__(Workspace(os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY), None))

    @property
    def python(self) -> str:
        """See `envkit.sandbox.Sandbox.python`; the interpreter of this process, with its packages."""
        return sys.executable

    def _start(self, argv: Sequence[str], limits: Limits) -> Tree:
        workspace = self._folder
        mark = secrets.token_hex(16)
        environment = {
            "PATH": f"{Path(sys.executable).parent}:{os.defpath}",
            "HOME": str(workspace),
            "LANG": "C.UTF-8",
            "PYTHONHASHSEED": "0",
            "PYTHONDONTWRITEBYTECODE": "1",
            _MARK: mark,
        }
        command = [*procfs.prlimit(limits, memory=True), *argv]
        return _ProcessTree(launch(command, environment, workspace), mark)

    def _new(self) -> FolderSandbox:
        return _ProcessSandbox(Lease(temporary()))

    def _remove_workspace(self) -> None:
        self._lease.close()


@final
class _ProcessTree(Tree):
    """All processes with the mark in their environment. A daemon keeps the mark unless it removes it."""

    def __init__(self, child: Child, mark: str) -> None:
        super().__init__(child.pipes, os.pidfd_open(child.pid))
        self._child = child
        self._mark = f"{_MARK}={mark}\0".encode()
        self._seen_cpu_s = 0.0

    def usage(self) -> Usage:
        family = procfs.family(self._child.pid)
        self._seen_cpu_s = max(self._seen_cpu_s, procfs.cpu_s(family))
        return Usage(self._seen_cpu_s, processes=len(family))

    def end(self) -> Ending:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)
        code, cpu_s = self._child.reap()
        deadline = time.monotonic() + _PATIENCE_S
        while members := self._members():
            for pid in members:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if time.monotonic() > deadline:
                raise SandboxError(f"processes {members} of a sandbox did not die")
            time.sleep(0.001)
        return Ending(code, Usage(max(self._seen_cpu_s, cpu_s)))

    def _members(self) -> list[int]:
        found: list[int] = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                if self._mark in Path("/proc", name, "environ").read_bytes() + b"\0":
                    found.append(int(name))
        return found
