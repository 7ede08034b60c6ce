"""Grading of methods, leniency in comparing answers, and calls that end the reference process."""

from __future__ import annotations

import re
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Sequence

import pytest

from envkit.env.compare import STRICT, Leniency, NumericPolicy
from envkit.env.grade import Grade
from envkit.environments.code_editor.graders.oracle import (
    Answer,
    Program,
    Questions,
    answerable,
    answers,
    grade,
    same,
)
from envkit.environments.code_editor.inputs.call import Call
from envkit.sandbox import Limits, SandboxBackend
from envkit.sandbox.programs.worker import encode
from envkit.types import JSON, Verdict

LIMITS = Limits(cpu_s=1.0, wall_s=5.0, memory_bytes=128 * 2**20, processes=8, output_bytes=2**18)
RIGHT = """\
class Counter:
    def __init__(self):
        self.seen = []

    def count(self, items):
        self.seen += items
        return len(self.seen)
"""
CALLS = (Call(("[1, 2]",)), Call(("[3]",)), Call((), {"items": "[]"}))
EXPECTED = (Answer(2, [[1, 2]]), Answer(1, [[3]]), Answer(0, [[]]))


def subject(source: str, function: str = "Counter.count") -> Program:
    return Program({"solution.py": source.encode()}, "solution.py", function)


def judge(backend: SandboxBackend, source: str, leniency: Leniency | None = None) -> Grade:
    chosen = leniency or Leniency()
    return grade(backend, subject(source), Questions(CALLS, EXPECTED), limits=LIMITS, leniency=chosen)


def test_every_call_of_a_method_gets_a_new_instance(backend: SandboxBackend) -> None:
    assert answers(backend, subject(RIGHT), CALLS) == list(EXPECTED)
    assert judge(backend, RIGHT).verdict is Verdict.PASS


def test_a_method_call_is_shown_as_source_code() -> None:
    assert Call(("[1]",), {"k": "2"}).source("Counter.count") == "Counter().count([1], k=2)"
    assert Call(("1",)).source("count") == "count(1)"


SHARED = RIGHT.replace("        self.seen = []", "        pass").replace(
    "class Counter:", "class Counter:\n    seen = []"
)
WRONG = {
    "state in the class": SHARED,
    "wrong answer": RIGHT.replace("len(self.seen)", "len(self.seen) + 1"),
    "raises in the call": RIGHT.replace("len(self.seen)", "self.nothing"),
    "raises in the constructor": RIGHT.replace("self.seen = []", "raise ValueError"),
    "needs arguments": RIGHT.replace("__init__(self)", "__init__(self, size)"),
    "no such method": RIGHT.replace("def count", "def counts"),
    "no such class": RIGHT.replace("class Counter", "class Counted"),
    "changes the argument": RIGHT.replace("return", "items.append(0)\n        return"),
}


@pytest.mark.parametrize("source", WRONG.values(), ids=WRONG.keys())
def test_wrong_methods_fail(backend: SandboxBackend, source: str) -> None:
    assert source != RIGHT
    found = judge(backend, source)
    assert found.verdict is Verdict.FAIL, found.evidence
    assert "Counter" in found.evidence or "does not load" in found.evidence


def test_state_kept_on_the_class_makes_later_calls_fail(backend: SandboxBackend) -> None:
    found = judge(backend, SHARED)
    assert found.passed == 1
    assert re.search(r"gave [23], expected [12]", found.evidence), found.evidence  # calls come in any order


def test_changed_arguments_fail_unless_leniency_ignores_them(backend: SandboxBackend) -> None:
    changing = RIGHT.replace("return", "items.clear()\n        return")
    assert judge(backend, changing).verdict is Verdict.FAIL
    assert judge(backend, changing, Leniency(arguments=False)).verdict is Verdict.PASS
    # If the call returns None, the changed arguments are its answer and still count.
    in_place = Answer(None, [[1, 2]])
    assert not same(in_place, Answer(None, [[2, 1]]), leniency=Leniency(arguments=False))


TUPLE: JSON = {"t": "tuple", "v": [3, {"t": "tuple", "v": [2, 1]}]}


