"""The zygote backend: its forks behave like new interpreters and are isolated from each other."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from control_groups import control_groups

from envkit.errors import SandboxError, UnenforceableLimit
from envkit.runtime.lease import reap
from envkit.sandbox import PYTHON_OPTIONS, Limits, Sandbox, StopReason
from envkit.sandboxes import zygote
from envkit.sandboxes._linux import bwrap, cgroup, procfs
from envkit.sandboxes._workspace import mounted_sandbox
from envkit.sandboxes._workspace import mounts as workspace_mounts
from envkit.sandboxes._zygote import host as zygote_host
from envkit.sandboxes.bubblewrap import BubblewrapBackend
from envkit.sandboxes.zygote import ZygoteBackend

TRAINER = """
import os, sys, time
from envkit.sandboxes.zygote import ZygoteBackend
sandbox = ZygoteBackend().create()
peer = sandbox.open([sandbox.python, "-uc", "print(input()); import time; time.sleep(600)"])
peer.ask(b"up", 30)
print(sandbox._zygote.lease.path.name, peer._tree._init.pid, flush=True)
time.sleep(600)
"""
#: Programs and arguments. A fork and a new interpreter must produce the same bytes.
PROGRAMS = {
    "prints": ("import sys; print(sys.argv, file=sys.stderr); print('out')", ["one", "two"]),
    "exits with a status": ("raise SystemExit(3)", []),
    "exits with a message": ("raise SystemExit('bad')", []),
    "raises": ("1 / 0", []),
    "does not compile": ("def", []),
    "is main": ("print(__name__, __import__('__main__').__dict__ is globals())", []),
    "starts itself again": ("import os, sys; print(len(sys.orig_argv), flush=True)\n"
                            "if len(sys.argv) < 3: "
                            "os.execv(sys.orig_argv[0], [*sys.orig_argv, 'more', 'x'])", []),
    "reads its input": ("import sys; print(sys.stdin.read()[::-1], sys.stdin.closed)", []),
    "flushes what it did not close": ("file = open('f', 'w'); file.write('x'); import atexit, os; "
                                      "atexit.register(lambda: print(os.listdir()))", []),
    "closes its output": ("import sys; print('out'); sys.stdout.close()", []),
    "has no output": ("import sys; print('out'); sys.stdout.flush(); sys.stdout = None", []),
    "loses its output": ("import os; print('lost'); os.close(1)", []),
    "deletes a global at its end": ("import os\nclass C:\n"
                                    " def __del__(self): print('bye', os.getcwd(), note())\n"
                                    "def note(): return 1\nc = C()", []),
    "deletes what an own module holds": ("open('m.py', 'w').write('class C:\\n"
                                         " def __del__(self): print(N)\\nN = 5; c = C()')\n"
                                         "import sys; sys.path.insert(0, '.'); import m", []),
    "ends within a generator": ("def g():\n try: yield\n finally: print('cleanup')\nx = g(); next(x)", []),
    "uses what tidies up by itself": ("import logging, asyncio, concurrent.futures, tempfile\n"
                                      "t = tempfile.TemporaryDirectory(); logging.warning('x')", []),
    "deletes its output": ("import sys; print('out'); sys.stdout.flush(); del sys.stdout", []),
    "waits for its threads": ("import threading, time; threading.Thread(target=lambda: "
                              "(time.sleep(.05), print('late'))).start()", []),
    "is isolated": ("import sys; print(sys.flags, sys.path, sys.executable, sys.version)", []),
    "has limits": ("import resource as r; print([r.getrlimit(k) for k in (r.RLIMIT_CPU, r.RLIMIT_FSIZE, "
                   "r.RLIMIT_NOFILE, r.RLIMIT_CORE)])", []),
    "handles signals": ("import signal; print([(s, signal.getsignal(s)) for s in (2, 13, 15, 17)])", []),
    "can be interrupted": ("import os, signal\ntry: os.kill(os.getpid(), signal.SIGINT)\n"
                           "except KeyboardInterrupt: print('interrupted')", []),
    "is of a user": ("import os; print(os.getresuid(), os.getresgid(), os.getgroups(), os.getcwd(), "
                     "sorted(set(os.environ.items()) - {('PWD', '/workspace')}))", []),
    "recurses": ("import sys\ndef f(n):\n try: return f(n + 1)\n except RecursionError: return n\n"
                 "print(f(0) > 900, sys.getrecursionlimit())", []),
    "looks at itself": ("print(open('/proc/self/status').read().split('Seccomp')[1][:4], "
                        "open('/proc/self/maps').read(1) != '')", []),
    "sees no other": ("import os; print(sorted(p for p in os.listdir('/proc') if p.isdigit()) <= "
                      "['1', '2', '3', '4'], os.listdir('/tmp'), os.listdir('/dev/shm'))", []),
}  # fmt: skip
#: Tries to kill, stop, starve or inspect its own init process.
ATTACKS_ON_INIT = """
import ctypes, os, resource, signal, sys
for number in range(1, 65):
    if number not in (15, 17, 32, 33):  # on 15 init ends all commands, as the host may request
        try: os.kill(1, number)
        except OSError: pass
