"""Cases, and the context they run in: a sandbox, and canaries on the host.

A backend under test may isolate nothing, and the test may run as root. So a case only asks whether something
is possible, and does nothing that would harm the host if it is.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import secrets
import socket
import tempfile
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias, final

from envkit.errors import ContractError, UsageError
from envkit.runtime.lease import Lease
from envkit.sandbox import PYTHON_OPTIONS, ExecResult, Limits, Sandbox, SandboxBackend
from envkit.sandbox.check.diagnosis import is_out_of_memory

MIB: Final = 2**20
#: Packages that a host often has.
_PACKAGES: Final = ("pip", "setuptools", "numpy", "gymnasium", "envkit")
BRIEF: Final = Limits(cpu_s=5, wall_s=10, memory_bytes=128 * MIB, processes=16, disk_bytes=MIB)


@dataclass(frozen=True, slots=True)
class CaseResult:
    """The outcome of one case.

    Args:
        name: the property that must hold.
        ok: it holds.
        detail: the finding that contradicts it; empty if ``ok``.
    """

    name: str
    ok: bool
    detail: str


@final
class CheckContext:
    """The sandbox that cases share, and canaries on the host that code in it must not be able to see."""

    def __init__(
        self,
        backend: SandboxBackend,
        sandbox: Sandbox,
        canary: Path,
        listener: socket.socket,
        abstract: str,
        outside: Path,
    ) -> None:
        self.backend, self.sandbox, self.canary, self.outside = backend, sandbox, canary, outside
        self._listener, self._abstract = listener, abstract

    @classmethod
    @contextlib.contextmanager
    def open(cls, backend: SandboxBackend) -> Generator[CheckContext]:
        name = f"CANARY_{secrets.token_hex(8)}"
        with (
            # A leased folder, so that a later run removes what a killed one leaves.
            contextlib.closing(Lease(Path(tempfile.gettempdir()))) as lease,
            socket.create_server(("127.0.0.1", 0)) as listener,
            socket.socket(socket.AF_UNIX) as abstract,
            backend.create() as sandbox,
        ):
            canary, outside = lease.path / name, lease.path / "outside"
            canary.touch()
            outside.mkdir()
            abstract.bind(f"\0{name}")
            abstract.listen()
            os.environ[name] = "1"
            # Readable for every user of this machine, so that only isolation can keep code away from them.
            canary.chmod(0o644)
            outside.chmod(0o755)
            try:
                yield cls(backend, sandbox, canary, listener, name, outside)
            finally:
                del os.environ[name]

    @functools.cached_property
    def seen(self) -> dict[str, Any]:
        """The report of a program in the sandbox that looks for the host."""
        hidden = {
            "canary": str(self.canary),
            "source": str(Path(__file__).resolve().parent),
            "docker": "/var/run/docker.sock",
        }
        if not self.backend.contents.image:  # which has accounts and homes of its own
            hidden |= {"home": str(Path.home()), "shadow": "/etc/shadow", "accounts": "/etc/passwd"}
        packages = () if self.backend.contents.image else _PACKAGES
        given = json.dumps([hidden, packages, self._listener.getsockname(), self._abstract]).encode()
        # Without -S, because site-packages must be absent and not only missing from the path.
        result = self.sandbox.run([self.sandbox.python, "-c", _LOOK_AROUND], stdin=given)
        if not result.ok:
            raise ContractError(f"the sandbox cannot run a program that looks around: {result}")
        return json.loads(result.stdout)

    def python(self, code: str, *, stdin: bytes = b"", limits: Limits = BRIEF) -> ExecResult:
        """Run a program in the shared sandbox."""
        argv = [self.sandbox.python, *PYTHON_OPTIONS, "-c", code]
        return self.sandbox.run(argv, stdin=stdin, limits=limits)


_LOOK_AROUND: Final = """
import ctypes, errno, importlib.util, json, os, resource, socket, sys
hidden, packages, address, abstract = json.loads(sys.stdin.read())
def attempt(action):
    try: return action() or True
    except Exception: return False
def connect():
    socket.create_connection(tuple(address), timeout=1).close()
def connect_abstract():
    with socket.socket(socket.AF_UNIX) as client: client.connect("\\0" + abstract)
def may_mount():
    # Rights are looked at before the type, and of this type there is nothing to mount.
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mount(b"none", b"/", b"no-such-type", 0, None)
    return ctypes.get_errno() != errno.EPERM
