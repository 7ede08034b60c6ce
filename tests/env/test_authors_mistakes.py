"""Mistakes of authors that would change what is graded: each is refused, with what to write instead."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from guess_env import TASKS, Backend, GuessEnv

from envkit import (
    ActionResult,
    ContractError,
    Env,
    Exploit,
    Grade,
    Rubric,
    Task,
    TaskFileError,
    UsageError,
    Variant,
    Verdict,
    check,
)
from envkit.audit.audited_env import AuditedEnv
from envkit.audit.checks.interface import gymnasium_accepts_it
from envkit.env import oracle_actions
from envkit.env.taskfile import read_tasks, write_tasks


@pytest.mark.parametrize(
    "name", ["turns", "end", "pay", "make", "task", "earned", "last", "sandbox", "judge"]
)
def test_an_authors_private_names_replace_nothing(name: str) -> None:
    members = {f"_{name}": "mine", "setup": _setup_that_keeps(name)}
    kind: type[GuessEnv] = type("Made", (GuessEnv,), members)
    env = kind(sandbox=Backend(), max_turns=2)
    env.reset(seed=1, options={"task": "below-10"})
    env.step("word")
    _, reward, terminated, _, info = env.step(str(env.number))
    assert (reward, terminated, info["solved"], info["turn"]) == (1.0, True, True, 2)
    assert getattr(env, f"_{name}") == "mine too"
    env.close()


def _setup_that_keeps(name: str) -> Any:
    def setup(self: Any, task: Task) -> str:
        setattr(self, f"_{name}", "mine too")
        return GuessEnv.setup(self, task)

    return setup


@pytest.mark.parametrize(
    "name", ["ask", "judge", "sandbox", "task", "backend", "secret", "visit_seed", "turns_left", "help"]
)
@pytest.mark.parametrize("member", [lambda self: None, property(lambda self: None), "a value"])  # pyright: ignore[reportUnknownLambdaType]
def test_what_belongs_to_the_base_class_is_not_replaced(name: str, member: object) -> None:
    with pytest.raises(ContractError, match=f"Made replaces Env.{name}, which belongs to Env"):
        type("Made", (GuessEnv,), {name: member})


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("checks", "mark methods with @check"),
        ("tools", "mark methods with @tool"),
        ("tasks", "write make_task"),
        ("phase", "another"),
        ("running_check", "another"),
    ],
)
def test_what_the_base_class_fills_in_is_not_set(name: str, instead: str) -> None:
    mixin = type("Mixin", (), {name: ()})
    for bases, members in (((GuessEnv,), {name: ()}), ((mixin, GuessEnv), {})):
        with pytest.raises(ContractError, match=f"Made sets {name}, which Env fills in; .*{instead}"):
            type("Made", bases, members)


def test_a_class_has_another_name_than_the_base_class() -> None:
    """Python forms private names from the class's name."""
    with pytest.raises(ContractError, match="a class Env extends Env; give it another name"):
        type("Env", (GuessEnv,), {})


def test_tasks_that_changed_since_they_were_checked_are_checked_again() -> None:
    tasks = [*TASKS]
    for _ in range(2):
        GuessEnv(tasks=tasks, sandbox=Backend()).close()
    tasks.append(tasks[0])
    with pytest.raises(UsageError, match="several tasks have the id"):
        GuessEnv(tasks=tasks, sandbox=Backend())
    tasks.clear()
    with pytest.raises(UsageError, match="no tasks"):
        GuessEnv(tasks=tasks, sandbox=Backend())


@pytest.mark.parametrize("setting", [0.5, Rubric("Is it good?")])
def test_a_checks_settings_are_named(setting: Any) -> None:
    with pytest.raises(ContractError, match="name its settings"):
        check(setting)


def test_turns_may_be_a_number_of_numpy() -> None:
    env = GuessEnv(sandbox=Backend(), max_turns=np.int64(5))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert env.max_turns == 5
    env.close()


@pytest.mark.parametrize(
    "name", ["oracle", "make_task", "make_tasks", "validate_task", "variants", "exploits"]
)
def test_a_class_method_is_marked_as_one(name: str) -> None:
    with pytest.raises(ContractError, match=f"Made.{name} needs no instance; put @classmethod above it"):
        type("Made", (GuessEnv,), {name: lambda self, *given: []})  # pyright: ignore[reportUnknownLambdaType]


