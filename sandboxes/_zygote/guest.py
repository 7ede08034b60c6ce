"""Forks commands out of a warm interpreter; run as ``python -P -S -c SOURCE`` as process 1 of a namespace.

    argv    descriptor of the host's socket; descriptor of a file that holds {"programs": [SOURCE, ...] to
            compile now, "modules": [NAME, ...] to import now, "packages": PATH of those, "forbidden": the
            filter of a command's system calls, BPF in hexadecimal}; bytes of each scratch folder
    "fork"  comes with a socket for control and with descriptors at which to enter control groups, and maybe
            with pids after spaces, of processes that are dead and to be reaped; answered by {"pid": PID} with
            a descriptor that is readable once that process is dead, or by {"failure": REASON}
    "reap"  with such a pid after a space is answered by {"cpu_s": S}

What is forked is the process 1 of fresh namespaces, and by that one the command's process, both before there
is a command. The latter builds their view of the file system, says "ready" at the control socket, and waits
there for its job (see `prepare`). Then it gives up all rights, says "up" and becomes the command: by an
``exec`` or, where it is a Python program for an isolated interpreter, as it is, for then it differs little
from a new interpreter: some of the standard library is imported. What goes wrong before "up" it says too,
after an exclamation mark. When the command ends, or on SIGTERM, process 1 kills all that is left, and only
then says the command's status, in four bytes.

A command reaches neither this process nor any other command. But it is of the same user as its own process
1, so nothing that is said about it after "up" is trusted.
"""

from __future__ import annotations

import ctypes
import fcntl
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

#: What programs of this kind import most, or long. Not ``random``, whose state all forks would share.
WARM = (
    *("abc", "bisect", "collections", "collections.abc", "contextlib", "copy", "dataclasses", "decimal"),
    *("enum", "fractions", "functools", "heapq", "importlib", "itertools", "math", "operator", "re"),
    *("json", "sqlite3", "string", "textwrap", "types", "typing"),
)
# From <sched.h>, <sys/mount.h>, <sys/prctl.h>, <linux/mount.h>, <linux/capability.h> and <linux/sockios.h>.
NEWNS, NEWCGROUP, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x2000000, 0x8000000, 1 << 28, 1 << 29, 1 << 30
READ_ONLY, NOSUID, NODEV, NOEXEC, RECURSIVE, PRIVATE = 1, 2, 4, 8, 16384, 1 << 18
SET_DUMPABLE, SET_SECCOMP, SET_NO_NEW_PRIVS, FILTER = 4, 22, 38, 2
NOBODY = 65534
CAPABILITY_VERSION = 0x20080522
GET_FLAGS, SET_FLAGS, UP, INTERFACE = 0x8913, 0x8914, 1, "16sh14x"

MOVE_MOUNT, HERE, OF_DESCRIPTOR = 429, -100, 4  # the call has one number on all machines
#: Most files in each scratch folder.
SCRATCH_FILES = 16000
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


def confine(scratch_bytes: int) -> None:
    """Build this process's own view: empty scratch folders, its namespaces' own /proc, network, terminals."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        _, flags = struct.unpack(INTERFACE, fcntl.ioctl(asking, GET_FLAGS, struct.pack(INTERFACE, b"lo", 0)))
        fcntl.ioctl(asking, SET_FLAGS, struct.pack(INTERFACE, b"lo", flags | UP))
    mount("none", "/", "none", RECURSIVE | PRIVATE)
    # Over what was there. It stays covered, for want of the right to unmount.
    scratch = f"size={scratch_bytes},nr_inodes={SCRATCH_FILES},mode=1777"
    mount("tmpfs", "/tmp", "tmpfs", NOSUID | NODEV, scratch)
    mount("tmpfs", "/dev/shm", "tmpfs", NOSUID | NODEV, scratch)
    mount("devpts", "/dev/pts", "devpts", NOSUID | NOEXEC, "newinstance,ptmxmode=0666,mode=620")
    mount("proc", "/proc", "proc", NOSUID | NODEV | NOEXEC)
    # Of process 1 a command could set what weighs on its work, for they are of one user.
    mount("tmpfs", "/proc/1", "tmpfs", NOSUID | NODEV | READ_ONLY, "mode=0")


def enter_own_users() -> None:
    """Enter a user namespace that owns none of the others."""
    checked(LIBC.unshare(NEWUSER), "unshare users")
    own = f"{NOBODY} 0 1".encode()
    for name, text in (("setgroups", b"deny"), ("uid_map", own), ("gid_map", own)):
        file = os.open(f"/proc/self/{name}", os.O_WRONLY)
        os.write(file, text)
        os.close(file)


def give_up_rights() -> None:
    """Drop all capabilities, with no way back, and let no process of the same user look inside or trace."""
    checked(LIBC.capset(struct.pack("Ii", CAPABILITY_VERSION, 0), bytes(24)), "drop capabilities")
    checked(LIBC.prctl(SET_DUMPABLE, 0, 0, 0, 0), "become undumpable")
    checked(LIBC.prctl(SET_NO_NEW_PRIVS, 1, 0, 0, 0), "forbid new privileges")


def filter_calls(forbidden: bytes) -> None:
    """Refuse system calls from now on, as a BPF program says."""
    rules = ctypes.create_string_buffer(forbidden, len(forbidden))
    program = struct.pack("HxxxxxxP", len(forbidden) // 8, ctypes.addressof(rules))
    checked(LIBC.prctl(SET_SECCOMP, FILTER, program, 0, 0), "filter system calls")


def reap(command: int) -> int | None:
    """Take in the dead; returns the command's exit status, or minus its signal, if it is among them."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return None
        if pid in (0, command):
            return os.waitstatus_to_exitcode(status) if pid else None


