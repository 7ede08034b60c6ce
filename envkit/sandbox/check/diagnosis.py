"""Diagnoses why no sandbox works on this machine: the likely cause, and the command that mends it.

`read_machine` collects facts, `diagnose` is a pure function of them.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import resource
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from envkit.errors import SandboxUnavailable

#: Backends that need user namespaces. For the others only their own error is known.
_NAMESPACED: Final = ("zygote", "bubblewrap")
#: The user that sandboxed code runs as when envkit runs as root.
_NOBODY: Final = 65534
#: Kernel switches that can forbid user namespaces: the value that forbids, a value that allows, and why.
_SWITCHES: Final = {
    "user.max_user_namespaces": ("0", "15000", "user namespaces are switched off"),
    "kernel.unprivileged_userns_clone": ("0", "1", "user namespaces are switched off for ordinary users"),
    "kernel.apparmor_restrict_unprivileged_userns": (
        "1",
        "0",
        "AppArmor restricts user namespaces, as on Ubuntu since 23.10",
    ),
}
_APPARMOR: Final = "kernel.apparmor_restrict_unprivileged_userns"
#: Options of ``docker run`` without which a container's own restrictions forbid namespaces or mounts in it.
_DOCKER_OPTIONS: Final = " ".join(
    f"--security-opt {name}=unconfined" for name in ("seccomp", "apparmor", "systempaths")
)
#: Matches an error that ends in a command, such as one about a missing program, package or folder.
_HAS_REMEDY: Final = re.compile(r"(.+?); ((?:sudo|apt|pip|export|make|set|unset) .+)", re.DOTALL)
_OUT_OF_MEMORY: Final = re.compile(r"MemoryError|Cannot allocate memory|can't start new thread|out of memory")


@dataclass(frozen=True, slots=True)
class NamespaceFacts:
    """Facts about this machine that decide whether namespaces work.

    Args:
        kernel: its release, such as ``"6.8.0-31-generic"``.
        switches: values of the kernel switches that exist here, by name.
        container: ``"docker"``, ``"podman"``, ``"kubernetes"`` or ``"lxc"`` if this runs in one, else ``""``.
        has_seccomp_filter: a system call filter applies to this process.
        maps_nobody: this process can become user 65534, as which root runs sandboxed code.
        address_space_bytes: the limit that ``ulimit -v`` sets, ``None`` if there is none.
        namespaces: ``""`` if an ordinary process can create namespaces and mount in them, else the step that
            failed (``unshare``, ``map``, ``mount`` or ``proc``) and the name of the error.
    """

    kernel: str = "6.8.0"
    switches: Mapping[str, str] | None = None
    container: str = ""
    has_seccomp_filter: bool = False
    maps_nobody: bool = True
    address_space_bytes: int | None = None
    namespaces: str = ""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The likely cause that no sandbox works, and the command that mends it."""

    cause: str
    remedy: str


def diagnose(machine: NamespaceFacts, problems: Mapping[str, str]) -> Diagnosis:
    """Return the most likely cause. Specific causes are tried before general ones.

    Args:
        machine: facts about it.
        problems: error of each backend that was tried, by name.
    """
    errors = [problems[name] for name in _NAMESPACED if name in problems] or [*problems.values()]
    step, _, error = machine.namespaces.partition(" ")
    if any(_OUT_OF_MEMORY.search(text) for text in errors):
        return out_of_memory(machine.address_space_bytes)
    for text in errors:
        if named := _HAS_REMEDY.fullmatch(text):
            return Diagnosis(named[1], named[2])
    if not machine.maps_nobody:
        return Diagnosis(
            "this shell is root only in a user namespace that maps no other user, as after "
            "`unshare --map-root-user`, and root runs sandboxed code as another user",
            "exit (and run envkit outside that namespace, as an ordinary user)",
        )
    for switch, (forbids, allows, meaning) in _SWITCHES.items():
        if step and switch != _APPARMOR and (machine.switches or {}).get(switch) == forbids:
            return Diagnosis(f"{meaning} ({switch} = {forbids})", _sysctl(machine, switch, allows))
    if machine.container and step:
        how = "masks parts of /proc" if step == "proc" else "forbids user namespaces"
        return Diagnosis(f"this runs in a container ({machine.container}) that {how}", _restart(machine))
    if step and (machine.switches or {}).get(_APPARMOR) == "1":
        _, allows, meaning = _SWITCHES[_APPARMOR]
        return Diagnosis(f"{meaning} ({_APPARMOR} = 1)", _sysctl(machine, _APPARMOR, allows))
    match step, error:
        case "unshare", "ENOSPC":
            return Diagnosis(
                "the limit on user namespaces is reached (user.max_user_namespaces)",
                _sysctl(machine, "user.max_user_namespaces", "15000"),
            )
        case "unshare", "EINVAL" | "ENOSYS":
            return Diagnosis(
                f"the kernel ({machine.kernel}) was built without user namespaces (CONFIG_USER_NS)",
                "sudo apt install docker.io (Docker needs no user namespaces)",
            )
        case "unshare" | "map" | "mount" | "proc", _:
            filtered = "a system call filter (seccomp)" if machine.has_seccomp_filter else "a security module"
            return Diagnosis(
                f"{filtered} or a chroot forbids namespaces here ({step}: {error})",
                "exit (run envkit outside the chroot, container or service that confines it)",
            )
        case _:
            pass
    if any("Linux 5." in text for text in errors):
        return Diagnosis(
            f"the kernel ({machine.kernel}) is too old to bound processes without a control group that this "
            "user can write",
            "sudo apt install docker.io (Docker has control groups)",
        )
    return Diagnosis(
        "unknown; namespaces and mounts work on this machine, so this may be a fault of envkit",
        "envkit -v sandbox check (and report what it prints)",
    )


