"""Mounts workspaces in its own namespaces, where only sandboxes see them; run by ``python -I -S -c``.

    argv          descriptor of the host's socket; id of the user to run as; folder to mount in
    at the start  sends "ok" once its user and mount namespaces can be entered

Requests of the host, with a name N for each mount:

    "make N BYTES FILES"
                  mounts an empty file system in memory; the answer has a descriptor of its folder
    "freeze N"    remounts it read-only
    "overlay N LOWER BYTES FILES"
                  mounts one that starts with the files of the frozen mount LOWER, which count as well; the
                  answer has a descriptor of its folder
    "lay N PATH"  copies the host's folder PATH (its name in hexadecimal) into a read-only file system in
                  memory and occupies its files (see `occupy`)
    "clone N"     the answer has a descriptor of a detached copy of the mount, to attach once
    "unmount N"   unmounts it; it lives on while a process uses it or a mount lies over it
    "confine INIT PIDS KIND=BOUND..."
                  gives the sandbox whose process 1 is INIT another /proc (see `hide`), and limits the
                  resources of its processes PIDS, separated by commas
    "probe"       mounts one over another to find out if the kernel can, then unmounts both

Each answer begins with "ok", or with "!" and a reason. No other process of the host is in these namespaces,
so the mounts vanish when the helper and all sandboxes that use them are dead.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import resource
import shutil  # now, because the user that this becomes may not be able to read the interpreter's files
import signal
import socket
import struct
import sys

# From <sched.h>, <sys/mount.h>, <sys/prctl.h> and <linux/mount.h>.
NEWNS, NEWUSER, NEWPID = 0x20000, 1 << 28, 1 << 29
READ_ONLY, NOSUID, NODEV, NOEXEC, REMOUNT, NOATIME = 1, 2, 4, 8, 32, 1024
BIND, RECURSIVE, SLAVE, DETACH = 4096, 16384, 1 << 19, 2
SET_PDEATHSIG, SET_DUMPABLE, SET_NO_NEW_PRIVS = 1, 4, 38
OPEN_TREE, HERE, CLONE = 428, -100, 1  # the same number on all architectures

#: Temporary mount point of an overlay's upper file system, and the two folders in it.
CHANGES, UPPER, WORK = "changes", "changes/upper", "changes/work"
#: Folders that an upper file system itself needs: its root, those two, and one that the kernel creates.
OWN_FILES = 4
#: Devices in the ``/dev`` of every sandbox. They are the host's.
DEVICES = ("null", "zero", "full", "random", "urandom")
#: ``struct flock``: a shared lock on a whole file.
WHOLE_FILE = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
#: Processes that hold the locks on a root's files.
HOLDERS: list[int] = []
LIBC = ctypes.CDLL(None, use_errno=True)


def checked(result: int, doing: str) -> int:
    """Return a C function's result.

    Raises:
        OSError: the function failed.
    """
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{doing}: {os.strerror(ctypes.get_errno())}")
    return result


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    """Mount a file system."""
    names = [name.encode() for name in (source, target, kind)]
    checked(LIBC.mount(*names, ctypes.c_ulong(flags), options.encode()), f"mount {kind} on {target}")


def move_out(user: int, folder: str) -> None:
    """Become ``user`` in new user and mount namespaces."""
    if os.geteuid() != user:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    checked(LIBC.prctl(SET_NO_NEW_PRIVS, 1, 0, 0, 0), "forbid new privileges")
    # So that its files in /proc belong to the user, who enters the namespaces through them.
    checked(LIBC.prctl(SET_DUMPABLE, 1, 0, 0, 0), "become dumpable")
    group = os.getegid()  # before unshare: in a new user namespace all ids read 65534 until they are mapped
    checked(LIBC.unshare(NEWUSER | NEWNS), "unshare users and mounts")
    # The same ids as outside, so that a process that enters later is not root there.
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{user} {user} 1"),
        ("gid_map", f"{group} {group} 1"),
    ):
        file = os.open(f"/proc/self/{name}", os.O_WRONLY)
        os.write(file, text.encode())
        os.close(file)
    # The host's unmounts must reach this namespace, or it would keep those file systems alive.
    mount("none", "/", "none", RECURSIVE | SLAVE)
    mount("tmpfs", folder, "tmpfs", NOSUID | NODEV, f"size=1m,nr_inodes=0,mode=711,{owned(user, group)}")
    os.chdir(
        folder
    )  # relative names, because commands can read mount options, which must not show host paths


def owned(user: int, group: int) -> str:
    """Mount options for the owner of a file system's root folder."""
    return f"uid={user},gid={group}"