def keep(control: socket.socket, doors: list[int], scratch_bytes: int, forbidden: bytes) -> CodeType:
    """Be process 1 of a command's namespaces; its child becomes the command.

    Returns only in the child; see `prepare`.
    """
    os.setsid()  # or its niceness, as far as the kernel groups it by sessions, would be everyone's
    for door in doors:
        os.write(door, b"0")
        os.close(door)
    checked(LIBC.unshare(NEWNS | NEWCGROUP | NEWIPC | NEWNET), "unshare")
    secured, securing = os.pipe()
    awaited = {signal.SIGCHLD, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    command = os.fork()
    if command == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, awaited)
        os.close(securing)
        return prepare(control, secured, scratch_bytes, forbidden)
    give_up_rights()
    os.close(securing)
    status = None
    while status is None and signal.sigwait(awaited) == signal.SIGCHLD:
        status = reap(command)
    try:
        while True:
            os.kill(-1, signal.SIGKILL)
            os.wait()
    except (ProcessLookupError, ChildProcessError):
        control.send(struct.pack("i", -signal.SIGKILL if status is None else status))
    os._exit(0)


def prepare(control: socket.socket, secured: int, scratch_bytes: int, forbidden: bytes) -> CodeType:
    """Be the command's process before there is a command, and then become it.

    Not before ``secured`` is at its end: then process 1 has no rights left that could be abused.

    The job is {"argv": [...], "rlimits": [[KIND, BOUND], ...], "program": SOURCE or null} in a file, whose
    descriptor comes first; then stdin, stdout, stderr and the workspace, a mount that is attached nowhere.

    Returns the program, if the command is one that is to run in this interpreter.
    """
    try:
        confine(scratch_bytes)
        os.setsid()
        rehearse()
        os.read(secured, 1)
        control.send(b"ready")
        word, passed, _, _ = socket.recv_fds(control, 16, 5)
        if not word:  # the host is gone, or has no use for this
            os._exit(0)
        asked, *pipes, workspace = passed
        with open(asked, "rb") as file:
            job: dict[str, Any] = json.load(file)
        for target, pipe in enumerate(pipes):
            os.dup2(pipe, target)
        moved = LIBC.syscall(MOVE_MOUNT, workspace, b"", HERE, b"/workspace", OF_DESCRIPTOR)
        checked(moved, "mount the workspace")
        enter_own_users()
        give_up_rights()
        filter_calls(forbidden)
        control.send(b"up")
    except BaseException as error:
        control.send(f"!{error}".encode())
        os._exit(1)
    control.detach()
    return become(job)


def rehearse() -> None:
    """Do what a first program will do, so that the pages which that takes are this process's own by then."""
    scope: dict[str, Any] = {}
    exec(compile("class C:\n def f(self, *a, **k): return [*a]", "<string>", "exec"), scope)
    said = json.dumps({"id": "0", "args": ["[1, 2.5, 'x']"], "kwargs": {}, "value": scope["C"]().f(1, None)})
    eval("[1, (2, 'x'), {3: 4.5}]", {"said": json.loads(said)})
    with open("/proc/self/setgroups", encoding="utf-8") as file:
        file.read()
    signal.signal(signal.SIGPIPE, signal.getsignal(signal.SIGPIPE))
    sys.stdout.flush()