for kind in (resource.RLIMIT_CPU, resource.RLIMIT_NOFILE, resource.RLIMIT_AS, resource.RLIMIT_DATA):
    try: resource.prlimit(1, kind, (1, 1))
    except OSError: pass
opened = []
names = ["mem", "root", "cwd", "environ", "maps", "stack", "auxv", *(f"fd/{n}" for n in range(64))]
for name in names:
    try:
        handle = os.open(f"/proc/1/{name}", os.O_RDONLY)
        if name == "stack": os.read(handle, 1)  # its permissions are checked on reading only
        opened.append(name)
    except OSError: pass
libc = ctypes.CDLL(None, use_errno=True)
for request in (16, 0x4206): opened += ["ptrace"] * (libc.ptrace(request, 1, 0, 0) == 0)
print(opened)
"""


@pytest.fixture
def sandbox(zygote: ZygoteBackend) -> Iterator[Sandbox]:
    with zygote.create() as made:
        yield made


@pytest.fixture
def own_zygote(monkeypatch: pytest.MonkeyPatch) -> Iterator[zygote_host.Zygote]:
    """A zygote of this test alone, not yet started."""
    made = zygote_host.Zygote()
    monkeypatch.setattr(zygote, "shared_zygote", lambda *_: made)
    yield made
    made.close()


def program(sandbox: Sandbox, code: str, limits: Limits = Limits()):
    return sandbox.run([sandbox.python, *PYTHON_OPTIONS, "-c", code], limits=limits)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Handle SIGINT by default: background processes ignore it, and children of bubblewrap inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_fork_behaves_like_a_new_interpreter(
    sandbox: Sandbox, bubblewrap: BubblewrapBackend, name: str
) -> None:
    code, arguments = PROGRAMS[name]

    def observed(place: Sandbox) -> tuple[object, ...]:
        argv = [place.python, *PYTHON_OPTIONS, "-c", code, *arguments]
        found = place.run(argv, stdin=b"given")
        # Only the last line: the first frame of a traceback differs between the two.
        return found.stop, found.exit, found.stdout, found.stderr.splitlines()[-1:]

    with bubblewrap.create() as other:
        assert observed(sandbox) == observed(other)


def command_line(pid: int) -> str:
    """As `ps` shows it; empty for a process that has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().rstrip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def test_ps_shows_titles_and_no_source(sandbox: Sandbox) -> None:
    source = "input()\n" + "# A line of a long program.\n" * 300
    with contextlib.closing(sandbox.open([sandbox.python, *PYTHON_OPTIONS, "-c", source])):
        lines = [command_line(pid) for pid in procfs.family(os.getpid())[1:]]
    shown = [line for line in lines if "envkit" in line]
    # Each names what it is before the screen ends; the folders of programs do not count.
    named = [re.sub(r"(?<!\S)/\S*/", "", line)[len(Path(line.split()[0]).name) :] for line in shown]
    assert any(line.startswith(" -I -S -c 'envkit mounts workspaces'") for line in named), lines
    assert any(line.startswith(" -P -S -c 'envkit zygote'") for line in named), lines
    assert any("--args" in line and "'envkit zygote'" in line[:60] for line in named), lines
    assert max(map(len, named)) < 132
    assert not any("\n" in line or "long program" in line for line in lines), lines


