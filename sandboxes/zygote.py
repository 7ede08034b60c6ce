"""Isolation by bubblewrap, commands forked from a warm interpreter: as far apart, in a fraction of the time.

One zygote per process of ours lives in bubblewrap's namespaces. To each command it gives namespaces of its
own, as bubblewrap would, without starting bubblewrap, a shell and an interpreter for each. Needs a machine
that lets user namespaces nest.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import itertools
import json
import os
import signal
import socket
import struct
import threading
from collections.abc import Callable, Generator, Sequence
from importlib import resources
from pathlib import Path
from typing import IO, Any, Final, cast, final

from envkit.errors import SandboxError, SandboxUnavailable, UnenforceableLimit
from envkit.sandbox import Limits, Sandbox, SandboxBackend
from envkit.sandboxes import _bwrap, _proc, _seccomp
from envkit.sandboxes._cgroup import Cgroup
from envkit.sandboxes._child import Pipes, launch
from envkit.sandboxes._image import ENVIRONMENT, NOBODY, PYTHON, SCRATCH_BYTES, image, reachable
from envkit.sandboxes._sandbox import FolderSandbox, temporary
from envkit.sandboxes._supervise import Ending, Tree, Usage
from envkit.sandboxes._temporary import Lease

#: Where the zygote sees the workspaces of all its sandboxes. Commands do not.
_SPACES: Final = "/tmp/spaces"
#: What the process 1 of a command's namespaces says once they are all set up.
_UP: Final = b"up"
#: How Python is asked to run a program in an isolated interpreter without site-packages.
_PROGRAM: Final = ("-I", "-S", "-c")


@final
class ZygoteBackend(SandboxBackend):
    """Runs code in Linux namespaces that are forked from a warm interpreter in ``bwrap``."""

    name = "zygote"
    isolated = True

    def available(self) -> str | None:
        """See `envkit.sandbox.SandboxBackend.available`; really runs Python in a sandbox."""
        try:
            with self.create() as sandbox:
                result = sandbox.run([sandbox.python, *_PROGRAM, "pass"])
        except SandboxUnavailable as error:
            return str(error)
        except SandboxError as error:
            return " ".join(f"{error}; {_bwrap.remedy()}".split())
        return None if result.ok else f"a trivial program ended by {result.stop}; {_bwrap.remedy()}"

    def create(self) -> Sandbox:
        """See `envkit.sandbox.SandboxBackend.create`."""
        return _ZygoteSandbox(_nursery(os.getpid()))


@final
class _Nursery:
    """This process's zygote, replaced when it dies, and the folder that holds the workspaces. Thread-safe."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self.user = os.geteuid() or NOBODY
        self._command = _bwrap.command(self.user)
        self._root = image(self.user)
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._zygote: _Zygote | None = None
        self.lease = Lease(temporary())
        atexit.register(self.close)
        if not reachable(self.lease.path, self.user):
            raise SandboxUnavailable(
                f"user {self.user} cannot reach {self.lease.path.parent}; export TMPDIR=/tmp"
            )

    def number(self) -> int:
        """A new one at every call."""
        return next(self._numbers)

    def zygote(self) -> _Zygote:
        """One that lived a moment ago.

        Raises:
            SandboxError: it does not start.
        """
        with self._lock:
            if self._zygote is None or self._zygote.dead:
                self._zygote = _Zygote(self._command, self._root, self.lease.path)
            return self._zygote

    def close(self) -> None:
        """End the zygote, and with it every command; remove the folder."""
        if os.getpid() != self._pid:  # a fork of ours, which owns nothing of this
            return
        with self._lock:
            if self._zygote is not None:
                self._zygote.close()
        self.lease.close()


@functools.cache
def _nursery(pid: int) -> _Nursery:
    """Keyed by pid: a fork of this process must have its own."""
    return _Nursery()


