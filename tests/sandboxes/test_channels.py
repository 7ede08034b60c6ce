"""Nothing passes from one sandbox to another through what they share: files, locks, watches, counters.

Each channel is first shown to carry a bit between two programs on this machine that share an ordinary file
(the controls), and then to carry nothing between two sandboxes.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from envkit.sandbox import PYTHON_OPTIONS, Sandbox, SandboxBackend

#: Answers each line, a program, with what that stores in `said`.
SHELL = """
import ctypes, errno, fcntl, json, mmap, os, select, struct, sys, time
libc = ctypes.CDLL(None, use_errno=True)
shared = {"file": SHARED}
if ALL: shared |= {
    "folder": os.path.dirname(SHARED), "null": "/dev/null", "zero": "/dev/zero",
    "urandom": "/dev/urandom", "devices": "/dev", "root": "/", "program": "/proc/self/exe",
    **{f"{name} namespace": f"/proc/self/ns/{name}" for name in os.listdir("/proc/self/ns")},
}
def opened():
    for name, path in shared.items():
        yield name, os.open(path, os.O_RDONLY)
        if name in ("null", "zero"): yield name + " to write", os.open(path, os.O_RDWR)
    if ALL: yield "anonymous", os.eventfd(0)
def tried(action):
    try: return "done" if (found := action()) is None or isinstance(found, bytes) else found
    except OSError as error: return errno.errorcode[error.errno]
def record(kind): return struct.pack("hhqqi4x", kind, 0, 0, 0, 0)
kept = []
for line in sys.stdin:
    said = None
    exec(json.loads(line))
    print(json.dumps(said), flush=True)
"""
#: Takes every lock that can be had on every shared file.
TAKE = """
for name, handle in opened():
    kept.append(handle)
    for lock in (fcntl.LOCK_SH, fcntl.LOCK_EX): tried(lambda: fcntl.flock(handle, lock | fcntl.LOCK_NB))
    for kind in (fcntl.F_RDLCK, fcntl.F_WRLCK):
        for command in (fcntl.F_SETLK, fcntl.F_OFD_SETLK):
            tried(lambda: fcntl.fcntl(handle, command, record(kind)))
"""
RELEASE = """
while kept: os.close(kept.pop())
"""
#: Tells what locks can be had, and which are in the way.
LOOK = """
said = {}
def query(handle, command, kind):
    found = struct.unpack("hhqqi4x", fcntl.fcntl(handle, command, record(kind)))
    return list(found)
for name, handle in opened():
    for lock in (fcntl.LOCK_SH, fcntl.LOCK_EX):
        said[f"{name} flock {lock}"] = tried(lambda: fcntl.flock(handle, lock | fcntl.LOCK_NB))
    fcntl.flock(handle, fcntl.LOCK_UN)
    for kind in (fcntl.F_RDLCK, fcntl.F_WRLCK):
        for get, put in ((fcntl.F_GETLK, fcntl.F_SETLK), (fcntl.F_OFD_GETLK, fcntl.F_OFD_SETLK)):
            said[f"{name} query {kind} {get}"] = tried(lambda: query(handle, get, kind))
            said[f"{name} set {kind} {put}"] = tried(lambda: fcntl.fcntl(handle, put, record(kind)))
            tried(lambda: fcntl.fcntl(handle, put, record(fcntl.F_UNLCK)))
    os.close(handle)
"""
EVICT = """
handle = os.open(SHARED, os.O_RDONLY)
os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
with mmap.mmap(handle, 0, mmap.MAP_SHARED, mmap.PROT_READ) as view:
    view[0]
    for advice in (4, 20, 21): tried(lambda: view.madvise(advice))  # DONTNEED, COLD, PAGEOUT
