"""Mounts workspaces where only sandboxes see them; run as ``python -I -S -c SOURCE`` by this very user.

    argv          descriptor of the host's socket; user id to be; folder to mount below
    at its start  says "ok", once its namespaces of users and of mounts may be entered
    "make N BYTES FILES"  mounts an empty file system in memory; answered with a descriptor of its folder
    "tree N"      is answered with a descriptor of a detached mount of it, to be attached once, anywhere
    "drop N"      unmounts it; it is gone with the last who uses it

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
NOSUID, NODEV, RECURSIVE, SLAVE, DETACH = 2, 4, 16384, 1 << 19, 2
SET_PDEATHSIG, SET_DUMPABLE, SET_NO_NEW_PRIVS = 1, 4, 38
OPEN_TREE, HERE, CLONE = 428, -100, 1  # the call has one number on all machines

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
    checked(LIBC.unshare(NEWUSER | NEWNS), "unshare users and mounts")
    group = os.getegid()
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


def owned(user: int, group: int) -> str:
    """Whose a file system's own folder is."""
    return f"uid={user},gid={group}"


def answer(word: str, arguments: list[str], folder: str) -> list[int]:
    """Do what the host asks for; returns what it gets for it."""
    place = f"{folder}/{arguments[0]}"
    if word == "make":
        os.mkdir(place)
        try:
            bounds = f"size={arguments[1]},nr_inodes={arguments[2]},mode=700"
            mount("tmpfs", place, "tmpfs", NOSUID | NODEV, f"{bounds},{owned(os.geteuid(), os.getegid())}")
        except OSError:
            os.rmdir(place)
            raise
        return [os.open(place, os.O_RDONLY | os.O_DIRECTORY)]
    if word == "tree":
        tree = LIBC.syscall(OPEN_TREE, HERE, place.encode(), CLONE | os.O_CLOEXEC)
        return [checked(tree, "open_tree (Linux 5.2)")]
    checked(LIBC.umount2(place.encode(), DETACH), "unmount")
    os.rmdir(place)
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
            given = answer(word, arguments, folder)
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
