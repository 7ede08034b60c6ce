"""Does file operations as another user, in threads that switch to that user and never back.

Root must not touch hostile files with root's rights. A thread that acts as ``nobody`` has none of these
rights, even if it follows a link or opens a device. ``nobody`` is also the only user that can write to a
workspace, because that file system belongs to a user namespace in which no other user exists.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from typing import Final, TypeVar

from envkit.errors import SandboxError

_GET_DUMPABLE, _SET_DUMPABLE = 3, 4  # from <linux/prctl.h>
_THREADS: Final = 8
_NO_USER: Final = ctypes.c_uint(-1)
_here = threading.local()

T = TypeVar("T")


def as_user(user: int | None, job: Callable[[], T]) -> T:
    """Call ``job`` with the file permissions of a host user and group, and return its result.

    Args:
        user: user and group id; ``None`` to call it in this thread, as this process's user.
        job: the operation; its exceptions are passed on.

    Raises:
        SandboxError: this process may not become that user.
    """
    if user is None:
        return job()
    done = _workers(os.getpid()).submit(_work, user, job)
    try:
        return done.result()
    finally:  # after an interrupt, the caller must not close a folder that the thread still uses
        wait([done])


def _work(user: int, job: Callable[[], T]) -> T:
    if getattr(_here, "user", None) != user:
        _become(user)
        _here.user = user
    return job()


def _become(user: int) -> None:
    """Switch the file permissions of this thread only; ``setuid`` would switch the whole process."""
    libc = ctypes.CDLL(None)
    with _switching(os.getpid()):  # one at a time: each reads and restores a flag of the whole process
        dumps = libc.prctl(_GET_DUMPABLE, 0, 0, 0, 0)
        for change in (libc.setfsgid, libc.setfsuid):
            change(ctypes.c_uint(user))
            if change(_NO_USER) != user:  # the calls report no error, only the current id
                raise SandboxError(
                    f"this process may not act as user {user}; run it as root, or as another user"
                )
        if dumps == 1:  # the kernel has cleared the process's dumpable flag; set it again
            libc.prctl(_SET_DUMPABLE, 1, 0, 0, 0)


@cache
def _switching(pid: int) -> threading.Lock:
    """A lock. Keyed by pid, because after a fork it could be held by a thread that the fork lacks."""
    return threading.Lock()


@cache
def _workers(pid: int) -> ThreadPoolExecutor:
    """This process's threads. Keyed by pid, because a fork has none of them."""
    return ThreadPoolExecutor(_THREADS, f"file-user-{pid}")
