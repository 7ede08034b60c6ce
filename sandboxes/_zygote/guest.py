"""The zygote, which forks commands from a warm interpreter; run by ``python -P -S -c``, as pid 1.

It ends only in a fork that runs a program. The caller then takes that program and its global names out of
``command``, executes it, and calls `leave` with ``known``. So the program has one frame beneath it, the
caller's, and no other object refers to its names.

    argv        descriptor of the host's socket; descriptor of a file that holds {"programs": [SOURCE, ...] to
                compile now, "modules": [NAME, ...] to import now, "packages": PATH of those, "scratch":
                options of each scratch folder's mount, which limit it, "forbidden": the filter of a command's
                system calls, BPF in hexadecimal}

Requests of the host:

    "fork PIDS" comes with a control socket and descriptors through which to join control groups. PIDS, which
                may be empty, are dead children to reap. Answer: {"pid": PID} with a descriptor that becomes
                readable when that process is dead, or {"failure": REASON}
    "reap PID"  reaps a dead child. Answer: {"cpu_s": S}

A fork is the init process of new namespaces. It forks the command's process, before there is a command.
That process builds its view of the file system, sends "ready" on the control socket and waits there for its
job (see `prepare`). Then it drops all privileges, sends "up" and becomes the command: by an ``exec``, or, for
a Python program, by running it in place, because the process differs little from a new interpreter. An error
before "up" is sent too, after an exclamation mark. When the command ends, or on SIGTERM, the init process
kills all remaining processes, and only then sends the command's status in four bytes.

A command can reach neither this process nor another command. But it runs as the same user as its own init
process, so the host trusts nothing that arrives after "up".
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

TYPE_CHECKING = False  # importing `typing` would take longer than everything else here
if TYPE_CHECKING:
    from types import CodeType
    from typing import Any

#: Modules that programs often import, or that load slowly. Not ``random``: all forks would share its state.
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

MOVE_MOUNT, HERE, OF_DESCRIPTOR = 429, -100, 4  # the same number on all architectures
LIBC = ctypes.CDLL(None, use_errno=True)
#: The host's own programs, compiled, by source.
COMPILED: dict[str, CodeType] = {}


def checked(result: int, doing: str) -> None:
    """Raise the error in errno if a C function failed.

    Raises:
        OSError: ``result`` is negative.
    """
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{doing}: {os.strerror(ctypes.get_errno())}")


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    """Mount a file system."""
    names = [name.encode() for name in (source, target, kind)]
    checked(LIBC.mount(*names, ctypes.c_ulong(flags), options.encode()), f"mount {kind} on {target}")


def confine(scratch: str) -> None:
    """Set up the command's view: loopback network, empty scratch folders, its own terminals and /proc."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        _, flags = struct.unpack(INTERFACE, fcntl.ioctl(asking, GET_FLAGS, struct.pack(INTERFACE, b"lo", 0)))
        fcntl.ioctl(asking, SET_FLAGS, struct.pack(INTERFACE, b"lo", flags | UP))
    mount("none", "/", "none", RECURSIVE | PRIVATE)
    # Mounted over the zygote's. The command cannot uncover them, because it may not unmount.
    scratch += ",mode=1777"
    mount("tmpfs", "/tmp", "tmpfs", NOSUID | NODEV, scratch)
    mount("tmpfs", "/dev/shm", "tmpfs", NOSUID | NODEV, scratch)
    mount("devpts", "/dev/pts", "devpts", NOSUID | NOEXEC, "newinstance,ptmxmode=0666,mode=620")
    # Without the files that count what the whole machine does, such as memory, locks and process ids.
    mount("proc", "/proc", "proc", NOSUID | NODEV | NOEXEC, "subset=pid")  # since Linux 5.8
    # Hides the init process's files: a command of the same user could set its priority through them.
    mount("tmpfs", "/proc/1", "tmpfs", NOSUID | NODEV | READ_ONLY, "mode=0")


def enter_own_users() -> None:
    """Enter a user namespace that owns no other namespace, so its capabilities do not count in them."""
    checked(LIBC.unshare(NEWUSER), "unshare users")
    own = f"{NOBODY} 0 1".encode()
    for name, text in (("setgroups", b"deny"), ("uid_map", own), ("gid_map", own)):
        file = os.open(f"/proc/self/{name}", os.O_WRONLY)
        os.write(file, text)
        os.close(file)


