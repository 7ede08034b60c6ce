"""Checkpoints of a training run, written whole or not at all; the newest two are kept."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, final

import torch
from safetensors import SafetensorError

from envkit.errors import StoreError
from envkit.models import model_errors
from envkit.models.adapter_folder import (
    ADAPTER_FILES,
    MANIFEST,
    damaged_adapter_files,
    damaged_files,
    shape_difference,
    write_manifest,
)
from envkit.runtime.files import open_regular_file, read_json_object, read_settings
from envkit.runtime.store import whole_folder, write_atomic
from envkit.training.learner.base_model import without_false_alarms
from envkit.training.policy import Policy

#: How many checkpoints are kept.
_KEPT = 2
_ALARM = "alarm.txt"
_STEP = re.compile(r"step-(\d{6,})")


@final
class CheckpointStore:
    """Folders like ``step-000010`` with adapter (PEFT), optimizer state, loop state and manifest.

    A checkpoint appears under its name only when it is complete. Its manifest has the digests of all files.

    Args:
        folder: where the checkpoints go; created with the first one.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, ascending."""
        found = (_STEP.fullmatch(path.parent.name) for path in self._folder.glob("step-*/manifest.json"))
        return sorted(int(match[1]) for match in found if match)

    def path(self, step: int) -> Path:
        """Folder of the checkpoint of a step, whether or not it exists."""
        return self._folder / f"step-{step:06d}"

    def alarm(self) -> str:
        """The alarm that ended training at the newest checkpoint, or an empty text."""
        if not (steps := self.steps()):
            return ""
        if (late := self.path(steps[-1]) / _ALARM).exists():
            try:
                return read_settings(late)
            except (OSError, ValueError) as error:
                raise StoreError(f"{late} cannot be read ({error}); delete it") from error
        return str(_state(self.path(steps[-1])).get("alarm", ""))

    def record_failure(self, reason: str) -> None:
        """Record why the step after the newest checkpoint failed."""
        write_atomic(self.path(self.steps()[-1]) / _ALARM, reason.encode())

    def alarm_step(self) -> int:
        """The step of the `alarm`: the newest step taken, or the failed one after it."""
        newest = self.steps()[-1]
        failed = (self.path(newest) / _ALARM).exists()
        return newest + 1 if failed else newest

    def save(
        self, step: int, policy: Policy, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]
    ) -> Path:
        """Write a checkpoint. An existing one of the same step is kept unchanged.

        Raises:
            StoreError: the disk refused; older checkpoints are untouched.
        """
        final_path = self.path(step)
        if (final_path / MANIFEST).exists():
            return final_path
        self._require_manifests()
        try:
            with new_adapter_folder(final_path) as making:
                policy.save_adapter(making)
                torch.save(optimizer.state_dict(), making / "optimizer.pt")
                (making / "state.json").write_text(json.dumps(state))
                write_manifest(making, {"step": step, "model": policy.ref.id, "base": policy.ref.digest})
        except StoreError as error:
            raise StoreError(f"{error}; older checkpoints are untouched") from error
        with contextlib.suppress(OSError):
            for old in self.steps()[:-_KEPT]:
                self._remove(old)
        for left_behind in self._folder.glob(".step-*"):  # by a process that was killed as it removed one
            shutil.rmtree(left_behind, ignore_errors=True)
        return final_path

    def discard_after(self, step: int) -> None:
        """Remove the checkpoints of later steps, and the record of a failed step after this one.

        Raises:
            StoreError: one cannot be removed.
        """
        try:
            (self.path(step) / _ALARM).unlink(missing_ok=True)
            for later in (saved for saved in self.steps() if saved > step):
                self._remove(later)
        except OSError as error:
            raise StoreError(f"cannot remove checkpoints in {self._folder}: {error}") from error

    def _remove(self, step: int) -> None:
        """Remove a checkpoint: at once, not file by file, so that no process finds a part of it."""
        doomed = self._folder / f".{self.path(step).name}.{secrets.token_hex(4)}"
        os.rename(self.path(step), doomed)
        shutil.rmtree(doomed)

    def load(self, policy: Policy, optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
        """Restore the newest checkpoint; ``None`` if there is none.

        Raises:
            StoreError: a file is missing, damaged or unreadable, or the checkpoint is of another base model.
                Older checkpoints are not tried instead.
        """
        self._require_manifests()
        steps = self.steps()
        if not steps:
            return None
        folder = self.path(steps[-1])
        try:
            manifest = read_json_object(folder / MANIFEST)
            base, damaged = str(manifest["base"]), damaged_files(folder, dict(manifest["files"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            why = f"{type(error).__name__}: {error}"
            raise StoreError(f"checkpoint {folder} cannot be read ({why}); delete it") from error
        if damaged:
            raise StoreError(
                f"{folder / damaged[0]} differs from its manifest: the file is damaged; delete {folder}"
            )
        if base != policy.ref.digest:
            raise StoreError(f"{folder} was trained on weights {base[:12]}, not {policy.ref.id}'s")
        load_adapter(policy, folder)
        optimizer.load_state_dict(torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True))
        return _state(folder)

    def _require_manifests(self) -> None:
        """Refuse a checkpoint folder without its manifest, before training reaches that step again.

        Raises:
            StoreError: there is one.
        """
        for path in sorted(self._folder.glob("step-*")):
            if not (path / MANIFEST).exists():
                raise StoreError(f"checkpoint {path} has no {MANIFEST}, so it is incomplete; delete it")


def _state(folder: Path) -> dict[str, Any]:
    """The state of the training loop in a checkpoint.

    Raises:
        StoreError: it cannot be read.
    """
    try:
        return read_json_object(folder / "state.json")
    except (OSError, ValueError) as error:
        raise StoreError(f"checkpoint {folder} cannot be read ({error}); delete it") from error


def step_of(adapter: Path) -> int:
    """The step of a checkpoint's folder; 0 for a warm start, or another adapter."""
    match = _STEP.fullmatch(adapter.name)
    return int(match[1]) if match else 0


