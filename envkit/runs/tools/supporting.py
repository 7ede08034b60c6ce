"""Find out, before training, whether RL has something to learn from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envkit.runs.common import RUNS, Tasks, command_of, isolated_backend, load_train_tasks
from envkit.runs.interrupts import stopping_on_signal
from envkit.runs.results import SupportResult
from envkit.runs.rich_display import DisplayChoice, open_display
from envkit.runs.training import one_environment, train_config, with_model

if TYPE_CHECKING:
    from envkit.sandbox import SandboxBackend
    from envkit.training.config import TrainConfig


def support(
    environment: str | None = None,
    *,
    config: TrainConfig | Mapping[str, Any] | Path | str | None = None,
    seed: int | None = None,
    tasks: Tasks | None = None,
    max_task_chars: int | None = None,
    model: Path | str | None = None,
    warm_start: Path | str | None = None,
    sandbox: SandboxBackend | str = "auto",
    root: Path | str = RUNS,
    display: DisplayChoice = "rich",
    command: str | None = None,
) -> SupportResult:
    """Find out, before training, whether RL has something to learn from.

    RL learns from groups whose episodes earned different rewards: what a model never does cannot be
    reinforced. This plays groups of train tasks as the first training step would, 8 tasks first, and up to
    128 until it is decided whether a step has at least one such group on average.

    Args:
        environment: its registered name; by default the one of ``mix`` in ``config``, or the code editor.
        config: settings of the training that is thought of, as for `train`. Its model, temperature, lengths,
            turns and sizes of groups and steps count.
        seed: which train tasks are drawn; by default the one of ``config``.
        tasks: tasks to train on, or their file; by default the environment's own.
        max_task_chars: leave out tasks whose prompt and files have together more characters.
        model: model id, folder or hub id; by default the one of ``config``.
        warm_start: folder of an adapter to test in place of the base.
        sandbox: a backend or its registered name.
        root: folder in which the run folder is created.
        display: ``"rich"``, ``"quiet"`` or a display of your own.
        command: command to show in the manifest; by default this call.

    Raises:
        UsageError: bad input, found before any long work.
        EnvkitError: the episodes could not be played; see `envkit.errors`.
    """
    from envkit.env import registry
    from envkit.models import require_training

    require_training()
    from envkit.runs.tools.support import play, start

    settings = train_config(
        config,
        seed=seed,
        model=model,
        warm_start=warm_start,
        sft_examples=None if warm_start is None else 0,
    )
    name = one_environment(environment, settings)
    kind = registry.environment(name)
    with open_display(display) as progress:
        backend = isolated_backend(sandbox, progress)
        settings = with_model(settings, None, progress)
        found = load_train_tasks(kind, tasks, max_task_chars, backend, progress)
        run, settings, chosen = start(
            Path(root),
            settings,
            kind,
            found,
            backend=backend,
            display=progress,
            command=command or command_of("support", repr(name)),
        )
        progress.say(f"run folder: {run.path}")
        message = "stopping: what is decided so far is printed; Ctrl-C again ends at once"
        with stopping_on_signal(progress.say, message) as request:
            shown = play(run, settings, kind, chosen, backend, progress, request.should_stop)
    return SupportResult(run.path, shown, request.signal)
