"""Read what a forked child writes. Stdlib only: programs that run inside a sandbox get its source."""

from __future__ import annotations


def read_output(reading: int, child: int, check_s: float = 0.5, checks: int = 4) -> bytes:
    """Read a child's output until it ends; kill it if it uses no CPU time for ``checks`` checks in a row.

    On a busy machine a runnable process still gets some CPU time. Processes that the child leaves behind may
    hold the pipe open; they are not waited for once the child has ended.
    """
    import os
    import select
    import signal
    import time

    # A process's CPU clock by its id, as clock_getcpuclockid(3) makes it; it has no name in `time`.
    clock = ~child << 3 | 2
    parts: list[bytes] = []
    still, used, ended = 0, -1, False
    with os.fdopen(reading, "rb", buffering=0) as source:
        while True:
            if select.select([source], [], [], check_s)[0]:
                if not (part := source.read(2**16)):
                    return b"".join(parts)
                parts.append(part)
                continue
            if ended:
                return b"".join(parts)
            ended = os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
            now = time.clock_gettime_ns(clock)
            still, used = (still + 1 if now == used else 0), now
            if still == checks:
                os.kill(child, signal.SIGKILL)
