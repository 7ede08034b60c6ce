"""Cases about isolation: host files, network, processes and privileges that sandboxed code must not get.

Some use two sandboxes, because nothing may pass from one to another.
"""

from __future__ import annotations

import json
import platform
import sys
from typing import Final

from envkit.sandbox import PYTHON_OPTIONS
from envkit.sandbox.check.context import Case, CheckContext, unless

_DEVICES: Final = {
    *("null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts", "shm", "mqueue", "console", "core"),
    *("fd", "stdin", "stdout", "stderr"),
}


def _same_python(context: CheckContext) -> str:
    found, expected = context.seen["version"], list(sys.version_info[:2])
    brings_own = bool(context.backend.contents.image)
    return unless(brings_own or found == expected, f"Python {found} inside, {expected} outside")


def _sees_no(key: str, innocent: object) -> Case:
    return lambda context: unless(context.seen[key] == innocent, context.seen[key])


def _other_user(context: CheckContext) -> str:
    return unless(context.seen["uid"] != 0, "user id 0")


def _no_host_processes(context: CheckContext) -> str:
    count = context.seen["processes"]
    return unless(count <= 4, f"{count} processes in /proc")


def _no_host_environment(context: CheckContext) -> str:
    names = context.seen["environment"]
    return unless(not any(name.startswith("CANARY_") for name in names), names)


def _no_host_name(context: CheckContext) -> str:
    return unless(context.seen["host"] != platform.node(), context.seen["host"])


def _no_devices(context: CheckContext) -> str:
    found = set(context.seen["devices"]) - _DEVICES
    return unless(not found, sorted(found))


def _locks(context: CheckContext) -> str:
    free = context.python(_LOOK_AT_LOCKS)
    if not free.ok:
        return f"no answer: {free}"
    with context.backend.create() as other:
        holder = other.open([other.python, *PYTHON_OPTIONS, "-c", _HOLD_LOCKS])
        holder.ask(b"", 10.0)
        taken = context.python(_LOOK_AT_LOCKS)
        holder.close()
    before, after = json.loads(free.stdout), json.loads(taken.stdout)
    return unless(before == after, [name for name in before if before[name] != after.get(name)])


def _page_cache(context: CheckContext) -> str:
    with context.backend.create() as other:
        seen: list[bytes] = []
        for program in (_READ, _EVICT):
            if not (done := other.run([other.python, *PYTHON_OPTIONS, "-c", program])).ok:
                return f"no answer: {done}"
            seen.append(context.python(_LOOK_AT_PAGES).stdout)
    return unless(seen[0] == seen[1] != b"", "pages that another sandbox has evicted from memory")


#: Files on no device that sandboxes may share: one of the root, and the first one of packages and of data.
_FILES: Final = """
import os
paths = [os.__file__]
for top in ("/usr/lib/packages", "/data"):
    paths += [os.path.join(folder, name) for folder, _, names in os.walk(top) for name in names][:1]
"""
#: All that sandboxes may share: files, devices, namespaces, and what has no name.
_SHARED: Final = (
    _FILES
    + """
import fcntl, json, struct
paths += ["/", "/usr/lib", "/proc/self/exe", "/dev", "/dev/null", "/dev/zero", "/usr/lib/packages", "/data"]
paths += [f"/proc/self/ns/{name}" for name in os.listdir("/proc/self/ns")]
def opened():
    for path in paths:
        try: yield path, os.open(path, os.O_RDWR if path in ("/dev/null", "/dev/zero") else os.O_RDONLY)
        except OSError: pass
    yield "an anonymous inode", os.eventfd(0)
def tried(action, *arguments):
    try: return bool(action(*arguments)) or True
    except OSError as error: return error.errno
def record(kind): return struct.pack("hhqqi4x", kind, 0, 0, 0, 0)
"""
)
_HOLD_LOCKS: Final = (
    _SHARED
    + """
kept = []
input()
for _, handle in opened():
    kept.append(handle)
    for kind in (fcntl.LOCK_SH, fcntl.LOCK_EX): tried(fcntl.flock, handle, kind | fcntl.LOCK_NB)
    for kind in (fcntl.F_RDLCK, fcntl.F_WRLCK): tried(fcntl.fcntl, handle, fcntl.F_OFD_SETLK, record(kind))
print("held", flush=True)
input()
"""
)
_LOOK_AT_LOCKS: Final = (
    _SHARED
    + """
found = {}
for path, handle in opened():
    found[path] = [tried(fcntl.flock, handle, fcntl.LOCK_SH | fcntl.LOCK_NB)]
    found[path].append(tried(fcntl.flock, handle, fcntl.LOCK_EX | fcntl.LOCK_NB))
    found[path].append(tried(fcntl.fcntl, handle, fcntl.F_OFD_SETLK, record(fcntl.F_WRLCK)))
    try: found[path] += struct.unpack("hhqqi4x", fcntl.fcntl(handle, fcntl.F_GETLK, record(fcntl.F_WRLCK)))
    except OSError as error: found[path].append(error.errno)
    os.close(handle)
print(json.dumps(found))
"""
)
_READ: Final = _FILES + "for path in paths: open(path, 'rb').read()\n"
_EVICT: Final = (
    _FILES
    + """
for path in paths: os.posix_fadvise(os.open(path, os.O_RDONLY), 0, 0, os.POSIX_FADV_DONTNEED)
"""
)
_LOOK_AT_PAGES: Final = (
    _FILES
    + """
import ctypes, mmap
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
def look(path):
    handle = os.open(path, os.O_RDONLY)
    size = max(os.fstat(handle).st_size, 1)
    place = libc.mmap(None, ctypes.c_size_t(size), mmap.PROT_READ, mmap.MAP_SHARED, handle, ctypes.c_long(0))
    pages = (ctypes.c_ubyte * ((size + 4095) // 4096))()
    print(libc.mincore(ctypes.c_void_p(place), ctypes.c_size_t(size), pages), bytes(pages).hex())
    def at_once(place):
        try: return len(os.preadv(handle, [bytearray(64)], place, os.RWF_NOWAIT))
        except OSError as error: return -error.errno
    print([at_once(place) for place in range(0, size, 4096)])
for path in paths: look(path)
"""
)

ISOLATION: Final[dict[str, Case]] = {
    "has the host's Python version": _same_python,
    "hides the host's files": _sees_no("files", []),
    "hides the host's packages": _sees_no("packages", []),
    "hides the host's environment": _no_host_environment,
    "hides the host's processes": _no_host_processes,
    "hides the host's name": _no_host_name,
    "has harmless devices only": _no_devices,
    "inherits no descriptor": _sees_no("descriptors", 3),
    "reaches no network": _sees_no("network", False),
    "reaches no socket of the host": _sees_no("abstract", False),
    "has no network interface": _sees_no("interfaces", []),
    "has a read-only root": _sees_no("writable", []),
    "is not root": _other_user,
    "has no capabilities": _sees_no("capabilities", "0" * 16),
    "cannot gain rights": _sees_no("gains", False),
    "cannot make user namespaces": _sees_no("namespaces", False),
    "cannot mount": _sees_no("mounts", False),
    "opens no sockets that leave its namespaces": _sees_no("families", []),
    "cannot slow down its init process": _sees_no("weighs", [False] * 3),
    "reaches no keyring": _sees_no("keyring", False),
    "sees no counters of the machine": _sees_no("counters", []),
    "watches no files": _sees_no("watches", []),
    "learns nothing from locks on shared files": _locks,
    "learns nothing from the page cache of shared files": _page_cache,
}
