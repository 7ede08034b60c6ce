"""The host's side of the zygote: starts it, requests forks, and keeps some init processes ready."""

from __future__ import annotations

import atexit
import contextlib
import errno
import functools
import itertools
import json
import os
import queue
import signal
import socket
import struct
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path
from typing import Any, Final, cast, final

from envkit.errors import SandboxError, SandboxUnavailable, UnenforceableLimit
from envkit.runtime.lease import Lease
from envkit.sandbox import PACKAGES, PYTHON_OPTIONS, Contents, Limits
from envkit.sandboxes._linux import bwrap, cgroup, procfs, seccomp
from envkit.sandboxes._linux.cgroup import Cgroup
from envkit.sandboxes._linux.child import from_file, launch, memory_file
from envkit.sandboxes._rootfs import layers
from envkit.sandboxes._rootfs.rootfs import (
    ENVIRONMENT,
    NOBODY,
    PYTHON,
    SCRATCH_BYTES,
    SCRATCH_FILES,
    reachable,
    root_folder,
)
from envkit.sandboxes._sandbox import temporary
from envkit.sandboxes._supervisor import Ending, Usage
from envkit.sandboxes._workspace.mounts import MountHelper, shared_mounts

#: Options of a Python command that a fork of the zygote can run itself, without an ``exec``.
PROGRAM: Final = (*PYTHON_OPTIONS, "-c")
#: Init processes forked ahead: as many as rollouts have threads.
_PREFORKED: Final = 2
#: Most dead forks that one request names, so that it stays short.
_REAPED_AT_ONCE: Final = 64
#: Numbers of control groups. Shared by all zygotes, because one that replaces another uses the same prefix.
_NUMBERS: Final = itertools.count()
_NAMESPACES: Final = (
    # With capabilities in the namespaces, which its forks drop before they run a command.
    *("--unshare-all", "--unshare-user", "--cap-add", "ALL", "--as-pid-1"),
    *("--uid", "0", "--gid", "0", "--hostname", "sandbox"),
    *("--die-with-parent", "--new-session"),
    *("--proc", "/proc", *bwrap.DEVICES, "--tmpfs", "/tmp"),
)
_PATIENCE_S: Final = bwrap.PATIENCE_MS / 1000
#: Time for an init process to kill all others before it is killed itself, which takes longer.
_GRACE_MS: Final = 200


@final
class Zygote:
    """This process's zygote, replaced when it dies. Thread-safe.

    Its control groups are named after its lease.

    Args:
        contents, warm: see `envkit.sandboxes.zygote.ZygoteBackend`.
    """

    def __init__(self, contents: Contents = Contents(), warm: Sequence[str] = ()) -> None:
        self._pid = os.getpid()
        self.user = os.geteuid() or NOBODY
        self._as_user, self._bwrap, self._warm = bwrap.as_user(self.user), bwrap.find(self.user), warm
        self._shared = {"/": root_folder(self.user), **layers.folders(self.user, contents)}
        self._lock = threading.Lock()
        self._zygote: _ZygoteProcess | None = None
        self.lease = Lease(temporary())
        atexit.register(self.close)
        if not reachable(self.lease.path, self.user):
            raise SandboxUnavailable(
                f"user {self.user} cannot reach {self.lease.path.parent}; export TMPDIR=/tmp"
            )

    def init_process(self) -> InitProcess:
        """An init process that waits for a command; the caller ends it.

        Raises:
            UnenforceableLimit: this machine can limit neither processes nor CPU time.
            SandboxError: the zygote or its fork does not start.
        """
        if os.getpid() != self._pid:
            raise SandboxError("this sandbox belongs to the process that forked this one; make another")
        with self._lock:
            if self._zygote is None or self._zygote.dead:
                if self._zygote is not None:
                    self._zygote.close()
                self._zygote = self._start()
            zygote = self._zygote
        return zygote.init_process()

    def _start(self) -> _ZygoteProcess:
        mounts = shared_mounts(self._pid, self.user)
        roots = {place: mounts.root(folder) for place, folder in self._shared.items()}
        helper = roots["/"].helper
        start = [*self._as_user, *helper.entering(), str(self._bwrap)]
        copies = [word for place, root in roots.items() for word in ("--ro-bind", root.path, place)]
        return _ZygoteProcess(start, [*copies, *_NAMESPACES], helper, self.lease.path, self._warm)

    def close(self) -> None:
        """End the zygote and all its commands, and remove the folder. Idempotent."""
        if os.getpid() != self._pid:  # a fork of this process does not own it
            return
        with self._lock:
            if self._zygote is not None:
                self._zygote.close()
        cgroup.remove_leftovers(self.lease.path.name)  # of commands that were still running
        self.lease.close()


