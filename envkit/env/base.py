"""The contract of an environment: what an author writes, and what the base class does with it."""

from __future__ import annotations

import inspect
import itertools
import math
import operator
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, TypeVar, cast, final, get_args
from weakref import WeakKeyDictionary

import gymnasium

from envkit.env.authored import ActionResult, Baseline, Exploit, ImportedTasks, Variant, require_actions
from envkit.env.checks import Check, find_checks, run_checks, run_turn_checks
from envkit.env.grade import Grade
from envkit.env.hidden import require_storable
from envkit.env.judging import ask, judge, open_model
from envkit.env.random_calls import random_calls
from envkit.env.spaces import Utf8
from envkit.env.tool_runner import run_tool
from envkit.env.tools import Tool, ToolCall, describe_tools, find_tools, parse_calls
from envkit.errors import SETUP_ERRORS, CheckError, ContractError, UsageError
from envkit.runtime.display import Display, Silent
from envkit.runtime.secret_values import blotted_out, read_secrets
from envkit.sandbox import Sandbox, SandboxBackend
from envkit.sandbox.choice import sandbox_backend
from envkit.sandbox.contents import declared_contents
from envkit.types import ResetInfo, StepInfo, Task, repeated_ids, total_reward

Returned = TypeVar("Returned")

#: What an instance does: set up or tear down, carry out an action, or check.
Phase = Literal["setup", "turn", "check"]

#: Sources of reward that are no checks, as named in ``info["rewards"]``: what actions earned, what turns
#: cost, and what was not paid because of `Env.reward_range`.
ACTIONS, TURN_COST, LIMIT = "actions", "turn_cost", "limit"


