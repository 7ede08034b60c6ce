"""Search for a better system message."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envkit.errors import Stopped
from envkit.runs.common import (
    DEFAULT_ENVIRONMENT,
    RUNS,
    Tasks,
    command_of,
    isolated_backend,
    load_train_tasks,
)
from envkit.runs.interrupts import stopping_on_signal
from envkit.runs.results import PromptResult
from envkit.runs.rich_display import DisplayChoice, open_display
from envkit.runs.training import one_environment, train_config, with_model

if TYPE_CHECKING:
    from envkit.runtime.display import Display
    from envkit.runtime.store import RunFolder
    from envkit.sandbox import SandboxBackend
    from envkit.training.config import TrainConfig


def search_prompt(
    environment: str | None = None,
    *,
    config: TrainConfig | Mapping[str, Any] | Path | str | None = None,
    rounds: int = 4,
    rewritings: int = 3,
    tasks_per_round: int = 24,
    checked: int = 64,
    seed: int | None = None,
    tasks: Tasks | None = None,
    max_task_chars: int | None = None,
    model: Path | str | None = None,
    sandbox: SandboxBackend | str = "auto",
    root: Path | str = RUNS,
    display: DisplayChoice = "rich",
    command: str | None = None,
) -> PromptResult:
    """Search for a better system message: the model rewrites its own, and the reward decides.

    In each round the model sees some episodes that failed, and writes new messages. The best one by reward
    on the round's other train tasks goes on. At the end it is compared with the environment's own on fresh
    ones, and taken if its mean reward is higher. It stands in ``prompt.txt`` of the run folder, and
    `envkit.evaluate` takes it as ``system``.

    Args:
        environment: its registered name; by default the one of ``mix`` in ``config``, or the code editor.
        config: as for `train`; its model, temperature, lengths and turns are those of episodes.
        rounds: rounds of rewriting.
        rewritings: new messages in each round.
        tasks_per_round: train tasks that each message plays in a round, once each; at least 2. Every fourth
            is for examples of failures, the others compare the messages.
        checked: fresh train tasks for the comparison at the end.
        seed: which train tasks are drawn, and of the rewriting; by default the one of ``config``.
        tasks: tasks of the split ``train``, or their file; by default the environment's own.
        max_task_chars: leave out tasks whose prompt and files have together more characters.
        model: model id, folder or hub id; by default the one of ``config``.
        sandbox: a backend or its registered name.
        root: folder in which the run folder is created.
        display: ``"rich"``, ``"quiet"`` or a display of your own.
        command: command to show in the manifest; by default this call.

    Raises:
        UsageError: bad input, found before any long work; for instance, too few train tasks.
        EnvkitError: the episodes could not be played; see `envkit.errors`.
    """
    from envkit.env import registry
    from envkit.models import require_training

    require_training()
    from envkit.runs.tools.prompt_search import start
    from envkit.runs.tools.prompt_sizes import PromptSizes

    sizes = PromptSizes(rounds, rewritings, tasks_per_round, checked)
    settings = train_config(config, seed=seed, model=model)
    name = one_environment(environment, settings)
    kind = registry.environment(name)
    with open_display(display) as progress:
        backend = isolated_backend(sandbox, progress)
        settings = with_model(settings, None, progress)
        found = load_train_tasks(kind, tasks, max_task_chars, backend, progress)
        run = start(
            Path(root),
            settings,
            sizes,
            kind,
            found,
            backend=backend,
            display=progress,
            command=command or command_of("search_prompt", repr(name)),
        )
        return _play(run, backend, progress)


def resume_prompt_search(
    run: Path | str, *, sandbox: SandboxBackend | str = "auto", display: DisplayChoice = "rich"
) -> PromptResult:
    """Continue `search_prompt` where it was stopped, with its own settings.

    Args:
        run: the run folder.
        sandbox: a backend or its registered name.
        display: ``"rich"``, ``"quiet"`` or a display of your own.

    Raises:
        StoreError: not such a run, or the environment, its tasks or the weights have changed.
        EnvkitError: the episodes could not be played; see `envkit.errors`.
    """
    from envkit.models import require_training
    from envkit.runtime.store import RunFolder

    require_training()
    folder = RunFolder.open(Path(run))
    with open_display(display) as progress:
        return _play(folder, isolated_backend(sandbox, progress), progress)


def _play(run: RunFolder, backend: SandboxBackend, display: Display) -> PromptResult:
    from envkit.env import registry
    from envkit.runs.tools.prompt_search import play

    display.say(f"run folder: {run.path}")
    message = (
        f"stopping: finished episodes stay in {run.path}; continue with: "
        f"envkit study prompt --resume {run.path}; Ctrl-C again ends at once"
    )
    kind = registry.environment(str(run.manifest.get("environment", DEFAULT_ENVIRONMENT)))
    with stopping_on_signal(display.say, message) as request:
        try:
            found = play(run, kind, backend, display, request.should_stop)
        except Stopped:
            return PromptResult(run.path, None, request.signal)
    return PromptResult(run.path, found)