_MAKING = threading.Lock()


def shared_zygote(pid: int, contents: Contents, warm: Sequence[str]) -> Zygote:
    """This process's zygote for these contents as they are now. Keyed by pid: a fork needs its own."""
    with _MAKING:
        return _made(pid, contents, warm, layers.data_digest(contents.data))


@functools.cache
def _made(pid: int, contents: Contents, warm: Sequence[str], digest_of_data: str) -> Zygote:
    return Zygote(contents, warm)


@final
class InitProcess:
    """The init process (pid 1) of one command's namespaces. Its death makes the kernel kill all others there.

    Args:
        zygote: its parent.
        number: its pid in the zygote's namespace.
        pidfd: its process descriptor; owned by this object.
        control: the socket to it; owned by this object.
        group: the control group that it has joined; owned by this object. ``None`` if there are none here.
    """

    def __init__(
        self,
        zygote: _ZygoteProcess,
        number: int,
        pidfd: int,
        control: socket.socket,
        group: Cgroup | None,
    ) -> None:
        self.pidfd, self.group = pidfd, group
        self._zygote, self._number, self._control = zygote, number, control
        self._cpu_before_s = self._seen_cpu_s = 0.0
        try:
            self.pid = _pid_of(pidfd)
            if group is None and not Path(f"/proc/{self.pid}/task/{self.pid}/children").exists():
                raise UnenforceableLimit("cpu_s: this kernel lists no child processes (CONFIG_PROC_CHILDREN)")
            control.settimeout(_PATIENCE_S)
            self._expect(b"ready")
        except BaseException:
            with contextlib.suppress(SandboxError):
                self._discard()
            raise

    def start(self, job: dict[str, Any], limits: Limits, pipes: Sequence[int]) -> None:
        """Start its command and return once that is confined; see `envkit.sandboxes._zygote.guest.prepare`.

        Args:
            job: the command, as that function describes it.
            limits: of the command.
            pipes: descriptors of three pipes and the workspace; the caller closes them.

        Raises:
            SandboxError: it is dead, or the command cannot be confined.
        """
        with contextlib.ExitStack() as held:
            held.callback(os.close, asked := memory_file(json.dumps(job).encode()))
            if self.group is not None:
                self._bound(self.group, limits)
            try:
                socket.send_fds(self._control, [b"go"], [asked, *pipes])
                self._expect(b"up")
            except OSError as error:
                raise SandboxError(f"the zygote's fork is gone: {error}") from error

    def ending(self) -> int:
        """A descriptor that becomes readable when the command ends; the caller closes it."""
        return os.dup(self._control.fileno())

    def usage(self) -> Usage:
        """Resources that the command and its descendants have used."""
        if self.group is not None:
            return Usage(self.group.cpu_s() - self._cpu_before_s, self.group.out_of_memory())
        self._seen_cpu_s = max(self._seen_cpu_s, procfs.cpu_s(procfs.family(self.pid)))
        return Usage(self._seen_cpu_s)

    def end(self) -> Ending:
        """Kill the command and its descendants, and return when all are dead. Called once.

        Raises:
            SandboxError: processes do not die, or the zygote has died.
        """
        try:
            status = self._ended()
            is_reaped = status is None or self.group is None
            if is_reaped:  # its CPU time is known only from its parent, when that reaps it
                self._kill()
                self._seen_cpu_s = max(self._seen_cpu_s, self._zygote.reap(self._number))
            ending = Ending(
                -signal.SIGKILL if status is None else status,
                self.usage(),
                0 if self.group is None else self.group.peak_memory_bytes(),
            )
        except BaseException:
            self._release()
            raise
        self._zygote.ended(self._release if is_reaped else self._discard)
        return ending

    def _ended(self) -> int | None:
        """Let the init process kill all others. Returns the command's status, or minus its signal.

        ``None`` if the init process does not answer, because it died or was prevented from running.
        """
        for grace_ms in (0, _GRACE_MS):
            if grace_ms:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(self.pidfd, signal.SIGTERM)
            if bwrap.readable(self._control.fileno(), grace_ms):
                status = self._control.recv(16)
                return int(struct.unpack("i", status)[0]) if len(status) == 4 else None
        return None

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        # The kernel reports an init process as dead only after it has killed and reaped all others.
        if not bwrap.readable(self.pidfd):
            raise SandboxError("a killed sandbox did not die; its processes may hang in the kernel")

    def _discard(self) -> None:
        try:
            self._kill()
            self._zygote.reap_later(self._number)
        finally:
            self._release()

    def _release(self) -> None:
        os.close(self.pidfd)
        self._control.close()
        if self.group is not None:
            self.group.close()

    def _bound(self, group: Cgroup, limits: Limits) -> None:
        try:
            group.bound(limits)
            self._cpu_before_s = group.cpu_s()
        except OSError as error:  # the group holds more than that already
            found = f"memory_bytes: {limits.memory_bytes} is less than a command holds before it starts"
            raise UnenforceableLimit(f"{found} ({error}); raise it") from error

    def _expect(self, word: bytes) -> None:
        try:
            reply = self._control.recv(4096)
        except OSError as error:
            raise SandboxError(f"the zygote's fork does not answer: {error}") from error
        if reply != word:
            reason = reply[1:].decode(errors="replace") if reply[:1] == b"!" else "its fork died"
            raise SandboxError(f"the zygote cannot confine a command: {reason}")


