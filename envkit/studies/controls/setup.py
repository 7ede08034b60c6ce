"""Prepare a comparison of ways to change a model: what each adapter is, and how far it is from the base."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from envkit.env import registry
from envkit.env.taskfile import read_tasks
from envkit.errors import StoreError, UsageError
from envkit.measure.spec import BenchSpec
from envkit.measure.stats import Interval
from envkit.models import resolve
from envkit.models.adapter_folder import BASE as ADAPTER_BASE
from envkit.models.adapter_folder import (
    MANIFEST,
    WITHOUT_RANK,
    recorded_control,
    require_scale,
)
from envkit.runs.benchmark.setup import TASKS_FILE
from envkit.runs.folder.machine import resolve_dtype
from envkit.runs.folder.run_records import LoggedStep, training_run_of
from envkit.runs.folder.subset import evenly_spaced
from envkit.runs.folder.turns import turns_of
from envkit.runtime.display import Display
from envkit.runtime.files import read_json_object
from envkit.runtime.plain import decode, encode
from envkit.runtime.stop import ShouldStop
from envkit.runtime.store import RunFolder, folder_name, write_atomic
from envkit.sandbox import SandboxBackend
from envkit.studies.controls.table import BASE, Control
from envkit.studies.forgetting.measure import movement
from envkit.training.checkpoint import load_adapter, step_of
from envkit.training.config import TrainConfig, of_run
from envkit.training.policy import Policy

#: Files of a bench run: what its adapters are, and how far each is from the base.
CONTROLS_FILE, KL_FILE = "controls.json", "kl.json"


def control_of(name: str, adapter: Path) -> Control:
    """Describe an adapter by its folder, and by the run that trained it, if it is in one.

    Args:
        name: of its row.
        adapter: its folder.

    Raises:
        UsageError: envkit did not save it, so what it changes is not known.
        StoreError: a file is missing or damaged.
    """
    try:
        settings = read_json_object(adapter / "adapter_config.json")
        is_own = (adapter / ADAPTER_BASE).exists()
        control = recorded_control(adapter)
        rank = 0 if control in WITHOUT_RANK else int(settings["r"])
        size_bytes = (adapter / "adapter_model.safetensors").stat().st_size
        facts = read_json_object(adapter / MANIFEST) if (adapter / MANIFEST).exists() else {}
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{adapter}: the adapter cannot be read ({error!r})") from error
    if not is_own:
        raise UsageError(f"{adapter} was not saved by envkit, so what it changes is not known")
    known = Control(name, control, rank, size_bytes, None, None)
    sampled = facts.get("sampled_tokens")  # of a vector that was computed without training
    if isinstance(sampled, int):
        return replace(known, examples=0, sampled_tokens=sampled)
    run = training_run_of(adapter)
    if run is None:
        return known
    config, last = of_run(run), step_of(adapter)
    steps = {found.step: found for found in run.read("metrics", LoggedStep) if found.phase == "rl"}
    tokens = sum(found.completion_tokens for number, found in steps.items() if number <= last)
    if not config.warm_start:
        return replace(known, examples=config.sft_examples, sampled_tokens=tokens)
    if not Path(config.warm_start).is_dir():
        return known
    before = control_of(name, Path(config.warm_start))
    if before.examples is None or before.sampled_tokens is None:
        return known
    return replace(known, examples=before.examples, sampled_tokens=before.sampled_tokens + tokens)


def require_known_scale(control: Control, adapter: Path) -> None:
    """Refuse an adapter whose divergence from the base `measure_kl` could not measure.

    Raises:
        ModelError: its update is scaled otherwise than by one rank and one alpha.
    """
    shape = _shape_of(control, str(adapter))
    require_scale(adapter, control.control, shape["lora_r"], shape["lora_alpha"])


def write_controls(run: RunFolder, controls: Sequence[Control], kl_tasks: int) -> None:
    """Keep beside a bench run what its rows are, and on how many tasks their divergence is measured."""
    kept = {"kl_tasks": kl_tasks, "controls": encode((*controls,))}
    write_atomic(run.path / CONTROLS_FILE, json.dumps(kept, indent=1).encode())


def read_controls(run: RunFolder) -> tuple[list[Control], int]:
    """Read what `write_controls` wrote.

    Raises:
        StoreError: the run has no such file, or it is damaged.
    """
    file = run.path / CONTROLS_FILE
    try:
        kept = read_json_object(file)
        found = cast("list[object]", kept["controls"])
        controls = [decode(Control, one, f"controls[{number}]") for number, one in enumerate(found)]
        return controls, int(kept["kl_tasks"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"{file} cannot be read ({error!r}); expected a run of `envkit study controls`"
        ) from error


def read_kl(run: RunFolder) -> dict[str, Interval]:
    """Read the divergences that were measured already.

    Raises:
        StoreError: the file is damaged.
    """
    file = run.path / KL_FILE
    if not file.exists():
        return {}
    try:
        return {name: decode(Interval, one, name) for name, one in read_json_object(file).items()}
    except (OSError, TypeError, ValueError) as error:
        raise StoreError(f"{file} cannot be read ({error}); delete it, and it is measured again") from error


def measure_kl(
    run: RunFolder,
    controls: Sequence[Control],
    count: int,
    backend: SandboxBackend,
    display: Display,
    should_stop: ShouldStop,
) -> Mapping[str, Interval]:
    """Measure how far each adapter is from the base; what was measured before is kept.

    Args:
        run: the bench run; its tasks are played once more by each adapter, at temperature 1.
        controls: its rows.
        count: tasks to play.
        backend: isolates the episodes.
        display: live view.
        should_stop: asked before each adapter.
    """
    spec: Any = decode(BenchSpec, run.manifest["spec"], "spec")
    rows = {row.name: row for row in spec.agents}
    [environment] = spec.environments
    kind = registry.environment(environment.name)
    tasks = evenly_spaced(read_tasks(run.path / folder_name(environment.name) / TASKS_FILE), count)
    found = read_kl(run)
    for control in controls:
        if control.control == BASE or control.row in found or should_stop():
            continue
        row = rows[control.row]
        config = TrainConfig(
            model=row.model,
            **_shape_of(control, row.adapter),
            max_turns=turns_of([kind], spec.max_turns),
            max_completion_length=spec.max_completion_length or TrainConfig().max_completion_length,
            stop_strings=spec.stop_strings,
            max_context_length=spec.max_context_length,
        )
        ref = resolve(row.model, display)
        with contextlib.closing(Policy.of(ref, resolve_dtype(config, display.say), trains=False)) as policy:
            if row.adapter:
                load_adapter(policy, Path(row.adapter))
            moved = movement(policy, config, kind, tasks, backend, display, row.system)
        if moved is not None:
            found[control.row] = moved.kl
            write_atomic(run.path / KL_FILE, json.dumps(encode(found), indent=1).encode())
    return found


def _shape_of(control: Control, adapter: str) -> dict[str, Any]:
    """Settings that say what an adapter changes; none for a prompt."""
    if not adapter:
        return {}
    settings = read_json_object(Path(adapter) / "adapter_config.json")
    return {
        "control": control.control,
        "lora_r": int(settings["r"]),
        "lora_alpha": int(settings["lora_alpha"]),
    }
