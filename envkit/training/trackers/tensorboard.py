"""TensorBoard: event files in the run folder, which ``tensorboard --logdir runs`` shows."""

from __future__ import annotations

import json
import threading
from collections.abc import Generator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from envkit.training.trackers.protocol import Log, TrackedRun, imported


def library() -> Any:
    """Import TensorBoard's writer; see `imported`."""
    return imported("torch.utils.tensorboard", "train")


@contextmanager
def track(run: TrackedRun) -> Generator[Log]:
    """Write scalars named ``phase/name``. A resumed run adds a file; repeated steps are shown twice."""
    with closing(_writer(run.folder / "tensorboard")) as writer:
        writer.add_text("config", f"```json\n{json.dumps(dict(run.config), indent=1)}\n```")

        def log(phase: str, step: int, metrics: Mapping[str, float]) -> None:
            for name, value in metrics.items():
                writer.add_scalar(f"{phase}/{name}", value, step)

        yield log


def _writer(folder: Path) -> Any:
    """Make a ``SummaryWriter``; it raises an `OSError` if the folder cannot be written to."""
    before = threading.excepthook

    def hook(found: threading.ExceptHookArgs) -> None:
        # A writing thread's OSError is raised once more by the call that waits for it, here.
        if not isinstance(found.exc_value, OSError):
            before(found)

    threading.excepthook = hook
    try:
        return library().SummaryWriter(str(folder))
    finally:
        threading.excepthook = before
