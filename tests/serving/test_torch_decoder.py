"""Threads of the decoder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_TASKS = Path("/proc/self/task")
_PROGRAM = """
import os, sys, time
import torch
from envkit.serving.decoding.torch_decoder import in_thread_that_ends

def threads():
    return len(os.listdir("/proc/self/task"))

def compute():
    return (torch.ones(600, 600) @ torch.ones(600, 600))[0, 0].item()

torch.set_num_threads(2)
before = threads()
assert in_thread_that_ends(compute) == 600
for _ in range(100):  # a thread leaves the process a moment after it was joined
    if threads() == before:
        break
    time.sleep(0.1)
after = threads()
compute()
print(after - before, threads() - before)
"""


@pytest.mark.skipif(not _TASKS.exists(), reason="threads are counted in /proc")
def test_work_in_a_thread_that_ends_keeps_no_openmp_threads() -> None:
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["0", "1"], "kept by work in a thread that ended, and by work in this one"
