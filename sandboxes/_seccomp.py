"""The system calls that sandboxed code may not make, as a seccomp program for bubblewrap."""

from __future__ import annotations

import errno
import os
import socket
import tempfile
from functools import cache
from typing import Any, Final

from envkit.errors import SandboxUnavailable

#: Namespaces bound what these reach: the sandbox's own network has nothing but a loopback device. All other
#: families lead elsewhere, AF_VSOCK for one to the hypervisor whatever the namespace.
_FAMILIES: Final = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK)
_LAST_FAMILY: Final = 64
#: Calls on things that no namespace holds (keyrings, handles of files), on other processes' memory, and on
#: parts of the kernel that programs of this kind never need.
_FORBIDDEN: Final = (
    *("add_key", "keyctl", "request_key", "open_by_handle_at", "name_to_handle_at"),
    *("ptrace", "process_vm_readv", "process_vm_writev", "kcmp", "pidfd_getfd"),
    *("mount", "umount2", "pivot_root", "setns", "unshare", "mount_setattr", "move_mount", "open_tree"),
    *("bpf", "perf_event_open", "userfaultfd", "io_uring_setup", "io_uring_enter", "io_uring_register"),
    *("kexec_load", "init_module", "finit_module", "acct", "quotactl", "swapon", "syslog"),
)


def descriptor() -> int:
    """A descriptor to pass to ``bwrap --seccomp``, which reads it to its end; the caller closes it.

    Raises:
        SandboxUnavailable: libseccomp is not there.
    """
    handle = os.memfd_create("seccomp")
    os.write(handle, _program())
    os.lseek(handle, 0, os.SEEK_SET)
    return handle


@cache
def _program() -> bytes:
    """The filter as BPF; a call of another architecture's numbering kills its process."""
    try:
        import pyseccomp
    except (ImportError, RuntimeError) as error:  # the second: no libseccomp
        raise SandboxUnavailable(
            f"no filter for system calls ({error}); apt install libseccomp2, and: pip install pyseccomp"
        ) from error
    library: Any = pyseccomp
    rules = library.SyscallFilter(library.ALLOW)
    for name in _FORBIDDEN:
        rules.add_rule(library.ERRNO(errno.EPERM), name)
    refused = library.ERRNO(errno.EAFNOSUPPORT)
    for family in range(_LAST_FAMILY):
        if family not in _FAMILIES:
            rules.add_rule(refused, "socket", library.Arg(0, library.EQ, family))
    rules.add_rule(refused, "socket", library.Arg(0, library.GE, _LAST_FAMILY))
    with tempfile.TemporaryFile() as file:
        rules.export_bpf(file)
        file.seek(0)
        return file.read()
