"""Forks commands out of a warm interpreter; run as ``python -I -S -c SOURCE`` as process 1 of a namespace.

    argv     descriptor of the host's socket, descriptor of a file with a JSON list of programs to compile now
    "run"    comes with descriptors: a file that holds a job (see `Job`), the filter for system calls, stdin,
             stdout, stderr, and a socket for control; answered by {"pid": PID} with a descriptor that is
             readable once the command and all that it started are dead
    "reap"   with the pid after a space, once that is so; answered by {"cpu_s": S}

For each command this process forks the process 1 of fresh namespaces. That one waits at its control socket
for a word, since only then is it in its control group; builds its own view of the file system; gives up all
rights; says "up"; forks the command; and reports the command's status, four bytes, when that ends. The
command is an ``exec`` or, where it is a Python program for an isolated interpreter, this interpreter itself,
which differs from a new one only in having some of the standard library imported.

A command reaches neither this process nor any other command. But it is of the same user as its own process
1, so nothing that is said about it after "up" is trusted.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import resource
import signal
import socket
import struct
import sys

TYPE_CHECKING = False  # `typing` itself would take longer to import than all the rest
if TYPE_CHECKING:
    from types import CodeType
    from typing import Any

#: What programs of this kind import most. Not ``random``, whose state all forks would share.
WARM = (
    *("abc", "bisect", "collections", "collections.abc", "contextlib", "copy", "dataclasses", "decimal"),
    *("enum", "fractions", "functools", "heapq", "importlib", "itertools", "math", "operator", "re"),
    *("string", "textwrap", "types", "typing"),
)
# From <sched.h>, <sys/mount.h>, <sys/prctl.h>, <linux/capability.h> and <linux/sockios.h>.
NEWNS, NEWCGROUP, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x2000000, 0x8000000, 1 << 28, 1 << 29, 1 << 30
NOSUID, NODEV, NOEXEC, REMOUNT, BIND, RECURSIVE, PRIVATE, DETACH = 2, 4, 8, 32, 4096, 16384, 1 << 18, 2
SET_DUMPABLE, SET_SECCOMP, SET_NO_NEW_PRIVS, FILTER = 4, 22, 38, 2
NOBODY = 65534
CAPABILITY_VERSION = 0x20080522
GET_FLAGS, SET_FLAGS, UP, INTERFACE = 0x8913, 0x8914, 1, "16sh14x"

LIBC = ctypes.CDLL(None, use_errno=True)
#: Programs of the host's own, by source.
COMPILED: dict[str, CodeType] = {}


def checked(result: int, doing: str) -> None:
    """Raise what a C function has left in errno.

    Raises:
        OSError: ``result`` says that it failed.
    """
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{doing}: {os.strerror(ctypes.get_errno())}")


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    """Mount a file system."""
    names = [name.encode() for name in (source, target, kind)]
    checked(LIBC.mount(*names, ctypes.c_ulong(flags), options.encode()), f"mount {kind} on {target}")


def unmount(target: str) -> None:
    """Unmount, whoever still uses it."""
    checked(LIBC.umount2(target.encode(), DETACH), f"unmount {target}")


def confine(workspace: str, scratch_bytes: int) -> None:
    """Build this process's own view: its workspace, empty scratch folders, its namespaces' own /proc."""
    import fcntl

    checked(LIBC.unshare(NEWNS | NEWCGROUP | NEWIPC | NEWNET), "unshare")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        _, flags = struct.unpack(INTERFACE, fcntl.ioctl(asking, GET_FLAGS, struct.pack(INTERFACE, b"lo", 0)))
        fcntl.ioctl(asking, SET_FLAGS, struct.pack(INTERFACE, b"lo", flags | UP))
    mount("none", "/", "none", RECURSIVE | PRIVATE)
    mount(workspace, "/workspace", "none", BIND)
    mount("none", "/workspace", "none", BIND | REMOUNT | NOSUID | NODEV)
    unmount("/tmp/spaces")  # where everyone's workspace lies
    unmount("/tmp")
    scratch = f"size={scratch_bytes},mode=1777"
    mount("tmpfs", "/tmp", "tmpfs", NOSUID | NODEV, scratch)
    mount("tmpfs", "/dev/shm", "tmpfs", NOSUID | NODEV, scratch)
    mount("devpts", "/dev/pts", "devpts", NOSUID | NOEXEC, "newinstance,ptmxmode=0666,mode=620")
    mount("proc", "/proc", "proc", NOSUID | NODEV | NOEXEC)


def give_up_rights(forbidden: bytes) -> None:
    """Enter a user namespace that owns none of the others, drop its rights too, filter system calls."""
    checked(LIBC.unshare(NEWUSER), "unshare users")
    for name, text in (("setgroups", "deny"), ("uid_map", f"{NOBODY} 0 1"), ("gid_map", f"{NOBODY} 0 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    checked(LIBC.capset(struct.pack("Ii", CAPABILITY_VERSION, 0), bytes(24)), "drop capabilities")
    # The command is of the same user: it shall neither look into this process nor trace it.
    checked(LIBC.prctl(SET_DUMPABLE, 0, 0, 0, 0), "become undumpable")
    checked(LIBC.prctl(SET_NO_NEW_PRIVS, 1, 0, 0, 0), "forbid new privileges")
    rules = ctypes.create_string_buffer(forbidden, len(forbidden))
    program = struct.pack("HxxxxxxP", len(forbidden) // 8, ctypes.addressof(rules))
    checked(LIBC.prctl(SET_SECCOMP, FILTER, program, 0, 0), "filter system calls")


class Job:
    """A command to run.

    Args:
        descriptors: of a file that holds {"argv": [...], "env": {...}, "rlimits": [[KIND, BOUND], ...],
            "workspace": PATH, "scratch_bytes": N, "program": SOURCE or null}, of the filter, of stdin,
            stdout and stderr, and of the control socket.
    """

    def __init__(self, descriptors: list[int]) -> None:
        job, forbidden, *self.pipes, self.control = descriptors
        with open(job, "rb") as file:
            self.asked: dict[str, Any] = json.load(file)
        with open(forbidden, "rb") as file:
            self.forbidden = file.read()

    def supervise(self) -> CodeType:
        """Be process 1 of the command's namespaces; its child is the command.

        Returns only in that child, with the program that it is to run in this interpreter.
        """
        try:
            for target, pipe in enumerate(self.pipes):
                os.dup2(pipe, target)
            if not os.read(self.control, 16):  # the host is gone
                os._exit(1)
            confine(self.asked["workspace"], self.asked["scratch_bytes"])
            give_up_rights(self.forbidden)
            os.write(self.control, b"up")
            command = os.fork()
        except BaseException as error:
            os.write(2, f"cannot confine a command: {error}".encode())
            os._exit(1)
        if command == 0:
            return self.become()
        while True:
            pid, status = os.wait()
            if pid == command:
                os.write(self.control, struct.pack("i", os.waitstatus_to_exitcode(status)))
                os._exit(0)

    def become(self) -> CodeType:
        """Turn into the command; where that is Python, returns what is left to do."""
        asked, program = self.asked, self.asked["program"]
        try:
            os.setsid()
            os.closerange(3, 4096)
            for kind, bound in asked["rlimits"]:
                resource.setrlimit(kind, (bound, bound))
            os.chdir("/workspace")
            os.environ.clear()
            os.environ.update(asked["env"])
            if program is not None:
                checked(LIBC.prctl(SET_DUMPABLE, 1, 0, 0, 0), "become dumpable")
                signal.signal(signal.SIGINT, signal.default_int_handler)
                sys.orig_argv, sys.argv = asked["argv"], ["-c", *asked["argv"][5:]]
                return COMPILED.get(program) or compile(program, "<string>", "exec", dont_inherit=True)
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            os.execvp(asked["argv"][0], asked["argv"])
        except OSError as error:
            os.write(2, f"{error}\n".encode())
        os._exit(127)


def serve(host: socket.socket) -> CodeType:
    """Fork what the host asks for until it goes away; returns in a command that is Python."""
    home = os.open("/proc/self/ns/pid", os.O_RDONLY)
    while True:
        word, passed, _, _ = socket.recv_fds(host, 64, 8)
        if not word:
            os._exit(0)
        if word == b"run":
            checked(LIBC.unshare(NEWPID), "unshare processes")  # of the next child, not of this process
            child = os.fork()
            if child == 0:
                os.close(host.detach())
                os.close(home)
                return Job(list(passed)).supervise()
            checked(LIBC.setns(home, NEWPID), "return to the own namespace")
            for descriptor in passed:
                os.close(descriptor)
            handle = os.pidfd_open(child)
            socket.send_fds(host, [json.dumps({"pid": child}).encode()], [handle])
            os.close(handle)
        else:
            *_, used = os.wait4(int(word.split()[1]), 0)
            host.send(json.dumps({"cpu_s": used.ru_utime + used.ru_stime}).encode())


def main() -> CodeType:
    """Warm up, then serve."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # which process 1 is deaf to
    for name in WARM:
        importlib.import_module(name)
    host, programs = map(int, sys.argv[1:])
    with open(programs) as file:
        for source in json.load(file):
            COMPILED[source] = compile(source, "<string>", "exec", dont_inherit=True)
    gc.freeze()  # a collection in a fork would copy every page
    return serve(socket.socket(fileno=host))


if __name__ == "__main__":
    found = main()
    sys.modules["__main__"] = type(sys)("__main__")
    exec(found, sys.modules["__main__"].__dict__)