os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
os.close(handle)
"""
#: Tells which pages of the shared file are in memory, in each way there is.
RESIDENT = """
handle = os.open(SHARED, os.O_RDONLY)
size = os.fstat(handle).st_size
def nowait(offset): return os.preadv(handle, [bytearray(64)], offset, os.RWF_NOWAIT)
def mincore():
    libc.mmap.restype = ctypes.c_void_p
    place = libc.mmap(None, ctypes.c_size_t(size), mmap.PROT_READ, mmap.MAP_SHARED, handle, ctypes.c_long(0))
    seen = (ctypes.c_ubyte * ((size + 4095) // 4096))()
    if libc.mincore(ctypes.c_void_p(place), ctypes.c_size_t(size), seen) < 0:
        raise OSError(ctypes.get_errno(), "mincore")
    return [bit & 1 for bit in seen]
def cachestat():
    seen = (ctypes.c_uint64 * 5)()
    whole = struct.pack("QQ", 0, 0)
    if libc.syscall(451, handle, whole, seen, 0) < 0: raise OSError(ctypes.get_errno(), "cachestat")
    return list(seen[:1])
said = [tried(mincore), tried(cachestat), [tried(lambda: nowait(at)) for at in range(0, size, 4096)]]
os.close(handle)
"""
READ = "said = len(open(SHARED, 'rb').read())"
WATCH = """
watcher = libc.inotify_init1(os.O_NONBLOCK)
said = watcher >= 0 and all(
    libc.inotify_add_watch(watcher, path.encode(), 0x3ff) >= 0 for path in (SHARED, os.path.dirname(SHARED))
)
"""
SEEN = """
def seen():
    return len(os.read(watcher, 4096)) > 0
said = tried(seen)
"""
#: A lease on the shared file, a notice of changes in its folder, and fanotify.
OTHER_WATCHES = """
handle, folder = os.open(SHARED, os.O_RDONLY), os.open(os.path.dirname(SHARED), os.O_RDONLY)
said = [
    tried(lambda: fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_RDLCK)),
    tried(lambda: fcntl.fcntl(handle, fcntl.F_GETLEASE)),
    tried(lambda: fcntl.fcntl(folder, fcntl.F_NOTIFY, fcntl.DN_ACCESS | fcntl.DN_MULTISHOT)),
    # The kernel reads the lower half of the argument only.
    libc.syscall(72, handle, ctypes.c_ulong(1 << 32 | fcntl.F_SETLEASE), fcntl.F_RDLCK),
    libc.syscall(300, 0x200, 0),
]
os.close(handle); os.close(folder)
"""


#: Leaves a mark on each shared file, in each way that needs no right to write to it.
MARK = """
for name, path in shared.items():
    handle = os.open(path, os.O_RDONLY)
    tried(lambda: fcntl.fcntl(handle, 1036, struct.pack("Q", 3)))  # how long its data may live
    for change in (lambda: os.utime(path), lambda: os.utime(path, (7, 7)), lambda: os.chmod(path, 0o700),
                   lambda: os.setxattr(path, "user.mark", b"1")): tried(change)
    if name == "file":
        libc.mmap.restype = ctypes.c_void_p
        place = libc.mmap(None, 4096, mmap.PROT_READ, mmap.MAP_SHARED, handle, ctypes.c_long(0))
        number = {"x86_64": 237, "aarch64": 235}[os.uname().machine]
        libc.syscall(number, ctypes.c_void_p(place), 4096, 1, (ctypes.c_ulong * 1)(1), 64, 0)  # mbind
    os.close(handle)
"""
MARKS = """
said = {}
for name, path in shared.items():
    handle = os.open(path, os.O_RDONLY)
    found = os.fstat(handle)
    said[name] = [found.st_mode, found.st_mtime_ns, found.st_ctime_ns, found.st_atime_ns,
                  tried(lambda: fcntl.fcntl(handle, 1035, bytes(8)).hex()), tried(lambda: os.listxattr(path))]
    if name == "file":
        libc.mmap.restype = ctypes.c_void_p
        place = libc.mmap(None, 4096, mmap.PROT_READ, mmap.MAP_SHARED, handle, ctypes.c_long(0))
        number, policy = {"x86_64": 239, "aarch64": 236}[os.uname().machine], ctypes.c_int(-1)
        libc.syscall(number, ctypes.byref(policy), None, 0, ctypes.c_void_p(place), 2)  # get_mempolicy
        said["policy"] = policy.value
    os.close(handle)
"""


class Party:
    """A program that does what it is told: in a sandbox, or as an ordinary process of this machine.

    Args:
        ask: sends a line and returns the next one.
    """

    def __init__(self, ask: Callable[[bytes], bytes]) -> None:
        self._ask = ask

    def do(self, code: str):
        return json.loads(self._ask(json.dumps(code).encode()))


def program(shared: str, whole: bool) -> str:
    """The program; ``whole`` to lock what else sandboxes share, which would disturb others on the host."""
    return f"SHARED, ALL = {shared!r}, {whole}\n{SHELL}"


@pytest.fixture(params=["bubblewrap", "docker", "zygote"])
def isolated(request: pytest.FixtureRequest) -> SandboxBackend:
    return request.getfixturevalue(request.param)


def party(sandbox: Sandbox) -> Party:
    command = [sandbox.python, *PYTHON_OPTIONS, "-c", program("/usr/lib/libc.so.6", True)]
    peer = sandbox.open(command)
    return Party(lambda line: peer.ask(line, 20))


@pytest.fixture
def pair(isolated: SandboxBackend) -> Iterator[tuple[Party, Party]]:
    """A sandbox that sends and one that receives, both alive."""
    with isolated.create() as one, isolated.create() as other:
        yield party(one), party(other)


@pytest.fixture
def unprotected(tmp_path: Path) -> Iterator[tuple[Party, Party]]:
    """Two ordinary processes that share a file on disk, as sandboxes once shared their root."""
    file = Path(os.environ.get("XDG_CACHE_HOME") or "/var/tmp") / f"envkit-{os.getpid()}"
    file.write_bytes(os.urandom(2**17))
    os.sync()  # only pages that are on the disk can be evicted
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program(str(file), False)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for _ in range(2)
    ]

    def asking(process: subprocess.Popen[bytes]) -> Callable[[bytes], bytes]:
        def ask(line: bytes) -> bytes:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(line + b"\n")
            process.stdin.flush()
            return process.stdout.readline()

        return ask

    try:
        yield Party(asking(started[0])), Party(asking(started[1]))
    finally:
        for process in started:
            process.kill()
            process.communicate()
        file.unlink()


# Controls: each way carries a bit where nothing prevents it.


def test_locks_on_a_shared_file_carry_a_bit_where_nothing_prevents_it(
    unprotected: tuple[Party, Party],
) -> None:
    sender, receiver = unprotected
    free = receiver.do(LOOK)
    sender.do(TAKE)
    taken = receiver.do(LOOK)
    differing = {name for name in free if free[name] != taken[name]}
    assert differing >= {"file flock 2", f"file query {fcntl.F_WRLCK} {fcntl.F_GETLK}"}
    sender.do(RELEASE)
    assert receiver.do(LOOK) == free


def test_the_page_cache_of_a_shared_file_carries_a_bit_where_nothing_prevents_it(
    unprotected: tuple[Party, Party],
) -> None:
    sender, receiver = unprotected
    sender.do(READ)
    cached = receiver.do(RESIDENT)
    sender.do(EVICT)
    evicted = receiver.do(RESIDENT)
    if cached == evicted:
        pytest.skip("this file system keeps evicted pages, so there is nothing to show")
    assert sum(cached[0]) > sum(evicted[0])


def test_a_watch_sees_a_neighbour_where_nothing_prevents_it(unprotected: tuple[Party, Party]) -> None:
    sender, receiver = unprotected
    assert receiver.do(WATCH) is True
    assert receiver.do(SEEN) == "EAGAIN"
    sender.do(READ)
    assert receiver.do(SEEN) is True


def test_marks_on_a_shared_file_last_where_nothing_prevents_it(unprotected: tuple[Party, Party]) -> None:
    sender, receiver = unprotected
    before = receiver.do(MARKS)["file"]
    sender.do(MARK)
    after = receiver.do(MARKS)["file"]
    assert before[0] != after[0]
    assert before[1] != after[1]
    assert (before[4], after[4]) == ("00" * 8, "03" + "00" * 7)


# The same between two sandboxes.


def test_no_mark_can_be_left_on_a_shared_file(isolated: SandboxBackend) -> None:
    # One sandbox after the other, as from episode to episode.
    def marks() -> dict[str, list[object]]:
        with isolated.create() as sandbox:
            return party(sandbox).do(MARKS)

    before = marks()
    with isolated.create() as sandbox:
        party(sandbox).do(MARK)
    after = marks()
    shared = ["file", "folder", "policy"]
    if isolated.name != "docker":  # each container has its own
        shared += ["null", "zero", "urandom"]
    for name in shared:
        assert after[name] == before[name], name


def test_locks_carry_nothing_from_one_sandbox_to_another(pair: tuple[Party, Party]) -> None:
    sender, receiver = pair
    free = receiver.do(LOOK)
    sender.do(TAKE)
    assert receiver.do(LOOK) == free
    sender.do(RELEASE)
    assert receiver.do(LOOK) == free


def test_the_page_cache_carries_nothing_from_one_sandbox_to_another(pair: tuple[Party, Party]) -> None:
    sender, receiver = pair
    sender.do(READ)
    before = receiver.do(RESIDENT)
    sender.do(EVICT)
    after = receiver.do(RESIDENT)
    assert before == after
    assert before[:2] == ["ENOSYS", "ENOSYS"]
    assert set(before[2]) <= {"ENOTSUP", "EOPNOTSUPP"}  # two names of one number


def test_the_root_lies_in_memory(isolated: SandboxBackend) -> None:
    with isolated.create() as sandbox:
        table = party(sandbox).do("said = open('/proc/self/mountinfo').read()").splitlines()
    places = {line.split()[4]: line.split(" - ")[1].split()[0] for line in table}
    shared = [place for place in ("/usr", "/") if place in places]
    assert places[shared[0]] == "tmpfs", table


def test_no_sandbox_can_watch_a_file(pair: tuple[Party, Party]) -> None:
    _, receiver = pair
    assert receiver.do(WATCH) is False
    lease, leased, notice, hidden, fanotify = receiver.do(OTHER_WATCHES)
    assert (lease, leased, notice) == ("EINVAL", "EINVAL", "EINVAL")
    if os.uname().machine == "x86_64":  # the numbers of the calls above
        assert (hidden, fanotify) == (-1, -1)


def test_locks_and_databases_work_in_a_workspace(isolated: SandboxBackend) -> None:
    code = """
import fcntl, os, sqlite3
with sqlite3.connect("data.db") as base:
    base.execute("create table t (n)")
    base.execute("insert into t values (7)")
held = open("lock", "w"); fcntl.flock(held, fcntl.LOCK_EX); fcntl.lockf(held, fcntl.LOCK_EX)
if os.fork() == 0:
    other = open("lock", "w")
    for lock in (fcntl.flock, fcntl.lockf):
        try: lock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError: print("held", flush=True)
    os._exit(0)
os.wait()
print(sqlite3.connect("data.db").execute("select n from t").fetchall())
"""
    with isolated.create() as sandbox:
        found = sandbox.run([sandbox.python, *PYTHON_OPTIONS, "-c", code])
    assert found.stdout == b"held\nheld\n[(7,)]\n", found


def test_what_a_program_may_ignore_succeeds_and_does_nothing(isolated: SandboxBackend) -> None:
    code = """
import os
os.sync()
with open("file", "wb") as file:
    file.write(b"x"); file.flush(); os.fsync(file.fileno())
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
print(os.cpu_count() > 0, len(os.urandom(4)))
"""
    with isolated.create() as sandbox:
        found = sandbox.run([sandbox.python, *PYTHON_OPTIONS, "-c", code])
    assert (found.stdout, found.stderr) == (b"True 4\n", b""), found


def test_proc_holds_nothing_but_own_processes(isolated: SandboxBackend) -> None:
    # Each name on the host, so that a new kind of counter is noticed.
    names = sorted(name for name in os.listdir("/proc") if not name.isdigit())
    code = f"""
import json, os
readable = []
for name in {names!r}:
    if name in ("self", "thread-self", "mounts", "net"): continue
    for folder, _, files in [("/proc", [], [name]), *os.walk("/proc/" + name)]:
        for file in files:
            try:
                with open(os.path.join(folder, file), "rb") as opened:
                    if opened.read(64): readable.append(os.path.join(folder, file))
            except OSError: pass
libc = __import__("ctypes").CDLL(None)
print(json.dumps([readable, libc.sysinfo(bytes(4096))]))
"""
    with isolated.create() as sandbox:
        found = sandbox.run([sandbox.python, *PYTHON_OPTIONS, "-c", code])
    readable, told = json.loads(found.stdout)
    assert (readable, told) == ([], -1)
