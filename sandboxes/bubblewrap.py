"""Isolation by bubblewrap: new namespaces, a root folder with only Python, no network, a system call filter.

If envkit runs as root, bubblewrap runs as user 65534 (nobody), so that even a process that breaks out of its
namespaces has no rights on the host. For an ordinary user it runs as that user.

The root is a read-only file system in memory that all sandboxes of this process share. The workspace is one
of a fixed size (see `envkit.sandboxes._workspace.mounts`), and so is each scratch folder, which is empty at
the start of each command. Of ``/proc``, a command sees its own processes only.

A control group limits memory, processes and CPU time, if one can be created. Otherwise memory is limited per
process (address space), processes by the user namespace (Linux 5.14), and CPU time by a sum over the tree.
Bubblewrap's own process in the sandbox, its pid 1, has the same limits as the command's.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Final, final

from envkit.errors import SandboxError, UnenforceableLimit
from envkit.sandbox import PYTHON_OPTIONS, Contents, Limits, Lock, Quota, Sandbox, SandboxBackend
from envkit.sandboxes._linux import bwrap, procfs, seccomp
from envkit.sandboxes._linux.cgroup import Cgroup
from envkit.sandboxes._linux.child import Child, launch, memory_file
from envkit.sandboxes._rootfs import layers
from envkit.sandboxes._rootfs.rootfs import (
    ENVIRONMENT,
    NOBODY,
    PYTHON,
    SCRATCH_BYTES,
    SCRATCH_FILES,
    WORKSPACE,
    root_folder,
)
from envkit.sandboxes._sandbox import FolderSandbox, require_system_calls, system_errors
from envkit.sandboxes._supervisor import Ending, Tree, Usage
from envkit.sandboxes._workspace.mounted_sandbox import MountedSandbox

#: Each command waits in this shell, inside the sandbox, until it is in its control group. If envkit dies
#: before that, the shell reads the end of its stdin and stops. With bubblewrap's own --block-fd the command
#: would run as an orphan.
_GATE: Final = ("/usr/bin/sh", "-c", 'echo && read -r word && exec "$@"', "sh")
_NAMESPACES: Final = (
    *("--unshare-all", "--unshare-user", "--disable-userns", "--cap-drop", "ALL"),
    *("--uid", str(NOBODY), "--gid", str(NOBODY), "--hostname", "sandbox"),
    *("--die-with-parent", "--new-session"),
)
#: Folders that are empty at the start of each command, and their limit.
_SCRATCH: Final = ("/tmp", "/dev/shm")
_SCRATCH_QUOTA: Final = Quota(SCRATCH_BYTES, SCRATCH_FILES)
#: Numbers in the names of control groups.
_NUMBERS: Final = itertools.count()


@final
class BubblewrapBackend(SandboxBackend):
    """Runs code in Linux namespaces made by ``bwrap``.

    Args:
        contents: what its sandboxes hold beside Python.
        quota: limit of each workspace.
    """

    name = "bubblewrap"
    isolated = True

    def __init__(self, contents: Contents = Contents(), quota: Quota = Quota()) -> None:
        layers.require_no_image(self.name, contents)
        self.contents = contents
        self.quota: Quota = quota  # pyright: ignore[reportIncompatibleVariableOverride]

    def available(self) -> str | None:
        """See `envkit.sandbox.SandboxBackend.available`; runs Python in a sandbox to find out."""
        try:
            with self.create() as sandbox:
                result = sandbox.run([sandbox.python, *PYTHON_OPTIONS, "-c", "pass"])
        except SandboxError as error:
            return " ".join(str(error).split())
        if not result.ok:
            return f"a trivial program in bubblewrap ended: {result.stop} {result.stderr[-300:]!r}"
        return None

    @property
    def lock(self) -> Lock:
        """See `envkit.sandbox.SandboxBackend.lock`."""
        return layers.lock(os.geteuid() or NOBODY, self.contents)

    def with_contents(self, contents: Contents, warm: Sequence[str] = ()) -> BubblewrapBackend:
        """See `envkit.sandbox.SandboxBackend.with_contents`."""
        made = BubblewrapBackend(contents, self.quota)
        made.warm = (*warm,)
        layers.folders(os.geteuid() or NOBODY, contents)
        return made

    def create(self) -> Sandbox:
        """See `envkit.sandbox.SandboxBackend.create`."""
        user = os.geteuid() or NOBODY
        require_system_calls()
        with system_errors("make a sandbox"):
            shared = {"/": root_folder(user), **layers.folders(user, self.contents)}
            return _BubblewrapSandbox(user, shared, self.quota)


@final
class _BubblewrapSandbox(MountedSandbox):
    """A sandbox.

    Args:
        user: host user that it runs as.
        shared: folders of the host whose copies in memory it sees, by the place where it sees them.
        quota: limit of the workspace.
    """

    def __init__(self, user: int, shared: Mapping[str, Path], quota: Quota) -> None:
        self._bwrap = bwrap.find(user)
        super().__init__(user, quota)
        self._user, self._shared = user, shared
        self._folder = self._mount.helper.folder
        #: Further options of bubblewrap.
        self._options: list[str] = []
        try:
            self._copies()  # made now, because it takes a moment
        except BaseException:
            self.close()
            raise

    @property
    def python(self) -> str:
        """See `envkit.sandbox.Sandbox.python`; the same version as the host's."""
        return PYTHON

    def _start(self, argv: Sequence[str], limits: Limits) -> Tree:
        parents = bwrap.group_parents()
        with contextlib.ExitStack() as held:
            group = None
            if parents:
                group = Cgroup(parents, f"{self._folder.name}-{next(_NUMBERS)}", limits)
                held.callback(group.close)
            options = [*_NAMESPACES, *self._copies(), "--proc", "/proc", *bwrap.DEVICES, *self._options]
            options += ["--bind", self._mount.path, WORKSPACE, "--chdir", WORKSPACE]
            for folder in _SCRATCH:  # bubblewrap's --tmpfs would limit bytes only, not files
                scratch = self._mount.helper.mount(_SCRATCH_QUOTA)
                os.close(scratch.root)
                held.callback(scratch.close)
                options += ["--bind", scratch.path, folder]
            ours, theirs = os.pipe()
            status = held.enter_context(open(ours, "rb", 0))
            try:
                with contextlib.ExitStack() as given:
                    given.callback(os.close, forbidden := seccomp.descriptor())
                    options += ["--json-status-fd", str(theirs), "--seccomp", str(forbidden)]
                    # In a file, because a process in the sandbox shows its command line, and these options
                    # hold paths of the host.
                    given.callback(os.close, file := memory_file("\0".join(options).encode()))
                    start = [*bwrap.as_user(self._user), *self._mount.entering(), str(self._bwrap)]
                    command = [*start, "--args", str(file), "--", *_GATE, *argv]
                    child = launch(command, ENVIRONMENT, self._folder, theirs, forbidden, file)
            finally:
                os.close(theirs)
            held.callback(child.discard)
            _await_gate(child)
            init = int(json.loads(status.readline())["child-pid"])
            pidfd = os.pidfd_open(init)
            held.callback(os.close, pidfd)
            family = procfs.family(init)
            if len(family) < 2:  # the init process, and the shell that waits at the gate
                raise UnenforceableLimit("cpu_s: this kernel lists no child processes (CONFIG_PROC_CHILDREN)")
            # One more process than requested, because the namespace's init process counts as well.
            processes = limits.processes + 1 if group is None else None
            bounds = procfs.rlimits(limits, memory=group is None, processes=processes)
            join = functools.partial(group.add, family) if group is not None else bool
            self._mount.helper.confine(init, family, bounds.values(), join)
            os.write(child.stdin.fileno(), b"\n")
            return _BubblewrapTree(child, init, pidfd, status, group, held)

    def _copies(self) -> list[str]:
        """Options that mount the shared folders."""
        copies = [(self._mount.helper.root(folder).path, place) for place, folder in self._shared.items()]
        return [word for path, place in copies for word in ("--ro-bind", path, place)]

    def _new(self) -> FolderSandbox:
        return _BubblewrapSandbox(self._user, self._shared, self._quota)


