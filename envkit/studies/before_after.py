"""The before/after study: base, SFT and SFT+RL on the same held-out tasks, then a report.

Every phase leaves its result in the run folder before the next begins, so an interrupted run goes
on where it stopped: evaluations episode by episode, RL from its last checkpoint, SFT from its start.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import final

from envkit.agents.local import LocalAgent
from envkit.audit.certificate import fault_of
from envkit.bench.data import Difference, Origin
from envkit.display import Display
from envkit.engine.protocol import Sampling
from envkit.env import Env
from envkit.errors import SandboxError, StoreError, TrainingError
from envkit.mining.taskfile import digest, read_tasks, write_tasks
from envkit.models import resolve, weights_digest
from envkit.rollout import Rollouts
from envkit.sandbox import SandboxBackend
from envkit.store import RunFolder
from envkit.studies.arms import Arms, commit, machine, publish, took, training_seconds
from envkit.studies.heldout import require_heldout
from envkit.studies.plan import DEFAULT_MINUTES, Plan, measure, on_this_machine, plan, use_threads
from envkit.studies.verify import controls
from envkit.studies.warm_start import apart, examples_of, imitate
from envkit.train.checkpoint import CheckpointStore, load_adapter, save_adapter
from envkit.train.config import TrainConfig, from_mapping, to_mapping
from envkit.train.difficulty import solve_rates
from envkit.train.grpo import GRPOTrainer, StepMetrics
from envkit.train.policy import Policy
from envkit.train.scalars import Scalars
from envkit.train.trl_backend import TRLTrainer
from envkit.types import Outcome, Task

_ARMS = {
    "base": "the untouched model",
    "SFT": "after the warm start on oracle edits of train tasks",
    "SFT+RL": "after LoRA reinforcement learning on top",
    "RL": "after LoRA reinforcement learning, without a warm start",
}

_DIFFERENCES = (
    Difference("SFT+RL", "base", "SFT+RL"),
    Difference("SFT+RL", "SFT", "RL's own part"),
    Difference("SFT", "base", "the warm start"),
    Difference("RL", "base", "RL"),
)


def start(
    root: Path,
    config: TrainConfig,
    kind: type[Env],
    minutes: float | None,
    train_tasks: Sequence[Task],
    heldout_tasks: Sequence[Task],
    *,
    display: Display,
    command: str,
    evaluate: bool = True,
) -> RunFolder:
    """Size a new study for this machine and make its run folder.

    The sizes are fixed here and kept in the manifest, so that a resumed run is the same run.

    Args:
        kind: the environment.
        minutes: budget after set-up; ``None`` keeps the sizes of ``config`` and evaluates on as many
            tasks as `DEFAULT_MINUTES` would allow.
        evaluate: measure on the held-out tasks before and after; without, the run only trains.

    Raises:
        TaskFileError: the held-out tasks are not held out.
    """
    require_heldout(heldout_tasks, train_tasks)
    threads = use_threads()
    config = on_this_machine(config)
    ref = resolve(config.model, display.say)
    display.say(f"timing the model on this machine, in {config.dtype}")
    speed = measure(Policy.of(ref, kind.system, config))
    budget, imitated = DEFAULT_MINUTES if minutes is None else minutes, len(apart(train_tasks)[0])
    sized = plan(budget, speed, config, len(heldout_tasks), imitated)
    if minutes is None:
        sized = replace(sized, train=config)
    train = sized.train
    display.say(
        f"plan: {sized.heldout_tasks} held-out tasks x {sized.samples}, {train.sft_examples} oracle edits, "
        f"{train.max_steps} RL steps of {train.groups_per_step} x {train.num_generations} episodes on up to "
        f"{train.curriculum_tasks or len(train_tasks)} tasks"
    )
    run = RunFolder.create(
        root,
        "before-after",
        {
            "kind": "before-after",
            "environment": kind.id,
            "unaudited": fault_of(kind),
            "evaluate": evaluate,
            "command": command,
            "commit": commit(),
            "model": config.model,
            "model_digest": ref.digest,
            "threads": threads,
            "machine": asdict(machine(threads, config.dtype)),
            "speed": asdict(speed),
            "tasks": {"train": digest(train_tasks), "heldout": digest(heldout_tasks)},
            "plan": {**asdict(sized), "train": to_mapping(sized.train)},
        },
    )
    # The run's own copies: it can be gone on with when files have moved or the miner has changed.
    for name, tasks in (("train", train_tasks), ("heldout", heldout_tasks)):
        write_tasks(_task_file(run, name), tasks, config.seed)
    return run


def environment_of(run: RunFolder) -> str:
    """Name of the environment that a run trains on."""
    return str(run.manifest.get("environment", "code-editor"))  # the only one there was


def _task_file(run: RunFolder, name: str) -> Path:
    return run.path / "tasks" / f"{name}.jsonl"


def _tasks(run: RunFolder, name: str) -> list[Task]:
    tasks = read_tasks(_task_file(run, name))
    if (found := digest(tasks)) != (began := run.manifest["tasks"][name]):
        raise StoreError(
            f"{_task_file(run, name)}: the run began with tasks {began[:12]}, found {found[:12]}"
        )
    return tasks


@final
class BeforeAfter:
    """One run of the study.

    Args:
        run: a folder made by `start`.
        kind: the environment that it began with.
        backend: sandbox backend.
        display: live view.
        go_on: polled between units of work; False ends the run cleanly with a report.

    Raises:
        StoreError: environment, tasks or weights are not the ones that the run began with, or the folder is
            of another kind of run.
    """

    def __init__(
        self,
        run: RunFolder,
        kind: type[Env],
        backend: SandboxBackend,
        display: Display,
        go_on: Callable[[], bool],
    ) -> None:
        manifest = run.manifest
        if (found := manifest.get("kind")) != "before-after":
            raise StoreError(
                f"{run.path} is a run of kind {found!r}; expected one of `envkit train` or `demo`"
            )
        if (began := environment_of(run)) != kind.id:
            raise StoreError(f"{run.path} began with environment {began!r}; found {kind.id!r}")
        self._kind = kind
        self._run, self._display, self._go_on = run, display, go_on
        self._train_tasks, self._backend = _tasks(run, "train"), backend
        self._evaluates = bool(manifest.get("evaluate", True))
        self._imitated, self._practised = apart(self._train_tasks)
        # Runs older than the choice of a dtype began in float32.
        settings = {"dtype": "float32", **manifest["plan"]["train"]}
        config = from_mapping(settings, str(run.path / "manifest.json"))
        sized = manifest["plan"]
        self._plan = Plan(config, sized["heldout_tasks"], sized["samples"], sized["eval_temperature"])
        self._heldout = _tasks(run, "heldout")[: self._plan.heldout_tasks]
        self._arms = Arms(run, self._heldout, display, go_on)
        use_threads(manifest["threads"])
        ref = resolve(manifest["model"], display.say)
        if ref.digest != manifest["model_digest"]:
            raise StoreError(f"{run.path}: began with other weights of {ref.id}; cannot go on")
        self._policy = Policy.of(ref, kind.system, config)

    def run(self) -> Path:
        """Do what is left to do; returns the path of the HTML report.

        Raises:
            StoreError: another process is at work in the run folder.
        """
        with self._run.locked():
            return self._report(whole=self._phases())

    def _phases(self) -> bool:
        with Rollouts(self._make_env) as rollouts:
            return (
                self._controls(rollouts)
                and self._evaluate(rollouts, "base")
                and (self._plan.train.sft_examples == 0 or (self._sft() and self._evaluate(rollouts, "SFT")))
                and self._estimate()
                and self._rl(rollouts)
                and self._evaluate(rollouts, "SFT+RL" if self._plan.train.sft_examples else "RL")
            )

    def _report(self, *, whole: bool) -> Path:
        config = self._plan.train
        arms = [
            self._arms.arm("oracle", "undoes the mutation; must be 1", 1.0),
            self._arms.arm("no-op", "submits unchanged; must be 0", 0.0),
            *(self._arms.arm(name, text, origin=self._origin(name)) for name, text in _ARMS.items()),
        ]
        path, _ = publish(
            self._run,
            self._kind,
            self._backend,
            self._heldout,
            [arm for arm in arms if arm is not None],
            _DIFFERENCES,
            max_turns=config.max_turns,
            title=f"{self._kind.id}: held-out tasks before and after training",
            ks=(1, self._plan.samples),
            config={**to_mapping(self._plan.train), "eval_temperature": self._plan.eval_temperature},
            warnings=(
                *(() if whole else ("The run was stopped early; this is what there is.",)),
                *self._unaudited(),
                *(() if self._evaluates else ("The run was told not to evaluate.",)),
                *(f"Training ended early: {reason}." for reason in self._alarms()),
            ),
        )
        return path

    def _origin(self, arm: str) -> Origin:
        config = self._plan.train
        adapter, seconds = "", 0.0
        if arm == "SFT":
            adapter, seconds = self._digest(self._run.path / "sft"), training_seconds(self._run, ("SFT",))
        elif arm != "base":
            store = CheckpointStore(self._run.path / "checkpoints")
            adapter = self._digest(store.path(max(store.steps(), default=0)))
            seconds = training_seconds(self._run)
        return Origin(
            kind="local",
            model=config.model,
            adapter=adapter,
            training_seconds=seconds,
            temperature=self._plan.eval_temperature,
            max_completion_length=config.max_completion_length,
        )

    def _digest(self, adapter: Path) -> str:
        return weights_digest(adapter) if adapter.exists() else ""

    def _unaudited(self) -> list[str]:
        fault = self._run.manifest.get("unaudited")
        return [f"The environment had no valid certificate: {fault}."] if fault else []

    def _alarms(self) -> list[str]:
        found = self._run.records("metrics")
        return [str(record["reason"]) for record in found if record["phase"] == "alarm"]

    def _make_env(self) -> Env:
        tasks = [*self._train_tasks, *self._heldout]
        return self._kind(tasks=tasks, sandbox=self._backend, max_turns=self._plan.train.max_turns)

    # Phases. Each returns False when the user asked to stop.

    def _controls(self, rollouts: Rollouts) -> bool:
        """Oracle must solve every held-out task and no-op none; else the numbers mean nothing."""
        if not self._evaluates:
            return True
        for agent, wanted in controls(self._kind, self._heldout):
            if not self._arms.play(rollouts, agent, agent.name, samples=1):
                return False
            played = self._arms.played(agent.name)
            if void := next((t for t in played if t.outcome is Outcome.VOID), None):
                raise SandboxError(f"{agent.name} on {void.key.task}: {void.info.get('error')}")
            if wrong := [t for t in played if t.reward != wanted]:
                raise TrainingError(
                    f"{agent.name} earns {wrong[0].reward} on {wrong[0].key.task}, expected {wanted}: "
                    "the task is broken; mine the tasks again"
                )
        return True

    def _evaluate(self, rollouts: Rollouts, arm: str) -> bool:
        if not self._evaluates or self._arms.finished(arm, self._plan.samples):
            return True
        self._policy.sync()
        sampling = Sampling(self._plan.eval_temperature, self._plan.train.max_completion_length)
        turns = self._plan.train.max_turns
        agent = LocalAgent(arm, self._policy.engine, self._policy.renderer, sampling, turns)
        return self._arms.play(rollouts, agent, arm, self._plan.samples)

    def _sft(self) -> bool:
        folder = self._run.path / "sft"
        if (folder / "adapter_model.safetensors").exists():
            load_adapter(self._policy, folder)
            return True
        config = self._plan.train
        started = time.monotonic()
        with self._run.journal("metrics") as journal, self._scalars() as scalars:

            def on_loss(step: int, loss: float) -> bool:
                journal.append({"phase": "sft", "step": step, "loss": loss})
                scalars.add("sft", step, {"loss": loss})
                return self._go_on()

            whole = imitate(
                self._policy, self._kind, self._imitated, self._backend, config, self._display, on_loss
            )
        if whole:  # a resumed run takes what it finds under this name
            save_adapter(self._policy, folder)
            took(self._run, "SFT warm start", started)
        return whole

    def _scalars(self) -> Scalars:
        return Scalars(self._run.path / "tensorboard")

    def _practice(self) -> list[Task]:
        """The tasks that RL visits."""
        config = self._plan.train
        tasks = self._practised if config.sft_examples else self._train_tasks
        return tasks[: config.curriculum_tasks] if config.curriculum_tasks else tasks

    def _estimate(self) -> bool:
        """How hard RL's tasks are for the policy as it is now, task by task in ``difficulty.jsonl``."""
        config, tasks = self._plan.train, self._practice()
        left = tasks[len(self._run.records("difficulty")) :] if config.curriculum_tasks else []
        if not left:
            return True
        started = time.monotonic()
        self._display.phase("estimate difficulty", len(tasks))
        examples = examples_of(self._kind, left, self._backend, config.max_turns)
        with self._run.journal("difficulty") as journal:
            rates = solve_rates(self._policy, examples, config.temperature, config.max_completion_length)
            for done, (task, rate) in enumerate(zip(left, rates, strict=True), len(tasks) - len(left) + 1):
                journal.append({"task": task.id, "rate": rate})
                self._display.advance(done, f"{task.metadata.get('operator', '')} {rate:.2f}")
                if not self._go_on():
                    return False
        took(self._run, "estimate difficulty", started)
        return True

    def _rl(self, rollouts: Rollouts) -> bool:
        config, store = self._plan.train, CheckpointStore(self._run.path / "checkpoints")
        with (
            self._run.journal("metrics") as metrics,
            self._run.journal("episodes") as episodes,
            self._scalars() as scalars,
        ):
            estimates = {record["task"]: record["rate"] for record in self._run.records("difficulty")}
            kind = TRLTrainer if config.backend == "trl" else GRPOTrainer
            trainer = kind(
                self._policy, self._practice(), rollouts, config, metrics, episodes, store, estimates
            )
            trainer.resume()
            if trainer.step < config.max_steps and not trainer.alarm:
                self._display.phase("reinforcement learning", config.max_steps)
                started, tokens = time.monotonic(), 0

                def go_on(m: StepMetrics) -> bool:
                    nonlocal tokens
                    tokens += m.completion_tokens
                    scalars.add("rl", m.step, {k: v for k, v in asdict(m).items() if k != "step"})
                    speed = m.completion_tokens / m.rollout_s
                    facts = f"reward {m.reward:.2f}, mixed groups {m.mixed:.0%}, {speed:.0f} tokens/s"
                    self._display.advance(m.step, facts)
                    return self._go_on()

                trainer.train(go_on)
                took(self._run, "reinforcement learning", started, tokens)
                if trainer.alarm:
                    metrics.append({"phase": "alarm", "step": trainer.step, "reason": trainer.alarm})
            return trainer.step >= config.max_steps or bool(trainer.alarm)
