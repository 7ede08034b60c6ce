"""Proves that a sandbox backend isolates, before anything hostile runs in it."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import secrets
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

from envkit.errors import ContractError, EnvkitError, SandboxUnavailable, UsageError
from envkit.sandbox import ExecResult, Limits, PeerGone, Sandbox, SandboxBackend, StopReason

_MIB: Final = 2**20
_BRIEF: Final = Limits(cpu_s=5, wall_s=10, memory_bytes=128 * _MIB, processes=16, disk_bytes=_MIB)


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one case.

    Args:
        name: what ought to hold.
        ok: it does.
        detail: what was found instead; empty when ``ok``.
    """

    name: str
    ok: bool
    detail: str


def self_check(backend: SandboxBackend) -> list[Finding]:
    """Try to break out of, and to overload, sandboxes of this backend; one finding per case.

    Raises:
        SandboxUnavailable: the backend cannot make a sandbox here.
    """
    with _Lab.open(backend) as lab:
        return [_try(name, case, lab) for name, case in CASES.items()]


def require_isolation(backend: SandboxBackend) -> None:
    """Refuse a backend that does not pass `self_check`; call it before hostile code runs.

    Raises:
        SandboxUnavailable: names the backend, the first case it fails and what was found.
    """
    if failed := [finding for finding in self_check(backend) if not finding.ok]:
        raise SandboxUnavailable(
            f"sandbox {backend.name!r} does not isolate: {failed[0].name}: {failed[0].detail} "
            f"({len(failed)} of {len(CASES)} cases fail); use another with --sandbox, see: envkit list"
        )


@final
class _Lab:
    """What the cases share: a sandbox, and things on the host that must stay out of its sight."""

    def __init__(
        self, backend: SandboxBackend, sandbox: Sandbox, canary: Path, listener: socket.socket
    ) -> None:
        self.backend, self.sandbox, self.canary, self.listener = backend, sandbox, canary, listener

    @classmethod
    @contextlib.contextmanager
    def open(cls, backend: SandboxBackend) -> Generator[_Lab]:
        name = f"CANARY_{secrets.token_hex(8)}"
        with (
            tempfile.NamedTemporaryFile(prefix=name) as canary,
            socket.create_server(("127.0.0.1", 0)) as listener,
            backend.create() as sandbox,
        ):
            os.environ[name] = "1"
            # Whoever can reach the file's folder may read it: only isolation keeps code away from it.
            os.chmod(canary.name, 0o644)
            try:
                yield cls(backend, sandbox, Path(canary.name), listener)
            finally:
                del os.environ[name]

    @functools.cached_property
    def seen(self) -> dict[str, Any]:
        """What a program inside reports about its world."""
        hidden = {
            "canary": str(self.canary),
            "home": str(Path.home()),
            "source": str(Path(__file__).resolve().parent),
            "shadow": "/etc/shadow",
            "accounts": "/etc/passwd",
            "docker": "/var/run/docker.sock",
        }
        given = json.dumps([hidden, self.listener.getsockname()]).encode()
        # Without -S: site-packages must be absent, not merely left out of the path.
        result = self.sandbox.run([self.sandbox.python, "-c", _LOOK_AROUND], stdin=given)
        if not result.ok:
            raise ContractError(f"the sandbox cannot run a program that looks around: {result}")
        return json.loads(result.stdout)

    def python(self, code: str, *, stdin: bytes = b"", limits: Limits = _BRIEF) -> ExecResult:
        """Run a program in the shared sandbox."""
        return self.sandbox.run([self.sandbox.python, "-ISc", code], stdin=stdin, limits=limits)


_LOOK_AROUND: Final = """
import ctypes, importlib.util, json, os, socket, sys
hidden, address = json.loads(sys.stdin.read())
def attempt(action):
    try: return action() or True
    except Exception: return False
def connect():
    socket.create_connection(tuple(address), timeout=1).close()
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
paths = ["/", "/usr", "/usr/lib", "/etc", "/proc/sys/kernel/hostname", "/dev"]
print(json.dumps({
    "version": list(sys.version_info[:2]), "uid": os.getuid(),
    "cwd": os.getcwd(), "home": os.environ.get("HOME"),
    "files": [name for name, path in hidden.items() if os.path.lexists(path)],
    "capabilities": status["CapEff"].strip(), "gains": status["NoNewPrivs"].strip() != "1",
    "environment": list(os.environ),
    "processes": len([name for name in os.listdir("/proc") if name.isdigit()]),
    "packages": [name for name in ("pip", "setuptools", "numpy", "gymnasium", "envkit")
                 if importlib.util.find_spec(name)],
    "network": attempt(connect),
    "interfaces": [name for _, name in socket.if_nameindex() if name != "lo"],
    "writable": [path for path in paths if os.access(path, os.W_OK)],
    "families": [name for name in ("AF_VSOCK", "AF_PACKET", "AF_ALG", "AF_BLUETOOTH")
                 if attempt(lambda: socket.socket(getattr(socket, name), socket.SOCK_SEQPACKET).close())
                 or attempt(lambda: socket.socket(getattr(socket, name), socket.SOCK_STREAM).close())],
    "keyring": ctypes.CDLL(None).syscall(250 if os.uname().machine == "x86_64" else 219, 0, -3, 1) != -1,
    "namespaces": ctypes.CDLL(None).unshare(0x10000000) == 0,
}))
"""
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