@final
class _ZygoteProcess:
    """A running `envkit.sandboxes._zygote.guest`. Thread-safe.

    Args:
        bwrap: the command that starts bubblewrap.
        options: of bubblewrap.
        helper: the mount helper, in whose namespaces it lives.
        folder: its working directory; control groups are named after it.
        warm: third-party modules to import first.
    """

    def __init__(
        self,
        bwrap: Sequence[str],
        options: Sequence[str],
        helper: MountHelper,
        folder: Path,
        warm: Sequence[str],
    ) -> None:
        source = resources.files("envkit.sandboxes._zygote").joinpath("guest.py").read_text()
        workers = resources.files("envkit.sandbox.programs")
        trusted = [workers.joinpath(name).read_text() for name in ("worker.py", "suite_worker.py")]
        preparation = {
            "programs": trusted,
            "packages": PACKAGES,
            "modules": [*warm],
            "scratch": f"size={SCRATCH_BYTES},nr_inodes={SCRATCH_FILES}",
            "forbidden": seccomp.program().hex(),
        }
        self._dead, self._helper = False, helper
        self._stderr = ""  # its output before it died
        self._name = folder.name
        self._lock = threading.Lock()
        self._unreaped: list[int] = []
        self._preforked: queue.SimpleQueue[InitProcess] = queue.SimpleQueue()
        self._worker = ThreadPoolExecutor(1, "zygote-fork")
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(_PATIENCE_S)
        # In files, so that a line of `ps` can be read.
        files = [memory_file(text.encode()) for text in (json.dumps(preparation), source, "\0".join(options))]
        try:
            prepared, program, options_file = files
            arguments = (str(theirs.fileno()), str(prepared))
            # This line runs a command's program, and not the source, whose frame would lie beneath it too.
            run = f"{from_file(program, 'envkit zygote')};exec(*command.pop());leave(known)"
            command = [*bwrap, "--args", str(options_file), "--", PYTHON, *PROGRAM, run, *arguments]
            self._child = launch(command, ENVIRONMENT, folder, theirs.fileno(), *files)
        finally:
            for file in files:
                os.close(file)
            theirs.close()
        for _ in range(_PREFORKED):
            self._later(self._prepare)

    @property
    def dead(self) -> bool:
        """True if it has ended, or the helper has, because that holds the locks on the files that it sees."""
        return self._dead or self._helper.dead

    def init_process(self) -> InitProcess:
        """An init process that was forked ahead, or else a new one.

        Its replacement is forked when it has ended, so that forking does not compete with its command. If it
        was the last one, its replacement is forked at once, because several commands run at the same time.
        """
        try:
            found = self._preforked.get_nowait()
        except queue.Empty:
            found = self._make()
        if self._preforked.empty():
            self._later(self._prepare)
        return found

    def ended(self, clean_up: Callable[[], object]) -> None:
        """Clean up after an init process and fork a replacement, both in the background."""
        self._later(clean_up)
        self._later(self._prepare)

    def _later(self, job: Callable[[], object]) -> None:
        try:
            self._worker.submit(job)
        except RuntimeError:  # the executor has been shut down
            job()

    def reap(self, number: int) -> float:
        """Reap a dead fork; returns the CPU seconds that it and its descendants used.

        Raises:
            SandboxError: the zygote is dead.
        """
        answer, _ = self._ask(f"reap {number}")
        return float(answer["cpu_s"])

    def reap_later(self, number: int) -> None:
        """Reap a dead fork together with the next request for a fork."""
        self._unreaped.append(number)

    def close(self) -> None:
        """Kill it and all its forks. Idempotent."""
        with self._lock:
            self._discard()
        self._worker.shutdown(wait=True)
        while not self._preforked.empty():
            with contextlib.suppress(SandboxError):
                self._preforked.get().end()

    def _prepare(self) -> None:
        if self._preforked.qsize() < _PREFORKED:
            with contextlib.suppress(OSError, SandboxError):  # the next caller gets the same error
                self._preforked.put(self._make())

    def _make(self) -> InitProcess:
        parents = bwrap.group_parents()
        with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
            control, given = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            ours.enter_context(control)
            passed = [theirs.enter_context(given).fileno()]
            group = None
            if parents:
                group = Cgroup(parents, f"{self._name}-{next(_NUMBERS)}")
                ours.callback(group.close)
                for descriptor in group.join_descriptors():
                    theirs.callback(os.close, descriptor)
                    passed.append(descriptor)
            dead: list[str] = []
            with contextlib.suppress(IndexError):  # another thread may take the last ones
                while len(dead) < _REAPED_AT_ONCE:
                    dead.append(str(self._unreaped.pop()))
            answer, [pidfd] = self._ask(" ".join(["fork", *dead]), passed)
            ours.pop_all()
            theirs.close()  # so that the socket ends when the init process dies
            return InitProcess(self, int(answer["pid"]), pidfd, control, group)

    def _ask(self, request: str, descriptors: Sequence[int] = ()) -> tuple[dict[str, Any], list[int]]:
        """Send a request; returns the answer and the descriptors that came with it.

        Raises:
            SandboxError: the zygote is gone or does not answer. Later requests fail too.
        """
        with self._lock:
            if self._dead:
                raise SandboxError(f"the zygote died: {self._stderr}".rstrip(": "))
            try:
                socket.send_fds(self._socket, [request.encode()], descriptors)
                data, passed, _, _ = socket.recv_fds(self._socket, 4096, 1, socket.MSG_CMSG_CLOEXEC)
            except OSError as error:
                if error.errno != errno.ETOOMANYREFS:  # the request was never sent
                    self._discard()
                raise SandboxError(f"the zygote does not answer: {error} {self._stderr}".rstrip()) from error
            except BaseException:  # a late answer would be taken for that to the next request
                self._discard()
                raise
            if not data:
                self._discard()
                raise SandboxError(f"the zygote died: {self._stderr}".rstrip(": "))
        answer = cast("dict[str, Any]", json.loads(data))
        if failure := answer.get("failure"):
            raise SandboxError(f"the zygote cannot fork: {failure}")
        return answer, passed

    def _discard(self) -> None:
        if self._dead:
            return
        self._dead = True
        self._socket.close()
        os.set_blocking(self._child.stderr.fileno(), False)
        self._stderr = (self._child.stderr.read() or b"").decode(errors="replace").strip()[-500:]
        self._child.discard()


def _pid_of(pidfd: int) -> int:
    """The pid, in this namespace, of a process descriptor.

    Raises:
        SandboxError: the process is dead.
    """
    for line in Path(f"/proc/self/fdinfo/{pidfd}").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "Pid" and int(value) > 0:
            return int(value)
    raise SandboxError("the zygote's fork died at once")
