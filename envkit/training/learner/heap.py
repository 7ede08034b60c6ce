"""Control of the memory that a process keeps: the heap, with all tensors of a CPU, and caches of kernels."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any, Final, final

#: Growth of a process after which freed memory is returned, in bytes.
_SLACK: Final = 2**28
_STATM: Final = Path("/proc/self/statm")
#: Kernels that torch's two caches of them hold. By default each holds 1,024.
_KERNELS: Final = {"LRU_CACHE_CAPACITY": "64", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256"}


def limit_kernel_caches() -> None:
    """Let torch hold fewer kernels, unless the environment says how many. Works until torch first uses one.

    Every shape of a matrix product has a kernel of its own, and learning and sampling meet new shapes all the
    time. With the defaults, the caches of a model with 0.5 B parameters grow by about 45 MB in every step of
    a warm start. Smaller ones are as fast.
    """
    for name, value in _KERNELS.items():
        os.environ.setdefault(name, value)


def keep_freed_memory() -> None:
    """Let glibc keep large freed blocks, because the next training step needs them again.

    By default, glibc returns them to the kernel, and a training step spends a sixth of its time on page
    faults. Other C libraries have no ``mallopt`` and do not need it.
    """
    mallopt = _function("mallopt")
    if mallopt is not None:
        # M_MMAP_THRESHOLD. Older glibc refuses more than 32 MiB and answers 0.
        _ = mallopt(-3, 1 << 30) or mallopt(-3, 32 << 20)
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def release_freed_memory() -> None:
    """Return all freed memory to the kernel."""
    trim = _function("malloc_trim")
    if trim is not None:
        trim(0)


@final
class HeapLimit:
    """Returns freed memory when it is made, and after training steps that have made the process grow.

    Batches differ in size, so blocks that are kept do not fit the next ones, and the heap would grow from
    step to step: from 4 to 7 GB in ten steps of a warm start with a model of 0.5 B parameters.
    """

    def __init__(self) -> None:
        release_freed_memory()
        self._limit: int | None = None

    def after_step(self) -> None:
        """Compare with the size after the first step since memory was returned."""
        if not _STATM.exists():
            return
        now = int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        if self._limit is None:
            self._limit = now + _SLACK
        elif now > self._limit:
            release_freed_memory()
            self._limit = None


def _function(name: str) -> Any:
    return getattr(ctypes.CDLL(None), name, None)
