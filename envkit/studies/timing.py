"""What a run spends, noted while it is spent: ``phases.jsonl``, and what a report makes of it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Self, final

from envkit.benchmark.report_data import Phase
from envkit.store import RunFolder

#: Shorter laps are noted together.
_LEAST_S = 5.0


@final
class Stopwatch:
    """Notes what a phase takes, lap by lap, so that a kill loses the account of seconds and not of hours.

    A context; its time begins when it is made.

    Args:
        run: whose.
        phase: its name.
    """

    def __init__(self, run: RunFolder, phase: str) -> None:
        self._run, self._phase = run, phase
        self._last = time.monotonic()
        self._seconds, self._tokens = 0.0, 0

    def lap(self, tokens: int = 0, at_once: int = 1) -> None:
        """Count the time since the last one.

        Args:
            tokens: sampled in it.
            at_once: how many runs have shared the time.
        """
        now = time.monotonic()
        self._seconds, self._tokens = self._seconds + (now - self._last) / at_once, self._tokens + tokens
        self._last = now
        if self._seconds >= _LEAST_S:
            self._note()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._seconds:
            self._note()

    def _note(self) -> None:
        with self._run.journal("phases") as journal:
            journal.append({"phase": self._phase, "seconds": self._seconds, "tokens": self._tokens})
        self._seconds, self._tokens = 0.0, 0


def phases(records: Iterable[Mapping[str, Any]]) -> tuple[Phase, ...]:
    """What is noted of each phase, together, in the order in which they began."""
    found: dict[str, Phase] = {}
    for record in records:
        name = str(record["phase"])
        before = found.get(name, Phase(name, 0.0, 0))
        found[name] = Phase(name, before.seconds + record["seconds"], before.tokens + record["tokens"])
    return tuple(found.values())


def training_seconds(run: RunFolder, names: tuple[str, ...] = ("SFT", "estimate", "reinforcement")) -> float:
    """What a training run has spent so far on making an adapter, in the phases whose names begin so."""
    return sum(phase.seconds for phase in phases(run.records("phases")) if phase.name.startswith(names))
