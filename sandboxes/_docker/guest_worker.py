"""Starts and ends commands in a container, as its init process; run as ``python -P -S -c SOURCE``.

    argv     path of the host's UNIX socket; id of the user that runs commands

Requests of the host, and the answers:

    "run"    comes with descriptors: a file that holds {"argv": [...], "env": {...}, "rlimits": [[KIND,
             BOUND], ...]}, then stdin, stdout and stderr. Answer: {} with a descriptor that is readable once
             the command has ended
    "where"  {"device": NUMBER} of the workspace's file system
    "usage"  {"cpu_s": S, "oom": BOOL}
    "end"    kills all other processes, then {"code": CODE or null, "clean": BOOL, "cpu_s": S, "oom": BOOL};
             "clean" is true if their scratch files are gone

One command runs at a time. Commands run as another user, and no process in the container may signal the init
process, so a command can reach neither the socket nor this program. When the host goes away, this program
ends, and the container with it.
"""

from __future__ import annotations

TYPE_CHECKING = False  # importing `typing` would take longer than everything else here
if TYPE_CHECKING:
    from typing import Any


def counters() -> tuple[float, int]:
    """CPU seconds used by all processes of this container, and how many of them ran out of memory."""

    def table(path: str) -> dict[str, int]:
        try:
            with open(path) as file:
                return {key: int(value) for key, value in map(str.split, file)}
        except (OSError, ValueError):
            return {}

    root = "/sys/fs/cgroup"
    cpu = table(f"{root}/cpu.stat").get("usage_usec")  # version 2
    if cpu is not None:
        return cpu / 1e6, table(f"{root}/memory.events").get("oom_kill", 0)
    with open(f"{root}/cpuacct/cpuacct.usage") as file:
        return int(file.read()) / 1e9, table(f"{root}/memory/memory.oom_control").get("oom_kill", 0)


def start(request: dict[str, Any], pipes: list[int], user: int) -> int:
    """Fork and run the command; returns its process id."""
    import os
    import resource
    import signal

    child = os.fork()
    if child:
        return child
    try:
        os.setsid()
        for target, pipe in enumerate(pipes):
            os.dup2(pipe, target)
        os.closerange(3, 256)
        for kind, bound in request["rlimits"]:
            resource.setrlimit(kind, (bound, bound))
        with open("/proc/self/oom_score_adj", "w") as score:
            score.write("1000")  # the kernel kills the command before the init process
        become(user)
        os.chdir("/workspace")
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.execvpe(request["argv"][0], request["argv"], request["env"])
    except OSError as error:
        os.write(2, f"{error}\n".encode())
    finally:
        os._exit(127)


def become(user: int) -> None:
    """Become the user that runs commands. This drops the capabilities too."""
    import os

    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


class Command:
    """The running command, or the last one that ran."""

    def __init__(self) -> None:
        self.pid = 0
        #: Exit status, or minus the signal that ended it, once it has ended by itself.
        self.code: int | None = None

    def reap(self) -> None:
        """Reap dead processes, orphans too. Until then they count against the container's limit."""
        import os

        try:
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                if pid == self.pid:
                    self.code = os.waitstatus_to_exitcode(status)
        except ChildProcessError:
            pass

    def kill(self) -> None:
        """Kill every other process of the container and wait until all are dead."""
        import contextlib
        import os
        import signal

        self.reap()
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while True:
                os.wait()


def sweep(user: int) -> bool:
    """Empty the scratch folders as the user that runs commands. Returns True if they are empty afterwards."""
    import os
    import shutil

    roots = ("/tmp", "/dev/shm")
    if not any(map(os.listdir, roots)):
        return True
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return not any(map(os.listdir, roots))
    try:
        become(user)
        for root in roots:
            for entry in list(os.scandir(root)):
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
                else:
                    os.unlink(entry.path)
    finally:
        os._exit(0)


def main(path: str, user: int) -> None:
    """Serve the host until it goes away."""
    import json
    import os
    import select
    import socket

    host = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    host.connect(path)
    command, before = Command(), (0.0, 0)
    while True:
        while not select.select([host], [], [], 0.05)[0]:
            command.reap()
        word, passed, _, _ = socket.recv_fds(host, 64, 4)
        if not word:
            return
        handles: list[int] = []
        answer: dict[str, Any] = {}
        if word == b"run":
            before = counters()
            command = Command()
            with open(passed[0], "rb", closefd=False) as file:
                request = json.load(file)
            command.pid = start(request, passed[1:], user)
            handles = [os.pidfd_open(command.pid)]
        elif word == b"where":
            answer = {"device": os.stat("/workspace").st_dev}
        else:
            if word == b"end":
                command.kill()
                answer = {"code": command.code, "clean": sweep(user)}
            cpu_s, killed = counters()
            answer |= {"cpu_s": cpu_s - before[0], "oom": killed > before[1]}
        for descriptor in passed:
            os.close(descriptor)
        socket.send_fds(host, [json.dumps(answer).encode()], handles)
        for handle in handles:
            os.close(handle)


if __name__ == "__main__":
    import sys

    main(sys.argv[1], int(sys.argv[2]))
