"""Weights & Biases, set up by its own login and variables (``WANDB_PROJECT``, ``WANDB_MODE`` and others)."""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from envkit.training.trackers.protocol import Log, TrackedRun, imported

#: W&B would wait for its server at the end of a run for as long as it takes. What is not sent by then stays
#: in the run folder, for ``wandb sync``.
_FINISH_TIMEOUT_S: Final = 60.0


def library() -> Any:
    """Import W&B; see `imported`."""
    return imported("wandb", "wandb")


@contextmanager
def track(run: TrackedRun) -> Generator[Log]:
    """Log to a W&B run with the run's id, which a resumed run continues."""
    wandb = library()
    with wandb.init(
        project=os.environ.get("WANDB_PROJECT") or "envkit",
        id=run.id,
        name=run.id,
        group=run.group or None,
        config=dict(run.config),
        dir=os.environ.get("WANDB_DIR") or run.folder,
        resume="allow",
        reinit="create_new",  # seeds have a run each, at the same time
        # What the terminal shows may quote a task.
        settings=wandb.Settings(console="off", finish_timeout=_FINISH_TIMEOUT_S),
    ) as tracked:
        for phase in ("sft", "rl", "eval"):  # W&B's own step only grows, and each phase counts from 1
            tracked.define_metric(f"{phase}/*", step_metric=f"{phase}/step")

        def log(phase: str, step: int, metrics: Mapping[str, float]) -> None:
            tracked.log(
                {f"{phase}/step": step, **{f"{phase}/{name}": value for name, value in metrics.items()}}
            )

        yield log