def weighs(get, set, *which):  # to what it is already
    return attempt(lambda: set(*which, get(*which)))
def readable(path):
    with open(path, "rb") as file: return len(file.read(16)) > 0
def succeeds(name, *arguments): return getattr(ctypes.CDLL(None), name)(*arguments) >= 0
counters = ["meminfo", "stat", "loadavg", "vmstat", "interrupts", "softirqs", "locks", "uptime", "diskstats",
            "sys/kernel/ns_last_pid", "sys/kernel/random/entropy_avail", "sys/fs/file-nr", "sys/fs/inode-nr",
            "sys/fs/dentry-state", "pressure/cpu", "cgroups", "zoneinfo", "buddyinfo", "slabinfo"]
def has(path):  # open() returns an empty file where a path is masked
    try: return readable(path)
    except OSError: return False
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
paths = ["/", "/usr", "/usr/lib", "/etc", "/proc/sys/kernel/hostname", "/dev", "/usr/lib/packages", "/data"]
def of_host(name):
    spec = importlib.util.find_spec(name)
    return spec is not None and not str(spec.origin).startswith("/usr/lib/packages/")
print(json.dumps({
    "version": list(sys.version_info[:2]), "uid": os.getuid(),
    "cwd": os.getcwd(), "home": os.environ.get("HOME"),
    "files": [name for name, path in hidden.items() if os.path.lexists(path)],
    "capabilities": status["CapEff"].strip(), "gains": status["NoNewPrivs"].strip() != "1",
    "environment": list(os.environ),
    "processes": len([name for name in os.listdir("/proc") if name.isdigit()]),
    "packages": [name for name in packages if of_host(name)],
    "network": attempt(connect), "abstract": attempt(connect_abstract),
    "host": os.uname().nodename, "devices": os.listdir("/dev"),
    "descriptors": len(os.listdir("/proc/self/fd")) - 1,
    "mounts": may_mount(),
    "weighs": [weighs(os.getpriority, os.setpriority, os.PRIO_PROCESS, 1),
               weighs(os.sched_getaffinity, os.sched_setaffinity, 1),
               weighs(resource.prlimit, resource.prlimit, 1, resource.RLIMIT_CORE)],
    "interfaces": [name for _, name in socket.if_nameindex() if name != "lo"],
    "writable": [path for path in paths if os.access(path, os.W_OK)],
    "families": [name for name in ("AF_VSOCK", "AF_PACKET", "AF_ALG", "AF_BLUETOOTH")
                 if attempt(lambda: socket.socket(getattr(socket, name), socket.SOCK_SEQPACKET).close())
                 or attempt(lambda: socket.socket(getattr(socket, name), socket.SOCK_STREAM).close())],
    "keyring": ctypes.CDLL(None).syscall(250 if os.uname().machine == "x86_64" else 219, 0, -3, 1) != -1,
    "counters": [path for path in counters if has("/proc/" + path)]
                + ["sysinfo"] * succeeds("sysinfo", bytes(4096)),
    "watches": ["inotify"] * succeeds("inotify_init1", 0)
               + ["fanotify"] * succeeds("fanotify_init", 0x200, 0),
    "namespaces": ctypes.CDLL(None).unshare(0x10000000) == 0,
}))
"""

#: Tries to break a property. Returns ``""`` if the property holds, else a text that shows the fault.
Case: TypeAlias = Callable[[CheckContext], str]


class OutOfMemory(Exception):
    """Memory ran out in this process. That says nothing about the backend."""


def attempt(name: str, case: Case, context: CheckContext) -> CaseResult:
    """Run one case. An exception that it raises is a finding too.

    Raises:
        OutOfMemory: this process has no memory, or may start no thread.
    """
    try:
        detail = case(context)
    except Exception as error:  # a backend under test may raise anything
        if is_out_of_memory(error):
            raise OutOfMemory(f"{name}: {error}") from error
        detail = f"{type(error).__name__}: {error}"
    return CaseResult(name, not detail, detail)


def unless(holds: bool, found: object) -> str:
    """Return a case's result: ``""`` if the property holds, else a text that shows ``found``."""
    return "" if holds else f"found {found}"


def refused(action: Callable[[], object]) -> bool:
    """True if the action raises `UsageError`."""
    try:
        action()
    except UsageError:
        return True
    return False
