"""Evaluate an agent on held-out tasks: the same tasks, inputs and random draws for every agent."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from envkit.agent import Agent
from envkit.measure.report.data import TaskResult
from envkit.rollout import Rollouts, raised
from envkit.runtime.store import Journal, trajectory_to_json
from envkit.types import EpisodeKey, Outcome, Task, Trajectory, total_reward

#: Evaluation episodes live at a step that no training run reaches.
EVALUATION_STEP = 2**23

#: Episodes that are played at once, as one chunk. Resumed evaluations must use the same number.
EPISODES_AT_ONCE = 128

#: (episodes done, episodes in all, solved so far)
OnProgress = Callable[[int, int, int], None]


def episode_keys(tasks: Sequence[Task], samples: int, seed: int) -> list[EpisodeKey]:
    """Make one key per task and sample. Keys do not depend on the agent, so rows pair exactly."""
    return [
        EpisodeKey(seed, EVALUATION_STEP, group, row, task.id)
        for group, task in enumerate(tasks)
        for row in range(samples)
    ]


def evaluate(
    rollouts: Rollouts,
    agent: Agent,
    keys: Sequence[EpisodeKey],
    journal: Journal,
    done: Sequence[Trajectory] = (),
    on_progress: OnProgress = lambda done, total, solved: None,
    chunk: int = EPISODES_AT_ONCE,
) -> list[Trajectory]:
    """Play the episodes that are not done yet and log each.

    Episodes are played in fixed chunks. A chunk with a missing episode is played again as a whole, because
    the last bits of a probability depend on the batch. A resumed evaluation therefore gives the same numbers
    as an uninterrupted one. Solved episodes are judged by the environment's held-out checks too.

    Args:
        rollouts: plays them.
        agent: the agent that is evaluated.
        keys: from `episode_keys`.
        journal: every finished episode is appended before it is returned, also if a provider refuses the
            agent.
        done: graded trajectories of an earlier, interrupted evaluation of the same agent.
        on_progress: called after every chunk.
        chunk: episodes played at once.

    Returns:
        Trajectories in the order of ``keys``.

    Raises:
        Stopped: see `Rollouts.play`; finished episodes are in the journal.
    """
    finished = {trajectory.key: trajectory for trajectory in done}
    for start in range(0, len(keys), chunk):
        chunk_keys = keys[start : start + chunk]
        if all(key in finished for key in chunk_keys):
            continue
        started = time.monotonic()
        played: list[Trajectory] = []
        try:
            rollouts.play(agent, chunk_keys, held_out=True, on_done=played.append)
        finally:  # episodes that ended before a provider refused the agent may be paid for
            new = {t.key: t for t in played if t.key not in finished}
            share_s = (time.monotonic() - started) / max(len(new), 1)
            for key in chunk_keys:
                if key in new:
                    journal.append({"seconds": share_s, **trajectory_to_json(new[key])})
            journal.sync()
        finished |= new
        solved = sum(finished[key].solved for key in keys if key in finished)
        on_progress(len(finished), len(keys), solved)
    return [finished[key] for key in keys]


def complete_chunks(
    played: Sequence[Trajectory], keys: Sequence[EpisodeKey], chunk: int = EPISODES_AT_ONCE
) -> list[Trajectory]:
    """Select the trajectories of complete chunks, in the order of ``keys``; see `evaluate`.

    If a provider refused the agent within a chunk, only the episodes that had ended are recorded. These are
    the short ones, which are solved more often, so a rate over them would be biased.
    """
    by_key = {trajectory.key: trajectory for trajectory in played}
    chunks = [keys[start : start + chunk] for start in range(0, len(keys), chunk)]
    complete = [chunk_keys for chunk_keys in chunks if all(key in by_key for key in chunk_keys)]
    return [by_key[key] for chunk_keys in complete for key in chunk_keys]


def task_results(
    trajectories: Iterable[Trajectory], tasks: Sequence[Task], seconds: Mapping[EpisodeKey, float]
) -> tuple[TaskResult, ...]:
    """Make one result per task that has an episode, in task order; voids are counted separately.

    Args:
        trajectories: one per episode.
        tasks: the tasks played.
        seconds: every episode's share of the wall time, as `evaluate` logged it.
    """
    by_task: dict[str, list[Trajectory]] = {}
    for trajectory in trajectories:
        by_task.setdefault(trajectory.key.task, []).append(trajectory)
    return tuple(_task_result(task, by_task[task.id], seconds) for task in tasks if task.id in by_task)


def _task_result(task: Task, played: Sequence[Trajectory], seconds: Mapping[EpisodeKey, float]) -> TaskResult:
    graded = [t for t in played if t.outcome is not Outcome.VOID]
    usages = [step.turn.usage for t in graded for step in t.steps]
    held_out = [scores for t in graded if t.solved and (scores := _held_out_scores(t))]
    return TaskResult(
        task=task.id,
        source=task.source,
        operator=str(task.metadata.get("operator", "")),
        samples=len(graded),
        solved=sum(t.solved for t in graded),
        voids=len(played) - len(graded),
        completion_tokens=sum(usage.completion_tokens for usage in usages),
        prompt_tokens=sum(usage.prompt_tokens for usage in usages),
        seconds=sum(seconds[t.key] for t in played),
        cached_tokens=sum(usage.cached_tokens for usage in usages),
        cut_off=sum(any(step.turn.stop == "length" for step in t.steps) for t in graded),
        held_out=len(held_out),
        held_out_failed=sum(min(scores) < 1 for scores in held_out),
        raised=sum(map(raised, played)),
        rewards=_rewards_by_source(graded),
    )


def _rewards_by_source(graded: Sequence[Trajectory]) -> dict[str, float]:
    """Sum what each source paid. A journal may have been edited, so what is no number is left out."""
    paid: dict[str, list[float]] = {}
    for trajectory in graded:
        rewards = trajectory.info.get("rewards")
        for source, value in rewards.items() if isinstance(rewards, Mapping) else ():
            if isinstance(value, int | float):
                paid.setdefault(source, []).append(value)
    return {source: total_reward(values) for source, values in paid.items()}


def _held_out_scores(trajectory: Trajectory) -> list[float]:
    """Scores of the held-out checks that ran. A journal may have been edited, so others are left out."""
    scores = trajectory.info.get("held_out")
    found = scores.values() if isinstance(scores, dict) else ()
    return [score for score in found if isinstance(score, int | float)]