def make(name: str, size: int, files: int) -> None:
    """Mount an empty file system of at most ``size`` bytes and ``files`` files."""
    os.mkdir(name)
    try:
        bounds = f"size={size},nr_inodes={files},mode=700"
        mount("tmpfs", name, "tmpfs", NOSUID | NODEV, f"{bounds},{owned(os.geteuid(), os.getegid())}")
    except OSError:
        os.rmdir(name)
        raise


def overlay(name: str, lower: str, size: int, files: int) -> None:
    """Mount a file system that starts with the files of ``lower``; see "overlay" above."""
    below = os.statvfs(lower)
    size -= (below.f_blocks - below.f_bfree) * below.f_frsize
    if size < 1:  # a size of 0 would mean no limit
        raise OSError(f"{lower} leaves no room for changes")
    make(CHANGES, size, files - (below.f_files - below.f_ffree) + OWN_FILES)
    try:
        for folder in (UPPER, WORK):
            os.mkdir(folder, 0o700)
        os.mkdir(name)
        try:
            folders = f"lowerdir={lower},upperdir={UPPER},workdir={WORK}"
            options = f"{folders},userxattr,index=off,metacopy=off"
            mount("overlay", name, "overlay", NOSUID | NODEV, options)
        except OSError:
            os.rmdir(name)
            raise
    finally:
        unmount(CHANGES)  # the overlay keeps it alive, and no path leads to it any more


def lay(name: str, source: str) -> None:
    """Copy a folder into a read-only file system in memory, and occupy its files.

    Sandboxes share these files, and share nothing else through them. No program can evict them from memory
    (the kernel can, on a machine with swap), so the time or the result of a read does not depend on what
    others have done, as it does on a disk.
    """
    os.mkdir(name)
    try:
        options = f"size=0,nr_inodes=0,mode=755,{owned(os.geteuid(), os.getegid())}"  # 0 means no limit
        mount("tmpfs", name, "tmpfs", NOSUID | NODEV, options)
    except OSError:
        os.rmdir(name)
        raise
    held: list[int] = []
    try:
        shutil.copytree(source, name, symlinks=True, dirs_exist_ok=True)
        mount("none", name, "none", REMOUNT | READ_ONLY | NOSUID | NODEV | NOATIME)
        most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        for folder, _, files in os.walk(name):
            for path in (folder, *(os.path.join(folder, file) for file in files)):
                if not os.path.islink(path):
                    held.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
                    occupy(held[-1])
                    if len(held) > most // 2:  # more files than one process may have open
                        hold_on(held)
                        while held:
                            os.close(held.pop())
        if held:
            hold_on(held)
    except OSError:
        unmount(name)
        raise
    finally:
        for descriptor in held:
            os.close(descriptor)


def hold_on(descriptors: list[int]) -> None:
    """Keep open files in another process, because forking with thousands of them takes long."""
    parent, (ready, telling) = os.getpid(), os.pipe()
    holder = os.fork()
    if holder == 0:
        # Both die together; `require_holders` ends the parent.
        LIBC.prctl(SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)
        first = min(descriptors)
        os.closerange(0, first)
        for other in {*range(first, max(descriptors) + 8)} - {*descriptors}:
            os.closerange(other, other + 1)
        while True:
            signal.pause()
    os.close(telling)
    os.read(ready, 1)  # until the other one has closed what is not its own
    os.close(ready)
    HOLDERS.append(holder)


def require_holders() -> None:
    """End this process if one that holds locks is dead, because then the locks are lost."""
    for holder in HOLDERS:
        if os.waitpid(holder, os.WNOHANG)[0]:
            os._exit(1)


def hide(init: int) -> None:
    """Cover a sandbox's /proc by one that shows its own processes only, and of these not process 1.

    The other files there count what the whole machine does: memory, interrupts, locks, process ids. Process 1
    is bubblewrap's own. A command of the same user could write to its memory.
    """
    target = os.pidfd_open(init)
    try:
        child = os.fork()
        if child == 0:
            os._exit(hide_within(target))
        _, ended = os.waitpid(child, 0)
        if code := os.waitstatus_to_exitcode(ended):
            raise OSError(code, f"hide /proc: {os.strerror(code) if code > 0 else f'killed by {-code}'}")
    finally:
        os.close(target)


def hide_within(target: int) -> int:
    """Do the work of `hide`, for a process of its own; returns 0 or the number of an error."""
    try:
        # For the next child, because such a mount shows the processes of the namespace of its maker.
        checked(LIBC.setns(target, NEWPID), "enter a sandbox's process namespace (Linux 5.8)")
        child = os.fork()
        if child:
            return abs(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        checked(LIBC.setns(target, NEWNS), "enter a sandbox's mounts")
        mount("proc", "/proc", "proc", NOSUID | NODEV | NOEXEC, "subset=pid")  # since Linux 5.8
        mount("tmpfs", "/proc/1", "tmpfs", NOSUID | NODEV | READ_ONLY, "mode=0")
    except OSError as error:
        return error.errno or 1
    return 0


def occupy(descriptor: int) -> None:
    """Take a shared lock of each kind on an open file, which keeps them until it is closed.

    Whatever other sandboxes do, an exclusive lock on the file then fails, a shared one succeeds, and a query
    finds this lock, because it is the first. So the locks on a file that sandboxes share tell nothing.
    """
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    # Of the open file, not of the process, which would lose it with any other descriptor of the file.
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLKW, WHOLE_FILE)