def test_a_program_has_one_frame_beneath_it(sandbox: Sandbox) -> None:
    code = "import sys; frame = sys._getframe().f_back; print(frame is not None, frame.f_back)"
    assert program(sandbox, code).stdout == b"True None\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="looks into processes of another user")
def test_no_process_keeps_a_source_open(sandbox: Sandbox) -> None:
    assert program(sandbox, "pass").ok
    opened: dict[str, list[str]] = {}
    for pid in procfs.family(os.getpid())[1:]:
        with contextlib.suppress(FileNotFoundError):  # it has ended
            links = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()]
            opened[command_line(pid)] = [link for link in links if "memfd" in link]
    assert any("envkit zygote" in line for line in opened)
    assert not any(opened.values()), opened


def test_forks_have_different_random_numbers(sandbox: Sandbox) -> None:
    code = "import random, secrets, uuid; print(random.random(), secrets.token_hex(4), uuid.uuid4())"
    first, second = (program(sandbox, code).stdout.split() for _ in range(2))
    assert not set(first) & set(second)


def test_a_command_cannot_harm_its_init_process(sandbox: Sandbox) -> None:
    found = program(sandbox, ATTACKS_ON_INIT)
    assert found.stdout == b"[]\n", found
    assert program(sandbox, "pass").ok


#: Tries to slow down its init process, or all processes of its user.
SLOW_INIT = """
import ctypes, os, resource
libc, done = ctypes.CDLL(None, use_errno=True), []
def tried(name, action):
    try: action()
    except OSError: return
    done.append(name)
def asked(result):
    if result < 0: raise OSError
for which, who in ((os.PRIO_PROCESS, 1), (os.PRIO_PGRP, 1), (os.PRIO_USER, 0), (os.PRIO_USER, os.getuid())):
    tried(f"niceness {which} {who}", lambda: os.setpriority(which, who, 19))
    tried(f"cut off {which} {who}", lambda: asked(libc.setpriority(
        ctypes.c_ulong(which | 1 << 32), ctypes.c_ulong(who | 1 << 32), 19)))
number = {"x86_64": 251, "aarch64": 30}[os.uname().machine]
for which, who in ((1, 1), (2, 1), (3, 0)):
    tried(f"disk {which} {who}", lambda: asked(libc.syscall(number, which, who, 3 << 13)))
tried("place", lambda: os.sched_setaffinity(1, os.sched_getaffinity(0)))
tried("schedule", lambda: os.sched_setscheduler(1, os.SCHED_IDLE, os.sched_param(0)))
tried("limits", lambda: resource.prlimit(1, resource.RLIMIT_NOFILE, (3, 3)))
for name in ("autogroup", "oom_score_adj", "timerslack_ns", "coredump_filter", "sched"):
    tried(name, lambda: open(f"/proc/1/{name}", "w"))
os.nice(1); os.sched_setaffinity(0, os.sched_getaffinity(0))  # a command may change its own values
print(done)
"""
#: Sends descriptors to itself without receiving them, until its user's limit is reached.
SEND_DESCRIPTORS = """
import errno, os, socket
input()
null, kept = os.open("/dev/null", os.O_RDONLY), []
while True:
    try:
        kept.append(socket.socketpair())
        while True: socket.send_fds(kept[-1][0], [b"x"], [null] * 253, socket.MSG_DONTWAIT)
    except OSError as error:
        if error.errno == errno.ETOOMANYREFS: break
print("full", flush=True)
input()
"""


def test_a_command_cannot_slow_down_its_init_process(sandbox: Sandbox) -> None:
    found = program(sandbox, SLOW_INIT)
    assert found.stdout == b"[]\n", found


