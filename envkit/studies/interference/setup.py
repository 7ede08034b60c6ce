"""Prepare the study of interference: what each adapter was trained on, and merged ones to compare with."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Final, cast

from envkit.errors import StoreError, UsageError
from envkit.models import resolve, weights_digest
from envkit.runs.folder.run_records import LoggedStep, environments_of, training_run_of
from envkit.runtime.display import Display
from envkit.runtime.files import read_json_object
from envkit.runtime.plain import decode, encode
from envkit.runtime.store import RunFolder, folder_name, write_atomic
from envkit.studies.interference.table import JOINT, MERGED, SPECIALIST, MatrixRow
from envkit.training.checkpoint import step_of
from envkit.training.config import TrainConfig, of_run
from envkit.training.merging import MERGING, merge_adapters, require_method

#: File of a bench run that says what its adapters are.
ARMS_FILE: Final = "arms.json"


def arms_of(adapters: Sequence[Path]) -> list[MatrixRow]:
    """Describe adapters by the runs that trained them, each with a name of its own.

    Args:
        adapters: folders inside training runs.

    Raises:
        UsageError: an adapter's run is not known, it began with an adapter that had learned more than a warm
            start teaches, or two are specialists of one environment.
    """
    arms, taken = list[MatrixRow](), Counter[str]()
    for folder in adapters:
        run = training_run_of(folder)
        if run is None:
            raise UsageError(f"{folder} is in no training run, so what it was trained on is not known")
        config = of_run(run)
        episodes = _episodes(run, config, step_of(folder))
        known = _warm_start_of(folder, config, episodes).sft_examples
        if len(episodes) == 1:
            [environment] = episodes
            arms.append(MatrixRow(f"only {folder_name(environment)}", SPECIALIST, episodes, known))
            continue
        worst = config.worst_task_weight
        name = "joint" if worst == 1 else f"joint, worst {worst:g}"
        taken[name] += 1
        arms.append(MatrixRow(f"{name} ({taken[name]})" if taken[name] > 1 else name, JOINT, episodes, known))
    names = [arm.row for arm in arms]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"two runs are {twice[0]}; name one specialist for each environment")
    return arms


def _warm_start_of(folder: Path, config: TrainConfig, learned: Collection[str]) -> TrainConfig:
    """Find the settings of an adapter's warm start: of its own run, or of the one that it began with.

    Raises:
        UsageError: it began with RL, with the warm start of other environments, or with what is not known, so
            what it has learned cannot be compared.
    """
    if not config.warm_start:
        return config
    start = Path(config.warm_start)
    run = training_run_of(start)
    if run is None:
        raise UsageError(f"{folder} began with {start}, and what that had learned is not known")
    found = of_run(run)
    if start.name != "sft" or not {*environments_of(run)} <= {*learned} or found.warm_start:
        raise UsageError(
            f"{folder} began with {start}, which had learned more than a warm start of {', '.join(learned)} "
            "teaches; name an adapter that began without it"
        )
    return found


def _episodes(run: RunFolder, config: TrainConfig, last_step: int) -> dict[str, int]:
    """Count the RL episodes of each environment until a step."""
    steps = {r.step: r for r in run.read("metrics", LoggedStep) if r.phase == "rl" and r.step <= last_step}
    names, counts = environments_of(run), Counter[str]()
    for step in steps.values():
        counts.update({name: part.episodes for name, part in step.environments.items()})
    if len(names) == 1 and not counts:  # a run of an older version
        return {names[0]: len(steps) * config.groups_per_step * config.num_generations}
    return {name: counts[name] for name in names}


def merge_all(
    model: str, specialists: Mapping[Path, MatrixRow], methods: Sequence[str], root: Path, display: Display
) -> dict[Path, MatrixRow]:
    """Merge the specialists in several ways. A merge that is there already is not made again.

    Args:
        model: their base.
        specialists: adapter folders, with what they were trained on.
        methods: see `envkit.training.merging.METHODS`.
        root: the merged adapters' folders are made in it.
        display: says what is made.

    Raises:
        UsageError, ModelError, StoreError: see `envkit.training.merging.merge_adapters`.
    """
    for method in methods:
        require_method(method)  # before the first one is merged
    content = " ".join([f"{MERGING}", *(weights_digest(folder) for folder in specialists)])
    parts = {name: count for arm in specialists.values() for name, count in arm.episodes.items()}
    merged: dict[Path, MatrixRow] = {}
    for method in methods:
        folder = root / f"merged-{method}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"
        if not folder.exists():
            display.say(f"merging {len(specialists)} specialists by {method}: {folder}")
            root.mkdir(parents=True, exist_ok=True)
            merge_adapters(resolve(model, display), [*specialists], folder, method)
        merged[folder.resolve()] = MatrixRow(f"merged {method}", MERGED, parts)
    return merged


def write_arms(run: RunFolder, arms: Sequence[MatrixRow]) -> None:
    """Keep beside a bench run what its rows are."""
    write_atomic(run.path / ARMS_FILE, json.dumps({"arms": encode((*arms,))}, indent=1).encode())


def read_arms(run: RunFolder) -> list[MatrixRow]:
    """Read what `write_arms` wrote.

    Raises:
        StoreError: the run has no such file, or it is damaged.
    """
    file = run.path / ARMS_FILE
    try:
        found = read_json_object(file).get("arms")
        arms = enumerate(cast("list[object]", found))
        return [decode(MatrixRow, arm, f"arms[{number}]") for number, arm in arms]
    except (OSError, TypeError, ValueError) as error:
        raise StoreError(
            f"{file} cannot be read ({error}); expected a run of `envkit study interference`"
        ) from error
