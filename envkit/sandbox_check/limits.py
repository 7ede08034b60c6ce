"""Cases of limits: each holds, is named when it is met, and leaves the sandbox fit for use."""

from __future__ import annotations

import time
from typing import Final

from envkit.sandbox import Limits, StopReason
from envkit.sandbox_check.lab import BRIEF, MIB, Case, Lab, unless

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
#: Ends by itself, so that it is no danger where memory is not bounded.
_HOARD: Final = "data = bytearray()\nfor _ in range(1024): data += bytes(2**20)"


def _wall(lab: Lab) -> str:
    for wall_s in (0.25, 1.0, 4.0):  # until it is long enough for the daemon to be up
        result = lab.python(_DAEMON, limits=Limits(wall_s=wall_s))
        if lab.sandbox.export(["beat"], MIB):
            break
    beats = len(lab.sandbox.read("beat", MIB))
    time.sleep(0.05)
    later = len(lab.sandbox.read("beat", MIB))
    return unless(result.stop is StopReason.WALL and later == beats, (result, f"{later - beats} more beats"))


def _stubborn(lab: Lab) -> str:
    result = lab.python(_STUBBORN, limits=Limits(wall_s=0.5))
    return unless(result.stop is StopReason.WALL, result)


def _cpu(lab: Lab) -> str:
    result = lab.python("while True: pass", limits=Limits(cpu_s=0.1))
    return unless(result.stop is StopReason.CPU, result)


def _cpu_of_all(lab: Lab) -> str:
    result = lab.python(_BURNING_CHILDREN, limits=Limits(cpu_s=0.4))
    return unless(result.stop is StopReason.CPU and result.cpu_s < 4, result)


def _flood(stream: int) -> Case:
    def case(lab: Lab) -> str:
        code = f"import os\nwhile True: os.write({stream}, b'x' * 65536)"
        result = lab.python(code, limits=Limits(output_bytes=1000))
        kept = result.stdout if stream == 1 else result.stderr
        return unless(
            result.stop is StopReason.OUTPUT and result.truncated and len(kept) == 1000,
            (result.stop, len(kept)),
        )

    return case


def _output_to_the_byte(lab: Lab) -> str:
    whole = lab.python("print('x' * 999)", limits=Limits(output_bytes=1000))
    more = lab.python("print('x' * 1000)", limits=Limits(output_bytes=1000))
    return unless(whole.ok and not whole.truncated and more.truncated, (whole.stop, more.stop))


def _memory(lab: Lab) -> str:
    result = lab.python(f"bytearray({256 * MIB}); print('got it')")
    return unless(not result.ok and b"got it" not in result.stdout, result)


def _after_memory(lab: Lab) -> str:
    lab.python(_HOARD)
    return unless(lab.python("print(1)").ok, "a sandbox that runs nothing more")


def _file(lab: Lab) -> str:
    result = lab.python(f"open('big', 'wb').write(bytes({2 * MIB}))")
    size = len(lab.sandbox.read("big", 4 * MIB))
    return unless(not result.ok and size <= MIB, (result, f"{size} bytes written"))


def _scratch(lab: Lab) -> str:
    made = lab.python(_SCRATCH).stdout.split()
    return unless(len(made) == 2 and int(made[0]) < 99 and int(made[1]) < 19_999, f"{made} MB, files in /tmp")


def _processes(lab: Lab) -> str:
    made = len(lab.python(_FORKS).stdout.splitlines())
    return unless(0 < made < BRIEF.processes, f"{made} forks with a limit of {BRIEF.processes} processes")


def _after_forks(lab: Lab) -> str:
    lab.python(_FORKS)
    return unless(lab.python("print(1)").ok, "a sandbox that runs nothing more")


def _no_core(lab: Lab) -> str:
    result = lab.python("import resource; print(resource.getrlimit(resource.RLIMIT_CORE))")
    return unless(result.stdout == b"(0, 0)\n", result)


def _files_open(lab: Lab) -> str:
    code = "files = []\ntry:\n    while len(files) < 5000: files.append(open('/dev/null'))\n"
    result = lab.python(f"{code}except OSError: pass\nprint(len(files))")
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
    "goes on after memory ran out": _after_memory,
    "bounds file size": _file,
    "bounds scratch space": _scratch,
    "bounds processes": _processes,
    "goes on after too many processes": _after_forks,
    "dumps no core": _no_core,
    "bounds open files": _files_open,
}