def _runs(lab: _Lab) -> str:
    result = lab.python("import sys; print(sys.stdin.read()[::-1]); sys.exit(7)", stdin=b"abc")
    return _unless(result.exit == 7 and result.stdout == b"cba\n", result)


def _same_python(lab: _Lab) -> str:
    found, expected = lab.seen["version"], list(sys.version_info[:2])
    return _unless(found == expected, f"Python {found} inside, {expected} outside")


def _sees_no(key: str, innocent: object) -> Callable[[_Lab], str]:
    return lambda lab: _unless(lab.seen[key] == innocent, lab.seen[key])


def _other_user(lab: _Lab) -> str:
    return _unless(lab.seen["uid"] != 0, "user id 0")


def _no_host_processes(lab: _Lab) -> str:
    count = lab.seen["processes"]
    return _unless(count <= 4, f"{count} processes in /proc")


def _no_host_environment(lab: _Lab) -> str:
    return _unless(
        not any(name.startswith("CANARY_") for name in lab.seen["environment"]), lab.seen["environment"]
    )


def _home_is_workspace(lab: _Lab) -> str:
    return _unless(lab.seen["home"] == lab.seen["cwd"], (lab.seen["home"], lab.seen["cwd"]))


def _wall_limit(lab: _Lab) -> str:
    for wall_s in (0.25, 1.0, 4.0):  # until it is long enough for the daemon to be up
        result = lab.python(_DAEMON, limits=Limits(wall_s=wall_s))
        if lab.sandbox.export(["beat"], _MIB):
            break
    beats = len(lab.sandbox.read("beat", _MIB))
    time.sleep(0.05)
    later = len(lab.sandbox.read("beat", _MIB))
    return _unless(result.stop is StopReason.WALL and later == beats, (result, f"{later - beats} more beats"))


def _cpu_limit(lab: _Lab) -> str:
    result = lab.python("while True: pass", limits=Limits(cpu_s=0.1))
    return _unless(result.stop is StopReason.CPU, result)


def _output_limit(lab: _Lab) -> str:
    flood = "import os\nwhile True: os.write(1, b'x' * 65536)"
    result = lab.python(flood, limits=Limits(output_bytes=1000))
    return _unless(
        result.stop is StopReason.OUTPUT and result.truncated and len(result.stdout) == 1000, result
    )


def _memory_limit(lab: _Lab) -> str:
    result = lab.python(f"bytearray({256 * _MIB}); print('got it')")
    return _unless(not result.ok and b"got it" not in result.stdout, result)


def _file_limit(lab: _Lab) -> str:
    result = lab.python(f"open('big', 'wb').write(bytes({2 * _MIB}))")
    size = len(lab.sandbox.read("big", 4 * _MIB))
    return _unless(not result.ok and size <= _MIB, (result, f"{size} bytes written"))


def _process_limit(lab: _Lab) -> str:
    made = len(lab.python(_FORKS).stdout.splitlines())
    return _unless(0 < made < _BRIEF.processes, f"{made} forks with a limit of {_BRIEF.processes} processes")


def _workspace(lab: _Lab) -> str:
    lab.sandbox.write("sub/in.txt", b"given")
    result = lab.python("open('sub/out.txt', 'w').write(open('sub/in.txt').read().upper())")
    found = lab.sandbox.export(["sub/**"], 1000)
    expected = {"sub/in.txt": b"given", "sub/out.txt": b"GIVEN"}
    return _unless(found == expected and lab.sandbox.read("sub/out.txt", 5) == b"GIVEN", (result, found))


def _private(lab: _Lab) -> str:
    lab.sandbox.write("mine", b"")
    with lab.backend.create() as other:
        result = other.run([other.python, "-c", "import os; print(os.listdir())"])
    return _unless(result.stdout == b"[]\n", result)


def _no_symlinks(lab: _Lab) -> str:
    lab.python(f"import os; os.symlink({str(lab.canary)!r}, 'link'); os.symlink('/', 'root')")
    paths = ("link", "root/etc/hostname")
    through = [path for path in paths if not _refused(functools.partial(lab.sandbox.read, path, 1000))]
    through += [path for path in paths if not _refused(functools.partial(lab.sandbox.write, path, b"x"))]
    through += [path for path in lab.sandbox.export(["**"], 64 * _MIB) if path.startswith(("link", "root"))]
    return _unless(not through, f"followed {through}")


