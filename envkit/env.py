"""The contract of an environment: what an author writes, and what the base class does with it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast, final

import gymnasium

from envkit.checks import Check, find_checks, run_checks, run_turn_checks
from envkit.contents import declared_contents
from envkit.display import Display
from envkit.errors import SETUP_ERRORS, CheckError, ContractError, UsageError
from envkit.sandbox import Contents, Sandbox, SandboxBackend
from envkit.spaces import Utf8
from envkit.tools import Tool, describe_tools, find_tools, parse_call
from envkit.types import ResetInfo, StepInfo, Task, total_reward

Returned = TypeVar("Returned")


@dataclass(frozen=True, slots=True)
class ActionResult:
    """The result of one action.

    Args:
        observation: what the agent sees next.
        done: the action ended the episode (the agent submitted or gave up).
    """

    observation: str
    done: bool = False


@dataclass(frozen=True, slots=True)
class Exploit:
    """An attempt to win a task without solving it. It must earn nothing.

    Args:
        name: what it does, unique.
        actions: its episode; the last action is repeated until the episode ends.
        inapplicable: why it cannot be tried on this task; its actions are then not played.
    """

    name: str
    actions: tuple[str, ...]
    inapplicable: str = ""


@dataclass(frozen=True, slots=True)
class Variant:
    """A solution that is known to be right or wrong, to measure how often verdicts are wrong.

    Args:
        kind: how it was made, such as "another mutation"; rates are counted by kind.
        actions: its episode; the last action is repeated until the episode ends.
        is_right: True if it solves the task.
    """

    kind: str
    actions: tuple[str, ...]
    is_right: bool


@dataclass(frozen=True, slots=True)
class Baseline:
    """A way to play without a model. A trained model should beat all of an environment's baselines.

    Args:
        name: name of its row in reports.
        description: a few words for reports.
        actions: returns the actions of an episode, at least one, for a task, a seed, and a backend whose
            sandboxes may run programs. It must use only what an agent sees of the task. The last action is
            repeated until the episode ends.
        is_random: True if the actions depend on the seed, so that several episodes of a task differ.
    """

    name: str
    description: str
    actions: Callable[[Task, int, SandboxBackend], Sequence[str]]
    is_random: bool = False


@dataclass(frozen=True, slots=True)
class ImportedTasks:
    """Tasks read from the files of a published benchmark.

    Args:
        tasks: its items, as tasks of the environment that read them.
        recorded: model name -> task id -> the model's published outputs, turn by turn.
        left_out: reason why items became no tasks -> number of items.
    """

    tasks: tuple[Task, ...]
    recorded: Mapping[str, Mapping[str, tuple[str, ...]]] = field(
        default_factory=dict[str, Mapping[str, tuple[str, ...]]]
    )
    left_out: Mapping[str, int] = field(default_factory=dict[str, int])


class Env(gymnasium.Env[str, str], ABC):
    """A text environment with a programmatic reward; a ``gymnasium.Env[str, str]``.

    An author writes three things: `setup`, methods marked with `envkit.checks.check`, and either methods
    marked with `envkit.tools.tool` or `apply`. The base class does the rest: it owns the sandbox, the turn
    budget and the scoring.

    An episode is *terminated* when an action ends it, and *truncated* when ``max_turns`` are used up. In both
    cases the checks score the final state once. That score, in [0, 1], is the sum of the episode's rewards.

    The last step pays it, except for what checks with ``each_turn=True`` have paid before. Such a check also
    runs after every earlier turn, and the turn's reward is the change of its part, negative if it fell. So a
    turn's reward says what the turn was worth, and no detour earns more than the final state.

    ``reset(options={"task": id})`` picks a task; without it one is drawn. Everything random in an episode
    follows from ``reset(seed=...)``: an author draws hidden inputs from `visit_seed`.
    ``reset(options={"held_out": True})`` also runs the held-out checks if the episode is solved.

    Args:
        tasks: the tasks to choose from; ids are unique.
        sandbox: backend that makes one fresh sandbox per episode.
        max_turns: actions until truncation, at least 1; by default the class's own number.
        max_observation_bytes: the middle of longer observations is cut out.
        max_action_bytes: longer actions are refused, and use up a turn.
        render_mode: ``"ansi"`` makes `render` return the last observation.

    Raises:
        UsageError: no tasks, two tasks of one id, ``max_turns`` < 1, or an unknown render mode.
        ContractError: the class has no ``id``, no check with weight, or neither tools nor an `apply`.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi"], "render_fps": 1}  # noqa: RUF012  (Gymnasium's own attribute)
    #: Name in reports, e.g. ``code-editor``.
    id: ClassVar[str]
    #: System message of every conversation with a model.
    system: ClassVar[str] = "You act in an environment. Answer each message with one action."
    #: ``"sandbox"`` if the application runs in the episode's sandbox. ``"external"`` if it cannot; every
    #: certificate and report then says so.
    isolation: ClassVar[str] = "sandbox"
    #: Python packages that programs in the sandbox can import, as lines of a pip requirements file, such as
    #: ``pandas==2.3.3``. Installed once per machine, from wheels only.
    packages: ClassVar[Sequence[str]] = ()
    #: Other languages of the sandbox, such as ``node`` or ``node==22.*``.
    toolchains: ClassVar[Sequence[str]] = ()
    #: Files or folders beside the class's module. The sandbox holds each read-only, in ``/data`` under its
    #: own name: ``data/prices.csv`` is ``/data/prices.csv``.
    data: ClassVar[Sequence[str]] = ()
    #: OCI image that the sandbox is made of, such as ``python:3.12-slim``; only sandbox ``docker`` can.
    image: ClassVar[str] = ""
    #: An action that does nothing.
    noop_action: ClassVar[str] = "pass"
    checks: ClassVar[tuple[Check, ...]] = ()
    tools: ClassVar[tuple[Tool, ...]] = ()
    #: Agents without a model that every report shows beside the models.
    baselines: ClassVar[tuple[Baseline, ...]] = ()
    tasks: Mapping[str, Task]
    #: Actions per episode. An author sets the number that the tasks need; each instance may have another.
    max_turns: int = 3
    _validated_tasks: ClassVar[Sequence[Task] | None] = None

    def __init_subclass__(cls) -> None:
        """Find the class's checks and tools.

        Raises:
            ContractError: one of them, or another method, would replace a method of the base class.
        """
        super().__init_subclass__()
        cls.checks, cls.tools = find_checks(cls), find_tools(cls)
        ours = {*dir(Env), *Env.__annotations__}
        for each in (*cls.checks, *cls.tools):
            if each.name in ours:
                kind = type(each).__name__.lower()
                clash = f"{kind} {each.name} of {cls.__name__} would replace Env.{each.name}"
                raise ContractError(f"{clash}; give it another name")
        for name in ("reset", "step", "close"):
            if getattr(cls, name) is not getattr(Env, name):
                raise ContractError(
                    f"{cls.__name__} replaces Env.{name}, which owns sandbox, turns and score; write setup, "
                    "apply, teardown or dispose"
                )

    def __init__(
        self,
        *,
        tasks: Sequence[Task],
        sandbox: SandboxBackend,
        max_turns: int | None = None,
        max_observation_bytes: int = 16_384,
        max_action_bytes: int = 16_384,
        render_mode: str | None = None,
    ) -> None:
        self.tasks = {task.id: task for task in tasks}
        if not tasks:
            raise UsageError(f"{type(self).__name__} was given no tasks; expected at least one")
        if len(self.tasks) != len(tasks):
            raise UsageError(f"{len(tasks)} tasks have only {len(self.tasks)} ids; expected each id once")
        # Rollouts make one environment per running episode from the same tasks; one check is enough.
        if type(self).__dict__.get("_validated_tasks") is not tasks:  # not a parent's, which checks less
            for task in tasks:
                self.validate_task(task)
            type(self)._validated_tasks = tasks
        max_turns = type(self).max_turns if max_turns is None else max_turns
        if max_turns < 1:
            raise UsageError(f"max_turns is {max_turns}; it must be at least 1")
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise UsageError(f"render_mode is {render_mode!r}; expected None or 'ansi'")
        if not hasattr(self, "id"):
            raise ContractError(f"{type(self).__name__} has no id; give the class one, such as id = 'my-env'")
        if not any(item.weight > 0 for item in self.checks):
            raise ContractError(f"{type(self).__name__} has no check with weight > 0; mark one with @check()")
        if not self.tools and type(self).apply is Env.apply:
            raise ContractError(
                f"{type(self).__name__} has no actions; mark methods with @tool, or write apply()"
            )
        self.observation_space: Utf8 = Utf8(max_observation_bytes)  # pyright: ignore[reportIncompatibleVariableOverride]
        self.action_space: Utf8 = Utf8(max_action_bytes)  # pyright: ignore[reportIncompatibleVariableOverride]
        self.max_turns = max_turns
        self.render_mode = render_mode
        self._backend = self.equip(sandbox)
        self._sandbox: Sandbox | None = None
        self._task: Task | None = None
        self._visit_seed = 0
        self._held_out = False
        self._turns = 0
        self._paid: dict[str, float] = {}
        self._last = ""

    # Hooks: an author writes `setup` and, if the defaults do not fit, the others.

    @abstractmethod
    def setup(self, task: Task) -> str:
        """Prepare a task and return the first observation. The fresh `sandbox` holds the task's files."""

    def teardown(self) -> None:
        """Undo what `setup` did outside the sandbox. Called once per episode, however it ends."""

    @classmethod
    def clear_caches(cls) -> None:
        """Drop results that episodes share. This may change only how long episodes take; audits call it."""

    def dispose(self) -> None:
        """Release what is kept between episodes. Called by every `close`; further episodes may follow."""

    @final
    @classmethod
    def equip(cls, sandbox: SandboxBackend) -> SandboxBackend:
        """A backend whose sandboxes also hold what the class declares, from `packages` to `image`.

        Every episode has such a one. It is needed only to run programs apart from episodes.

        Raises:
            ContractError: a declaration is malformed.
            ConfigError, SandboxUnavailable: see `envkit.sandbox.SandboxBackend.with_contents`.
        """
        declared = declared_contents(cls)
        if declared == Contents():
            return sandbox
        wanted = sandbox.contents | declared
        return sandbox if wanted == sandbox.contents else sandbox.with_contents(wanted)

    @classmethod
    def make_tasks(cls, split: str, *, sandbox: SandboxBackend, display: Display) -> Sequence[Task]:
        """Make the environment's own tasks: the same ones at every call.

        Args:
            split: ``"train"``, ``"heldout"``, ``"starter"`` for a few to play with, or ``"test"`` for tasks
                that are only for final reports, if there are any.
            sandbox: runs code that is needed to make them; see `equip`.
            display: shows the progress.

        Raises:
            UsageError: the environment has no tasks of that split.
        """
        raise UsageError(f"environment {cls.id} has no {split!r} tasks of its own; name a task file")

    @classmethod
    def validate_task(cls, task: Task) -> None:
        """Check that this environment can pose a task; called for every task before any work.

        An override usually reads ``task.hidden`` with `envkit.hidden.read_hidden`.

        Raises:
            TaskFileError: it cannot, for instance because the task was made for another environment. The
                message names the task, the field, what was found and what was expected.
        """

    @classmethod
    def import_tasks(cls, format: str, path: Path) -> ImportedTasks:
        """Read tasks from the files of a published benchmark.

        Args:
            format: name of the benchmark, as in ``envkit bench --tasks FORMAT:PATH``.
            path: its file or folder.

        Raises:
            UsageError: unknown format, or a file in another format; names file and line.
        """
        raise UsageError(f"environment {cls.id} reads no tasks of format {format!r}")

    @classmethod
    def oracle(cls, task: Task) -> Sequence[str]:
        """Actions that solve a task. If episodes have one turn, the first action must solve it alone.

        Held-out tasks are tried with these actions before training. The warm start imitates the first one.
        """
        raise ContractError(
            f"{cls.__name__} has no oracle; write oracle(task), the actions that solve a task"
        )

    @classmethod
    def exploits(cls, task: Task) -> Sequence[Exploit]:
        """Attempts to win a task without solving it. `envkit audit` plays those of one task."""
        return ()

    @classmethod
    def variants(cls, task: Task, sandbox: SandboxBackend) -> Sequence[Variant]:
        """Nearly right solutions, and right ones in other forms. `envkit audit` counts wrong verdicts.

        Args:
            task: one of `make_tasks`.
            sandbox: for environments that run programs to learn which ones are right.
        """
        return ()

    def apply(self, action: str) -> ActionResult:
        """Carry out one action. A mistake of the agent is an observation, never an exception.

        By default the action is a call of a tool; see `envkit.tools`.
        """
        call = parse_call(action, self.tools)
        if isinstance(call, str):
            return ActionResult(call)
        try:
            found = getattr(self, call.tool.name)(**call.arguments)
        except SETUP_ERRORS:
            raise
        except UsageError as error:
            return ActionResult(str(error))
        if isinstance(found, str):
            found = ActionResult(found)
        effect = _returned(found, ActionResult, f"tool {call.tool.name}", "a str or an ActionResult")
        return ActionResult(effect.observation, effect.done or call.tool.ends)

    # State of the running episode, for hooks, tools and checks.

    @property
    def backend(self) -> SandboxBackend:
        """The sandbox backend, for graders that need a second sandbox."""
        return self._backend

    @property
    def sandbox(self) -> Sandbox:
        """This episode's sandbox."""
        if self._sandbox is None:
            raise ContractError("no episode is running; call reset() first")
        return self._sandbox

    @property
    def task(self) -> Task:
        """This episode's task."""
        if self._task is None:
            raise ContractError("no episode is running; call reset() first")
        return self._task

    @property
    def visit_seed(self) -> int:
        """Seed of this visit's hidden inputs, in [0, 2**63)."""
        return self._visit_seed

    @property
    def turns_left(self) -> int:
        return self.max_turns - self._turns

    @property
    def help(self) -> str:
        """A description of the tools, for prompts."""
        return describe_tools(self.tools)

    # Gymnasium's interface, which the base class owns.

    @final
    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Start an episode in a fresh sandbox; for the keys of ``info`` see `ResetInfo`.

        Raises:
            UsageError: an unknown option or task id.
            SandboxError: the sandbox could not be made; the episode is void.
        """
        super().reset(seed=seed)
        options = dict(options or {})
        wanted, self._held_out = options.pop("task", None), bool(options.pop("held_out", False))
        if options:
            raise UsageError(f"unknown reset option {sorted(options)[0]!r}; expected 'task' or 'held_out'")
        ids = list(self.tasks)
        task_id = wanted if wanted is not None else ids[int(self.np_random.integers(len(ids)))]
        if task_id not in self.tasks:
            raise UsageError(f"no task {task_id!r} among the {len(ids)} loaded, e.g. {ids[0]!r}")
        self._visit_seed = int(self.np_random.integers(2**63 - 1))
        self._end()
        self._task = self.tasks[task_id]
        self._turns, self._paid = 0, {}
        self._sandbox = self._backend.create()
        with self._ending_on_error():
            for path, content in self._task.files.items():
                self._sandbox.write(path, content if isinstance(content, bytes) else content.encode())
            seen = _returned(self.setup(self._task), str, "setup", "a str, the first observation")
            self._last = self.observation_space.clip(seen)
        info: ResetInfo = {"task": task_id, "split": self._task.split}
        return self._last, cast("dict[str, Any]", info)

    @final
    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Take one turn; for the keys of ``info`` see `StepInfo`.

        Raises:
            ContractError: no episode is running.
            CheckError: a check raised or returned no score; names environment, task and check.
            SandboxError: broken machinery; this episode earns nothing. `Rollouts` repeats it once.
        """
        if self._sandbox is None:
            raise ContractError("step() without a running episode; call reset() first")
        with self._ending_on_error():
            self._turns += 1
            if self.action_space.contains(action):
                effect = _returned(self.apply(action), ActionResult, "apply", "an ActionResult")
            else:
                limit = self.action_space.max_bytes
                effect = ActionResult(
                    f"That action is not valid text of at most {limit} bytes; nothing was done."
                )
            self._last = self.observation_space.clip(effect.observation)
            truncated = not effect.done and self._turns >= self.max_turns
            info: StepInfo = {"task": self.task.id, "turn": self._turns}
            if not (effect.done or truncated):
                with self._naming_task():
                    rewards = self._pay(run_turn_checks(self, self.checks))
            else:
                with self._naming_task():
                    score = run_checks(self, self.checks, held_out=self._held_out)
                rewards = self._pay(score.parts)
                info["scores"] = dict(score.scores)
                info["solved"] = score.solved
                info["verdict"] = score.verdict.value
                info["evidence"] = dict(score.evidence)
                if score.weaknesses:
                    info["weaknesses"] = dict(score.weaknesses)
                if score.held_out:
                    info["held_out"] = dict(score.held_out)
                self._end()
            if rewards:
                info["rewards"] = rewards
        reward = total_reward(rewards.values())
        return self._last, reward, effect.done, truncated, cast("dict[str, Any]", info)

    def _pay(self, parts: Mapping[str, float]) -> dict[str, float]:
        """Return this turn's reward by check: each check's part so far, less what was paid for it before."""
        rewards = {name: part - self._paid.get(name, 0.0) for name, part in parts.items()}
        self._paid.update(parts)
        return rewards

    @contextmanager
    def _naming_task(self) -> Generator[None]:
        """Add environment and task to the message of a `CheckError`."""
        try:
            yield
        except CheckError as error:
            raise CheckError(f"environment {self.id}, task {self.task.id}: {error}") from error

    def render(self) -> str | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The last observation in mode ``"ansi"``, else ``None``."""
        return self._last if self.render_mode == "ansi" else None

    @final
    def close(self) -> None:
        """End the episode and release what is kept between episodes. Idempotent."""
        try:
            self._end()
        finally:
            self.dispose()

    @contextmanager
    def _ending_on_error(self) -> Generator[None]:
        """End the episode if an exception leaves the block, so that no action follows in a broken state."""
        try:
            yield
        except BaseException:
            self._end()
            raise

    def _end(self) -> None:
        sandbox, self._sandbox = self._sandbox, None
        if sandbox is not None:
            try:
                self.teardown()
            finally:
                sandbox.close()


def _returned(found: object, kind: type[Returned], method: str, expected: str) -> Returned:
    """Check the type of what an author's method returned.

    Raises:
        ContractError: another type, such as None because a ``return`` is missing.
    """
    if not isinstance(found, kind):
        raise ContractError(f"{method} returned {found!r}; expected {expected}")
    return found