@final
class _BubblewrapTree(Tree):
    """A command in a process namespace. The kernel kills all its processes when ``init``, its pid 1, dies."""

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
        self._group, self._held = group, held.pop_all()
        self._seen_cpu_s = 0.0

    def usage(self) -> Usage:
        if self._group is not None:
            return Usage(self._group.cpu_s(), self._group.out_of_memory())
        self._seen_cpu_s = max(self._seen_cpu_s, procfs.cpu_s(procfs.family(self._init)))
        return Usage(self._seen_cpu_s)

    def end(self) -> Ending:
        with self._held:
            self.usage()  # records the CPU time before the processes die
            ended_by_itself = self._child.has_ended()
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            # The kernel reports the init process as dead only after it has killed and reaped all others.
            if not bwrap.readable(self._pidfd):
                raise SandboxError("a killed sandbox did not die; its processes may hang in the kernel")
            _, cpu_s = self._child.reap()
            self._seen_cpu_s = max(self._seen_cpu_s, cpu_s)
            peak_bytes = 0 if self._group is None else self._group.peak_memory_bytes()
            return Ending(
                _exit_code(self._status) if ended_by_itself else -signal.SIGKILL, self.usage(), peak_bytes
            )


def _exit_code(status: IO[bytes]) -> int:
    """The command's exit status as bubblewrap reports it, or minus the signal that ended it.

    Like a shell, bubblewrap reports a signal as 128 plus its number. So an exit status of 129 to 192 is taken
    for a signal.
    """
    for line in status.read().splitlines():
        code = json.loads(line).get("exit-code")
        if code is not None:
            return 128 - code if 128 < code < 128 + signal.NSIG else code
    raise SandboxError("bubblewrap died, or could not set the sandbox up")


def _await_gate(child: Child) -> None:
    """Wait until the namespaces are set up and the command waits at the gate.

    Raises:
        SandboxError: quotes what bubblewrap printed.
    """
    if bwrap.readable(child.stdout.fileno()) and os.read(child.stdout.fileno(), 1) == b"\n":
        return
    os.set_blocking(child.stderr.fileno(), False)
    reason = (child.stderr.read() or b"").decode(errors="replace").strip()
    raise SandboxError(f"bubblewrap did not start: {reason or f'silent for {bwrap.PATIENCE_MS // 1000} s'}")