class Env(gymnasium.Env[str, str], ABC):
    """A text environment with a programmatic reward; a ``gymnasium.Env[str, str]``.

    An author writes three things: `setup`, methods marked with `envkit.check`, and either methods marked with
    `envkit.tool` or `apply`. The base class does the rest: it owns the sandbox, the turn
    budget and the scoring.

    An episode is *terminated* when an action ends it, and *truncated* when ``max_turns`` are used up. In both
    cases the checks score the final state once. That score, in [0, 1], is the sum of the episode's rewards,
    unless the class says more:

    - A check with ``each_turn=True`` also runs after every earlier turn. The turn's reward is the change of
      its part, negative if it fell. So a turn's reward says what the turn was worth, and no detour earns more
      than the final state.
    - `turn_cost` is taken from every turn's reward.
    - An action may earn something itself: ``ActionResult(..., reward=0.1)``. If a gate fails or a check sees
      tampering, what actions have earned is taken back. An action that earns again when it is repeated is a
      hole; prefer a check of each turn.

    The sum of an episode's rewards never leaves `reward_range`. Whether the task is solved does not depend on
    the rewards: all checks that are ``required`` must score 1, see `envkit.env.checks.check`.

    ``reset(options={"task": id})`` picks a task; without it one is drawn. Everything random in an episode
    follows from ``reset(seed=...)``: an author draws hidden inputs from `visit_seed`.
    ``reset(options={"held_out": True})`` also runs the held-out checks if the episode is solved.

    Args:
        tasks: the tasks to choose from; ids are unique.
        sandbox: backend that makes one fresh sandbox per episode; by default the best one of this machine.
        max_turns: actions until truncation, at least 1; by default the class's own number.
        max_observation_bytes: the middle of longer observations is cut out.
        max_action_bytes: longer actions are refused, and use up a turn.
        render_mode: ``"ansi"`` makes `render` return the last observation.

    Raises:
        UsageError: no list of tasks, or none in it, two tasks of one id, ``max_turns`` < 1, no backend as
            ``sandbox``, an unknown render mode, or one of `secrets` is not set, or a card cannot be used.
        TaskFileError: a task holds what a task file does not keep, such as a tuple.
        SandboxUnavailable: no sandbox is given, and code cannot be isolated on this machine.
        ContractError: the class has no ``id``, no check with weight, no required check, neither tools nor an
            `apply`, a `max_calls`, `reward_range` or `turn_cost` that it cannot have, `hosts` of no phase, or
            judged checks without two `judges` or without a required check beside them.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi"], "render_fps": 1}  # noqa: RUF012  (Gymnasium's own attribute)
    #: Name in reports, e.g. ``code-editor``.
    id: ClassVar[str]
    #: Split -> number of tasks that `make_task` makes.
    task_counts: ClassVar[Mapping[str, int]] = {"train": 40, "heldout": 40}
    #: System message of every conversation with a model.
    system: ClassVar[str] = "You act in an environment. Answer each message with one action."
    #: ``"sandbox"`` if the application runs in the episode's sandbox. ``"external"`` if it cannot; every
    #: certificate and report then says so.
    isolation: ClassVar[str] = "sandbox"
    #: Python packages that programs in the sandbox can import, as lines of a pip requirements file, such as
    #: ``pandas==2.3.3``. Installed once per machine, from wheels only.
    packages: ClassVar[Sequence[str]] = ()
    #: Modules of these packages or of the standard library that a sandbox imports ahead, if it can, so that
    #: programs start faster; for a web service, `envkit.env.wrappers.service.PRELOAD`. Only programs of the
    #: form ``[sandbox.python, *PYTHON_OPTIONS, "-c", ...]`` have them.
    preload: ClassVar[Sequence[str]] = ()
    #: Other languages of the sandbox, such as ``node`` or ``node==22.*``.
    toolchains: ClassVar[Sequence[str]] = ()
    #: Files or folders beside the class's module. The sandbox holds each read-only, in ``/data`` under its
    #: own name: ``data/prices.csv`` is ``/data/prices.csv``. A git repository at a commit is a folder too:
    #: ``git+https://example.org/ada/stock.git@COMMIT`` is ``/data/stock``, see `envkit.sandbox.repositories`.
    data: ClassVar[Sequence[str]] = ()
    #: OCI image that the sandbox is made of, such as ``python:3.12-slim``, or ``oci:PATH`` for an OCI image
    #: layout, a folder beside the class's module. Only sandbox ``docker`` can.
    image: ClassVar[str] = ""
    #: An action that does nothing.
    noop_action: ClassVar[str] = "pass"
    checks: ClassVar[tuple[Check, ...]] = ()
    #: Found in the class.
    tools: tuple[Tool, ...] = ()
    #: True if `setup` gives an instance other `tools`, such as those of a server that it starts. They must be
    #: the same for all tasks.
    tools_in_setup: ClassVar[bool] = False
    #: Agents without a model that every report shows beside the models. A class with tools that names none
    #: has one that makes random calls.
    baselines: ClassVar[tuple[Baseline, ...]] = ()
    __names_baselines: ClassVar[bool] = False
    #: Environment variables with secrets that the application needs, such as the key of an API. An instance
    #: cannot be made without them. Their values are blotted out in observations and evidence; see `secret`.
    secrets: ClassVar[Sequence[str]] = ()
    #: Hosts outside the sandbox that `envkit.env.wrappers.external.open_http` may ask, by phase. Written as
    #: in a URL, with the port if it is not the scheme's own. Asked by https, unless an entry begins with
    #: ``http://``.
    hosts: ClassVar[Mapping[Phase, Sequence[str]]] = {}
    #: Cards of two models for judged checks: the first one judges, and audits compare it with the second. A
    #: card is a name or a path; see `envkit.agents.cards.load_card`.
    judges: ClassVar[Sequence[str | Path]] = ()
    #: Card of the model that `ask` asks.
    simulator: ClassVar[str | Path] = ""
    #: The check that is running.
    running_check: Check | None = None
    #: What this instance is doing.
    phase: Phase = "setup"
    tasks: Mapping[str, Task]
    #: Actions per episode. An author sets the number that the tasks need; each instance may have another.
    max_turns: int = 3
    #: Most tool calls that one action may make. They are made in order, until one fails or ends the episode.
    max_calls: ClassVar[int] = 1
    #: Lowest and highest sum of an episode's rewards, at most 0 and at least 1. What would leave it is not
    #: paid. So an environment whose episodes may end below 0 must say how far.
    reward_range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    #: Taken from the reward of every turn, so that fewer turns are better; at least 0. Without a lowest sum
    #: below 0, it only lowers what is earned otherwise.
    turn_cost: ClassVar[float] = 0.0
    #: The agent program that stands between a model and this environment, see `envkit.env.harness`; ``None``
    #: for none. With one, an observation is a whole chat: a JSON object with ``messages`` and perhaps
    #: ``tools`` as in OpenAI's API. The action is the answer to it.
    harness: ClassVar[object] = None
    # For `close`, in classes whose own __init__ raises or does not call this one.
    __sandbox: Sandbox | None = None
    __setup_began: bool = False

    def __init_subclass__(cls) -> None:
        """Find the class's checks and tools.

        Raises:
            ContractError: one of them, or another attribute, would replace what belongs to the base class;
                or a method replaces a check or a tool and lacks the decorator.
        """
        super().__init_subclass__()
        marked = find_checks(cls), find_tools(cls)
        ours = {*dir(Env), *Env.__annotations__, ACTIONS, LIMIT}
        for each in itertools.chain(*marked):
            if each.name in ours:
                kind = type(each).__name__.lower()
                clash = f"{kind} {each.name} of {cls.__name__} would replace Env.{each.name}"
                raise ContractError(f"{clash}; give it another name")
        cls.__require_ours()
        cls.checks, cls.tools = marked
        if "baselines" in vars(cls):
            cls.__names_baselines = True
        elif (cls.tools or cls.tools_in_setup) and not cls.__names_baselines:
            chance = "makes random calls of tools"
            cls.baselines = (Baseline("random", chance, _random_calls(cls), is_random=True),)

    @classmethod
    def __require_ours(cls) -> None:
        """Refuse a class that replaces what is the base class's own, or forgets a ``@classmethod``.

        Raises:
            ContractError: names it, and what to write instead.
        """
        if cls.__name__.lstrip("_") == Env.__name__:  # its private attributes would have the names of Env's
            raise ContractError(f"a class {cls.__name__} extends Env; give it another name than Env's")
        for name, ours in vars(Env).items():
            theirs = inspect.getattr_static(cls, name)
            if _is_final(ours) and theirs is not ours:
                instead = _HOOKS.get(name, "give it another name")
                raise ContractError(f"{cls.__name__} replaces Env.{name}, which belongs to Env; {instead}")
            if isinstance(ours, classmethod) and inspect.isfunction(theirs):
                raise ContractError(f"{cls.__name__}.{name} needs no instance; put @classmethod above it")
        mixins = (base for base in cls.__mro__ if base is cls or not issubclass(base, Env))
        for base, (name, instead) in itertools.product(mixins, _FILLED_IN.items()):
            if name in vars(base):
                raise ContractError(f"{cls.__name__} sets {name}, which Env fills in; {instead}")

    def __init__(
        self,
        *,
        tasks: Sequence[Task],
        sandbox: SandboxBackend | None = None,
        max_turns: int | None = None,
        max_observation_bytes: int = 16_384,
        max_action_bytes: int = 16_384,
        render_mode: str | None = None,
    ) -> None:
        _validate(type(self), tasks)
        self.tasks = {task.id: task for task in tasks}
        max_turns = type(self).max_turns if max_turns is None else max_turns
        if not (isinstance(cast("object", max_turns), Integral) and max_turns >= 1):
            raise UsageError(f"max_turns is {max_turns!r}; expected a number of turns, at least 1")
        if isinstance(cast("object", sandbox), str):
            raise UsageError(
                f"sandbox is {sandbox!r}; expected a backend:"
                f" envkit.sandbox.choice.sandbox_backend({sandbox!r})"
            )
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise UsageError(f"render_mode is {render_mode!r}; expected None or 'ansi'")
        _require_complete(type(self))
        self.observation_space: Utf8 = Utf8(max_observation_bytes)  # pyright: ignore[reportIncompatibleVariableOverride]
        self.action_space: Utf8 = Utf8(max_action_bytes)  # pyright: ignore[reportIncompatibleVariableOverride]
        self.max_turns = int(max_turns)
        self.render_mode = render_mode
        # Two underscores, so that no attribute of an author's class replaces one of these.
        self.__secrets = read_secrets(self.secrets)
        self.__judge = open_model(self.judges[0]) if self.judges else None
        self.__simulator = open_model(self.simulator) if self.simulator else None
        self.__backend = self.equip(sandbox)
        self.__task: Task | None = None
        self.__visit_seed = 0
        self.__held_out = False
        self.__turns = 0
        #: What this episode has earned so far, by check or other source.
        self.__earned: dict[str, float] = {}
        self.__last = ""

    # Hooks: an author writes `setup` and, if the defaults do not fit, the others.

    @abstractmethod
    def setup(self, task: Task) -> str:
        """Prepare a task and return the first observation. The fresh `sandbox` holds the task's files."""

    def teardown(self) -> None:
        """Undo what `setup` did outside the sandbox. Called once per episode, however it ends.

        It is called if `setup` raises, too, and then finds only what `setup` has done so far.
        """

    @classmethod
    def clear_caches(cls) -> None:
        """Drop results that episodes share. This may change only how long episodes take; audits call it."""

    def dispose(self) -> None:
        """Release what is kept between episodes. Called by every `close`; further episodes may follow."""

    @classmethod
    def graded_as(cls) -> type[Env]:
        """The class whose audit says what the rewards of this one prove: another one if a harness plays."""
        return cls

    @final
    @classmethod
    def equip(cls, sandbox: SandboxBackend | None = None) -> SandboxBackend:
        """A backend whose sandboxes also hold what the class declares, from `packages` to `image`.

        Every episode has such a one. It is needed only to run programs apart from episodes.

        Args:
            sandbox: by default the best one of this machine that can.

        Raises:
            ContractError: a declaration is malformed.
            ConfigError, SandboxUnavailable: see `envkit.sandbox.SandboxBackend.with_contents`.
        """
        if sandbox is None:
            sandbox = sandbox_backend("auto", cls.image)
        declared = declared_contents(cls)
        wanted = sandbox.contents | declared
        has_all = wanted == sandbox.contents and {*cls.preload} <= {*sandbox.warm}
        return sandbox if has_all else sandbox.with_contents(wanted, cls.preload)

    @classmethod
    def make_tasks(cls, split: str, *, sandbox: SandboxBackend, display: Display) -> Sequence[Task]:
        """Make the environment's own tasks: the same ones at every call.

        By default they are those of `make_task`, and the starters are the first six to train on.

        Args:
            split: ``"train"``, ``"heldout"``, ``"starter"`` for a few to play with, or ``"test"`` for tasks
                that are only for final reports, if there are any.
            sandbox: runs code that is needed to make them; see `equip`.
            display: shows the progress.

        Raises:
            UsageError: the environment has no tasks of that split.
        """
        name, limit = ("train", 6) if split == "starter" else (split, None)
        numbers = range(cls.task_counts.get(name, 0))[:limit]
        if not numbers:
            raise _no_tasks(cls, split)
        return [
            _returned(
                cls.make_task(name, number, random.Random(f"{name} {number}")), Task, "make_task", "a Task"
            )
            for number in numbers
        ]

    @classmethod
    def make_task(cls, split: str, number: int, draw: random.Random) -> Task:
        """Make one of the generated tasks; `task_counts` says how many there are of each split.

        Args:
            split: one of `task_counts`.
            number: from 0; a task's id is usually ``f"{split}/{number}"``.
            draw: draws what differs between tasks; seeded with split and number.

        Raises:
            UsageError: the environment makes no tasks.
        """
        raise _no_tasks(cls, split)

    @final
    @classmethod
    def tasks_of(
        cls, split: str, sandbox: SandboxBackend | None = None, *, display: Display | None = None
    ) -> Sequence[Task]:
        """The environment's own tasks of a split, such as ``MyEnv.tasks_of("train")``; see `make_tasks`.

        Args:
            split: as for `make_tasks`.
            sandbox: by default the best one of this machine.
            display: shows the progress; by default nothing does.

        Raises:
            UsageError: the environment has no tasks of that split.
            SandboxUnavailable: code cannot be isolated on this machine.
            ContractError: `make_tasks` returned no list.
        """
        tasks = cls.make_tasks(split, sandbox=cls.equip(sandbox), display=display or Silent())
        _returned(tasks, Sequence, f"{cls.__name__}.make_tasks", "a list of tasks")
        return tasks

    @classmethod
    def brief(cls, task: Task) -> str:
        """Write the request that a harness gets; by default the task's prompt.

        The harness works on the files of the workspace, so a request says what to do with which file.

        See `envkit.env.harness`. An agent without a harness sees what `setup` returns.
        """
        return task.prompt

    @classmethod
    def validate_task(cls, task: Task) -> None:
        """Check that this environment can pose a task; called for every task before any work.

        An override usually reads ``task.hidden`` with `envkit.env.hidden.read_hidden`.

        Raises:
            TaskFileError: it cannot, for instance because the task was made for another environment. The
                message names the task, the field, what was found and what was expected.
        """

    @final
    @classmethod
    def tools_of(cls, task: Task, sandbox: SandboxBackend | None = None) -> tuple[Tool, ...]:
        """The tools that agents have. With `tools_in_setup`, an instance sets up a task to find them.

        Args:
            task: any task.
            sandbox: as for instances.
        """
        if not cls.tools_in_setup:
            return cls.tools
        with closing(cls(tasks=[task], sandbox=sandbox)) as env:
            env.reset(seed=0, options={"task": task.id})
            return env.tools

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

        Held-out tasks are tried with these actions before training. The warm start imitates all of them, each
        with the observation that it answers.
        """
        raise ContractError(
            f"{cls.__name__} has no oracle; write oracle(task), the actions that solve a task"
        )

    @classmethod
    def exploits(cls, task: Task) -> Sequence[Exploit]:
        """Attempts to win a task without solving it. `envkit audit` plays those of tasks of every level."""
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

        By default the action is a call of a tool, or up to `max_calls` of them; see `envkit.env.tools`.
        """
        calls = parse_calls(action, self.tools, self.max_calls)
        results: list[tuple[str, ActionResult]] = []
        failed = False
        for call in calls[: self.max_calls]:
            result, failed = self.__make(call)
            results.append(("" if isinstance(call, str) else call.tool.name, result))
            if failed or result.done:
                break
        texts = [result.observation for _, result in results]
        if len(results) > 1:
            texts = [
                f"{name}:\n{text}" if name else text for (name, _), text in zip(results, texts, strict=True)
            ]
        done = results[-1][1].done
        if len(calls) > len(results) and not done:
            limit = "one call" if self.max_calls == 1 else f"{self.max_calls} calls"
            texts.append("(Later calls were not made" + ("." if failed else f": {limit} per turn.") + ")")
        return ActionResult("\n\n".join(texts), done, sum(result.reward for _, result in results))

    def __make(self, call: ToolCall | str) -> tuple[ActionResult, bool]:
        """Make a call, or pass on the message of a malformed one; True if it failed."""
        if isinstance(call, str):
            return ActionResult(call), True
        tool = call.tool
        try:
            found = run_tool(tool.name, getattr(self, tool.name), call.arguments, tool.timeout_s)
        except SETUP_ERRORS:
            raise
        except UsageError as error:
            return ActionResult(str(error)), True
        if isinstance(found, str):
            found = ActionResult(found)
        effect = _checked_result(found, f"tool {tool.name}", "a str or an ActionResult")
        return replace(effect, done=effect.done or tool.ends), False

    # State of the running episode, for hooks, tools and checks.

    @property
    @final
    def backend(self) -> SandboxBackend:
        """The sandbox backend, for graders that need a second sandbox."""
        return self.__backend

    @property
    @final
    def sandbox(self) -> Sandbox:
        """This episode's sandbox."""
        if self.__sandbox is None:
            raise ContractError("no episode is running; call reset() first")
        return self.__sandbox

    @property
    @final
    def task(self) -> Task:
        """This episode's task."""
        if self.__task is None:
            raise ContractError("no episode is running; call reset() first")
        return self.__task

    @final
    def secret(self, name: str) -> str:
        """The value of one of `secrets`.

        Raises:
            ContractError: the class does not declare it.
        """
        if name not in self.__secrets:
            raise ContractError(f"{type(self).__name__} reads secret {name!r}; add the name to its `secrets`")
        return self.__secrets[name]

    @final
    def without_secrets(self, text: str) -> str:
        """Replace the values of `secrets` in a text by their names. What encodes them is not found."""
        return blotted_out(text, self.__secrets)

    @final
    def judge(self, text: str, facts: str = "") -> Grade:
        """Ask the first of `judges` the question of the running check. See `envkit.env.judging`.

        Args:
            text: what is judged. It may be hostile: an agent may have written it.
            facts: what the judge must know beside the question, such as the right answer; never an agent's.

        Raises:
            ContractError: no judged check is running.
            UsageError: the text is too long; the check has failed unless it catches this.
            SandboxError: the judge gives no usable answer. `ModelUnavailable`: it is down.
        """
        check = self.running_check
        if check is None or check.rubric is None or self.__judge is None:
            where = "no check is running" if check is None else f"check {check.name} is not marked"
            raise ContractError(f"judge() is for checks marked @check(judged=Rubric(...)); {where}")
        told = [self.without_secrets(words) for words in (text, facts)]
        answer = judge(self.__judge, check.rubric, *told, seed=self.__visit_seed)
        return Grade(score=check.rubric.answers[answer], evidence=f"{check.judge} answers {answer}")

    @final
    def ask(self, prompt: str, text: str | None = None, *, temperature: float = 0.0) -> str:
        """Ask the `simulator` for a text, such as the next words of a simulated user. Not for checks.

        All episodes of a group get the same answer to the same words.

        Args:
            prompt: the task, in the environment's words. What they hold may reach the agent.
            text: an agent's words. They are fenced off, and may still persuade the model.
            temperature: of sampling.

        Raises:
            ContractError: a check is running, or the class names no simulator.
            UsageError: the text is too long; a tool's agent is told so.
            SandboxError: the model gives no usable answer. `ModelUnavailable`: it is down.
        """
        if self.running_check is not None:
            raise ContractError(
                f"check {self.running_check.name} calls ask(); mark it @check(judged=Rubric(...)) and call "
                "judge()"
            )
        if self.__simulator is None:
            raise ContractError(f"{type(self).__name__} calls ask(); name a card in its `simulator`")
        return ask(
            self.__simulator,
            self.without_secrets(prompt),
            None if text is None else self.without_secrets(text),
            seed=self.__visit_seed,
            read=lambda reply: reply.strip() or None,
            temperature=temperature,
        )

    @property
    @final
    def visit_seed(self) -> int:
        """Seed of this visit's hidden inputs, in [0, 2**63)."""
        return self.__visit_seed

    @property
    @final
    def turns_left(self) -> int:
        return self.max_turns - self.__turns

    @property
    @final
    def help(self) -> str:
        """A description of the tools, for prompts."""
        return describe_tools(self.tools, self.max_calls)

    # Gymnasium's interface, which the base class owns.

    @final
    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Start an episode in a fresh sandbox; for the keys of ``info`` see `ResetInfo`.

        Raises:
            UsageError: an unknown option or task id.
            ContractError: `setup` returned no text, or set `tools` without `tools_in_setup`; or the class's
                ``__init__`` does not call Env's.
            SandboxError: the sandbox could not be made; the episode is void.
        """
        if not hasattr(self, "tasks"):
            name = type(self).__name__
            raise ContractError(f"{name}.__init__ does not call super().__init__(tasks=...); add that")
        super().reset(seed=seed)
        options = dict(options or {})
        wanted, self.__held_out = options.pop("task", None), bool(options.pop("held_out", False))
        if options:
            raise UsageError(f"unknown reset option {sorted(options)[0]!r}; expected 'task' or 'held_out'")
        ids = list(self.tasks)
        task_id = wanted if wanted is not None else ids[int(self.np_random.integers(len(ids)))]
        if task_id not in self.tasks:
            raise UsageError(f"no task {task_id!r} among the {len(ids)} loaded, e.g. {ids[0]!r}")
        self.__visit_seed = int(self.np_random.integers(2**63 - 1))
        self.__end()
        self.__task = self.tasks[task_id]
        self.__turns, self.__earned = 0, {}
        self.__sandbox = self.__backend.create()
        with self.__ending_on_error():
            for path, content in self.__task.files.items():
                self.__sandbox.write(path, content if isinstance(content, bytes) else content.encode())
            self.__setup_began = True
            seen = _returned(self.setup(self.__task), str, "setup", "a str, the first observation")
            if self.tools is not type(self).tools and not self.tools_in_setup:
                name = type(self).__name__
                raise ContractError(f"{name}.setup sets tools; set tools_in_setup = True in the class")
            self.__last = self.observation_space.clip(self.without_secrets(seen))
        info: ResetInfo = {"task": task_id, "split": self.__task.split}
        return self.__last, cast("dict[str, Any]", info)

    @final
    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Take one turn; for the keys of ``info`` see `StepInfo`.

        Raises:
            ContractError: no episode is running.
            CheckError: a check raised or returned no score; names environment, task and check.
            SandboxError: broken machinery; this episode earns nothing. `Rollouts` repeats it once.
        """
        if self.__sandbox is None:
            raise ContractError("step() without a running episode; call reset() first")
        with self.__ending_on_error():
            self.__turns += 1
            self.phase = "turn"
            if self.action_space.contains(action):
                effect = _checked_result(self.apply(action), "apply", "an ActionResult")
            else:
                limit = self.action_space.max_bytes
                effect = ActionResult(
                    f"That action is not valid text of at most {limit} bytes; nothing was done."
                )
            self.__last = self.observation_space.clip(self.without_secrets(effect.observation))
            truncated = not effect.done and self.__turns >= self.max_turns
            info: StepInfo = {"task": self.task.id, "turn": self.__turns}
            self.phase = "check"
            by_actions = self.__earned.get(ACTIONS, 0.0) + effect.reward
            if not (effect.done or truncated):
                with self.__naming_task():
                    parts = run_turn_checks(self, self.checks)
            else:
                with self.__naming_task():
                    score = run_checks(self, self.checks, held_out=self.__held_out)
                parts = score.parts
                if score.withheld:
                    by_actions = min(by_actions, 0.0)
                info["scores"] = dict(score.scores)
                info["solved"] = score.solved
                info["verdict"] = score.verdict.value
                info["evidence"] = {name: self.without_secrets(text) for name, text in score.evidence.items()}
                if score.weaknesses:
                    info["weaknesses"] = dict(score.weaknesses)
                if score.held_out:
                    info["held_out"] = dict(score.held_out)
                self.__end()
            rewards = self.__pay({**parts, ACTIONS: by_actions, TURN_COST: -self.turn_cost * self.__turns})
            if rewards:
                info["rewards"] = rewards
        reward = total_reward(rewards.values())
        return self.__last, reward, effect.done, truncated, cast("dict[str, Any]", info)

    def __pay(self, earned: Mapping[str, float]) -> dict[str, float]:
        """Return this turn's reward by source, given what every source has earned in the episode so far."""
        low, high = self.reward_range
        # Rounded before they are subtracted, so that turns add up: three thirds pay 1.
        earned = {name: total_reward([value]) for name, value in earned.items()}
        total = total_reward(earned.values())
        before, self.__earned = self.__earned, {**earned, LIMIT: min(max(total, low), high) - total}
        rewards = {name: value - before.get(name, 0.0) for name, value in self.__earned.items()}
        always = (ACTIONS, TURN_COST, LIMIT)
        return {name: value for name, value in rewards.items() if value or name not in always}

    @contextmanager
    def __naming_task(self) -> Generator[None]:
        """Add environment and task to the message of a `CheckError`."""
        try:
            yield
        except CheckError as error:
            raise CheckError(f"environment {self.id}, task {self.task.id}: {error}") from error

    def render(self) -> str | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The last observation in mode ``"ansi"``, else ``None``."""
        return self.__last if self.render_mode == "ansi" else None

    @final
    def close(self) -> None:
        """End the episode and release what is kept between episodes. Idempotent."""
        try:
            self.__end()
        finally:
            self.dispose()

    @contextmanager
    def __ending_on_error(self) -> Generator[None]:
        """End the episode if an exception leaves the block, so that no action follows in a broken state.

        If ending it raises as well, the exception gets a note of that.
        """
        try:
            yield
        except BaseException as error:
            try:
                self.__end()
            except Exception as another:
                error.add_note(f"Ending the episode raised too: {type(another).__name__}: {another}")
            raise

    def __end(self) -> None:
        self.phase = "setup"
        sandbox, self.__sandbox = self.__sandbox, None
        setup_began, self.__setup_began = self.__setup_began, False
        if sandbox is not None:
            try:
                if setup_began:
                    self.teardown()
            finally:
                sandbox.close()


#: Final method of `Env` -> what an author writes instead.
_HOOKS: Final[Mapping[str, str]] = {
    "reset": "write setup",
    "step": "write apply, or methods marked with @tool and @check",
    "close": "write teardown or dispose",
    "tasks_of": "write make_task or make_tasks",
    "equip": "declare packages, toolchains, data or image",
    "tools_of": "mark methods with @tool",
    "sandbox": "read it as self.sandbox, or give yours another name",
}
#: Attribute that an instance or the class is given -> what an author writes instead of it.
_FILLED_IN: Final[Mapping[str, str]] = {
    "checks": "mark methods with @check()",
    "tools": "mark methods with @tool",
    "tasks": "write make_task or make_tasks",
    "phase": "give yours another name",
    "running_check": "give yours another name",
}


def oracle_actions(kind: type[Env], task: Task) -> tuple[str, ...]:
    """The actions of an environment's oracle for a task, at least one.

    Raises:
        ContractError: `Env.oracle` returned something else.
    """
    return require_actions(kind.oracle(task), f"{kind.__name__}.oracle, for task {task.id},")


def _is_final(member: object) -> bool:
    """True for a method or property of a class that is marked with ``typing.final``."""
    return getattr(getattr(member, "fget", member), "__final__", False)


#: Tasks of each class that were checked last.
_VALIDATED: Final = WeakKeyDictionary[type[Env], tuple[Task, ...]]()


def _validate(kind: type[Env], tasks: Sequence[Task]) -> None:
    """Check an environment's tasks, unless these very tasks were checked last.

    Rollouts make one environment per running episode from the same tasks. A check of a parent class does not
    count, because it checks less.

    Raises:
        UsageError, TaskFileError: see `Env`.
    """
    checked = _VALIDATED.get(kind, ())
    is_list = isinstance(cast("object", tasks), Sequence)
    if checked and is_list and len(tasks) == len(checked) and all(map(operator.is_, tasks, checked)):
        return
    _require_tasks(kind, tasks)
    for task in tasks:
        kind.validate_task(task)
    _VALIDATED[kind] = (*tasks,)


def _require_tasks(kind: type[Env], tasks: object) -> None:
    """Raise if an environment cannot be made for want of tasks of its own form.

    Raises:
        UsageError: no sequence of tasks, none, or two of one id.
        TaskFileError: a task holds what a task file does not keep.
    """
    name = kind.__name__
    if isinstance(tasks, str | bytes) or not isinstance(tasks, Sequence):
        raise UsageError(
            f"{name} was given tasks of type {type(tasks).__name__}; expected a list, such as that of "
            f"{name}.tasks_of('train') or of taskfile.read_tasks(path)"
        )
    if not tasks:
        raise UsageError(f"{name} was given no tasks; expected at least one")
    for task in cast("Sequence[object]", tasks):
        if not isinstance(task, Task):
            raise UsageError(f"{name} was given {task!r:.60} as a task; expected a Task")
        require_storable(task)
    if twice := repeated_ids(cast("Sequence[Task]", tasks)):
        raise UsageError(f"several tasks have the id {twice}; expected each id once")


def _no_tasks(kind: type[Env], split: str) -> UsageError:
    others = "" if kind.task_counts.get(split) else f"; it has: {', '.join(kind.task_counts) or 'none'}"
    return UsageError(f"environment {kind.id} has no {split!r} tasks of its own{others}; name a task file")


def _returned(found: object, kind: type[Returned], method: str, expected: str) -> Returned:
    """Check the type of what an author's method returned.

    Raises:
        ContractError: another type, such as None because a ``return`` is missing.
    """
    if not isinstance(found, kind):
        raise ContractError(f"{method} returned {found!r}; expected {expected}")
    return found


def _checked_result(found: object, method: str, expected: str) -> ActionResult:
    """Check the types of what an author's action returned.

    Raises:
        ContractError: it is no `ActionResult`, its observation no text, or its reward no finite number.
    """
    result = _returned(found, ActionResult, method, expected)
    observation, reward = cast("tuple[object, object]", (result.observation, result.reward))
    if not isinstance(observation, str):
        wrong = f"observation {observation!r:.60}; expected a str"
    elif not (isinstance(reward, Real) and math.isfinite(reward)):  # numpy's numbers are real ones, too
        wrong = f"reward {reward!r:.60}; expected a finite number"
    else:
        return result
    raise ContractError(f"{method} returned an ActionResult with {wrong}")


def _random_calls(kind: type[Env]) -> Callable[[Task, int, SandboxBackend], Sequence[str]]:
    """The actions of a baseline that makes random calls."""
    tools: list[tuple[Tool, ...]] = []

    def actions(task: Task, seed: int, backend: SandboxBackend) -> Sequence[str]:
        if not tools:
            tools.append(kind.tools_of(task, backend))
        return random_calls(tools[0], task.prompt, seed, kind.max_turns)

    return actions


def _require_complete(kind: type[Env]) -> None:
    """Raise if an author's class lacks something that every environment needs.

    Raises:
        ContractError: names what is missing or wrong.
    """
    name = kind.__name__
    if not hasattr(kind, "id"):
        raise ContractError(f"{name} has no id; give the class one, such as id = 'my-env'")
    if not any(item.weight > 0 for item in kind.checks):
        raise ContractError(f"{name} has no check with weight > 0; mark one with @check()")
    if any(item.rubric for item in kind.checks):
        if len(set(kind.judges)) != 2:
            raise ContractError(
                f"{name}.judges is {kind.judges!r}; expected two cards: one that judges, and another that "
                "audits compare it with"
            )
        if not any(item.required and (item.gate or item.weight) for item in kind.checks if not item.rubric):
            raise ContractError(
                f"{name}: a model alone decides what is solved; expected a required check with weight that "
                "asks no model"
            )
    if not any(item.required for item in kind.checks):
        raise ContractError(
            f"{name} has no required check, so every episode would be solved; mark the one that decides with "
            "@check(required=True)"
        )
    if not (isinstance(cast("object", kind.max_calls), Integral) and kind.max_calls >= 1):
        raise ContractError(f"{name}.max_calls is {kind.max_calls!r}; expected a number of calls, at least 1")
    if not (kind.tools or kind.tools_in_setup) and kind.apply is Env.apply:
        raise ContractError(f"{name} has no actions; mark methods with @tool, or write apply()")
    for declared in ("secrets", "judges"):
        if isinstance(found := getattr(kind, declared), str):  # one text is a sequence of letters
            raise ContractError(f"{name}.{declared} is {found!r}; expected a list, such as [{found!r}]")
    if unknown := [phase for phase in kind.hosts if phase not in get_args(Phase)]:
        raise ContractError(f"{name}.hosts has phase {unknown[0]!r}; expected setup, turn or check")
    low, high = kind.reward_range
    if not (-math.inf < low <= 0 and 1 <= high < math.inf):
        raise ContractError(
            f"{name}.reward_range is {kind.reward_range}; expected a lowest sum of at most 0 and a highest "
            "of at least 1, which full scores earn"
        )
    if not 0 <= kind.turn_cost < math.inf:
        raise ContractError(f"{name}.turn_cost is {kind.turn_cost}; expected 0 or a positive number")