@final
class _Zygote:
    """A running `envkit.sandboxes._zygote`. Thread-safe.

    Args:
        bwrap: the command that starts bubblewrap.
        root: the image.
        spaces: host folder of the workspaces.
    """

    def __init__(self, bwrap: Sequence[str], root: Path, spaces: Path) -> None:
        source = resources.files("envkit.sandboxes").joinpath("_zygote.py").read_text()
        grading = resources.files("envkit.grading").joinpath("worker.py").read_text()
        self.dead = False
        self._lock = threading.Lock()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        programs = _memory(json.dumps([grading]))
        try:
            given = (theirs.fileno(), programs)
            command = [*bwrap, *_namespaces(root, spaces), "--", PYTHON, *_PROGRAM, source, *map(str, given)]
            self._child = launch(command, ENVIRONMENT, spaces, *given)
        finally:
            os.close(programs)
            theirs.close()
        self._socket.settimeout(_bwrap.PATIENCE_MS / 1000)

    def ask(self, word: str, descriptors: Sequence[int] = ()) -> tuple[dict[str, Any], list[int]]:
        """Send a request; returns the answer and the descriptors that came with it.

        Raises:
            SandboxError: the zygote is gone, or silent; it is asked nothing more.
        """
        with self._lock:
            if self.dead:
                raise SandboxError("the zygote died earlier")
            try:
                socket.send_fds(self._socket, [word.encode()], descriptors)
                data, passed, _, _ = socket.recv_fds(self._socket, 4096, 1, socket.MSG_CMSG_CLOEXEC)
            except OSError as error:
                raise SandboxError(f"the zygote does not answer: {error} {self._bury()}".rstrip()) from error
            except BaseException:  # a late answer would be taken for that to the next question
                self._bury()
                raise
            if not data:
                raise SandboxError(f"the zygote died: {self._bury()}".rstrip(": "))
        return cast("dict[str, Any]", json.loads(data)), passed

    def close(self) -> None:
        """Kill it, and with it all that it has forked. Idempotent."""
        with self._lock:
            self._bury()

    def _bury(self) -> str:
        """Kill it; returns its last words."""
        if self.dead:
            return ""
        self.dead = True
        self._socket.close()
        os.set_blocking(self._child.stderr.fileno(), False)
        said = (self._child.stderr.read() or b"").decode(errors="replace").strip()
        self._child.discard()
        return said[-500:]


@final
class _ZygoteSandbox(FolderSandbox):
    def __init__(self, nursery: _Nursery) -> None:
        super().__init__(nursery.user if nursery.user != os.geteuid() else None, nursery.lease.path)
        self._nursery = nursery

    @property
    def python(self) -> str:
        """See `envkit.sandbox.Sandbox.python`; the host's own version."""
        return PYTHON

    def _start(self, argv: Sequence[str], limits: Limits) -> Tree:
        parents = _bwrap.group_parents()
        nursery = self._nursery
        with contextlib.ExitStack() as held:
            group = None
            if parents:
                group = Cgroup(parents, f"{nursery.lease.path.name}-{nursery.number()}", limits)
                held.callback(group.close)
            bounds = _proc.rlimits(limits, memory=group is None, processes=group is None)
            is_program = (argv[0], *argv[1:4]) == (PYTHON, *_PROGRAM) and len(argv) > 4
            job = {
                "argv": [*argv],
                "env": ENVIRONMENT,
                "rlimits": [*bounds.values()],
                "workspace": f"{_SPACES}/{self._lease.path.name}/work",
                "scratch_bytes": SCRATCH_BYTES,
                "program": argv[4] if is_program else None,
            }
            return _ZygoteTree(nursery.zygote(), job, group, held.pop_all())


