"""TensorBoard event files of a training run. The journals stay the source of every report."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, final

from envkit.errors import MissingExtraError, StoreError


@final
class TensorBoardWriter:
    """Writes scalars by step; ``tensorboard --logdir runs`` shows them. Use as a context manager.

    A resumed run adds a file. The steps that it repeats replace the old ones.

    Args:
        folder: where the event files go; created if missing.

    Raises:
        MissingExtraError: tensorboard is not installed.
        StoreError: the folder cannot be written to.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError as error:
            raise MissingExtraError(error.name or "tensorboard", "train") from error
        before = threading.excepthook

        def hook(found: threading.ExceptHookArgs) -> None:
            # A writing thread's OSError is raised once more by the call that waits for it, here.
            if not isinstance(found.exc_value, OSError):
                before(found)

        threading.excepthook = hook
        try:
            self._writer: Any = SummaryWriter(str(folder))
        except OSError as error:
            raise StoreError(f"cannot write {folder}: {error.strerror}") from error
        finally:
            threading.excepthook = before

    def add(self, phase: str, step: int, values: Mapping[str, float]) -> None:
        """Write the values of one step as ``phase/name``."""
        for name, value in values.items():
            self._writer.add_scalar(f"{phase}/{name}", value, step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()
