"""Starts and ends commands inside a container, as its process 1; run as ``python -I -S -c SOURCE``.

    argv     path of the host's UNIX socket, user id that commands run as
    request  {"argv": [...], "env": {...}, "rlimits": [[KIND, BOUND], ...]} with stdin, stdout and stderr as
             descriptors; answered by {"started": true} with a descriptor that is readable once it has ended
    request  {"usage": true}, answered by {"cpu_s": S, "oom": BOOL}
    request  {"end": true}, answered by {"code": CODE or null, "cpu_s": S, "oom": BOOL} once all processes are
             dead and /tmp is empty

One command at a time. Commands run as another user, and nothing in the container may signal process 1, so
none of them can reach the socket or this program. When the host goes away, so does the container.
"""

from __future__ import annotations

TYPE_CHECKING = False  # `typing` itself would take longer to import than all the rest
if TYPE_CHECKING:
    from typing import Any


def counters() -> tuple[float, int]:
    """CPU seconds used, and processes killed for memory, by all that ran in this container."""

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
            score.write("1000")  # before process 1
        become(user)
        os.chdir("/workspace")
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.execvpe(request["argv"][0], request["argv"], request["env"])
    except OSError as error:
        os.write(2, f"{error}\n".encode())
    finally:
        os._exit(127)


def become(user: int) -> None:
    """Turn into the user that commands run as; the capabilities go with it."""
    import os

    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def kill_all(child: int) -> int | None:
    """Kill every other process here; returns the status of the command where it had ended by itself."""
    import contextlib
    import os
    import signal

    ended = os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)
    code = None
    while True:
        try:
            pid, status = os.wait()
        except ChildProcessError:
            return code
        if pid == child and ended:
            code = os.waitstatus_to_exitcode(status)


def sweep(user: int) -> None:
    """Empty the scratch folders, as the user whom their content belongs to."""
    import os
    import shutil

    roots = ("/tmp", "/dev/shm")
    if not any(map(os.listdir, roots)):
        return
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
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
    import socket

    host = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    host.connect(path)
    child, before = 0, (0.0, 0)
    while True:
        data, passed, _, _ = socket.recv_fds(host, 2**20, 3)
        if not data:
            return
        request = json.loads(data)
        handles: list[int] = []
        if "argv" in request:
            before = counters()
            child = start(request, passed, user)
            handles = [os.pidfd_open(child)]
            answer: dict[str, Any] = {"started": True}
        else:
            answer = {"code": kill_all(child)} if "end" in request else {}
            cpu_s, killed = counters()
            answer |= {"cpu_s": cpu_s - before[0], "oom": killed > before[1]}
            if "end" in request:
                sweep(user)
        for pipe in passed:
            os.close(pipe)
        socket.send_fds(host, [json.dumps(answer).encode()], handles)
        for handle in handles:
            os.close(handle)


if __name__ == "__main__":
    import sys

    main(sys.argv[1], int(sys.argv[2]))
