"""A tracker that keeps what it is told, and fails where a test wants it to."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any, final

from envkit.training.trackers import Log, TrackedRun


@final
class Recorder:
    """Keeps runs, events and metrics; give `track` as the tracker.

    Args:
        fails: where it raises an error: ``"begin"``, a phase, or ``"end"``.
    """

    def __init__(self, fails: str = "") -> None:
        self._fails = fails
        self.runs: list[TrackedRun] = []
        self.events: list[tuple[str, Any]] = []
        #: (run's id, phase, step) -> the metrics.
        self.metrics: dict[tuple[str, str, int], Mapping[str, float]] = {}

    @contextmanager
    def track(self, run: TrackedRun) -> Generator[Log]:
        self._fail_at("begin")
        self.runs.append(run)
        self.events.append(("begin", run.id))

        def log(phase: str, step: int, metrics: Mapping[str, float]) -> None:
            self._fail_at(phase)
            self.events.append((phase, step))
            self.metrics[run.id, phase, step] = metrics

        try:
            yield log
        except BaseException as error:
            self.events.append(("failed", type(error)))
            raise
        self.events.append(("end", run.id))
        self._fail_at("end")

    def _fail_at(self, place: str) -> None:
        if place == self._fails:
            raise ConnectionError("no\nnetwork")
