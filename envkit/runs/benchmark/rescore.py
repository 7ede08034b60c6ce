"""Grade stored episodes again: replay their actions in new sandboxes, with the current environment code."""

from __future__ import annotations

import shutil
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envkit.agents.scripted import replay
from envkit.errors import Stopped, UsageError
from envkit.rollout import Rollouts
from envkit.runs.benchmark.bench import Bench
from envkit.runs.benchmark.eval_runner import seconds_of
from envkit.runs.benchmark.setup import prices_of
from envkit.runs.folder.provenance import commit, environment_facts
from envkit.runtime.display import Display
from envkit.runtime.stop import ShouldStop
from envkit.runtime.store import RunFolder, folder_name, trajectory_to_json
from envkit.sandbox import SandboxBackend
from envkit.types import EpisodeKey, Outcome, Trajectory

_EPISODES_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Change:
    """An episode with its outcome and reward before and after rescoring."""

    environment: str
    agent: str
    key: EpisodeKey
    before: str
    after: str

    def __str__(self) -> str:
        episode = f"{self.environment}, {self.agent}, {self.key.task}, try {self.key.row}"
        return f"{episode}: {self.before} -> {self.after}"


@dataclass(frozen=True, slots=True)
class Rescored:
    """Result of rescoring: a new run with reports of its own, and the episodes that are graded otherwise."""

    run: RunFolder
    episodes: int
    changed: tuple[Change, ...]


def rescore(
    old: RunFolder,
    root: Path,
    backend: SandboxBackend,
    display: Display,
    should_stop: ShouldStop,
    command: str,
) -> Rescored:
    """Grade every graded episode of a benchmark run again.

    Void episodes are copied, because they have nothing to grade. Tokens and seconds are those of the original
    episodes. The old run stays as it is. The new run appears once its reports are written; they say so if
    ``should_stop`` ended it early.

    Raises:
        UsageError: a harness has played.
        StoreError: not a benchmark run, or a damaged one.
        ContractError: an episode cannot be replayed.
    """
    stored = Bench(old, backend, display, should_stop)
    if played := [kind.id for kind, _ in stored.parts if kind.harness is not None]:
        raise UsageError(
            f"{old.path}: episodes of {played[0]} cannot be graded again, because a program played them, not "
            "the recorded answers alone; make a new comparison"
        )
    facts = {"command": command, "commit": commit(), "rescored": old.id}
    episodes, changed = 0, list[Change]()
    ended_early = ""
    with RunFolder.making(root, "bench", {**_facts(old), **facts}) as run:
        if (prices := prices_of(old)) is not None:
            shutil.copyfile(prices, run.path / prices.name)
        for kind, part in stored.parts:
            graded_by = environment_facts(kind, kind.equip(backend).lock)
            new = run.part(folder_name(kind.id), {**_facts(part), **facts, **graded_by})
            # The journals of calls hold the costs.
            for pattern in ("tasks.jsonl", "recorded-*.jsonl", "calls-*.jsonl"):
                for file in part.path.glob(pattern):
                    shutil.copyfile(file, new.path / file.name)
            with Rollouts(stored.env_factory(kind, stored.tasks(part)), should_stop=should_stop) as rollouts:
                try:
                    for row in stored.rows_on(kind):
                        for before, after in _replayed(
                            rollouts, part, new, row.name, kind.noop_action, display
                        ):
                            episodes += 1
                            if (old_result := _result(before)) != (new_result := _result(after)):
                                changed.append(Change(kind.id, row.name, after.key, old_result, new_result))
                except Stopped as stopped:
                    ended_early = str(stopped)
        new_bench = Bench(run, backend, display, should_stop)
        for kind, part in new_bench.parts:
            missing = "" if new_bench.is_complete(kind, part) else "as the run that is graded again had"
            new_bench.report(kind, part, ended_early or missing)
    return Rescored(run, episodes, tuple(changed))


def _replayed(
    rollouts: Rollouts,
    part: RunFolder,
    new: RunFolder,
    agent: str,
    idle: str,
    display: Display,
) -> Generator[tuple[Trajectory, Trajectory]]:
    """Replay an agent's graded episodes and log them in the new part; yields pairs of old and new."""
    name = f"eval-{agent}"
    played = {trajectory.key: trajectory for trajectory in part.trajectories(name)}
    seconds = seconds_of(part, name)
    graded = [trajectory for trajectory in played.values() if trajectory.outcome is not Outcome.VOID]
    voids = [trajectory for trajectory in played.values() if trajectory.outcome is Outcome.VOID]
    replayer = replay(agent, graded, idle)
    display.phase(f"grade {agent}", len(graded))
    with new.journal(name) as journal:
        for trajectory in voids:
            journal.append({"seconds": seconds[trajectory.key], **trajectory_to_json(trajectory)})
        for start in range(0, len(graded), _EPISODES_AT_ONCE):
            before = graded[start : start + _EPISODES_AT_ONCE]
            after = rollouts.play(replayer, [trajectory.key for trajectory in before], held_out=True)
            for trajectory in after:
                journal.append({"seconds": seconds[trajectory.key], **trajectory_to_json(trajectory)})
            display.advance(start + len(before), "")
            yield from zip(before, after, strict=True)


def _facts(run: RunFolder) -> dict[str, Any]:
    """Fields of a manifest without those that are specific to its folder."""
    return {
        key: value for key, value in run.manifest.items() if key not in ("schema", "id", "manifest_digest")
    }


def _result(episode: Trajectory) -> str:
    return f"{episode.outcome.value}, reward {episode.reward:g}"
