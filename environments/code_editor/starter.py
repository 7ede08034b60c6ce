"""The starter tasks: a dozen small functions with one bug each, available without mining."""

from __future__ import annotations

import doctest
import inspect
import re
from collections.abc import Callable
from typing import Any

from envkit.env.compare import NumericPolicy
from envkit.env.hidden import to_json
from envkit.environments.code_editor.inputs.doctests import docstring_calls, modules_of
from envkit.environments.code_editor.mining.build import SOLUTION, edit_between
from envkit.environments.code_editor.mining.hidden import RepairHidden
from envkit.types import Task


def starter_tasks() -> list[Task]:
    """Return one task per entry of `_BUGS`, in the form of mined tasks."""
    return [_task(*bug) for bug in _BUGS]


def _task(function: Callable[..., Any], operator: str, right: str, wrong: str) -> Task:
    docstring, name = inspect.getdoc(function) or "", function.__name__
    # Without the docstring's examples, which the agent gets as example calls.
    reference = re.sub(r"\n\n +>>>.*?\"\"\"", '"""', inspect.getsource(function), flags=re.DOTALL)
    mutant = reference.replace(right, wrong, 1)
    examples = doctest.DocTestParser().get_examples(docstring)
    calls = docstring_calls(docstring, name)
    return Task(
        id=f"starter/{name}",
        split="train",
        prompt="",
        files={SOLUTION: mutant},
        metadata={
            "package": "envkit",
            "version": "starter-1",
            "function": name,
            "operator": operator,
            "source": f"starter:{name}",
            "examples": [{"call": item.source.strip(), "value": item.want.strip()} for item in examples],
        },
        hidden=to_json(
            RepairHidden(
                reference=reference,
                function=name,
                modules=modules_of(calls),
                examples=tuple(calls),
                killers=tuple(calls),
                policy=NumericPolicy(),
                edit=edit_between(mutant, reference),
            )
        ),
    )


def rotated(items: list[int], steps: int) -> list[int]:
    """Move the first ``steps`` items to the end; more steps than items go round again.

    >>> rotated([1, 2, 3, 4], 1)
    [2, 3, 4, 1]
    >>> rotated([1, 2, 3], 4)
    [2, 3, 1]
    """
    if not items:
        return []
    start = steps % len(items)
    return items[start:] + items[:start]


def running_totals(numbers: list[int]) -> list[int]:
    """The sum of the numbers so far, at every place.

    >>> running_totals([3, 1, 4])
    [3, 4, 8]
    >>> running_totals([5, -5, 2, 2])
    [5, 0, 2, 4]
    """
    totals: list[int] = []
    total = 0
    for number in numbers:
        total += number
        totals.append(total)
    return totals


def longest_run(text: str) -> int:
    """How often one character stands in a row, at most.

    >>> longest_run("aabbbc")
    3
    >>> longest_run("abc")
    1
    """
    best = run = 0
    last = ""
    for letter in text:
        run = run + 1 if letter == last else 1
        best = max(best, run)
        last = letter
    return best


def is_leap_year(year: int) -> bool:
    """Whether February has 29 days in that year.

    >>> is_leap_year(2024)
    True
    >>> is_leap_year(1900)
    False
    >>> is_leap_year(2000)
    True
    """
    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)


def median(numbers: list[int]) -> float:
    """The middle number, or the mean of the two in the middle.

    >>> median([5, 1, 3])
    3.0
    >>> median([4, 1, 3, 2])
    2.5
    """
    ordered = sorted(numbers)
    half = len(ordered) // 2
    if len(ordered) % 2 == 1:
        return float(ordered[half])
    return (ordered[half - 1] + ordered[half]) / 2


def brackets_match(text: str) -> bool:
    """Whether every bracket is closed by its partner, inner ones first.

    >>> brackets_match("a(b[c])")
    True
    >>> brackets_match("(]")
    False
    >>> brackets_match("((x)")
    False
    """
    partners = {")": "(", "]": "["}
    opened = []
    for letter in text:
        if letter in "([":
            opened.append(letter)
        elif letter in partners and (not opened or opened.pop() != partners[letter]):
            return False
    return not opened


def digits(number: int, base: int) -> list[int]:
    """The digits of a natural number in a base, the last digit last.

    >>> digits(255, 16)
    [15, 15]
    >>> digits(100, 10)
    [1, 0, 0]
    """
    if number < 0 or base < 2:
        raise ValueError("expected number >= 0 and base >= 2")
    found = [number % base]
    while number >= base:
        number //= base
        found.append(number % base)
    return found[::-1]


def windows(items: list[int], size: int) -> list[list[int]]:
    """All runs of ``size`` neighbours, from left to right.

    >>> windows([1, 2, 3, 4], 2)
    [[1, 2], [2, 3], [3, 4]]
    >>> windows([7, 8, 9], 3)
    [[7, 8, 9]]
    """
    if size < 1:
        raise ValueError("expected size >= 1")
    return [items[start : start + size] for start in range(len(items) - size + 1)]


def overlap(first: tuple[int, int], second: tuple[int, int]) -> int:
    """How long two spans, each from start to end, run side by side.

    >>> overlap((0, 10), (5, 20))
    5
    >>> overlap((0, 3), (4, 8))
    0
    """
    start = max(first[0], second[0])
    end = min(first[1], second[1])
    return max(0, end - start)


def shifted_letters(text: str, shift: int) -> str:
    """Small letters moved along the alphabet, from z on to a; all else as it is.

    >>> shifted_letters("abc xyz", 3)
    'def abc'
    >>> shifted_letters("Hi", 1)
    'Hj'
    """
    moved = ""
    for letter in text:
        if "a" <= letter <= "z":
            letter = chr((ord(letter) - ord("a") + shift) % 26 + ord("a"))
        moved += letter
    return moved


def winners(scores: dict[str, int]) -> list[str]:
    """Who has the highest score, in alphabetical order.

    >>> winners({"ada": 3, "bob": 5, "cy": 5})
    ['bob', 'cy']
    >>> winners({"ada": 1})
    ['ada']
    """
    if not scores:
        return []
    best = max(scores.values())
    return sorted(name for name, score in scores.items() if score == best)


def merged(left: list[int], right: list[int]) -> list[int]:
    """Two sorted lists as one sorted list.

    >>> merged([1, 4], [2, 3, 5])
    [1, 2, 3, 4, 5]
    >>> merged([], [1])
    [1]
    """
    joined: list[int] = []
    at = other = 0
    while at < len(left) and other < len(right):
        if left[at] <= right[other]:
            joined.append(left[at])
            at += 1
        else:
            joined.append(right[other])
            other += 1
    return joined + left[at:] + right[other:]


#: Function, kind of mutation, correct text (its first occurrence), wrong text.
_BUGS = (
    (rotated, "arithmetic", "steps % len(items)", "steps // len(items)"),
    (running_totals, "statement", "total += number", "total = number"),
    (longest_run, "constant", "else 1", "else 0"),
    (is_leap_year, "boolean", "!= 0 or year", "!= 0 and year"),
    (median, "index", "ordered[half - 1]", "ordered[half + 1]"),
    (brackets_match, "negation", "return not opened", "return bool(opened)"),
    (digits, "comparison", "number >= base", "number > base"),
    (windows, "constant", "size + 1)", "size)"),
    (overlap, "arguments", "end - start", "start - end"),
    (shifted_letters, "arithmetic", "+ shift", "- shift"),
    (winners, "comparison", "score == best", "score != best"),
    (merged, "variable", "joined.append(right[other])", "joined.append(right[at])"),
)