def drop_privileges() -> None:
    """Drop all capabilities for good, and forbid processes of the same user to read or trace this one."""
    checked(LIBC.capset(struct.pack("Ii", CAPABILITY_VERSION, 0), bytes(24)), "drop capabilities")
    checked(LIBC.prctl(SET_DUMPABLE, 0, 0, 0, 0), "become undumpable")
    checked(LIBC.prctl(SET_NO_NEW_PRIVS, 1, 0, 0, 0), "forbid new privileges")


def filter_calls(forbidden: bytes) -> None:
    """Filter this process's system calls by a BPF program."""
    rules = ctypes.create_string_buffer(forbidden, len(forbidden))
    program = struct.pack("HxxxxxxP", len(forbidden) // 8, ctypes.addressof(rules))
    checked(LIBC.prctl(SET_SECCOMP, FILTER, program, 0, 0), "filter system calls")


def reap(command: int) -> int | None:
    """Reap dead processes; returns the command's status (or minus its signal) if it is one of them."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return None
        if pid in (0, command):
            return os.waitstatus_to_exitcode(status) if pid else None


def run_init(control: socket.socket, groups: list[int], scratch: str, forbidden: bytes) -> CodeType:
    """Run as the init process of a command's namespaces; its child becomes the command.

    Returns only in the child; see `prepare`.
    """
    os.setsid()  # because the kernel groups scheduling by session (autogroup)
    for group in groups:
        os.write(group, b"0")
        os.close(group)
    checked(LIBC.unshare(NEWNS | NEWCGROUP | NEWIPC | NEWNET), "unshare")
    secured, securing = os.pipe()
    awaited = {signal.SIGCHLD, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    command = os.fork()
    if command == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, awaited)
        os.close(securing)
        return prepare(control, secured, scratch, forbidden)
    drop_privileges()
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


def prepare(control: socket.socket, secured: int, scratch: str, forbidden: bytes) -> CodeType:
    """Prepare the command's process, wait for the command, and become it.

    Waits until ``secured`` is closed, because then the init process has dropped its privileges, which the
    command could abuse otherwise.

    The job comes as descriptors: a file that holds {"argv": [...], "rlimits": [[KIND, BOUND], ...],
    "program": SOURCE or null}, then stdin, stdout, stderr, and the workspace, a detached mount.

    Returns the program, if the command is a program to run in this interpreter.
    """
    try:
        confine(scratch)
        os.setsid()
        rehearse()
        os.read(secured, 1)
        control.send(b"ready")
        word, passed, _, _ = socket.recv_fds(control, 16, 5)
        if not word:  # the host is gone, or does not need this process
            os._exit(0)
        job_file, *pipes, workspace = passed
        with open(job_file, "rb") as file:
            job: dict[str, Any] = json.load(file)
        for target, pipe in enumerate(pipes):
            os.dup2(pipe, target)
        moved = LIBC.syscall(MOVE_MOUNT, workspace, b"", HERE, b"/workspace", OF_DESCRIPTOR)
        checked(moved, "mount the workspace")
        enter_own_users()
        drop_privileges()
        filter_calls(forbidden)
        control.send(b"up")
    except BaseException as error:
        control.send(f"!{error}".encode())
        os._exit(1)
    control.detach()
    return become(job)


def rehearse() -> None:
    """Run the first steps of typical programs, so that the memory pages they need are copied ahead."""
    scope: dict[str, Any] = {}
    exec(compile("class C:\n def f(self, *a, **k): return [*a]", "<string>", "exec"), scope)
    text = json.dumps({"id": "0", "args": ["[1, 2.5, 'x']"], "kwargs": {}, "value": scope["C"]().f(1, None)})
    eval("[1, (2, 'x'), {3: 4.5}]", {"text": json.loads(text)})
    with open("/proc/self/setgroups", encoding="utf-8") as file:
        file.read()
    signal.signal(signal.SIGPIPE, signal.getsignal(signal.SIGPIPE))
    sys.stdout.flush()


def become(job: dict[str, Any]) -> CodeType:
    """Become the command. Returns the program if it runs in this interpreter."""
    program = job["program"]
    try:
        os.closerange(3, 4096)
        for kind, bound in job["rlimits"]:
            resource.setrlimit(kind, (bound, bound))
        os.chdir("/workspace")
        # A program that puts the workspace on its path must import from there what a new interpreter would.
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


def serve(host: socket.socket, scratch: str, forbidden: bytes) -> CodeType:
    """Answer the host's requests until it closes the socket. Returns only in a fork that runs a program."""
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
            checked(LIBC.unshare(NEWPID), "unshare processes")  # for the next child, not for this process
            child = os.fork()
        except OSError as error:
            failure = str(error)
        if child == 0:
            os.close(host.detach())
            os.close(home)
            control, *groups = passed
            return run_init(socket.socket(fileno=control), groups, scratch, forbidden)
        checked(LIBC.setns(home, NEWPID), "return to the own namespace")
        for descriptor in passed:
            os.close(descriptor)
        if not failure:
            failure = introduce(host, child)
        if failure:
            host.send(json.dumps({"failure": failure}).encode())


def occupy_shared_files() -> None:
    """Take a shared lock of each kind on the files that all commands see and the mount helper does not.

    See ``occupy`` in the mount helper. These are the folder of devices and the namespaces.
    """
    for path in ("/dev", *(f"/proc/self/ns/{name}" for name in os.listdir("/proc/self/ns"))):
        shared = os.open(path, os.O_RDONLY)
        fcntl.flock(shared, fcntl.LOCK_SH)
        fcntl.fcntl(shared, fcntl.F_OFD_SETLKW, struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0))


