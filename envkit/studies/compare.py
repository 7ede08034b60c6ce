"""Comparing agents on the same held-out tasks: base, adapters, scripts."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from envkit.agent import Agent
from envkit.agents.local import LocalAgent
from envkit.agents.scripted import random_edits
from envkit.bench.data import Difference
from envkit.display import Display
from envkit.engine.protocol import Sampling
from envkit.env import Env
from envkit.errors import UsageError
from envkit.mining.taskfile import digest
from envkit.models import DEFAULT_MODEL, resolve
from envkit.rollout import Rollouts
from envkit.sandbox import SandboxBackend
from envkit.store import RunFolder
from envkit.studies.arms import Arms, machine, publish
from envkit.studies.heldout import require_heldout
from envkit.studies.plan import faster_dtype, use_threads
from envkit.studies.verify import controls
from envkit.train.policy import Policy
from envkit.types import Task

#: Scripted agents and the pass@1 that an honest environment gives them.
_SCRIPTS = {"oracle": 1.0, "no-op": 0.0, "random": None}


@dataclass(frozen=True, slots=True)
class ArmSpec:
    """One row to measure.

    Args:
        name: in the report.
        agent: ``"model"`` or a scripted agent.
        adapter: PEFT folder for a model, or ``None`` for the base alone.
    """

    name: str
    agent: str
    adapter: Path | None


@dataclass(frozen=True, slots=True)
class Settings:
    """What all arms share. Fields as in `Plan` and `TrainConfig`; ``model=None`` is the default."""

    model: str | None
    samples: int
    temperature: float
    max_turns: int
    max_completion_length: int

    def __post_init__(self) -> None:
        if not math.isfinite(self.temperature):
            raise UsageError(f"--temperature is {self.temperature}; it must be finite and at least 0")


def compare(
    root: Path,
    specs: Sequence[ArmSpec],
    kind: type[Env],
    tasks: Sequence[Task],
    settings: Settings,
    *,
    backend: SandboxBackend,
    display: Display,
    go_on: Callable[[], bool],
    command: str,
) -> Path:
    """Measure every arm and write the report; returns the path of the HTML.

    Raises:
        UsageError: an unknown agent, two arms of one name, an adapter folder that is none, or tasks that
            are not held out.
    """
    _check(specs)
    require_heldout(tasks)
    threads, dtype = use_threads(), faster_dtype()
    ref = resolve(settings.model or DEFAULT_MODEL, display.say)
    run = RunFolder.create(
        root,
        "bench",
        {
            "kind": "bench",
            "environment": kind.id,
            "command": command,
            "model": ref.id,
            "model_digest": ref.digest,
            "machine": asdict(machine(threads, dtype)),
            "tasks": {"heldout": digest(tasks)},
        },
    )
    arms = Arms(run, tasks, display, go_on)

    def make_env() -> Env:
        return kind(tasks=tasks, sandbox=backend, max_turns=settings.max_turns)

    scripted = {agent.name: agent for agent, _ in controls(kind, tasks)}

    models = [spec for spec in specs if spec.agent == "model"]

    @functools.cache
    def served() -> Policy:
        """One base, and all adapters on it."""
        policy = Policy(ref, system=kind.system, dtype=dtype)
        names: list[str | None] = []
        for number, spec in enumerate(models):
            if spec.adapter is None:
                names.append(None)
            else:
                names.append(f"arm-{number}")
                policy.add(spec.adapter, f"arm-{number}")
        policy.serve(names)
        return policy

    def agent_of(spec: ArmSpec) -> Agent:
        if spec.agent in scripted:
            return scripted[spec.agent]
        if spec.agent == "random":
            return random_edits({task.id: task for task in tasks})
        policy = served()
        return LocalAgent(
            spec.name,
            policy.engine,
            policy.renderer,
            Sampling(settings.temperature, settings.max_completion_length),
            settings.max_turns,
            adapter=models.index(spec),
        )

    whole = True
    with Rollouts(make_env) as rollouts:
        for spec in specs:
            samples = 1 if _SCRIPTS.get(spec.agent) is not None else settings.samples
            if not arms.play(rollouts, agent_of(spec), spec.name, samples):
                whole = False
                break
    rows = [arms.arm(spec.name, _describe(spec), _SCRIPTS.get(spec.agent)) for spec in specs]
    path, _ = publish(
        run,
        kind.id,
        backend,
        tasks,
        [row for row in rows if row is not None],
        [Difference(spec.name, "base", spec.name) for spec in specs if spec.adapter is not None],
        title=f"{kind.id}: comparison on held-out tasks",
        ks=(1, settings.samples) if settings.samples > 1 else (1,),
        config={"temperature": settings.temperature, "samples": settings.samples},
        warnings=() if whole else ("The run was stopped early; this is what there is.",),
    )
    return path


def _check(specs: Sequence[ArmSpec]) -> None:
    names = [spec.name for spec in specs]
    if len(set(names)) != len(names):
        raise UsageError(f"two arms of one name among: {', '.join(names)}; name each adapter once")
    for spec in specs:
        if spec.agent != "model" and spec.agent not in _SCRIPTS:
            raise UsageError(f"no agent {spec.agent!r}; expected model, {', '.join(_SCRIPTS)}")
        if spec.adapter is not None and not (spec.adapter / "adapter_config.json").is_file():
            raise UsageError(f"{spec.adapter}: no adapter_config.json there; expected a PEFT adapter folder")


def _describe(spec: ArmSpec) -> str:
    if spec.adapter is not None:
        return f"adapter {spec.adapter}"
    return "the untouched model" if spec.agent == "model" else f"scripted: {spec.agent}"
