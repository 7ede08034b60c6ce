"""Evaluating arms inside a run folder: resumable, the same items for everyone, then a report."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast, final

import envkit
from envkit.agent import Agent
from envkit.audit.certificate import content_digest, valid
from envkit.bench.data import (
    Arm,
    Conditions,
    Difference,
    Example,
    LossPoint,
    Machine,
    Origin,
    ReportData,
    Scalar,
    TrainPoint,
)
from envkit.bench.report import write_report
from envkit.bench.run import evaluate, items, keys, whole
from envkit.bench.spec import EVALUATION_SEED
from envkit.display import Display
from envkit.env import Env
from envkit.errors import StoreError
from envkit.mining.taskfile import digest
from envkit.rollout import Rollouts
from envkit.sandbox import SandboxBackend
from envkit.store import RunFolder
from envkit.studies.spent import Stopwatch, phases
from envkit.types import EpisodeKey, Outcome, Task, Trajectory


@final
class Arms:
    """Plays arms of a run and reads back what was played.

    Args:
        run: the folder; each arm's episodes go to ``eval-<arm>.jsonl``.
        tasks: held-out tasks, the same for every arm.
        display: live view.
        go_on: polled between chunks; False stops.
    """

    def __init__(
        self, run: RunFolder, tasks: Sequence[Task], display: Display, go_on: Callable[[], bool]
    ) -> None:
        self._run, self._tasks = run, tasks
        self._display, self._go_on = display, go_on

    def finished(self, arm: str, samples: int) -> bool:
        """Whether every episode of the arm is on record and graded."""
        graded = [t for t in self.played(arm) if t.outcome is not Outcome.VOID]
        return len(graded) == len(self._tasks) * samples

    def played(self, arm: str) -> list[Trajectory]:
        """The episodes on record; of one that was played again, the last."""
        return list({t.key: t for t in self._run.trajectories(f"eval-{arm}")}.values())

    def adopt(self, other: Arms, arm: str) -> None:
        """Take over what another run has played of an arm, where nothing of it was played here."""
        if not self._run.records(f"eval-{arm}"):
            with self._run.journal(f"eval-{arm}") as journal:
                for record in other._run.records(f"eval-{arm}"):
                    journal.append(record)

    def play(self, rollouts: Rollouts, agent: Agent, arm: str, samples: int) -> bool:
        """Play what is missing; returns whether the arm is complete."""
        if self.finished(arm, samples):
            return True
        wanted = self._keys(samples)
        done = [t for t in self.played(arm) if t.outcome is not Outcome.VOID]
        self._display.phase(f"evaluate {arm}", len(wanted))
        started = time.monotonic()
        with Stopwatch(self._run, f"evaluate {arm}") as watch, self._run.journal(f"eval-{arm}") as journal:

            def progress(count: int, total: int, solved: int) -> bool:
                watch.lap()
                speed = (count - len(done)) / (time.monotonic() - started)
                self._display.advance(count, f"solved {solved / count:.1%}, {speed:.1f} episodes/s")
                return self._go_on()

            return len(evaluate(rollouts, agent, wanted, journal, done, progress)) == len(wanted)

    def counted(self, arm: str, samples: int) -> list[Trajectory]:
        """The episodes on record that can be in a rate; see `whole`."""
        return whole(self.played(arm), self._keys(samples))

    def arm(
        self,
        name: str,
        description: str,
        counted: Sequence[Trajectory],
        expected: float | None = None,
        origin: Origin = Origin(),
    ) -> Arm | None:
        """The arm as the report wants it, of its `counted` episodes, or ``None`` where there are none."""
        if not counted:
            return None
        seconds = seconds_of(self._run, f"eval-{name}")
        return Arm(name, description, items(counted, self._tasks, seconds), expected, origin)

    def _keys(self, samples: int) -> list[EpisodeKey]:
        return keys(self._tasks, samples, EVALUATION_SEED)


def seconds_of(run: RunFolder, journal: str) -> Mapping[EpisodeKey, float]:
    """What each episode of a journal took; a void that was tried again took both times."""
    found: defaultdict[EpisodeKey, float] = defaultdict(float)
    for record in run.records(journal):
        found[EpisodeKey(**record["key"])] += float(record["seconds"])
    return found


def code_digest(kind: type[Env]) -> str:
    """SHA-256 over what certificates of an environment are bound to, and how episodes are played."""
    rollout = Path(envkit.__file__).with_name("rollout.py").read_bytes()
    return hashlib.sha256(content_digest(kind).encode() + rollout).hexdigest()


def require_code(kind: type[Env], part: RunFolder) -> None:
    """Refuse to go on with code by which other episodes of the part were not graded.

    Raises:
        StoreError: it has changed since the part began; those of older versions do not say what it was.
    """
    if part.manifest.get("code", found := code_digest(kind)) != found:
        raise StoreError(f"{part.path}: the code of {kind.id} has changed since it began; cannot go on")


def commit() -> str:
    """Version of envkit, and the commit where it runs from a checkout."""
    folder = Path(envkit.__file__).resolve().parent
    asked = ("git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12")
    try:
        found = subprocess.run(asked, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):  # no git, so no checkout
        return envkit.__version__
    # An installed copy may lie in some other project's checkout.
    inside = (folder.parent / ".git").exists() and found.returncode == 0
    return f"{envkit.__version__} {found.stdout.strip()}" if inside else envkit.__version__


def machine(threads: int, dtype: str, device: str = "cpu") -> Machine:
    """This machine, for the manifest."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        name = next((ln.split(":", 1)[1].strip() for ln in lines if ln.startswith("model name")), name)
    return Machine(
        name, len(os.sched_getaffinity(0)), threads, dtype, card="" if device == "cpu" else _card()
    )


