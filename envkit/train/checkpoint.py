"""Checkpoints: whole or absent, the newest few kept."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, cast, final

import torch
from safetensors import SafetensorError

from envkit.errors import StoreError
from envkit.store import whole_folder, write_atomic
from envkit.train.policy import Policy

_KEPT = 2
_ALARM = "alarm.txt"
_STEP = re.compile(r"step-(\d{6,})")


@final
class CheckpointStore:
    """``checkpoints/step-000010`` folders: PEFT adapter, optimizer state, loop state, manifest.

    Whoever sees one sees it whole, with a manifest that has digests of all other files.

    Args:
        folder: made when first written to.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def steps(self) -> list[int]:
        """Steps with a whole checkpoint, ascending."""
        found = (_STEP.fullmatch(path.parent.name) for path in self._folder.glob("step-*/manifest.json"))
        return sorted(int(match[1]) for match in found if match)

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step is, or would be."""
        return self._folder / f"step-{step:06d}"

    def alarm(self) -> str:
        """Why training ended with the newest checkpoint, before it was done; else empty."""
        if not (steps := self.steps()):
            return ""
        if (late := self.path(steps[-1]) / _ALARM).exists():
            return late.read_text()
        return str(_state(self.path(steps[-1])).get("alarm", ""))

    def end(self, reason: str) -> None:
        """Put on record that the step after the newest checkpoint failed, and why."""
        write_atomic(self.path(self.steps()[-1]) / _ALARM, reason.encode())

    def ended(self) -> int:
        """The step that training ended in, where there is an `alarm`: it was taken, or it failed."""
        newest = self.steps()[-1]
        return newest + (self.path(newest) / _ALARM).exists()

    def save(
        self, step: int, policy: Policy, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]
    ) -> Path:
        """Write a checkpoint; an existing one of the same step is kept as it is.

        Raises:
            StoreError: the disk refused; older checkpoints are untouched.
        """
        final_path = self.path(step)
        if (final_path / "manifest.json").exists():
            return final_path
        try:
            with _making(final_path) as making:
                policy.save_adapter(making)
                torch.save(optimizer.state_dict(), making / "optimizer.pt")
                (making / "state.json").write_text(json.dumps(state))
                files = sorted(path for path in making.rglob("*") if path.is_file())
                digests = {str(path.relative_to(making)): _digest(path) for path in files}
                manifest = {"step": step, "model": policy.ref.id, "base": policy.ref.digest, "files": digests}
                (making / "manifest.json").write_text(json.dumps(manifest, indent=1))
        except StoreError as error:
            raise StoreError(f"{error}; older checkpoints are untouched") from error
        for old in self.steps()[:-_KEPT]:
            shutil.rmtree(self.path(old), ignore_errors=True)
        return final_path

    def discard_after(self, step: int) -> None:
        """Remove checkpoints of later steps than this, and the record of one that failed.

        Raises:
            StoreError: one cannot be removed.
        """
        try:
            (self.path(step) / _ALARM).unlink(missing_ok=True)
            for later in (each for each in self.steps() if each > step):
                going = self._folder / f".{self.path(later).name}.{secrets.token_hex(4)}"
                os.rename(self.path(later), going)  # at once, not file by file
                shutil.rmtree(going)
        except OSError as error:
            raise StoreError(f"cannot remove checkpoints in {self._folder}: {error}") from error

    def load(self, policy: Policy, optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
        """Restore the newest checkpoint; ``None`` if there is none.

        Raises:
            StoreError: a file is missing, unreadable or not as the manifest says, or the checkpoint is
                of another base model. Older checkpoints are not tried in its place.
        """
        steps = self.steps()
        if not steps:
            return None
        folder = self.path(steps[-1])
        try:
            manifest = json.loads((folder / "manifest.json").read_bytes())
            base, files = str(manifest["base"]), dict(manifest["files"])
            wrong = [name for name, digest in files.items() if _digest(folder / name) != digest]
        except (OSError, ValueError, KeyError, TypeError) as error:
            why = f"{type(error).__name__}: {error}"
            raise StoreError(f"checkpoint {folder} cannot be read ({why}); delete it") from error
        if wrong:
            raise StoreError(f"{folder / wrong[0]} is not as its manifest says: corrupt; delete {folder}")
        if base != policy.ref.digest:
            raise StoreError(f"{folder} was trained on weights {base[:12]}, not {policy.ref.id}'s")
        load_adapter(policy, folder)
        optimizer.load_state_dict(torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True))
        return _state(folder)


def _state(folder: Path) -> dict[str, Any]:
    """What a checkpoint says of the loop.

    Raises:
        StoreError: it cannot be read.
    """
    try:
        return cast("dict[str, Any]", json.loads((folder / "state.json").read_text()))
    except (OSError, ValueError) as error:
        raise StoreError(f"checkpoint {folder} cannot be read ({error}); delete it") from error


def save_adapter(policy: Policy, folder: Path) -> None:
    """Write the policy's adapter to a new folder, whole or not at all.

    Raises:
        StoreError: the disk refused, or the folder is there already.
    """
    with _making(folder) as making:
        policy.save_adapter(making)


@contextlib.contextmanager
def _making(folder: Path) -> Generator[Path]:
    """As `whole_folder`; torch and safetensors, who write here, have own errors for a full disk."""
    try:
        with whole_folder(folder) as making:
            yield making
    except (RuntimeError, SafetensorError) as error:
        raise StoreError(f"cannot write {folder}: {error}") from error


def load_adapter(policy: Policy, folder: Path) -> None:
    """Put a saved adapter's weights into the policy's adapter.

    Raises:
        StoreError: they cannot be read.
    """
    from peft import set_peft_model_state_dict  # pyright: ignore[reportUnknownVariableType]
    from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType]

    file = folder / "adapter_model.safetensors"
    try:
        weights: dict[str, torch.Tensor] = load_file(file)
    except (OSError, SafetensorError) as error:
        raise StoreError(f"{file} cannot be read ({error}); delete {folder}") from error
    set_peft_model_state_dict(policy.model, weights)


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
