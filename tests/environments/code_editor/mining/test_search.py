"""Search among mutations for one that fits the examples."""

from __future__ import annotations

import pytest

from envkit.environments.code_editor.graders.oracle import Answer
from envkit.environments.code_editor.inputs.call import Call
from envkit.environments.code_editor.mining.mutations.search import (
    Example,
    examples_of,
    fitting_mutants,
    function_called,
)
from envkit.sandbox import SandboxBackend
from envkit.types import Task


def task_of(*examples: tuple[str, str]) -> Task:
    listed = [dict(zip(("call", "value"), example, strict=True)) for example in examples]
    return Task("t", "train", "", {}, {"examples": listed})


def test_examples_are_read_from_what_the_agent_sees() -> None:
    task = task_of(("f([1, 2], key='a b')", "3"), ("f(*x)", "1"), ("f(**x)", "1"), ("f(", "1"), ("x", "1"))
    assert examples_of(task) == [Example(Call(("[1, 2]",), {"key": "'a b'"}), "f([1, 2], key='a b')", "3")]
    assert examples_of(Task("t", "train", "", {})) == []


@pytest.mark.parametrize(
    ("calls", "function"),
    [
        (["f(1)", "f(2)"], "f"),
        (["Solution().twice(1)"], "Solution.twice"),
        (["f(1)", "g(1)"], ""),
        (["a.b.c(1)"], ""),
        ([], ""),
    ],
)
def test_the_function_is_the_one_that_all_examples_call(calls: list[str], function: str) -> None:
    assert function_called(task_of(*((call, "1") for call in calls))) == function


@pytest.mark.parametrize(
    ("value", "answer", "holds"),
    [
        ("[1, 2]", Answer([1, 2], []), True),
        ('["a",  "b"]', Answer(["a", "b"], []), True),
        ("[1, 2]", Answer([2, 1], []), False),
        ("1", Answer(True, []), False),
        ("1", Answer(None, [], "ValueError"), False),
        ("1", None, False),
    ],
)
def test_an_example_holds_if_the_answer_is_the_expected_one(
    value: str, answer: Answer | None, holds: bool
) -> None:
    assert Example(Call(("1",)), "f(1)", value).holds(answer) is holds


def test_the_first_mutation_that_fits_all_examples_is_found(backend: SandboxBackend) -> None:
    add = "def f(a, b):\n    return a - b\n"
    method = "class A:\n    def f(self, a, b):\n        return a - b\n"
    examples = examples_of(task_of(("f(1, 2)", "3"), ("f(2, 0)", "2")))
    found = fitting_mutants(
        backend,
        [
            (add, "f", examples),
            (method, "A.f", examples),
            ("def f(a, b):\n    return 7\n", "f", examples),
            ("def f(a, b):\n    return 1 // 0\n", "f", examples),
            (add, "f", []),
        ],
    )
    assert found == [add.replace("-", "+"), method.replace("-", "+"), None, None, None]
    assert fitting_mutants(backend, [(add, "f", [])]) == [None]
