"""Work on files as another user, done by threads that have become that user for good.

A thread that acts as ``nobody`` has none of root's rights over files, whatever it meets among hostile ones.
And nobody else can write where no other user exists: in a file system of that user's own namespace.
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
_NOBODY_YET: Final = ctypes.c_uint(-1)
_here = threading.local()

T = TypeVar("T")


def as_user(user: int | None, job: Callable[[], T]) -> T:
    """Do ``job`` with the rights over files of a host user and group, and return its result.

    Args:
        user: user and group id; ``None`` for this process's own, and this thread.
        job: raises whatever it likes.

    Raises:
        SandboxError: this process may not become that user.
    """
    if user is None:
        return job()
    done = _clerks(os.getpid()).submit(_work, user, job)
    try:
        return done.result()
    finally:  # an interrupt must not have the caller close what is still worked on
        wait([done])


def _work(user: int, job: Callable[[], T]) -> T:
    if getattr(_here, "user", None) != user:
        _become(user)
        _here.user = user
    return job()


def _become(user: int) -> None:
    """Only the rights over files, and of this thread only; those of a whole process are another call."""
    libc = ctypes.CDLL(None)
    with _becoming(os.getpid()):  # or one would take what another has not yet given back for the rule
        dumps = libc.prctl(_GET_DUMPABLE, 0, 0, 0, 0)
        for change in (libc.setfsgid, libc.setfsuid):
            change(ctypes.c_uint(user))
            if change(_NOBODY_YET) != user:  # neither says whether it worked
                raise SandboxError(
                    f"this process may not act as user {user}; run it as root, or as another user"
                )
        if dumps == 1:  # which the kernel takes away from the process, and it did not ask for that
            libc.prctl(_SET_DUMPABLE, 1, 0, 0, 0)


@cache
def _becoming(pid: int) -> threading.Lock:
    """One at a time; keyed by pid because a fork may find a lock held by a thread that it does not have."""
    return threading.Lock()


@cache
def _clerks(pid: int) -> ThreadPoolExecutor:
    """This process's threads; keyed by pid because a fork leaves threads behind."""
    return ThreadPoolExecutor(_THREADS, f"clerk-{pid}")