def save_adapter(policy: Policy, folder: Path, facts: Mapping[str, Any] | None = None) -> None:
    """Write the policy's adapter and its manifest to a new folder, whole or not at all.

    Args:
        policy: has the adapter.
        folder: to write.
        facts: more of the manifest.

    Raises:
        StoreError: the disk refused, or the folder is there already.
    """
    with new_adapter_folder(folder) as making:
        policy.save_adapter(making)
        write_manifest(making, {"model": policy.ref.id, "base": policy.ref.digest, **(facts or {})})


def copy_adapter(source: Path, folder: Path) -> None:
    """Copy an adapter, without what else is in its folder, and write a manifest for it.

    Raises:
        StoreError: a file cannot be read or written, or the folder is there already.
    """
    try:
        files = {path.name: path.read_bytes() for name in ADAPTER_FILES if (path := source / name).exists()}
    except OSError as error:
        raise StoreError(f"cannot read adapter {source}: {error.strerror or error}") from error
    with new_adapter_folder(folder) as making:
        for name, content in files.items():
            (making / name).write_bytes(content)
        write_manifest(making, {})


@contextlib.contextmanager
def new_adapter_folder(folder: Path) -> Generator[Path]:
    """Like `whole_folder`, for writers that report a full disk with errors of their own."""
    try:
        with whole_folder(folder) as making:
            yield making
    except (RuntimeError, SafetensorError) as error:
        raise StoreError(f"cannot write {folder}: {error}") from error


def load_adapter(policy: Policy, folder: Path) -> None:
    """Load a saved adapter's weights into the policy's adapter.

    Raises:
        StoreError: a file is missing, damaged or unreadable, or the adapter has another rank or other layers.
    """
    from peft import (
        get_peft_model_state_dict,  # pyright: ignore[reportUnknownVariableType]
        set_peft_model_state_dict,  # pyright: ignore[reportUnknownVariableType]
    )
    from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType]

    file = folder / "adapter_model.safetensors"
    try:
        damaged = damaged_adapter_files(folder)
        open_regular_file(file).close()  # the next line would wait for a pipe's writer
        weights: dict[str, torch.Tensor] = load_file(file)
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise StoreError(f"{file} cannot be read ({error}); restore it or delete {folder}") from error
    if damaged:
        raise StoreError(
            f"{folder / damaged[0]} differs from its manifest: the file is damaged; restore it or delete "
            f"{folder}"
        )
    with without_false_alarms():
        own = get_peft_model_state_dict(policy.model)
    if difference := shape_difference(weights, own):
        raise StoreError(f"{file}: {difference}; its rank or its layers are others")
    with model_errors(f"{file}: not an adapter for {policy.ref.id}"):
        set_peft_model_state_dict(policy.model, weights)
