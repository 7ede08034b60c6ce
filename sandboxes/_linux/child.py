"""Child processes, started from one long-lived thread."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import IO, Final, TypeAlias, cast, final

#: Open files of a process that has several hundred sandboxes.
_OPEN_FILES: Final = 65_536
#: The host's ends of a command's stdin, stdout and stderr.
Pipes: TypeAlias = tuple[IO[bytes], IO[bytes], IO[bytes]]


def pipes(ours: contextlib.ExitStack, theirs: contextlib.ExitStack) -> tuple[Pipes, list[int]]:
    """Create pipes for the stdin, stdout and stderr of a command that another process starts.

    Args:
        ours: stack that closes the host's ends.
        theirs: stack that closes the command's ends.

    Returns:
        The host's ends, unbuffered, and the command's descriptors.
    """
    kept: list[IO[bytes]] = []
    given: list[int] = []
    for mode in ("wb", "rb", "rb"):
        read, write = os.pipe2(os.O_CLOEXEC)
        mine, other = (write, read) if mode == "wb" else (read, write)
        theirs.callback(os.close, other)
        given.append(other)
        file: IO[bytes] = open(mine, mode, 0)  # noqa: SIM115  (the stack closes it)
        kept.append(ours.enter_context(file))
    return cast("Pipes", tuple(kept)), given


def memory_file(data: bytes) -> int:
    """Descriptor of a file in memory that holds ``data``, at its start; the caller closes it."""
    file = os.memfd_create("envkit", os.MFD_CLOEXEC)
    os.write(file, data)
    os.lseek(file, 0, os.SEEK_SET)
    return file


def from_file(descriptor: int, title: str) -> str:
    """A program for Python's ``-c`` that runs another one, whose source is too long for a line of ``ps``.

    It closes the file before the other one begins, which has the same arguments and standard input.

    Args:
        descriptor: of a file that holds the source. Python inherits it.
        title: a few words that ``ps`` shows instead of the source.
    """
    return f"{title!r};exec(open({descriptor},'rb').read())"


@final
class Child:
    """A child process in its own session, with unbuffered pipes for stdin, stdout and stderr.

    Args:
        argv: the command.
        env: its whole environment.
        cwd: its working directory.
        inherit: further descriptors that it inherits.
    """

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], cwd: Path, *inherit: int) -> None:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            list(argv),
            bufsize=0,
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            env=dict(env),
            cwd=cwd,
            pass_fds=inherit,
            # A new session, so that Ctrl-C in a terminal reaches the trainer only.
            start_new_session=True,
        )
        self.pid = self._process.pid
        streams = (self._process.stdin, self._process.stdout, self._process.stderr)
        self.pipes = cast(Pipes, streams)
        self.stdin, self.stdout, self.stderr = self.pipes

    def has_ended(self) -> bool:
        """True if it has ended; does not reap it."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def reap(self) -> tuple[int, float]:
        """Wait for its end; returns exit code (or minus the signal) and CPU seconds with reaped children."""
        _, status, used = os.wait4(self.pid, 0)
        self._process.returncode = os.waitstatus_to_exitcode(status)
        return self._process.returncode, used.ru_utime + used.ru_stime

    def discard(self) -> None:
        """Kill it and close its pipes, unless it has been reaped."""
        if self._process.returncode is None:
            self._process.kill()
            for pipe in self.pipes:
                pipe.close()
            self._process.wait()


def launch(argv: Sequence[str], env: Mapping[str, str], cwd: Path, *inherit: int) -> Child:
    """Start a `Child`, from any thread."""
    # bubblewrap's --die-with-parent means the parent *thread*, so everything starts from one that lives on.
    job = _launcher(os.getpid()).submit(Child, argv, env, cwd, *inherit)
    try:
        return job.result()
    except KeyboardInterrupt:
        # Wait for the thread, because the caller soon closes descriptors that the child inherits.
        if not job.cancel() and job.exception() is None:
            job.result().discard()
        raise


@cache
def _launcher(pid: int) -> ThreadPoolExecutor:
    """This process's launching thread. Keyed by pid, because a fork does not have it."""
    allow_open_files()
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"launcher-{pid}")


def allow_open_files() -> None:
    """Raise this process's own limit on open files, up to what the system allows it.

    A hundred sandboxes at once have about a thousand files open, and 1,024 is an ordinary user's usual limit.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
