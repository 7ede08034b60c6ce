"""The filter of system calls for sandboxed code: a BPF program for bubblewrap, a JSON profile for Docker."""

from __future__ import annotations

import contextlib
import errno
import json
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from envkit.errors import SandboxUnavailable
from envkit.sandboxes._linux.child import memory_file

#: Allowed socket families. Network namespaces confine them: the sandbox has only a loopback device. Other
#: families are not confined; AF_VSOCK, for example, reaches the hypervisor from any namespace.
_FAMILIES: Final = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK)
_LAST_FAMILY: Final = 64
_CLONE_NEWUSER: Final = 0x10000000
#: Forbidden calls: on objects outside all namespaces (keyrings, file handles), on other processes' memory,
#: and on parts of the kernel that sandboxed programs never need.
_FORBIDDEN: Final = (
    *("add_key", "keyctl", "request_key", "open_by_handle_at", "name_to_handle_at"),
    *("ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "kcmp", "pidfd_getfd"),
    *("mount", "umount2", "pivot_root", "setns", "unshare", "move_mount", "open_tree", "fsopen", "fsmount"),
    *("fsconfig", "fspick", "mount_setattr"),
    *("bpf", "perf_event_open", "userfaultfd", "io_uring_setup", "io_uring_enter", "io_uring_register"),
    *("kexec_load", "init_module", "finit_module", "delete_module", "acct", "quotactl", "swapon", "syslog"),
    *("clock_settime", "settimeofday", "adjtimex", "reboot", "lookup_dcookie"),
    "sysinfo",  # tells how many processes the machine runs, and how much memory is free
)
#: Calls that do not exist in a sandbox, because they watch a file that sandboxes share, tell or change where
#: its pages lie, or count against a limit of the whole machine. Programs go without them, as on a kernel that
#: lacks them.
_ABSENT: Final = (
    *("inotify_init", "inotify_init1", "inotify_add_watch", "fanotify_init", "fanotify_mark"),
    *("mincore", "readahead", "io_setup", "quotactl_fd"),
    *("mbind", "get_mempolicy", "set_mempolicy", "move_pages", "migrate_pages"),
)
#: The same, by number (one on all architectures), because older libraries do not know their names.
_ABSENT_NUMBERS: Final = {"cachestat": 451, "set_mempolicy_home_node": 450}
#: Calls that do nothing and succeed. A workspace lies in memory, so there is nothing to write to a disk, and
#: the kernel may ignore advice about files.
_IGNORED: Final = ("sync", "syncfs", "fadvise64")
#: Commands of ``fcntl`` that watch a file: leases (1024, 1025) and notices of changes in a folder (1026); and
#: that note on it how long its data may live (1035 to 1038). File systems that lack them answer the same.
#: Locks stay, because databases need them; no lock tells anything about another sandbox, see
#: `envkit.sandboxes._workspace.guest_mount_helper`.
_WATCHING: Final = (1024, 1025, 1026, 1035, 1036, 1037, 1038)
#: Advice about memory that moves pages, which several sandboxes can share: merge equal pages (12), use huge
#: pages (14), cool (20), page out (21) and collapse into a huge page (25). Older kernels answer the same.
_MOVING: Final = (12, 14, 20, 21, 25)
_SET_MEMORY_MERGE: Final = 67  # for `prctl`: merges equal pages of all memory
_NOWAIT: Final = 8  # for `preadv2`: read only what is in memory


@dataclass(frozen=True, slots=True)
class _Rule:
    """A call that fails with ``error``: always, or if argument ``argument`` compares as ``op value``.

    With error 0 the call returns 0 and does nothing. ``mask`` selects the bits that ``MASKED_EQ`` compares.
    """

    call: str
    error: int
    op: str | None = None
    value: int = 0
    argument: int = 0
    mask: int = 0

    @property
    def operands(self) -> tuple[int, ...]:
        """What libseccomp compares with; the mask comes first."""
        return (self.mask, self.value) if self.op == "MASKED_EQ" else (self.value,)


def _rules() -> Iterator[_Rule]:
    for call in _FORBIDDEN:
        yield _Rule(call, errno.EPERM)
    for call in (*_ABSENT, *_ABSENT_NUMBERS):
        yield _Rule(call, errno.ENOSYS)
    for call in _IGNORED:
        yield _Rule(call, 0)
    for command in _WATCHING:
        yield _int_rule("fcntl", 1, command)
    for advice in _MOVING:
        yield _int_rule("madvise", 2, advice)
    yield _int_rule("prctl", 0, _SET_MEMORY_MERGE)
    yield _Rule("preadv2", errno.EOPNOTSUPP, "MASKED_EQ", _NOWAIT, argument=5, mask=_NOWAIT)
    yield _Rule("clone", errno.EPERM, "MASKED_EQ", _CLONE_NEWUSER, mask=_CLONE_NEWUSER)
    yield _Rule("clone3", errno.ENOSYS)  # a filter cannot read its flags; C libraries then use clone
    for family in range(_LAST_FAMILY):
        if family not in _FAMILIES:
            yield _Rule("socket", errno.EAFNOSUPPORT, "EQ", family)
    yield _Rule("socket", errno.EAFNOSUPPORT, "GE", _LAST_FAMILY)
    # No change of another process's priority or limits, because the sandbox's init process runs as the same
    # user and must be able to do its work.
    for call in ("sched_setaffinity", "sched_setattr", "sched_setparam", "sched_setscheduler", "prlimit64"):
        yield _Rule(call, errno.EPERM, "NE", 0)
    for call, one_process in (("setpriority", 0), ("ioprio_set", 1)):
        yield _Rule(call, errno.EPERM, "NE", one_process)
        yield _Rule(call, errno.EPERM, "NE", 0, argument=1)


def _int_rule(call: str, argument: int, value: int) -> _Rule:
    """EINVAL if an argument of type ``int`` has this value, whatever the upper half of its register holds."""
    return _Rule(call, errno.EINVAL, "MASKED_EQ", value, argument, mask=0xFFFFFFFF)


def profile() -> str:
    """The rules as a profile for ``docker --security-opt seccomp=``; everything else is allowed."""
    calls: list[dict[str, Any]] = []
    for rule in _rules():
        entry: dict[str, Any] = {"names": [rule.call], "action": "SCMP_ACT_ERRNO", "errnoRet": rule.error}
        if rule.op is not None:
            values = dict(zip(("value", "valueTwo"), (*rule.operands, 0), strict=False))
            entry["args"] = [{"index": rule.argument, "op": f"SCMP_CMP_{rule.op}", **values}]
        calls.append(entry)
    return json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": calls})


def descriptor() -> int:
    """A descriptor for ``bwrap --seccomp``; the caller closes it.

    Raises:
        SandboxUnavailable: libseccomp is missing or too old.
    """
    return memory_file(program())


@cache
def program() -> bytes:
    """The rules as a BPF program. A call with another architecture's numbering kills its process.

    Raises:
        SandboxUnavailable: libseccomp is missing or too old.
    """
    try:
        import pyseccomp
    except ImportError as error:
        raise SandboxUnavailable("pyseccomp is not installed; pip install pyseccomp") from error
    except RuntimeError as error:  # pyseccomp finds no libseccomp
        raise SandboxUnavailable(
            f"the library that filters system calls is missing ({error}); apt install libseccomp2"
        ) from error
    library: Any = pyseccomp
    filtered = library.SyscallFilter(library.ALLOW)
    with contextlib.suppress(OSError):  # since libseccomp 2.5
        filtered.set_attr(library.Attr.CTL_OPTIMIZE, 2)  # a binary tree, which the kernel checks sooner
    for rule in _rules():
        arguments: list[Any] = []
        if rule.op is not None:
            arguments.append(library.Arg(rule.argument, getattr(library, rule.op), *rule.operands))
        try:
            call = _ABSENT_NUMBERS.get(rule.call, rule.call)
            filtered.add_rule(library.ERRNO(rule.error), call, *arguments)
        except OSError as error:
            raise SandboxUnavailable(
                f"libseccomp knows no system call {rule.call} ({error}); apt install libseccomp2"
            ) from error
    with tempfile.TemporaryFile() as file:
        filtered.export_bpf(file)
        file.seek(0)
        return file.read()
