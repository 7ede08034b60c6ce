"""Begin a run in which a model plays train tasks outside of training."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

from envkit.env import Env
from envkit.env.taskfile import digest, write_tasks
from envkit.models import resolve
from envkit.models.adapter_folder import require_fit, require_scale
from envkit.runs.folder.machine import machine, settle
from envkit.runs.folder.provenance import commit, environment_facts
from envkit.runs.folder.turns import turns_of
from envkit.runtime.display import Display
from envkit.runtime.store import RunFolder
from envkit.sandbox import SandboxBackend
from envkit.training.config import TrainConfig, to_mapping
from envkit.training.learner.memory import choose_cache_mb, tokens_per_forward
from envkit.types import Task

#: The tasks in a run's folder.
TASKS_FILE: Final = "tasks.jsonl"


def begin(
    root: Path,
    run_kind: str,
    config: TrainConfig,
    kind: type[Env],
    tasks: Sequence[Task],
    count: int,
    *,
    backend: SandboxBackend,
    display: Display,
    command: str,
    facts: Mapping[str, Any],
) -> tuple[RunFolder, TrainConfig, list[Task]]:
    """Create the run folder; returns it with the tasks and all settings that it is played with.

    Args:
        root: parent of the folder.
        run_kind: of the run, for its manifest.
        config: settings of training. Its model, or the adapter in ``warm_start``, plays with its temperature,
            lengths and turns.
        kind: the environment.
        tasks: train tasks.
        count: how many are drawn from them; fewer, if there are fewer.
        backend: isolates the episodes.
        display: shows what was chosen.
        command: the command line, for the manifest.
        facts: further fields of the manifest.

    Raises:
        ModelError: the model cannot be had, or ``warm_start`` is no adapter for it.
    """
    config = replace(config, max_turns=turns_of([kind], config.max_turns))
    config, threads = settle(config, None, display.say)
    ref = resolve(config.model, display)
    if config.warm_start:
        require_fit(Path(config.warm_start), ref)
        require_scale(Path(config.warm_start), config.control, *config.lora_shape)
    config = replace(config, max_tokens_per_forward=tokens_per_forward(ref, config))
    config = replace(config, kv_cache_mb=config.kv_cache_mb or choose_cache_mb(ref, config))
    chosen = random.Random(config.seed).sample([*tasks], min(count, len(tasks)))
    manifest = {
        "kind": run_kind,
        "environment": kind.id,
        "command": command,
        "commit": commit(),
        "model": config.model,
        "model_digest": ref.digest,
        "machine": asdict(machine(threads, config.dtype, config.device)),
        "train": to_mapping(config),
        "tasks": digest(chosen),
        **facts,
        **environment_facts(kind, kind.equip(backend).lock),
    }
    with RunFolder.making(root, run_kind, manifest) as run:
        write_tasks(run.path / TASKS_FILE, chosen, config.seed)
    return run, config, chosen
