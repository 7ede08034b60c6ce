"""Grading at edges: repairs that are wrong there fail, and what an original promises is all that it asks."""

from __future__ import annotations

from typing import Any

import pytest

from envkit import SandboxBackend, Task
from envkit.environments.code_editor.env import FRESH_CALLS, grader_for
from envkit.environments.code_editor.graders.calls import CallGrader
from envkit.errors import BrokenTask
from envkit.types import Verdict

POLICY = {"rel_tol": 1e-9, "abs_tol": 1e-12, "int_as_float": False}


def grader_of(function: str, right: str, wrong: str, *examples: list[str], prompt: str = "") -> CallGrader:
    calls = [[each, {}] for each in examples]
    hidden: dict[str, Any] = {
        "function": function,
        "reference": right,
        "modules": [],
        "examples": calls,
        "killers": calls[:1],
        "edit": {"search": "", "replace": ""},
        "policy": POLICY,
    }
    grader = grader_for(Task("own/task", "train", prompt, {"solution.py": wrong}, {"examples": []}, hidden))
    assert isinstance(grader, CallGrader)
    return grader


def verdicts(grader: CallGrader, source: str, backend: SandboxBackend) -> set[Verdict]:
    return {grader.grade(source.encode(), backend, FRESH_CALLS, seed).verdict for seed in range(3)}


BITCOUNT = """\
def bits(n):
    count = 0
    while n > 0:
        n &= n - 1
        count += 1
    return count
"""
FLATTEN = """\
def flat(a):
    for x in a:
        if isinstance(x, list):
            yield from flat(x)
        else:
            yield x
"""
TWO_LEVELS = """\
def flat(a):
    for x in a:
        if isinstance(x, list):
            for y in x:
                if isinstance(y, list):
                    yield from y
                else:
                    yield y
        else:
            yield x
"""
JOINED = "def joined(words):\n    return ''.join(words)\n"
SHOUT = "def shout(text):\n    return text.upper()\n"
LONGEST = """\
def longest(words):
    best = ""
    for word in words:
        if len(word) > len(best):
            best = word
    return best
"""


@pytest.mark.parametrize(
    ("function", "right", "wrong", "examples"),
    [
        ("bits", BITCOUNT, BITCOUNT.replace("return count", "return min(count, 16)"), [["127"], ["13"]]),
        ("bits", BITCOUNT, BITCOUNT.replace("return count", "return count or 1"), [["127"], ["13"]]),
        ("bits", BITCOUNT, "def bits(n):\n    return bin(n).count('1')\n", [["127"], ["13"]]),
        ("flat", FLATTEN, TWO_LEVELS, [["[1, [2, [3]], 4]"], ["[[], [[5]]]"]]),
        ("joined", JOINED, JOINED.replace("(words)\n", "(words[:50])\n"), [["['a', 'bcd', 'ef']"]]),
        ("longest", LONGEST, LONGEST.replace('""', "words[0]"), [["['a', 'bcd', 'ef']"]]),
        (
            "shout",
            SHOUT,
            SHOUT.replace("text.upper()", "text.encode('ascii', 'ignore').decode().upper()"),
            [["'ab c'"]],
        ),
    ],
)
def test_repairs_that_are_wrong_at_an_edge_fail(
    function: str, right: str, wrong: str, examples: list[list[str]], backend: SandboxBackend
) -> None:
    grader = grader_of(function, right, "", *examples)
    assert verdicts(grader, right, backend) == {Verdict.PASS}
    assert verdicts(grader, wrong, backend) == {Verdict.FAIL}


def test_confirming_calls_are_new_and_each_seed_draws_its_own(backend: SandboxBackend) -> None:
    grader = grader_of("longest", LONGEST, "", ["['a', 'bcd', 'ef']"])
    parts = grader.asked(backend, FRESH_CALLS, 4)
    first, second = ({call.source("") for call in part.calls} for part in parts)
    assert first
    assert second
    assert first.isdisjoint(second)
    other = {call.source("") for call in grader.asked(backend, FRESH_CALLS, 5)[0].calls}
    assert len(other & first) < len(other) / 2
    again = grader_of("longest", LONGEST, "", ["['a', 'bcd', 'ef']"])
    assert again.asked(backend, FRESH_CALLS, 4) == parts


SQRT = """\
def root(x, epsilon):
    approx = x / 2
    for _ in range(60):
        if abs(x - approx ** 2) <= epsilon:
            break
        approx = 0.5 * (approx + x / approx)
    return approx
"""