@pytest.mark.parametrize("number", [0, -1, "2", None])
def test_an_action_may_make_at_least_one_call(number: object) -> None:
    kind: type[GuessEnv] = type("Made", (GuessEnv,), {"max_calls": number})
    with pytest.raises(ContractError, match=f"Made.max_calls is {number!r}; expected a number of calls"):
        kind(sandbox=Backend())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("tasks.jsonl", "tasks of type str; expected a list"),
        (None, "tasks of type NoneType"),
        ((task for task in TASKS), "tasks of type generator"),
        ([{"id": "a"}], "was given {'id': 'a'} as a task; expected a Task"),
    ],
)
def test_tasks_are_a_list_of_tasks(given: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        GuessEnv(tasks=given)


def test_a_sandbox_is_no_name() -> None:
    with pytest.raises(UsageError, match=r"sandbox is 'zygote'; expected a backend"):
        GuessEnv(sandbox="zygote")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


_NESTED: list[Any] = []
_NESTED.append(_NESTED)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"id": 7}, "id is 7; expected a str"),
        ({"id": ""}, "id is empty"),
        ({"split": None}, "split is None; expected a str"),
        ({"prompt": b"text"}, "prompt is b'text'; expected a str"),
        ({"prompt": "\ud800"}, "prompt holds half of a surrogate pair"),
        ({"files": {"a.txt": bytearray(b"")}}, r"files\['a.txt'\] is a bytearray; expected a str, or bytes"),
        ({"files": {"a.txt": "\ud800"}}, r"files\['a.txt'\] holds half"),
        ({"files": {1: ""}}, "files has the path 1; expected a str"),
        ({"files": [("a.txt", "")]}, "files is a list; expected a dict"),
        ({"metadata": None}, "metadata is a NoneType; expected a dict"),
        ({"hidden": {"top": (1, 2)}}, r"hidden\['top'\] is a tuple"),
        ({"hidden": {"top": [{"a": {3}}]}}, r"hidden\['top'\]\[0\]\['a'\] is a set"),
        ({"hidden": {"top": {1: "one"}}}, r"hidden\['top'\] has the key 1; expected a str"),
        ({"hidden": {"top": float("nan")}}, r"hidden\['top'\] is nan; expected a finite number"),
        ({"hidden": {"top": np.int64(3)}}, r"hidden\['top'\] is a int64"),
        ({"metadata": {"when": b""}}, r"metadata\['when'\] is a bytes"),
        ({"hidden": {"top": 10**5000}}, r"hidden\['top'\] has more than 4,000 digits"),
        ({"hidden": {"top": _NESTED}}, "is nested more than 99 levels deep"),
    ],
)
def test_a_task_is_what_a_task_file_keeps(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskFileError, match=message):
        GuessEnv(tasks=[replace(TASKS[0], **changed)])


def test_what_is_kept_is_read_as_it_was_written(tmp_path: Any) -> None:
    hidden: dict[str, Any] = {
        "top": 10,
        "x": [1, 2.5, True, None, "\u2028", {"1": [[]]}],
        "y": np.float64(0.1),
    }
    task = replace(TASKS[0], hidden=hidden, files={"a": "text", "b": b"\xff"}, metadata={"level": "one"})
    GuessEnv(tasks=[task]).close()
    write_tasks(tmp_path / "tasks.jsonl", [task], 0)
    assert read_tasks(tmp_path / "tasks.jsonl") == [task]


@pytest.mark.parametrize("actions", ["finish", [], [1], None, (action for action in ("a",))])
def test_actions_are_a_list_of_texts(actions: Any) -> None:
    class Solved(GuessEnv):
        @classmethod
        def oracle(cls, task: Task) -> Sequence[str]:
            return actions

    for make in (
        lambda: Exploit("cheat", actions),
        lambda: Variant("twin", actions, is_right=True),
        lambda: oracle_actions(Solved, TASKS[0]),
    ):
        with pytest.raises(ContractError, match=r"expected (a list of texts|at least one|a text)"):
            make()
    Exploit("cheat", (), inapplicable="there is nothing to cheat")


