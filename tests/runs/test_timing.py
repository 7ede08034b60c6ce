"""Time, tokens and memory of a phase are recorded while it runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from envkit.measure.report.data import Phase
from envkit.runs.folder import timing
from envkit.runs.folder.run_records import PhaseTime
from envkit.runs.folder.timing import Stopwatch, phases, training_seconds
from envkit.runtime.store import RunFolder


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(timing, "time", made)
    return made


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path, "any", {"kind": "any"})


def noted(run: RunFolder) -> list[tuple[str, float, int]]:
    return [(record["phase"], record["seconds"], record["tokens"]) for record in run.records("phases")]


def test_peak_memory_counts_what_was_freed_but_not_the_program_that_started_this_one() -> None:
    block = b"x" * 2**29
    code = """
from envkit.runs.folder.machine import peak_memory_bytes
freed = b"x" * 2**27
del freed
print(peak_memory_bytes())
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert 2**27 < int(told) < len(block)


def test_laps_are_recorded_before_the_phase_ends(run: RunFolder, clock: Clock) -> None:
    with Stopwatch(run, "SFT warm start") as watch:
        clock.now += 7
        watch.lap(30)
        assert noted(run) == [("SFT warm start", 7.0, 30)]
        clock.now += 9
        watch.lap(at_once=3)  # short: noted with the next
        assert len(noted(run)) == 1
        clock.now += 4
        watch.lap(2)
        assert noted(run)[1:] == [("SFT warm start", 7.0, 2)]
        clock.now += 50
    assert len(noted(run)) == 2, "what no lap ended is not this phase's"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_loses_nothing(run: RunFolder, clock: Clock, error: type[BaseException]) -> None:
    def work() -> None:
        with Stopwatch(run, "estimate difficulty") as watch:
            clock.now += 1
            watch.lap(at_once=2)
            clock.now += 2
            raise error

    with pytest.raises(error):
        work()
    assert noted(run) == [("estimate difficulty", 1.5, 0)]  # the lap that it ended is shared as the last was


def test_a_phase_is_listed_once_and_training_time_excludes_evaluation(
    run: RunFolder, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = {"evaluate base": [1], "SFT warm start": [3], "reinforcement learning": [5, 4]}
    for name, peaks in parts.items():
        for peak in peaks:
            monkeypatch.setattr(timing, "peak_memory_bytes", lambda peak=peak: peak)
            with Stopwatch(run, name) as watch:
                clock.now += 10
                watch.lap(5)
    assert phases(run.read("phases", PhaseTime)) == (
        Phase("evaluate base", 10.0, 5, 1),
        Phase("SFT warm start", 10.0, 5, 3),
        Phase("reinforcement learning", 20.0, 10, 5),
    )
    assert training_seconds(run) == 30
    assert training_seconds(run, ("SFT",)) == 10
