"""trackio, set up by its own variables (``TRACKIO_PROJECT``, ``TRACKIO_SPACE_ID`` and others)."""

from __future__ import annotations

import contextvars
import os
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Any

from envkit.training.trackers.protocol import Log, TrackedRun, imported


def library() -> Any:
    """Import trackio; see `imported`."""
    return imported("trackio", "trackio")


@contextmanager
def track(run: TrackedRun) -> Generator[Log]:
    """Log to a trackio run with the run's id as its name, which a resumed run continues."""
    # In a context of its own: `init` ends the run that it finds in its context, such as another seed's.
    context = contextvars.Context()
    with redirect_stdout(sys.stderr):  # stdout is for results
        tracked: Any = context.run(
            library().init,
            os.environ.get("TRACKIO_PROJECT") or "envkit",
            name=run.id,
            group=run.group or None,
            config=dict(run.config),
            resume="allow",
            embed=False,
        )
    try:

        def log(phase: str, step: int, metrics: Mapping[str, float]) -> None:
            tracked.log({f"{phase}/{name}": value for name, value in metrics.items()}, step=step)

        yield log
    finally:
        with redirect_stdout(sys.stderr):
            tracked.finish()