@pytest.mark.parametrize(("found", "score"), [(np.True_, 1), (np.float32(0.25), 0.25), (np.int64(0), 0)])
def test_a_check_may_return_numbers_of_numpy(found: Any, score: float) -> None:
    class Measured(GuessEnv):
        @check
        def right(self) -> bool:
            return found

        @check(weight=0)
        def graded(self) -> Grade:
            return Grade(score=found)

    env = Measured(sandbox=Backend())
    env.reset(seed=0)
    _, reward, *_, info = env.step("quit")
    assert (reward, info["scores"]["right"], info["scores"]["graded"]) == (score, score, score)
    env.close()


@pytest.mark.parametrize("score", ["0.5", None, [1], np.zeros(2)])
def test_a_grades_score_is_a_number(score: Any) -> None:
    with pytest.raises(ContractError, match=r"score|verdict"):
        Grade(score=score)
    if score is not None:
        with pytest.raises(ContractError, match="expected a number"):
            Grade(Verdict.FAIL, score=score)


class CallEnv(Env):
    """Whoever has said the task's words, in their order, has solved it."""

    id: ClassVar[str] = "words"
    max_turns = 1

    def setup(self, task: Task) -> str:
        self.said = list[str]()
        return "Say it."

    def apply(self, action: str) -> ActionResult:
        self.said.append(action)
        return ActionResult("Said.")

    @classmethod
    def oracle(cls, task: Task) -> Sequence[str]:
        return [str(word) for word in task.prompt.split()]

    @check
    def right(self) -> bool:
        said = iter(self.said)
        return all(word in said for word in self.task.prompt.split())


@pytest.mark.parametrize("found", [None, iter(TASKS)])
def test_tasks_are_made_as_a_list(found: object) -> None:
    class Made(CallEnv):
        @classmethod
        def make_tasks(cls, split: str, **options: Any) -> Any:
            return found

    with pytest.raises(ContractError, match=r"Made\.make_tasks returned .*; expected a list of tasks"):
        Made.tasks_of("train", Backend())


def test_a_class_that_forgets_to_call_envs_init_is_told_so() -> None:
    class Made(CallEnv):
        def __init__(self, **options: Any) -> None:
            self.options = options

    with closing(Made()) as env, pytest.raises(ContractError, match=r"Made\.__init__ does not call super"):
        env.reset()


def test_a_task_file_has_each_id_once(tmp_path: Path) -> None:
    with pytest.raises(TaskFileError, match="several tasks have the id 'below-10'; nothing was written"):
        write_tasks(tmp_path / "tasks.jsonl", [*TASKS, TASKS[0]], seed=0)
    assert not (tmp_path / "tasks.jsonl").exists()


def _task(name: str, words: str) -> Task:
    return Task(name, "train", words, {})


def test_an_environment_of_one_turn_passes_gymnasiums_own_check() -> None:
    tasks = [_task("a", "one")]
    assert gymnasium_accepts_it(AuditedEnv(CallEnv, tasks, Backend(), 1))


def test_wrong_actions_are_not_the_right_ones_with_more() -> None:
    words = {"a": "one two", "b": "one two three", "c": "two one", "d": "two two"}
    tasks = [_task(name, text) for name, text in words.items()]
    audited = AuditedEnv(CallEnv, tasks, Backend(), 3)
    wrong = [audited.wrong_actions(task) for task in audited.tasks]
    assert wrong == [["two", "one"], ["one", "two"], ["one", "two"], ["one", "two", "three"]]
    assert not any(audited.wrong(task).solved for task in audited.tasks)
    alone = AuditedEnv(CallEnv, tasks[:2], Backend(), 3)
    assert alone.wrong_actions(tasks[0]) == [CallEnv.noop_action]


@pytest.mark.parametrize(
    ("argv", "options", "message"),
    [
        ("ls -l", {}, "argv is 'ls -l'; expected a list of texts"),
        ([1], {}, "argv holds 1; expected texts"),
        (["cat"], {"stdin": "text"}, "stdin is 'text'; expected bytes"),
    ],
)
def test_a_command_is_a_list_and_its_input_bytes(argv: Any, options: dict[str, Any], message: str) -> None:
    with Backend().create() as sandbox, pytest.raises(ContractError, match=message):
        sandbox.run(argv, **options)
