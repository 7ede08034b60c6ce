"""Cases about limits: each is enforced, reported by name, and leaves the sandbox usable."""

from __future__ import annotations

import time
from typing import Final

from envkit.sandbox import Limits, StopReason
from envkit.sandbox.check.context import BRIEF, MIB, Case, CheckContext, unless

_DAEMON: Final = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        while True:
            open("beat", "ab").write(b".")
            time.sleep(0.005)
while not os.path.exists("beat"): time.sleep(0.001)
time.sleep(60)
"""
_FORKS: Final = """
import os, time
made = 0
for _ in range(64):
    try:
        if os.fork() == 0: time.sleep(60)
    except OSError: break
    made += 1
    print(made, flush=True)
os._exit(0)
"""
_BURNING_CHILDREN: Final = """
import os
for _ in range(2): os.fork()
while True: pass
"""
_STUBBORN: Final = """
import signal, time
for number in range(1, signal.NSIG):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
time.sleep(60)
"""
_SCRATCH: Final = """
import tempfile
made = 0
with tempfile.TemporaryDirectory(dir="/tmp") as folder:
    try:
        for made in range(100):
            with open(f"{folder}/{made}", "wb") as file: file.write(bytes(1000000))
    except OSError: pass
print(made)
with tempfile.TemporaryDirectory(dir="/tmp") as folder:
    try:
        for made in range(20000): open(f"{folder}/{made}", "w").close()
    except OSError: pass
print(made)
"""
#: Stops at 1 GiB, so that it does no harm if nothing limits memory.
_HOARD: Final = "data = bytearray()\nfor _ in range(1024): data += bytes(2**20)"


def _wall(context: CheckContext) -> str:
    for wall_s in (0.25, 1.0, 4.0):  # longer each time, until the daemon has started
        result = context.python(_DAEMON, limits=Limits(wall_s=wall_s))
        if context.sandbox.export(["beat"], MIB):
            break
    beats = len(context.sandbox.read("beat", MIB))
    time.sleep(0.05)
    later = len(context.sandbox.read("beat", MIB))
    return unless(result.stop is StopReason.WALL and later == beats, (result, f"{later - beats} more beats"))


def _stubborn(context: CheckContext) -> str:
    result = context.python(_STUBBORN, limits=Limits(wall_s=0.5))
    return unless(result.stop is StopReason.WALL, result)


def _cpu(context: CheckContext) -> str:
    result = context.python("while True: pass", limits=Limits(cpu_s=0.1))
    return unless(result.stop is StopReason.CPU, result)


def _cpu_of_all(context: CheckContext) -> str:
    result = context.python(_BURNING_CHILDREN, limits=Limits(cpu_s=0.4))
    return unless(result.stop is StopReason.CPU and result.cpu_s < 4, result)


def _flood(stream: int) -> Case:
    def case(context: CheckContext) -> str:
        code = f"import os\nwhile True: os.write({stream}, b'x' * 65536)"
        result = context.python(code, limits=Limits(output_bytes=1000))
        kept = result.stdout if stream == 1 else result.stderr
        return unless(
            result.stop is StopReason.OUTPUT and result.truncated and len(kept) == 1000,
            (result.stop, len(kept)),
        )

    return case


def _output_to_the_byte(context: CheckContext) -> str:
    whole = context.python("print('x' * 999)", limits=Limits(output_bytes=1000))
    more = context.python("print('x' * 1000)", limits=Limits(output_bytes=1000))
    return unless(whole.ok and not whole.truncated and more.truncated, (whole.stop, more.stop))


def _memory(context: CheckContext) -> str:
    result = context.python(f"bytearray({256 * MIB}); print('got it')")
    return unless(not result.ok and b"got it" not in result.stdout, result)


def _after_memory(context: CheckContext) -> str:
    context.python(_HOARD)
    return unless(context.python("print(1)").ok, "a sandbox that runs nothing any more")


def _file(context: CheckContext) -> str:
    result = context.python(f"open('big', 'wb').write(bytes({2 * MIB}))")
    size = len(context.sandbox.read("big", 4 * MIB))
    context.sandbox.write("big", b"")  # cases run in any order, and some export all files
    return unless(not result.ok and size <= MIB, (result, f"{size} bytes written"))


def _scratch(context: CheckContext) -> str:
    made = context.python(_SCRATCH).stdout.split()
    return unless(len(made) == 2 and int(made[0]) < 99 and int(made[1]) < 19_999, f"{made} MB, files in /tmp")


def _processes(context: CheckContext) -> str:
    made = len(context.python(_FORKS).stdout.splitlines())
    return unless(0 < made < BRIEF.processes, f"{made} forks with a limit of {BRIEF.processes} processes")


def _after_forks(context: CheckContext) -> str:
    context.python(_FORKS)
    return unless(context.python("print(1)").ok, "a sandbox that runs nothing any more")


def _no_core(context: CheckContext) -> str:
    result = context.python("import resource; print(resource.getrlimit(resource.RLIMIT_CORE))")
    return unless(result.stdout == b"(0, 0)\n", result)


def _files_open(context: CheckContext) -> str:
    code = "files = []\ntry:\n    while len(files) < 5000: files.append(open('/dev/null'))\n"
    result = context.python(f"{code}except OSError: pass\nprint(len(files))")
    return unless(result.ok and int(result.stdout) < 5000, result)


LIMITS: Final[dict[str, Case]] = {
    "kills the whole tree at the wall limit": _wall,
    "kills what ignores every signal": _stubborn,
    "stops at the CPU limit": _cpu,
    "counts the CPU time of all processes": _cpu_of_all,
    "stops at the output limit": _flood(1),
    "stops a flood of errors": _flood(2),
    "keeps output of just the limit": _output_to_the_byte,
    "bounds memory": _memory,
    "works after memory ran out": _after_memory,
    "bounds file size": _file,
    "bounds scratch space": _scratch,
    "bounds processes": _processes,
    "works after too many processes": _after_forks,
    "dumps no core": _no_core,
    "bounds open files": _files_open,
}