def _no_traversal(lab: _Lab) -> str:
    paths = ("../up", "/etc/hostname", "a/../../up", "", ".", "a//b", "a\0b")
    through = [path for path in paths if not _refused(functools.partial(lab.sandbox.read, path, 1000))]
    through += [path for path in paths if not _refused(functools.partial(lab.sandbox.write, path, b"x"))]
    return _unless(not through, f"accepted {through}")


def _no_pipes(lab: _Lab) -> str:
    lab.python("import os; os.mkfifo('fifo')")
    with contextlib.suppress(FileNotFoundError):
        return f"read {lab.sandbox.read('fifo', 10)!r} from a FIFO"
    return _unless("fifo" not in lab.sandbox.export(["**"], 64 * _MIB), "listed a FIFO")


def _peer(lab: _Lab) -> str:
    peer = lab.sandbox.open([lab.sandbox.python, "-ISuc", "while True: print(input()[::-1])"])
    answers = [peer.ask(line, 5.0) for line in (b"abc", b"", "ä".encode())]
    ended = peer.close()
    return _unless(answers[:2] == [b"cba", b""] and not ended.ok, (answers, ended))


def _forged_answer(lab: _Lab) -> str:
    peer = lab.sandbox.open([lab.sandbox.python, "-ISuc", "input(); print('one\\ntwo')"])
    try:
        return f"took {peer.ask(b'', 5.0)!r} and left a second line unseen"
    except PeerGone as gone:
        return _unless(gone.tampered, gone.reason)
    finally:
        peer.close()


def _snapshot(lab: _Lab) -> str:
    with lab.backend.create() as sandbox:
        sandbox.write("kept", b"1")
        name = sandbox.snapshot()
        peer = sandbox.open([sandbox.python, "-c", "input(); input()"])
        sandbox.write("kept", b"2")
        sandbox.write("new", b"")
        sandbox.reset(name)
        restored = sandbox.export(["**"], 100)
        sandbox.reset()
        empty = sandbox.export(["**"], 100)
        try:
            return f"a program lived through reset: {peer.ask(b'', 1.0)!r}"
        except PeerGone:
            return _unless(restored == {"kept": b"1"} and not empty, (restored, empty))


def _no_traces(lab: _Lab) -> str:
    name = f"trace-{secrets.token_hex(8)}"
    with lab.backend.create() as sandbox:
        sandbox.write(name, b"")
        sandbox.run([sandbox.python, "-c", "import os; os.makedirs('/'.join('d' * 200)); os.chmod('d', 0)"])
    sandbox.close()
    left = [str(path) for path in Path(tempfile.gettempdir()).glob(f"*/*/{name}")]
    return _unless(not left, left)


#: What must hold -> how it is tried; each returns what it found instead, or nothing.
CASES: Final[dict[str, Callable[[_Lab], str]]] = {
    "runs Python with stdin and an exit status": _runs,
    "has the host's Python version": _same_python,
    "home is the workspace": _home_is_workspace,
    "hides the host's files": _sees_no("files", []),
    "hides the host's packages": _sees_no("packages", []),
    "hides the host's environment": _no_host_environment,
    "hides the host's processes": _no_host_processes,
    "reaches no network": _sees_no("network", False),
    "has no network interface": _sees_no("interfaces", []),
    "has a read-only root": _sees_no("writable", []),
    "is not root": _other_user,
    "has no capabilities": _sees_no("capabilities", "0" * 16),
    "cannot gain rights": _sees_no("gains", False),
    "cannot make user namespaces": _sees_no("namespaces", False),
    "opens no sockets that leave its namespaces": _sees_no("families", []),
    "reaches no keyring": _sees_no("keyring", False),
    "kills the whole tree at the wall limit": _wall_limit,
    "stops at the CPU limit": _cpu_limit,
    "stops at the output limit": _output_limit,
    "bounds memory": _memory_limit,
    "bounds file size": _file_limit,
    "bounds processes": _process_limit,
    "shares the workspace with the host": _workspace,
    "keeps workspaces private": _private,
    "follows no symlink": _no_symlinks,
    "refuses paths out of the workspace": _no_traversal,
    "opens no FIFO": _no_pipes,
    "answers line by line": _peer,
    "notices a forged answer": _forged_answer,
    "resets to a snapshot": _snapshot,
    "leaves no trace": _no_traces,
}


def _try(name: str, case: Callable[[_Lab], str], lab: _Lab) -> Finding:
    try:
        detail = case(lab)
    except (EnvkitError, PeerGone, OSError, ValueError) as error:
        detail = f"{type(error).__name__}: {error}"
    return Finding(name, not detail, detail)


def _unless(holds: bool, found: object) -> str:
    return "" if holds else f"found {found}"


def _refused(action: Callable[[], object]) -> bool:
    try:
        action()
    except UsageError:
        return True
    return False