@pytest.fixture
def few_descriptors() -> Iterator[None]:
    """Limit this process to few more open descriptors, which also limits those in flight.

    A command has at most 509 in flight. An ordinary user's process needs a higher limit, as it usually has,
    because they count against it too; those of root do not.
    """
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + (250 if os.geteuid() == 0 else 550), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.usefixtures("few_descriptors")
def test_descriptors_in_flight_do_not_block_other_commands(
    own_zygote: zygote_host.Zygote, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper = workspace_mounts.WorkspaceMounts(own_zygote.user)
    monkeypatch.setattr(mounted_sandbox, "shared_mounts", lambda *_: helper)
    with ZygoteBackend().create() as hostile, ZygoteBackend().create() as other:
        peer = hostile.open([hostile.python, *PYTHON_OPTIONS, "-c", SEND_DESCRIPTORS])
        assert peer.ask(b"go", 10) == b"full"
        for _ in range(5):
            assert program(other, "pass").ok
            with ZygoteBackend().create() as another:
                assert program(another, "pass").ok
        peer.close()
    helper.close()


def test_a_program_can_import_workspace_modules_before_standard_ones(sandbox: Sandbox) -> None:
    sandbox.write("json.py", b"whose = 'own'")
    code = "import sys; sys.path.insert(0, '.'); import json; print(getattr(json, 'whose', 'standard'))"
    assert program(sandbox, code).stdout == b"own\n"
    sandbox.reset()
    assert program(sandbox, code).stdout == b"standard\n"


def test_sets_have_the_same_order_in_every_zygote_and_in_bubblewrap(bubblewrap: BubblewrapBackend) -> None:
    code = "print({*map(str, range(20))})"
    outputs: set[bytes] = set()
    for backend in (ZygoteBackend(), ZygoteBackend(warm=["heapq"]), bubblewrap):
        with backend.create() as sandbox:
            outputs.add(program(sandbox, code).stdout)
    assert len(outputs) == 1


@pytest.mark.skipif(not cgroup.parents(), reason="without control groups memory is limited per process")
def test_a_memory_limit_below_that_of_an_idle_process_is_refused(sandbox: Sandbox) -> None:
    with pytest.raises(UnenforceableLimit, match="memory_bytes: 65536 is less than"):
        program(sandbox, "pass", Limits(memory_bytes=2**16))
    assert program(sandbox, "pass").ok


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM, signal.SIGSTOP])
def test_a_command_that_signals_itself_and_others_ends_without_a_sandbox_error(
    sandbox: Sandbox, number: int
) -> None:
    for target in ("os.getpid()", "0", "-1", "os.getppid()"):
        found = program(sandbox, f"import os\nos.kill({target}, {number})", Limits(wall_s=0.5))
        assert found.stop in (StopReason.SIGNALED, StopReason.EXITED, StopReason.WALL)


def test_sandboxes_share_neither_sockets_nor_terminals_nor_memory(zygote: ZygoteBackend) -> None:
    leave = """
import mmap, os, pty, socket
kept = [socket.socket(socket.AF_UNIX), socket.socket(socket.AF_INET), pty.openpty()]
kept[0].bind("\\0here"); kept[0].listen()
kept[1].bind(("127.0.0.1", 4000)); kept[1].listen()
open("/dev/shm/here", "w"); open("/tmp/here", "w")
print(input(), flush=True)
input()
"""
    find = """
import os, socket
def reached(family, address):
    try: socket.socket(family).connect(address)
    except OSError: return False
    return True
print(reached(socket.AF_UNIX, "\\0here"), reached(socket.AF_INET, ("127.0.0.1", 4000)),
      os.listdir("/dev/pts"), os.listdir("/dev/shm"), os.listdir("/tmp"))
"""
    with zygote.create() as one, zygote.create() as other:
        peer = one.open([one.python, *PYTHON_OPTIONS, "-c", leave])
        assert peer.ask(b"go", 10) == b"go"
        assert program(other, find).stdout == b"False False ['ptmx'] [] []\n"
        peer.close()


def test_a_command_sees_only_its_own_workspace(zygote: ZygoteBackend) -> None:
    with zygote.create() as one, zygote.create() as other:
        one.write("secret", b"1")
        look = "import os; print([os.path.join(*p) for p in os.walk('/') if 'secret' in p[2]] or 'none')"
        assert program(other, look.replace("os.path.join(*p)", "p[0]")).stdout == b"none\n"
        assert b"/workspace" in program(one, look.replace("os.path.join(*p)", "p[0]")).stdout


