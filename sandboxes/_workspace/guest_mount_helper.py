"""Mounts workspaces where only sandboxes see them; run as ``python -I -S -c SOURCE`` by this very user.

    argv          descriptor of the host's socket; user id to be; folder to mount below
    at its start  says "ok", once its namespaces of users and of mounts may be entered
    "make N BYTES FILES"
                  mounts an empty file system in memory; answered with a descriptor of its folder
    "freeze N"    lets nothing in it change any more
    "lay N LOWER BYTES FILES"
                  mounts one that begins with what the frozen LOWER holds, which counts as well; answered
                  likewise
    "tree N"      is answered with a descriptor of a detached mount of it, to be attached once, anywhere
    "drop N"      unmounts it; it is gone with the last who uses it or lies over it
    "try"         lays one over another, which a kernel may refuse or do by halves, and drops both

Each answer begins with "ok", or with "!" and a reason. What is mounted lives in namespaces of this process's
own, which no other process on the host is in. So nothing is left of it when all who use it are dead.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import socket
import sys

# From <sched.h>, <sys/mount.h>, <sys/prctl.h> and <linux/mount.h>.
NEWNS, NEWUSER = 0x20000, 1 << 28
READ_ONLY, NOSUID, NODEV, REMOUNT, RECURSIVE, SLAVE, DETACH = 1, 2, 4, 32, 16384, 1 << 19, 2
SET_PDEATHSIG, SET_DUMPABLE, SET_NO_NEW_PRIVS = 1, 4, 38
OPEN_TREE, HERE, CLONE = 428, -100, 1  # the call has one number on all machines

#: Where changes of what is frozen are mounted until they are laid over it, and their two folders.
CHANGES, UPPER, WORK = "changes", "changes/upper", "changes/work"
#: Folders that a file system of changes has for itself: its own, those two, and one that the kernel makes.
OWN_FILES = 4
LIBC = ctypes.CDLL(None, use_errno=True)


def checked(result: int, doing: str) -> int:
    """A C function's result.

    Raises:
        OSError: it failed.
    """
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{doing}: {os.strerror(ctypes.get_errno())}")
    return result


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    """Mount a file system."""
    names = [name.encode() for name in (source, target, kind)]
    checked(LIBC.mount(*names, ctypes.c_ulong(flags), options.encode()), f"mount {kind} on {target}")


def move_out(user: int, folder: str) -> None:
    """Become ``user``, in namespaces of this process's own."""
    if os.geteuid() != user:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    checked(LIBC.prctl(SET_NO_NEW_PRIVS, 1, 0, 0, 0), "forbid new privileges")
    # So that its files in /proc are the user's, who enters the namespaces by them.
    checked(LIBC.prctl(SET_DUMPABLE, 1, 0, 0, 0), "become dumpable")
    group = os.getegid()  # asked for now: a new namespace knows no group until its map is written
    checked(LIBC.unshare(NEWUSER | NEWNS), "unshare users and mounts")
    # Under the same ids as outside, so that whoever enters later is no root there.
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{user} {user} 1"),
        ("gid_map", f"{group} {group} 1"),
    ):
        file = os.open(f"/proc/self/{name}", os.O_WRONLY)
        os.write(file, text.encode())
        os.close(file)
    # What the host unmounts goes here as well, and would be kept otherwise.
    mount("none", "/", "none", RECURSIVE | SLAVE)
    mount("tmpfs", folder, "tmpfs", NOSUID | NODEV, f"size=1m,nr_inodes=0,mode=711,{owned(user, group)}")
    os.chdir(folder)  # for names that say nothing of the host, where commands find them among their mounts


def owned(user: int, group: int) -> str:
    """Whose a file system's own folder is."""
    return f"uid={user},gid={group}"


def make(name: str, size: int, files: int) -> None:
    """Mount an empty file system that holds no more than so many bytes and files."""
    os.mkdir(name)
    try:
        bounds = f"size={size},nr_inodes={files},mode=700"
        mount("tmpfs", name, "tmpfs", NOSUID | NODEV, f"{bounds},{owned(os.geteuid(), os.getegid())}")
    except OSError:
        os.rmdir(name)
        raise


def lay(name: str, lower: str, size: int, files: int) -> None:
    """Mount a file system that begins as ``lower``; see "lay" above."""
    below = os.statvfs(lower)
    size -= (below.f_blocks - below.f_bfree) * below.f_frsize
    if size < 1:  # which would be no bound at all
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
        drop(CHANGES)  # what is mounted keeps it, and nobody else can reach it


def drop(name: str) -> None:
    """Unmount a file system, at once or with the last who uses it."""
    checked(LIBC.umount2(name.encode(), DETACH), "unmount")
    os.rmdir(name)


def attempt() -> None:
    """Lay one file system over another; see "try" above."""
    make("below", 1 << 20, 16)
    try:
        os.mkdir("below/folder")
        os.mkdir("below/folder/nested")
        lay("over", "below", 1 << 20, 64)
        try:
            os.rmdir("over/folder/nested")
            os.rmdir("over/folder")
            os.mkdir("over/folder")  # which hides what is below by an attribute: in memory since Linux 6.6
            if os.listdir("over/folder"):
                raise OSError("what was removed comes back")
        finally:
            drop("over")
    finally:
        drop("below")


def answer(word: str, arguments: list[str]) -> list[int]:
    """Do what the host asks for; returns what it gets for it."""
    match word, arguments:
        case "make", [name, size, files]:
            make(name, int(size), int(files))
            return [os.open(name, os.O_RDONLY | os.O_DIRECTORY)]
        case "freeze", [name]:
            mount("none", name, "none", REMOUNT | READ_ONLY | NOSUID | NODEV)
        case "lay", [name, lower, size, files]:
            lay(name, lower, int(size), int(files))
            return [os.open(name, os.O_RDONLY | os.O_DIRECTORY)]
        case "tree", [name]:
            tree = LIBC.syscall(OPEN_TREE, HERE, name.encode(), CLONE | os.O_CLOEXEC)
            return [checked(tree, "open_tree (Linux 5.2)")]
        case "drop", [name]:
            drop(name)
        case "try", []:
            attempt()
        case _:
            raise OSError(f"no such request: {word} {arguments}")
    return []


def main() -> None:
    """Serve the host until it goes away."""
    descriptor, user, folder = sys.argv[1:]
    host = socket.socket(fileno=int(descriptor))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What commands may have in flight between sockets counts against the whole user, and they may have less.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    try:
        move_out(int(user), folder)
    except OSError as error:
        host.send(f"!{error}".encode())
        return
    LIBC.prctl(SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # a fork of the host's may hold the socket open
    host.send(b"ok")
    while request := host.recv(4096):
        word, *arguments = request.decode().split()
        given: list[int] = []
        try:
            given = answer(word, arguments)
            said = b"ok"
        except OSError as error:
            said = f"!{error}".encode()
        try:
            socket.send_fds(host, [said], given)
        except OSError as error:
            host.send(f"!{error}".encode())
        for opened in given:
            os.close(opened)


if __name__ == "__main__":
    main()
