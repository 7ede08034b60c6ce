"""Measure what an adapter has forgotten."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envkit.errors import UsageError
from envkit.runs.common import Tasks, isolated_backend, load_tasks, short_tasks
from envkit.runs.rich_display import DisplayChoice, open_display

if TYPE_CHECKING:
    from envkit.env import Env
    from envkit.sandbox import SandboxBackend
    from envkit.studies.forgetting.measure import Forgetting
    from envkit.training.config import TrainConfig
    from envkit.types import Task


def forgetting(
    adapter: Path | str,
    *,
    texts: Sequence[Path | str] = (),
    package: str = "numpy",
    environment: str | None = None,
    tasks: Tasks | None = None,
    max_task_chars: int | None = None,
    limit: int = 64,
    model: Path | str | None = None,
    config: TrainConfig | Mapping[str, Any] | None = None,
    device: str = "cpu",
    sandbox: SandboxBackend | str = "auto",
    display: DisplayChoice = "rich",
) -> Forgetting:
    """Measure how far an adapter has moved from its base: on text that is no task, and on its own task.

    How well other text is predicted says what training has cost. The divergence on the adapter's own episodes
    says how far it went for what it has learned: RL tends to go less far than supervised training for the
    same reward (arXiv:2509.04259).

    Args:
        adapter: a training run's folder, whose newest checkpoint is measured, or an adapter's own folder.
        texts: text files; by default docstrings of ``package``.
        package: an installed package; nothing of it is run.
        environment: what the adapter plays; by default what it was trained on, if its run is known.
        tasks: tasks to play, or their file; by default the environment's own held-out ones.
        max_task_chars: leave out tasks whose prompt and files have together more characters.
        limit: number of passages, and of tasks.
        model: the base model, if it is no longer where it was.
        config: limits of its episodes, as fields of `TrainConfig`; by default those of its training.
        device: ``"cpu"`` or ``"cuda"``, whatever it was trained on.
        sandbox: a backend or its registered name.
        display: ``"rich"``, ``"quiet"`` or a display of your own.

    Raises:
        UsageError: the folder holds no adapter, there is no text, or tasks are named and it is not known of
            what environment.
        EnvkitError: it could not be measured; see `envkit.errors`.
    """
    from envkit.env import registry
    from envkit.models import DEFAULT_MODEL, require_training, resolve
    from envkit.models.adapter_folder import (
        recorded_control,
        require_fit,
        require_scale,
    )
    from envkit.runs.adapter import adapter_folder, lora_settings, training_of
    from envkit.runs.training import train_config

    folder = adapter_folder(Path(adapter))
    require_training()
    from envkit.runs.folder.machine import resolve_dtype, use_threads
    from envkit.runs.folder.run_records import base_of, environments_of, training_run_of
    from envkit.runs.folder.turns import turns_of
    from envkit.studies.forgetting.measure import Forgetting, movement, text_loss
    from envkit.studies.forgetting.passages import passages_of
    from envkit.training.checkpoint import load_adapter
    from envkit.training.config import TrainConfig
    from envkit.training.policy import Policy

    passages = passages_of([Path(text) for text in texts], package, limit)
    trained, known = training_of(folder)
    run = training_run_of(folder)
    if environment is None and run is not None and len(names := environments_of(run)) > 1:
        raise UsageError(f"trained on {', '.join(names)}; name the environment to play (--env)")
    kind: type[Env] | None = known if environment is None else registry.environment(environment)
    if kind is None and (tasks is not None or max_task_chars is not None):
        raise UsageError(
            f"{folder} is in no training run, so it is not known what it plays; name the environment (--env)"
        )
    base = str(model or base_of([folder]) or DEFAULT_MODEL)
    rank, alpha = lora_settings(folder)
    settings = trained or TrainConfig() if config is None else train_config(config)
    episodes = replace(
        settings,
        model=base,
        lora_r=rank,
        lora_alpha=alpha,
        control=recorded_control(folder),
        engine="torch",
        device=device,
        kv_cache_mb=0,  # the run's may have been chosen on a larger machine
    )
    with open_display(display) as progress:
        to_play: tuple[type[Env], Sequence[Task], SandboxBackend] | None = None
        if kind is not None:
            backend = isolated_backend(sandbox, progress)
            found = load_tasks(kind, tasks, "heldout", backend, progress)
            if max_task_chars is not None:
                found = short_tasks({kind: found}, max_task_chars)[0][kind]
            to_play = kind, found[:limit], backend
        use_threads()
        ref = resolve(base, progress)
        require_fit(folder, ref)
        require_scale(folder, episodes.control, *episodes.lora_shape)
        policy = Policy.of(ref, resolve_dtype(episodes, progress.say), trains=False)
        try:
            load_adapter(policy, folder)
            text = text_loss(policy, passages, progress)
            if to_play is None:
                return Forgetting(text)
            limited = replace(episodes, max_turns=turns_of(to_play[:1], episodes.max_turns))
            return Forgetting(text, movement(policy, limited, *to_play, progress))
        finally:
            policy.close()