def out_of_memory(address_space_bytes: int | None) -> Diagnosis:
    """The diagnosis of an allocation that failed, under the limit of ``ulimit -v`` or without one."""
    if address_space_bytes is not None:
        limit = f"this shell limits programs to {address_space_bytes / 2**20:.0f} MiB of address space"
        return Diagnosis(f"out of memory: {limit} (ulimit -v)", "ulimit -v unlimited")
    return Diagnosis("out of memory", "free -h (then end other programs, or use a machine with more memory)")


def is_out_of_memory(error: BaseException) -> bool:
    """True if an exception reports that memory could not be allocated, or a thread not started."""
    return isinstance(error, MemoryError) or bool(_OUT_OF_MEMORY.search(str(error)))


def address_space_bytes() -> int | None:
    """The limit on this process's address space, ``None`` if there is none."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if limit == resource.RLIM_INFINITY else limit


def unavailable(problems: Mapping[str, str]) -> SandboxUnavailable:
    """The error for a machine on which none of the backends that were tried works.

    Its message is one paragraph. The backends' own errors are its notes, which a traceback shows.

    Args:
        problems: error of each backend that was tried, by name.
    """
    if not problems:
        return SandboxUnavailable("no sandbox that isolates is installed; see: envkit list")
    if not set(_NAMESPACED) & set(problems):
        return SandboxUnavailable("; ".join(f"sandbox {name!r}: {text}" for name, text in problems.items()))
    found = diagnose(read_machine(), problems)
    error = SandboxUnavailable(
        f"no sandbox works here (tried {', '.join(problems)}). Likely cause: {found.cause}. "
        f"To mend it: {found.remedy}. Details: envkit -v sandbox check"
    )
    for name, text in problems.items():
        error.add_note(f"{name}: {text}")
    return error


def read_machine() -> NamespaceFacts:
    """Collect the facts. Namespaces are tried in a child process, which leaves nothing behind."""
    switches: dict[str, str] = {}
    for switch in _SWITCHES:
        with contextlib.suppress(OSError):
            switches[switch] = Path("/proc/sys", *switch.split(".")).read_text().strip()
    return NamespaceFacts(
        kernel=platform.release(),
        switches=switches,
        container=_container(),
        has_seccomp_filter="Seccomp:\t2" in _text("/proc/self/status"),
        maps_nobody=os.geteuid() != 0 or _maps(_text("/proc/self/uid_map"), _NOBODY),
        address_space_bytes=address_space_bytes(),
        namespaces=_try_namespaces(),
    )


def _container() -> str:
    if Path("/.dockerenv").exists():
        return "docker"
    if Path("/run/.containerenv").exists():
        return "podman"
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        return "kubernetes"
    found = re.search(r"docker|podman|kubepods|lxc", _text("/proc/1/cgroup"))
    return found[0].replace("kubepods", "kubernetes") if found else ""


def _maps(uid_map: str, user: int) -> bool:
    ranges = (map(int, line.split()) for line in uid_map.splitlines())
    return any(first <= user < first + count for first, _, count in ranges)


def _sysctl(machine: NamespaceFacts, switch: str, value: str) -> str:
    where = " (on the host of this container)" if machine.container else ""
    return f"sudo sysctl -w {switch}={value}{where}"


def _restart(machine: NamespaceFacts) -> str:
    if machine.container in ("docker", "podman"):
        return f"{machine.container} run {_DOCKER_OPTIONS} ... (start the container with these options)"
    return "start the container with seccomp=Unconfined, procMount=Unmasked and no AppArmor profile"


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


#: Tries each kernel feature that a sandbox needs, as the user that it runs as; prints the step that failed.
_NAMESPACE_PROBE: Final = """
import ctypes, errno, os, sys
libc, user, group = ctypes.CDLL(None, use_errno=True), os.geteuid(), os.getegid()
def step(name, result):
    if result:
        print(name, errno.errorcode.get(ctypes.get_errno(), "?"))
        sys.exit()
if user == 0:
    try:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        user = group = NOBODY
    except OSError:
        pass
    libc.prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE, so that its files in /proc are its own again
step("unshare", libc.unshare(0x10000000 | 0x20000 | 0x20000000))  # NEWUSER, NEWNS, NEWPID
for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
    try:
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    except OSError as error:
        print("map", errno.errorcode.get(error.errno, "?"))
        sys.exit()
step("mount", libc.mount(b"none", b"/", b"none", 0x4000 | 0x80000, None))  # MS_REC, MS_SLAVE
step("mount", libc.mount(b"tmpfs", b"/tmp", b"tmpfs", 0, b"size=1m"))
if os.fork() == 0:
    os.mkdir("/tmp/proc")
    step("proc", libc.mount(b"proc", b"/tmp/proc", b"proc", 0, None))
    os._exit(0)
os.wait()
"""


def _try_namespaces() -> str:
    command = [sys.executable, "-I", "-S", "-c", _NAMESPACE_PROBE.replace("NOBODY", str(_NOBODY))]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()