@pytest.mark.parametrize(
    ("one", "other", "leniency", "expected"),
    [
        ([1, 2], [2, 1], Leniency(), False),
        ([1, 2], [2, 1], Leniency(any_order=1), True),
        ([1, 2], [2, 2], Leniency(any_order=1), False),
        ([[1, 2], [3]], [[3], [2, 1]], Leniency(any_order=1), False),
        ([[1, 2], [3]], [[3], [2, 1]], Leniency(any_order=2), True),
        (TUPLE, [3, [2, 1]], Leniency(), False),
        (TUPLE, [3, [2, 1]], Leniency(sequences=True), True),
        (TUPLE, [[2, 1], 3], Leniency(any_order=1, sequences=True), True),
        ({"t": "set", "v": [1]}, [1], Leniency(sequences=True), False),
        (encode({1, 2}), encode((2, 1)), Leniency(any_order=1, sequences=True), True),
        (encode({1, 2}), encode((2, 1, 2)), Leniency(any_order=1, sequences=True), False),
        (encode({1, 2}), encode((2, 1, 2)), Leniency(any_order=1, repeats=False, sequences=True), True),
        (encode({1, 2}), encode((2, 1, 3)), Leniency(any_order=1, repeats=False, sequences=True), False),
        ([[1], [1, 1]], [[1, 1], [1]], Leniency(any_order=2, repeats=False), True),
        ([[1]], [[1, 1]], Leniency(any_order=2, repeats=False), False),
        (encode(Counter("aab")), encode({"b": 1, "a": 2}), Leniency(), False),
        (encode(Counter("aab")), encode({"b": 1, "a": 2}), Leniency(mappings=True), True),
        (encode(OrderedDict(b=1, a=2)), encode(defaultdict(int, a=2, b=1)), Leniency(mappings=True), True),
        (encode(Counter("aab")), encode({"b": 1, "a": 1}), Leniency(mappings=True), False),
        (encode([Counter("a")]), encode([{"a": 1}]), Leniency(mappings=True), True),
        (encode({}), [], Leniency(mappings=True), False),
        (encode({"x": Counter("a")}), encode({"x": {"a": 1}}), Leniency(mappings=True), True),
        (encode({"x": Counter("a")}), encode({"x": {"a": 1}}), Leniency(sequences=True), False),
        (encode((Counter("a"), 2)), encode(({"a": 1}, 2)), Leniency(mappings=True), True),
        (encode({"a": [1, 2]}), encode({"a": (1, 2)}), Leniency(sequences=True), True),
        (encode({"a": [1, 2]}), encode({"a": [2, 1]}), Leniency(any_order=2, sequences=True), False),
        ({"t": "dict", "v": [7]}, {"t": "dict", "v": [[7, 8, 9]]}, Leniency(mappings=True), False),
        (None, [], Leniency(any_order=1, sequences=True), False),
    ],
)
def test_leniency(one: JSON, other: JSON, leniency: Leniency, expected: bool) -> None:
    assert same(Answer(one), Answer(other), leniency=leniency) is expected
    assert same(Answer(other), Answer(one), leniency=leniency) is expected


ROUNDED = encode([9.999999999999, 5.0])


@pytest.mark.parametrize(
    ("one", "other", "policy", "expected"),
    [
        ([1, 2], encode([1.0, 2]), NumericPolicy(int_as_float=True), True),
        ([2, 10], encode([10.0, 2.0]), NumericPolicy(int_as_float=True), True),
        ([1, 2], encode([1.0, 2]), STRICT, False),
        (encode([1, 1.0]), encode([1.0, 1]), STRICT, True),
        (ROUNDED, encode([10.0, 5.0]), STRICT, True),
        (encode([(9.999999999999, 1), (5.0, 2)]), encode([(10.0, 1), (5.0, 2)]), STRICT, True),
        (ROUNDED, encode([10.0, 5.1]), STRICT, False),
        (encode([float("nan"), 1.0, 0.5]), encode([0.5, float("nan"), 1.0]), STRICT, True),
    ],
)
def test_equal_numbers_match_in_any_order(
    one: JSON, other: JSON, policy: NumericPolicy, expected: bool
) -> None:
    for left, right in ((one, other), (other, one)):
        assert same(Answer(left), Answer(right), policy, Leniency(any_order=1)) is expected


def test_a_deeply_nested_answer_compares_as_wrong_without_raising() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    assert not same(Answer([1]), Answer(deep), leniency=Leniency(any_order=1, sequences=True))  # type: ignore[arg-type]


EXITS_OR_UNCOMPARABLE = (
    "import os\ndef f(n):\n    if n % 3 == 2:\n        os._exit(0)\n    return {0: n, 1: object()}[n % 3]\n"
)


def calls(numbers: Sequence[int]) -> list[Call]:
    return [Call((str(number),)) for number in numbers]


def test_calls_that_end_the_reference_process_are_left_out(backend: SandboxBackend) -> None:
    kept, found = answerable(backend, subject(EXITS_OR_UNCOMPARABLE, "f"), calls(range(8)))
    # 2 and 5 end the program; 1, 4 and 7 return values that cannot be compared.
    assert kept == calls([0, 3, 6])
    assert [answer.value for answer in found] == [0, 3, 6]


def test_after_too_many_deaths_the_remaining_calls_are_left_out(backend: SandboxBackend) -> None:
    kept, _ = answerable(backend, subject(EXITS_OR_UNCOMPARABLE, "f"), calls([3, 2, 5, 6, 8, 9]), deaths=2)
    assert kept == calls([3, 6])
    assert answerable(backend, subject("def f(:", "f"), calls([1, 2])) == ([], [])


def test_deeply_nested_changed_arguments_compare_without_raising() -> None:
    deep: JSON = 1
    for _ in range(20_000):
        deep = [deep]
    want, got = (Answer(1, [{"t": "set", "v": [item]}]) for item in (1, deep))
    assert not same(want, got)