@final
class _ZygoteTree(Tree):
    """A process namespace: the kernel kills all in it when its process 1, ``init``, dies.

    Args:
        zygote: forks it.
        job: what it runs.
        group: bounds and counts it, where there are control groups.
        held: what to let go of at its end.
    """

    def __init__(
        self, zygote: _Zygote, job: dict[str, Any], group: Cgroup | None, held: contextlib.ExitStack
    ) -> None:
        self._zygote, self._group, self._held = zygote, group, held
        self._seen_cpu_s = 0.0
        with held, contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:
            pipes: list[IO[bytes]] = []
            theirs.callback(os.close, asked := _memory(json.dumps(job)))
            theirs.callback(os.close, forbidden := _seccomp.descriptor())
            passed = [asked, forbidden]
            for mode in ("wb", "rb", "rb"):
                read, write = os.pipe2(os.O_CLOEXEC)
                given, kept = (read, write) if mode == "wb" else (write, read)
                theirs.callback(os.close, given)
                passed.append(given)
                pipes.append(ours.enter_context(open(kept, mode, 0)))
            self._control, control = socket.socketpair()
            held.enter_context(self._control)
            passed.append(theirs.enter_context(control).fileno())
            answer, [self._init] = zygote.ask("run", passed)
            self._number = int(answer["pid"])
            held.callback(os.close, self._init)
            with _ending(self._kill):
                self._pid = _pid_of(self._init)
                if group is not None:
                    group.add([self._pid])
                elif not Path(f"/proc/{self._pid}/task/{self._pid}/children").exists():
                    raise UnenforceableLimit(
                        "cpu_s: this kernel lists no child processes (CONFIG_PROC_CHILDREN)"
                    )
                self._control.send(b"go")
            super().__init__(cast("Pipes", tuple(pipes)), os.dup(self._init))
            ours.pop_all()  # they are the supervisor's now
            self._held = held.pop_all()

    def usage(self) -> Usage:
        if self._group is not None:
            return Usage(self._group.cpu_s(), self._group.out_of_memory())
        self._seen_cpu_s = max(self._seen_cpu_s, _proc.cpu_s(_proc.family(self._pid)))
        return Usage(self._seen_cpu_s)

    def end(self) -> Ending:
        with self._held:
            self.usage()
            ran_out = _bwrap.readable(self._init, 0)
            self._seen_cpu_s = max(self._seen_cpu_s, self._kill())
            said = b""
            with contextlib.suppress(ConnectionResetError):  # it was killed before it had read a word
                said = self._control.recv(16)
            if ran_out and not said.startswith(_UP):
                raise SandboxError("the zygote could not confine a command")
            peak_bytes = 0 if self._group is None else self._group.peak_memory_bytes()
            return Ending(_status(said[len(_UP) :]), self.usage(), peak_bytes)

    def _kill(self) -> float:
        """Kill what lives; returns the CPU seconds that all of it has used, once it is dead."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._init, signal.SIGKILL)
        # The kernel reports process 1 as dead only after it has killed and reaped all others.
        if not _bwrap.readable(self._init):
            raise SandboxError("a killed sandbox did not die; its processes may hang in the kernel")
        answer, _ = self._zygote.ask(f"reap {self._number}")
        return float(answer["cpu_s"])


def _status(said: bytes) -> int:
    """The command's exit status or minus its signal, as its process 1 has reported it.

    A process 1 that reports nothing was killed, by us or for what its command did.
    """
    return int(struct.unpack("i", said)[0]) if len(said) == 4 else -signal.SIGKILL


@contextlib.contextmanager
def _ending(kill: Callable[[], object]) -> Generator[None]:
    """Kill what was just started if what follows fails."""
    try:
        yield
    except BaseException:
        kill()
        raise


def _pid_of(pidfd: int) -> int:
    """The process behind a descriptor, by its number here.

    Raises:
        SandboxError: it is dead.
    """
    for line in Path(f"/proc/self/fdinfo/{pidfd}").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "Pid" and int(value) > 0:
            return int(value)
    raise SandboxError("a forked command died at once")


def _memory(text: str) -> int:
    """Descriptor of a file in memory, at its start; the caller closes it."""
    file = os.memfd_create("envkit", os.MFD_CLOEXEC)
    os.write(file, text.encode())
    os.lseek(file, 0, os.SEEK_SET)
    return file


def _namespaces(root: Path, spaces: Path) -> list[str]:
    return [
        # With rights inside them, which the zygote's forks give up before they run anything.
        *("--unshare-all", "--unshare-user", "--cap-add", "ALL", "--as-pid-1"),
        *("--uid", "0", "--gid", "0", "--hostname", "sandbox"),
        *("--die-with-parent", "--new-session"),
        *("--ro-bind", str(root), "/", "--proc", "/proc", "--dev", "/dev", "--remount-ro", "/dev"),
        *("--tmpfs", "/tmp", "--bind", str(spaces), _SPACES),
    ]