def test_a_killed_zygote_raises_a_sandbox_error_and_the_sandbox_stays_usable(sandbox: Sandbox) -> None:
    peer = sandbox.open([sandbox.python, *PYTHON_OPTIONS, "-c", "while True: print(input(), flush=True)"])
    assert peer.ask(b"up", 10) == b"up"
    os.kill(peer._tree._init._zygote._child.pid, signal.SIGKILL)  # type: ignore[attr-defined]

    def ask_until_it_is_dead() -> None:
        while True:
            peer.ask(b"again", 10)

    with pytest.raises(SandboxError, match="zygote"):
        ask_until_it_is_dead()
    with pytest.raises(SandboxError):
        peer.close()
    assert program(sandbox, "pass").ok


def test_a_command_that_cannot_be_confined_raises_a_sandbox_error_with_the_reason(sandbox: Sandbox) -> None:
    init = sandbox._zygote.init_process()  # type: ignore[attr-defined]
    job = {"argv": ["true"], "rlimits": [], "program": None}
    with open(os.devnull, "r+b") as null:
        with pytest.raises(SandboxError, match=r"cannot confine a command: .*mount"):
            init.start(job, Limits(), [null.fileno()] * 4)
        init.end()
    assert program(sandbox, "pass").ok


def test_a_zygote_that_does_not_start_raises_with_the_reason(
    own_zygote: zygote_host.Zygote, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ZygoteBackend().create() as sandbox:
        with monkeypatch.context() as patched:
            patched.setattr(zygote_host, "_NAMESPACES", ("--ro-bind", "/nowhere", "/"))
            with pytest.raises(SandboxError, match="nowhere"):
                program(sandbox, "pass")
        assert program(sandbox, "pass").ok


def test_without_control_groups_every_limit_still_holds(
    own_zygote: zygote_host.Zygote, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroup, "parents", lambda: ())
    forks = """
import os, time
made = 0
try:
    for made in range(100):
        if os.fork() == 0: time.sleep(60)
except OSError: pass
os.write(1, b"%d" % made)
"""
    with ZygoteBackend().create() as sandbox:
        assert int(program(sandbox, forks, Limits(processes=8)).stdout) == 7
        hoard = "data = bytearray()\nwhile True: data += bytes(2**20)"
        assert b"MemoryError" in program(sandbox, hoard, Limits(memory_bytes=64 * 2**20)).stderr
        busy = program(sandbox, "while True: pass", Limits(cpu_s=0.2))
        assert busy.stop is StopReason.CPU
        assert busy.cpu_s >= 0.2


def test_an_old_kernel_without_control_groups_is_refused(
    own_zygote: zygote_host.Zygote, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroup, "parents", lambda: ())
    monkeypatch.setattr(bwrap.platform, "release", lambda: "5.10.0-28-amd64")
    with ZygoteBackend().create() as sandbox, pytest.raises(UnenforceableLimit, match="processes"):
        program(sandbox, "pass")


def test_nothing_survives_a_killed_trainer(zygote: ZygoteBackend) -> None:
    with subprocess.Popen([sys.executable, "-c", TRAINER], stdout=subprocess.PIPE, text=True) as trainer:
        assert trainer.stdout is not None
        try:
            name, pid = trainer.stdout.readline().split()
            running = os.pidfd_open(int(pid))
        finally:
            trainer.kill()
    assert bwrap.readable(running)
    os.close(running)
    folder = Path(tempfile.gettempdir())
    os.utime(folder / name, (0, 0))
    assert name in reap(folder)  # as the next trainer does when it starts
    for _ in range(100):  # processes started in advance end a moment later
        cgroup.remove_leftovers(name)
        if not (left := control_groups(f"{name}-")):
            break
        time.sleep(0.05)
    assert not left


def test_a_forked_process_does_not_disturb_its_parents_zygote(sandbox: Sandbox) -> None:
    code = "from envkit.sandboxes.zygote import ZygoteBackend as B; import os, sys\n"
    code += "def run(s): return s.run([s.python, '-P', '-S', '-c', 'print(1)']).stdout == b'1\\n'\n"
    code += "s = B().create(); assert run(s)\n"
    code += "if os.fork() == 0: sys.exit(not run(B().create()))\n"  # closes inherited objects at exit
    code += "assert os.wait()[1] == 0; assert run(s); s.close(); print('both')"
    # Since Python 3.12, a fork beside threads is warned of.
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (found.stdout, found.stderr) == ("both\n", "")