def _card() -> str:
    import torch

    return torch.cuda.get_device_name()


def publish(
    run: RunFolder,
    kind: type[Env],
    backend: SandboxBackend,
    tasks: Sequence[Task],
    arms: Sequence[Arm],
    differences: Sequence[Difference],
    *,
    training: RunFolder | None = None,
    max_turns: int,
    title: str,
    ks: tuple[int, ...],
    config: Mapping[str, Scalar],
    warnings: tuple[str, ...] = (),
) -> tuple[Path, ReportData]:
    """Write the report of what the run folder holds; returns the HTML's path and the data.

    A resumed run's report takes the place of the one it left when it was stopped.

    Args:
        run: the folder.
        kind: the environment.
        backend: where the episodes were played.
        tasks: the held-out tasks of every arm.
        arms: the rows.
        differences: to report, where both arms are there.
        training: the folder of the run that trained, where that is another.
        max_turns: actions per episode.
        title, ks, config, warnings: see `ReportData`.
    """
    manifest = run.manifest
    names = {arm.name for arm in arms}
    trained = training or run
    metrics = _taken(trained.records("metrics"))
    spent = [one for at in {trained.path: trained, run.path: run}.values() for one in at.records("phases")]
    played = {arm.name: list(run.trajectories(f"eval-{arm.name}")) for arm in arms}
    drawn = {f"evaluate {name}": _tokens(episodes) for name, episodes in played.items()}
    examples = [
        example for arm in arms if arm.expected is None for example in _examples(arm.name, played[arm.name])
    ]
    data = ReportData(
        title=title,
        run=str(manifest["id"]),
        created=time.strftime("%Y-%m-%d"),
        command=manifest["command"],
        environment=kind.id,
        isolation=kind.isolation if backend.isolated else "none",
        sandbox=backend.name,
        model=manifest["model"],
        model_digest=manifest["model_digest"],
        heldout_digest=digest(tasks),
        machine=Machine(**manifest["machine"]),
        arms=tuple(arms),
        differences=tuple(d for d in differences if {d.arm, d.against} <= names),
        ks=ks,
        training=tuple(
            TrainPoint(m["step"], m["reward"], m["mixed"], m["loss"], m["completion_tokens"] / m["rollout_s"])
            for m in metrics
            if m["phase"] == "rl"
        ),
        sft=tuple(LossPoint(m["step"], m["loss"]) for m in metrics if m["phase"] == "sft"),
        phases=tuple(replace(one, tokens=drawn.get(one.name, one.tokens)) for one in phases(spent)),
        examples=tuple(examples[:6]),
        config=config,
        warnings=(*warnings, *(f"Graded by weaker means: {why}." for why in _weaknesses(played.values()))),
        conditions=Conditions(kind.id, code_digest(kind), digest(tasks), max_turns, EVALUATION_SEED),
        commit=str(manifest.get("commit", "")),
        certificate=f"none: {found}" if isinstance(found := valid(kind), str) else found.seal,
    )
    return write_report(data, run.path, overwrite=True), data


def flat(settings: Mapping[str, Any]) -> dict[str, Scalar]:
    """Settings as a report has them: what holds several values is text, or an entry for each."""
    found: dict[str, Scalar] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found |= {f"{name}.{key}": each for key, each in cast("Mapping[str, float]", value).items()}
        else:
            found[name] = ", ".join(map(repr, cast("list[str]", value))) if isinstance(value, list) else value
    return found


def _taken(metrics: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Of a log of steps, those that led to where training is now.

    A run that was killed or stopped, and resumed, repeats the steps after its last checkpoint.
    """
    found: defaultdict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for one in metrics:
        steps = found[one["phase"]]
        while steps and steps[-1]["step"] >= one["step"]:
            steps.pop()
        steps.append(one)
    return [one for steps in found.values() for one in steps]


def _tokens(played: Iterable[Trajectory]) -> int:
    """What was written in these episodes."""
    return sum(step.turn.usage.completion_tokens for each in played for step in each.steps)


def _weaknesses(arms: Iterable[Sequence[Trajectory]]) -> list[str]:
    """Why verdicts of these arms prove less than a split oracle's, where a grader has said so."""
    noted = (trajectory.info.get("weaknesses", {}) for played in arms for trajectory in played)
    return sorted({why for note in noted for why in cast("dict[str, str]", note).values()})


def _examples(arm: str, played: Sequence[Trajectory]) -> list[Example]:
    """The last turn, which the verdict is on, of one solved and one failed episode of an arm."""
    ends = (Outcome.SOLVED, Outcome.FAILED)
    chosen = [next((t for t in played if t.outcome is end), None) for end in ends]
    return [
        Example(
            task=t.key.task,
            arm=arm,
            prompt=t.steps[-1].observation,
            completion=t.steps[-1].turn.text,
            verdict=str(t.info.get("verdict", "")),
            turns=len(t.steps),
        )
        for t in chosen
        if t is not None
    ]