def become(job: dict[str, Any]) -> CodeType:
    """Turn into the command; where that is Python, returns what is left to do."""
    program = job["program"]
    try:
        os.closerange(3, 4096)
        for kind, bound in job["rlimits"]:
            resource.setrlimit(kind, (bound, bound))
        os.chdir("/workspace")
        # A program that puts the workspace on its path must find there what a new interpreter would.
        if program is not None and not any(name.partition(".")[0] in sys.modules for name in os.listdir()):
            checked(LIBC.prctl(SET_DUMPABLE, 1, 0, 0, 0), "become dumpable")
            signal.signal(signal.SIGINT, signal.default_int_handler)
            sys.orig_argv, sys.argv = job["argv"], ["-c", *job["argv"][5:]]
            return COMPILED.get(program) or compile(program, "<string>", "exec", dont_inherit=True)
        for ignored in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(ignored, signal.SIG_DFL)
        os.execvp(job["argv"][0], job["argv"])
    except OSError as error:
        os.write(2, f"{error}\n".encode())
    os._exit(127)


def serve(host: socket.socket, scratch_bytes: int, forbidden: bytes) -> CodeType:
    """Fork when the host asks for it, until it goes away; returns in a command that is Python."""
    home = os.open("/proc/self/ns/pid", os.O_RDONLY)
    while True:
        request, passed, _, _ = socket.recv_fds(host, 4096, 8)
        if not request:
            os._exit(0)
        word, *dead = request.decode().split()
        cpu_s = 0.0
        for pid in dead:
            *_, used = os.wait4(int(pid), 0)
            cpu_s += used.ru_utime + used.ru_stime
        if word == "reap":
            host.send(json.dumps({"cpu_s": cpu_s}).encode())
            continue
        child, failure = -1, ""
        try:
            checked(LIBC.unshare(NEWPID), "unshare processes")  # of the next child, not of this process
            child = os.fork()
        except OSError as error:
            failure = str(error)
        if child == 0:
            os.close(host.detach())
            os.close(home)
            control, *doors = passed
            return keep(socket.socket(fileno=control), doors, scratch_bytes, forbidden)
        checked(LIBC.setns(home, NEWPID), "return to the own namespace")
        for descriptor in passed:
            os.close(descriptor)
        if not failure:
            failure = introduce(host, child)
        if failure:
            host.send(json.dumps({"failure": failure}).encode())


def introduce(host: socket.socket, child: int) -> str:
    """Give the host hold of a new process; where that fails, end the process and return the reason."""
    try:
        handle = os.pidfd_open(child)
        try:
            socket.send_fds(host, [json.dumps({"pid": child}).encode()], [handle])
        finally:
            os.close(handle)
    except OSError as error:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return str(error)
    return ""


def main() -> CodeType:
    """Warm up, then serve."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # which process 1 is deaf to
    # What commands may have in flight between sockets counts against the whole user, and they may have less.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    os.environ.pop("PWD", None)  # bubblewrap's own addition
    for name in WARM:
        importlib.import_module(name)
    host, prepared, scratch_bytes = map(int, sys.argv[1:])
    with open(prepared) as file:
        preparation: dict[str, Any] = json.load(file)
    for source in preparation["programs"]:
        COMPILED[source] = compile(source, "<string>", "exec", dont_inherit=True)
    path = [*sys.path]
    sys.path.append(preparation["packages"])
    for name in preparation["modules"]:
        importlib.import_module(name)
    sys.path[:] = path  # a program finds what is imported, and nothing else there
    gc.freeze()  # a collection in a fork would copy every page
    return serve(socket.socket(fileno=host), scratch_bytes, bytes.fromhex(preparation["forbidden"]))


def leave(known: set[str]) -> None:
    """End the interpreter as it would end by itself, but without tidying up what the program never touched.

    Args:
        known: names of modules that were there before the program.
    """
    import atexit

    sys.settrace(None)
    sys.setprofile(None)
    if "threading" in sys.modules:
        sys.modules["threading"]._shutdown()
    atexit._run_exitfuncs()  # pyright: ignore[reportPrivateUsage]
    # Objects of the program's end while the names that they use are still there.
    for name in ["__main__", *(name for name in sys.modules if name not in known)]:
        sys.modules.pop(name, None)
    gc.collect()
    status = 0
    for stream in (getattr(sys, "stdout", None), getattr(sys, "stderr", None)):
        try:
            if stream is not None and not stream.closed:
                stream.flush()
        except OSError as error:  # what an interpreter says and does that cannot write its last words
            os.write(2, f"Exception ignored in: {stream!r}\n{type(error).__name__}: {error}\n".encode())
            status = 120
    LIBC.fflush(None)
    os._exit(status)


if __name__ == "__main__":
    found, known = main(), {*sys.modules}
    sys.modules["__main__"] = type(sys)("__main__")
    sys.modules["__main__"].__dict__["__builtins__"] = sys.modules["builtins"]
    exec(found, sys.modules["__main__"].__dict__)
    leave(known)