def introduce(host: socket.socket, child: int) -> str:
    """Send the host the descriptor of a new process. If that fails, kill it and return the reason."""
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
    """Import and compile, then serve. Returns only in a fork that runs a program."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the kernel ignores it for pid 1; forks inherit the default
    # A high limit on open files, because descriptors that commands have in flight between sockets count
    # against all processes of the user. Commands have a lower limit, so they cannot use this one up.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    os.environ.pop("PWD", None)  # bubblewrap sets it
    occupy_shared_files()
    for name in WARM:
        importlib.import_module(name)
    host, prepared = map(int, sys.argv[1:])
    with open(prepared) as file:
        preparation: dict[str, Any] = json.load(file)
    for source in preparation["programs"]:
        COMPILED[source] = compile(source, "<string>", "exec", dont_inherit=True)
    path = [*sys.path]
    sys.path.append(preparation["packages"])
    for name in preparation["modules"]:
        importlib.import_module(name)
    sys.path[:] = path  # programs can use the imported modules, but import nothing else from there
    gc.freeze()  # a garbage collection in a fork would copy every memory page
    return serve(socket.socket(fileno=host), preparation["scratch"], bytes.fromhex(preparation["forbidden"]))


def leave(known: set[str]) -> None:
    """End the interpreter like a normal exit, but skip modules that the program did not import.

    Args:
        known: names of modules that were imported before the program ran.
    """
    import atexit

    sys.settrace(None)
    sys.setprofile(None)
    if "threading" in sys.modules:
        sys.modules["threading"]._shutdown()
    atexit._run_exitfuncs()  # pyright: ignore[reportPrivateUsage]
    # Delete the program's objects while the names that their __del__ methods use still exist.
    for name in ["__main__", *(name for name in sys.modules if name not in known)]:
        sys.modules.pop(name, None)
    gc.collect()
    status = 0
    for stream in (getattr(sys, "stdout", None), getattr(sys, "stderr", None)):
        try:
            if stream is not None and not stream.closed:
                stream.flush()
        except OSError as error:  # as an interpreter does if it cannot flush its output
            os.write(2, f"Exception ignored in: {stream!r}\n{type(error).__name__}: {error}\n".encode())
            status = 120
    LIBC.fflush(None)
    os._exit(status)


if __name__ == "__main__":
    found, known = main(), {*sys.modules}
    sys.modules["__main__"] = type(sys)("__main__")
    sys.modules["__main__"].__dict__["__builtins__"] = sys.modules["builtins"]
    command = [(found, sys.modules["__main__"].__dict__)]