def test_an_answer_within_the_asked_tolerance_is_right(backend: SandboxBackend) -> None:
    wrong = SQRT.replace("0.5 *", "0.6 *")
    grader = grader_of("root", SQRT, wrong, ["2", "0.01"], ["27", "0.001"], ["9", "0.05"])
    assert verdicts(grader, SQRT, backend) == {Verdict.PASS}
    other = "def root(x, epsilon):\n    return x ** 0.5 if x > 0 else original(x, epsilon)\n"
    other = f"{SQRT.replace('def root', 'def original')}\n\n{other}"
    assert verdicts(grader, other, backend) == {Verdict.PASS}
    assert verdicts(grader, wrong, backend) == {Verdict.FAIL}
    assert verdicts(grader, "def root(x, epsilon):\n    return x ** 0.5 + 0.3\n", backend) == {Verdict.FAIL}


SUBSETS = '''\
def subsets(arr):
    """All subsets of a list."""
    if not arr:
        return [[]]
    rest = subsets(arr[1:])
    return rest + [[arr[0]] + each for each in rest]
'''


def test_subsets_come_in_any_order(backend: SandboxBackend) -> None:
    wrong = SUBSETS.replace("return rest + ", "return ")
    grader = grader_of("subsets", SUBSETS, wrong, ["['a', 'b', 'c']"], ["['x', 'y']"])
    turned = SUBSETS.replace(
        "rest + [[arr[0]] + each for each in rest]", "[[arr[0]] + each for each in rest] + rest"
    )
    assert verdicts(grader, turned, backend) == {Verdict.PASS}
    assert verdicts(grader, wrong, backend) == {Verdict.FAIL}


def test_an_order_that_the_bug_changes_counts(backend: SandboxBackend) -> None:
    turned = SUBSETS.replace(
        "rest + [[arr[0]] + each for each in rest]", "[[arr[0]] + each for each in rest] + rest"
    )
    grader = grader_of("subsets", SUBSETS, turned, ["['a', 'b', 'c']"], ["['x', 'y']"])
    assert verdicts(grader, turned, backend) == {Verdict.FAIL}


def test_edges_that_the_original_rejects_are_not_asked(backend: SandboxBackend) -> None:
    right = "def third(items):\n    return items[2]\n"
    grader = grader_of("third", right, "", ["[4, 5, 6]"], ["[1, 2, 3, 4]"])
    parts = grader.asked(backend, FRESH_CALLS, 0)
    assert all(answer.raises is None for part in parts for answer in part.expected)
    assert verdicts(grader, right.replace("items[2]", "items[2] if len(items) > 2 else None"), backend) == {
        Verdict.PASS
    }


def test_a_tolerance_that_is_a_default_counts(backend: SandboxBackend) -> None:
    right, wrong = SQRT.replace("epsilon):", "epsilon=0.01):"), SQRT.replace("0.5 *", "0.6 *")
    grader = grader_of("root", right, wrong.replace("epsilon):", "epsilon=0.01):"), ["2"], ["27"], ["9"])
    other = right.replace("def root", "def original")
    other += "\n\ndef root(x, epsilon=0.01):\n    return x ** 0.5 if x > 0 else original(x, epsilon)\n"
    assert verdicts(grader, other, backend) == {Verdict.PASS}


def test_what_only_looks_like_a_tolerance_forgives_nothing(backend: SandboxBackend) -> None:
    right = "def rounded(x, accuracy):\n    return round(x, accuracy)\n"
    grader = grader_of("rounded", right, "", ["2.345", "1"], ["7.77777", "3"])
    assert verdicts(grader, right, backend) == {Verdict.PASS}
    assert verdicts(grader, right.replace("round(", "1 + round("), backend) == {Verdict.FAIL}


def test_a_sort_whose_input_has_any_order_must_sort(backend: SandboxBackend) -> None:
    right = "def arranged(items):\n    return sorted(items)\n"
    wrong = right.replace("sorted(items)", "sorted(items)[1:]")
    lists = (["[3, 1, 2]"], ["[9, 4, 6, 1]"], ["[5, 8, 2]"])
    grader = grader_of(
        "arranged", right, wrong, *lists, prompt="Return the items, given in any order, sorted."
    )
    plain = grader_of("arranged", right, wrong, *lists, prompt="Any order will do.")
    for each in (grader, plain):
        assert verdicts(each, right, backend) == {Verdict.PASS}
        assert verdicts(each, "def arranged(items):\n    return list(items)\n", backend) == {Verdict.FAIL}


def test_a_task_whose_telling_calls_are_lost_gives_no_verdict(backend: SandboxBackend) -> None:
    grader = grader_of("third", "def third(items):\n    return items[2]\n", "", ["[4, 5]"], ["[1, 2, 3, 4]"])
    with pytest.raises(BrokenTask, match="no call that exposes the bug"):
        grader.grade(b"", backend, FRESH_CALLS, 0)
