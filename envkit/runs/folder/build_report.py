"""Build the report of a run from the files in its folder."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from envkit.audit.certificate import valid
from envkit.env import Env
from envkit.env.taskfile import digest
from envkit.measure.report.data import (
    Conditions,
    Difference,
    Excerpt,
    LossPoint,
    ReportData,
    Row,
    Scalar,
    TrainPoint,
)
from envkit.measure.report.page import write_report
from envkit.measure.report.text import MANY_RAISED
from envkit.measure.spec import EVALUATION_SEED
from envkit.runs.folder.provenance import code_digest
from envkit.runs.folder.run_records import LoggedStep, PhaseTime, RunFacts
from envkit.runs.folder.timing import phases
from envkit.runtime.store import RunFolder
from envkit.sandbox import SandboxBackend
from envkit.types import Outcome, Task, Trajectory


def build_report(
    run: RunFolder,
    kind: type[Env],
    backend: SandboxBackend,
    tasks: Sequence[Task],
    rows: Sequence[Row],
    differences: Sequence[Difference],
    *,
    training: RunFolder | None = None,
    max_turns: int,
    title: str,
    ks: tuple[int, ...],
    config: Mapping[str, Scalar],
    warnings: tuple[str, ...] = (),
) -> tuple[Path, ReportData]:
    """Write the report of a run folder; returns the path of the HTML page and the report's data.

    Replaces an earlier report, which a run leaves when it is stopped and later resumed.

    Args:
        run: the run folder.
        kind: the environment.
        backend: sandbox backend that the episodes were played in.
        tasks: the held-out tasks, the same for every row.
        rows: the rows of the report.
        differences: pairs of rows to compare; a pair is left out if one of its rows is missing.
        training: folder of the training run, if it is not ``run``.
        max_turns: actions per episode.
        title, ks, config, warnings: see `ReportData`.
    """
    facts = RunFacts.of(run)
    names = {row.name for row in rows}
    trained = training or run
    steps = _latest_steps(trained.read("metrics", LoggedStep))
    folders = {trained.path: trained, run.path: run}.values()  # one, if the run trained by itself
    phase_times = [record for folder in folders for record in folder.read("phases", PhaseTime)]
    played = {row.name: run.trajectories(f"eval-{row.name}") for row in rows}
    sampled_tokens = {f"evaluate {name}": _tokens(episodes) for name, episodes in played.items()}
    examples = [
        example
        for row in rows
        if row.origin.kind != "script"
        for example in _examples(row.name, played[row.name])
    ]
    lock = kind.equip(backend).lock
    certificate = valid(kind, lock, max_turns)  # or the reason why there is none
    data = ReportData(
        title=title,
        run=facts.id,
        created=time.strftime("%Y-%m-%d"),
        command=facts.command,
        environment=kind.id,
        isolation=kind.isolation if backend.isolated else "none",
        sandbox=backend.name,
        model=facts.model,
        model_digest=facts.model_digest,
        heldout_digest=digest(tasks),
        machine=facts.machine,
        rows=tuple(rows),
        differences=tuple(d for d in differences if {d.row, d.against, d.unsolved_by} <= names | {""}),
        ks=ks,
        training=_learning_curve(steps, kind.id),
        sft=tuple(LossPoint(step.step, step.loss) for step in steps if step.phase == "sft"),
        phases=tuple(
            replace(phase, tokens=sampled_tokens.get(phase.name, phase.tokens))
            for phase in phases(phase_times)
        ),
        examples=tuple(examples[:6]),
        config=config,
        warnings=(
            *warnings,
            *_raised_in_training(steps),
            *(f"Graded by weaker means: {reason}." for reason in _weaknesses(played.values())),
        ),
        conditions=Conditions(
            kind.id, code_digest(kind), digest(tasks), max_turns, EVALUATION_SEED, lock.digest
        ),
        commit=facts.commit,
        certificate=f"none: {certificate}" if isinstance(certificate, str) else certificate.seal,
        contents=str(lock),
    )
    return write_report(data, run.path, overwrite=True), data


def _learning_curve(steps: Sequence[LoggedStep], environment: str) -> tuple[TrainPoint, ...]:
    """The steps of RL with an environment's own rewards and mixed groups.

    With several environments, a step without an episode of this one is left out.
    """
    points: list[TrainPoint] = []
    for step in steps:
        if step.phase != "rl" or (step.environments and environment not in step.environments):
            continue
        of = step.environments.get(environment, step)
        speed = step.completion_tokens / step.rollout_s
        points.append(TrainPoint(step.step, of.reward, of.mixed, step.loss, speed))
    return tuple(points)


def flat_settings(settings: Mapping[str, Any]) -> dict[str, Scalar]:
    """Flatten settings for a report: a list becomes one text, a mapping becomes one entry per key."""
    found: dict[str, Scalar] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            entries = cast("Mapping[str, float]", value)
            found |= {f"{name}.{key}": number for key, number in entries.items()}
        elif isinstance(value, list):
            found[name] = ", ".join(map(_entry, cast("list[object]", value)))
        else:
            found[name] = value
    return found


def _entry(value: object) -> str:
    """One entry of a list of settings: a text in quotes, or the values of a table."""
    if isinstance(value, Mapping):
        return " ".join(map(str, cast("Mapping[str, Scalar]", value).values()))
    return repr(value)


def _raised_in_training(steps: Sequence[LoggedStep]) -> list[str]:
    """A warning if the environment raised in many training episodes."""
    shares = [step.raised for step in steps if step.phase == "rl"]
    mean = sum(shares) / max(len(shares), 1)
    if mean <= MANY_RAISED:
        return []
    return [
        f"Training: the environment raised an exception in {mean:.1%} of the episodes, which is a bug in it. "
        "An episode in which it raised twice earns 0. info.trace in episodes.jsonl says where."
    ]


def _latest_steps(logged: Iterable[LoggedStep]) -> list[LoggedStep]:
    """Keep the last record of each training step, by phase.

    A run that is resumed repeats the steps after its last checkpoint, so the log may hold them twice.
    """
    found: defaultdict[str, list[LoggedStep]] = defaultdict(list)
    for record in logged:
        steps = found[record.phase]
        while steps and steps[-1].step >= record.step:
            steps.pop()
        steps.append(record)
    return [record for steps in found.values() for record in steps]


def _tokens(played: Iterable[Trajectory]) -> int:
    """Completion tokens of these episodes."""
    return sum(step.turn.usage.completion_tokens for episode in played for step in episode.steps)


def _weaknesses(played: Iterable[Sequence[Trajectory]]) -> list[str]:
    """Collect the graders' notes on why their verdicts prove less than a split oracle's."""
    notes = (trajectory.info.get("weaknesses", {}) for episodes in played for trajectory in episodes)
    return sorted({reason for note in notes for reason in cast("dict[str, str]", note).values()})


def _examples(row: str, played: Sequence[Trajectory]) -> list[Excerpt]:
    """Excerpts of one solved and one failed episode of a row: the last turn, which the verdict is on."""
    ends = (Outcome.SOLVED, Outcome.FAILED)
    chosen = [next((t for t in played if t.outcome is end), None) for end in ends]
    return [
        Excerpt(
            task=t.key.task,
            row=row,
            prompt=t.steps[-1].observation,
            completion=t.steps[-1].turn.text,
            verdict=str(t.info.get("verdict", "")),
            turns=len(t.steps),
        )
        for t in chosen
        if t is not None
    ]
