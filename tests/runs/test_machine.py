"""The choice of a dtype for this machine, and the detection of a busy one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from envkit.runs.folder import machine
from envkit.runs.folder.machine import (
    CpuTimes,
    cpu_dtype,
    free_threads,
    native_dtype,
    usable_threads,
    why_busy,
)


@pytest.mark.parametrize(
    ("cpuinfo", "dtype"),
    [
        ("flags\t\t: fpu sse2 avx2 avx512f amx_bf16 amx_tile", "bfloat16"),
        ("flags\t\t: fpu sse2 avx2 avx512f avx512_bf16", "bfloat16"),
        ("flags\t\t: fpu sse2 avx2 avx512f", "float32"),
        ("Features\t: fp asimd svebf16 i8mm bf16", "bfloat16"),
        ("Features\t: fp asimd", "float32"),
        ("processor : 0", None),
    ],
)
def test_the_dtype_follows_from_the_processors_flags(cpuinfo: str, dtype: str | None) -> None:
    assert native_dtype(cpuinfo) == dtype


@pytest.mark.parametrize(
    ("flags", "ratio", "dtype", "is_said"),
    [
        ("amx_bf16", 0.3, "bfloat16", False),
        ("amx_bf16", 0.9, "bfloat16", True),
        ("avx2", 1.4, "float32", False),
        ("avx2", 0.5, "float32", True),
    ],
)
def test_a_timing_that_contradicts_the_flags_is_shown_and_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, ratio: float, dtype: str, is_said: bool
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"flags : fpu {flags}\n")
    monkeypatch.setattr(machine, "_CPUINFO", cpuinfo)
    monkeypatch.setattr(machine, "_bfloat16_time_ratio", lambda: ratio)
    said: list[str] = []
    assert cpu_dtype(said.append) == dtype
    assert bool(said) == is_said


def test_other_programs_and_stolen_time_make_a_machine_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    before = CpuTimes(wall_s=100.0, busy_s=50.0, stolen_s=1.0, own_s=10.0)
    assert not why_busy(before, CpuTimes(110.0, 70.0, 1.0, 29.0), 1.1, 2)
    assert "other programs use 1.0 of 2 cores" in why_busy(before, CpuTimes(110.0, 70.0, 1.0, 20.0), 1.1, 2)
    assert not why_busy(before, CpuTimes(110.0, 70.0, 1.0, 20.0), 1.1, 1)
    assert "take 20% of the processor" in why_busy(before, CpuTimes(110.0, 66.0, 5.0, 26.0), 1.1, 2)
    assert "up to 2.0 times as long" in why_busy(None, None, 2.0, 2)


def test_processor_times_only_grow() -> None:
    first, second = CpuTimes.now(), CpuTimes.now()
    assert first is not None
    assert second is not None
    assert second.wall_s >= first.wall_s
    assert second.busy_s >= first.busy_s > 0


@pytest.mark.parametrize(
    ("others", "usable", "threads"), [(0.0, 4, 4), (0.4, 4, 4), (1.2, 4, 3), (3.9, 4, 1), (2.0, 2, 2)]
)
def test_a_run_leaves_the_cores_of_other_programs_to_them(
    monkeypatch: pytest.MonkeyPatch, others: float, usable: int, threads: int
) -> None:
    times = iter([CpuTimes(100.0, 50.0, 0.0, 10.0), CpuTimes(110.0, 51.0 + 10 * others, 0.0, 11.0)])
    monkeypatch.setattr(CpuTimes, "now", staticmethod(lambda: next(times)))
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(usable)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    said: list[str] = []
    assert free_threads(said.append) == threads
    assert [f"computes with {threads} of {usable} threads" in line for line in said] == [True] * (
        threads < usable
    )


@pytest.mark.parametrize(
    ("asked", "threads"), [("", 4), ("1", 1), ("3", 3), ("9", 4), ("2,1", 2), ("0", 4), ("two", 4)]
)
def test_the_number_of_threads_that_a_user_asks_for_is_a_limit(
    monkeypatch: pytest.MonkeyPatch, asked: str, threads: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(4)))
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert usable_threads() == threads