def protect_devices() -> None:
    """Mount the devices read-only, so that nobody can set their times. Programs can still write to them."""
    for name in DEVICES:
        path = f"/dev/{name}"
        mount(path, path, "none", BIND)
        kept = os.statvfs(path).f_flag & (NOSUID | NODEV | NOEXEC)  # the kernel refuses to clear these
        mount("none", path, "none", REMOUNT | BIND | READ_ONLY | kept)


def occupy_kernel_files() -> None:
    """Occupy the files that sandboxes share with the host: devices, namespaces and anonymous inodes."""
    paths = [f"/dev/{name}" for name in DEVICES]
    paths += [f"/proc/self/ns/{name}" for name in os.listdir("/proc/self/ns")]
    for path in paths:
        occupy(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    occupy(os.eventfd(0))  # the kernel has one inode for this and for most other descriptors without a file


def unmount(name: str) -> None:
    """Unmount a file system now. It is freed with its last user."""
    checked(LIBC.umount2(name.encode(), DETACH), "unmount")
    os.rmdir(name)


def probe() -> None:
    """Try an overlay; see "probe" above.

    Raises:
        OSError: the kernel cannot mount one, or files that are deleted in it reappear.
    """
    make("below", 1 << 20, 16)
    try:
        os.mkdir("below/folder")
        os.mkdir("below/folder/nested")
        overlay("over", "below", 1 << 20, 64)
        try:
            os.rmdir("over/folder/nested")
            os.rmdir("over/folder")
            # Hides the folder below by an extended attribute, which tmpfs supports since Linux 6.6.
            os.mkdir("over/folder")
            if os.listdir("over/folder"):
                raise OSError("a deleted folder comes back")
        finally:
            unmount("over")
    finally:
        unmount("below")


def answer(word: str, arguments: list[str]) -> list[int]:
    """Handle a request of the host; returns the descriptors of the answer."""
    match word, arguments:
        case "make", [name, size, files]:
            make(name, int(size), int(files))
            return [os.open(name, os.O_RDONLY | os.O_DIRECTORY)]
        case "freeze", [name]:
            mount("none", name, "none", REMOUNT | READ_ONLY | NOSUID | NODEV)
        case "overlay", [name, lower, size, files]:
            overlay(name, lower, int(size), int(files))
            return [os.open(name, os.O_RDONLY | os.O_DIRECTORY)]
        case "lay", [name, source]:
            lay(name, os.fsdecode(bytes.fromhex(source)))
        case "clone", [name]:
            tree = LIBC.syscall(OPEN_TREE, HERE, name.encode(), CLONE | os.O_CLOEXEC)
            return [checked(tree, "open_tree (Linux 5.2)")]
        case "unmount", [name]:
            unmount(name)
        case "confine", [init, pids, *bounds]:
            hide(int(init))
            for pid in pids.split(","):
                for kind, bound in (map(int, one.split("=")) for one in bounds):
                    resource.prlimit(int(pid), kind, (bound, bound))
        case "probe", []:
            probe()
        case _:
            raise OSError(f"no such request: {word} {arguments}")
    return []


def main() -> None:
    """Answer the host's requests until it closes the socket."""
    descriptor, user, folder = sys.argv[1:]
    host = socket.socket(fileno=int(descriptor))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A high limit on open files, because descriptors that commands have in flight between sockets count
    # against all processes of the user. Commands have a lower limit, so they cannot use this one up.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    try:
        move_out(int(user), folder)
        protect_devices()
        occupy_kernel_files()
    except OSError as error:
        host.send(f"!{error}".encode())
        return
    LIBC.prctl(
        SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0
    )  # the socket alone is not enough: a fork of the host may hold it open
    host.send(b"ok")
    while request := host.recv(4096):
        word, *arguments = request.decode().split()
        given: list[int] = []
        require_holders()
        try:
            given = answer(word, arguments)
            reply = b"ok"
        except OSError as error:
            reply = f"!{error}".encode()
        try:
            socket.send_fds(host, [reply], given)
        except OSError as error:
            host.send(f"!{error}".encode())
        for opened in given:
            os.close(opened)


if __name__ == "__main__":
    main()
