"""Record time, tokens and memory of each phase of a run in ``phases.jsonl``, and sum them for reports."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self, final

from envkit.measure.report.data import Phase
from envkit.runs.folder.machine import peak_memory_bytes
from envkit.runs.folder.run_records import PhaseTime, training_run_of
from envkit.runtime.store import RunFolder
from envkit.training.config import of_run

#: Laps are written together once they add up to this many seconds.
_WRITE_EVERY_S = 5.0


@final
class Stopwatch:
    """Records the time of a phase lap by lap, so that a killed run loses only its last lap.

    A context manager. Its clock starts when it is created. An exception ends a lap.

    Args:
        run: the run folder to write to.
        phase: name of the phase.
    """

    def __init__(self, run: RunFolder, phase: str) -> None:
        self._run, self._phase = run, phase
        self._last = time.monotonic()
        self._seconds, self._tokens = 0.0, 0
        self._at_once = 1

    def lap(self, tokens: int = 0, at_once: int = 1) -> None:
        """Add the time since the last lap.

        Args:
            tokens: tokens sampled in this lap.
            at_once: number of runs that shared the time; each is charged an equal part.
        """
        now = time.monotonic()
        self._seconds, self._tokens = self._seconds + (now - self._last) / at_once, self._tokens + tokens
        self._last, self._at_once = now, at_once
        if self._seconds >= _WRITE_EVERY_S:
            self._write()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.lap(at_once=self._at_once)
        if self._seconds:
            self._write()

    def _write(self) -> None:
        with self._run.journal("phases") as journal:
            journal.append(asdict(PhaseTime(self._phase, self._seconds, self._tokens, peak_memory_bytes())))
        self._seconds, self._tokens = 0.0, 0


def phases(records: Iterable[PhaseTime]) -> tuple[Phase, ...]:
    """Sum the records of each phase, with the largest memory; phases are in the order in which they began."""
    summed: dict[str, Phase] = {}
    for record in records:
        before = summed.get(record.phase, Phase(record.phase, 0.0, 0))
        summed[record.phase] = Phase(
            record.phase,
            before.seconds + record.seconds,
            before.tokens + record.tokens,
            max(before.peak_memory_bytes, record.peak_memory_bytes),
        )
    return tuple(summed.values())


def spent_on(adapter: Path, here: Mapping[str, Any]) -> float:
    """Return the seconds that an adapter's training took, that of its warm start included.

    NaN if one of them is in no training run, if that run has a later checkpoint, or if it ran on another kind
    of machine, because that machine's hours have another price.

    Args:
        adapter: its folder, in the run that trained it.
        here: facts of this machine, as in a run's manifest.
    """
    run = training_run_of(adapter)
    if run is None or any(path.name > adapter.name for path in adapter.parent.glob("step-*")):
        return math.nan
    trained_on = run.manifest.get("machine", here)
    if any((trained_on.get(part) or "") != (here.get(part) or "") for part in ("cores", "card")):
        return math.nan
    own = training_seconds(run, ("SFT",)) if adapter.name == "sft" else training_seconds(run)
    warm_start = of_run(run).warm_start
    return own + (spent_on(Path(warm_start), here) if warm_start else 0.0)


def training_seconds(run: RunFolder, names: tuple[str, ...] = ("SFT", "estimate", "reinforcement")) -> float:
    """Seconds that a run has spent on training its adapter: all phases whose names begin with ``names``.

    Runs of older versions estimated, before RL, how hard tasks are.
    """
    spent = phases(run.read("phases", PhaseTime))
    return sum(phase.seconds for phase in spent if phase.name.startswith(names))
