"""Rules for the strings of one argument: length, format, balanced brackets."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

from envkit.environments.code_editor.inputs.rules.rule import ArgKey, Rule, cells
from envkit.environments.code_editor.inputs.shapes import form

#: Digits of the numbers in dates and times.
_WIDTH = 2


def text_rules(key: ArgKey, seen: Sequence[Any]) -> Iterator[Rule]:
    """Candidate rules for a string, or for nested lists of strings.

    Args:
        key: the argument.
        seen: its values in the examples.
    """
    known: list[str] = [text for value in seen for text in cells(value)]

    def each(name: str, good: Callable[[str], bool]) -> Rule:
        return Rule(f"{name}: {key}", lambda arguments: all(map(good, cells(arguments[key]))))

    yield each("not empty", lambda text: text != "")
    yield each("single spaces", lambda text: "  " not in text and text == text.strip())
    yield each("no leading zeros", lambda text: not text.isdigit() or str(int(text)) == text)
    forms, steps = {form(text) for text in known}, {step for text in known for step in _steps(text)}
    if 2 * len(forms) <= len(known) and not "".join(known).isalnum():
        yield each("written alike", lambda text: form(text) in forms)
        yield from (each(f"number {index} in range", good) for index, good in enumerate(_in_range(known)))
    classes = {one for step in steps for one in step}
    if len(classes - {"^", "$"}) > 1 and classes & {"a", "0"}:
        yield each("steps from character to character", lambda text: all(s in steps for s in _steps(text)))
    lengths = {len(text) for text in known}
    if len(lengths) == 1 and len(known) > (3 if lengths == {1} else 2):
        yield each("as long", lambda text: len(text) in lengths)
    if any(bracket in text for text in known for bracket in "([{"):
        yield each("balanced", _balanced)


def _steps(text: str) -> list[str]:
    """Pairs of neighbouring character classes, ends included, such as an operator between numbers."""
    classes = ["^", *("a" if c.isalpha() else "0" if c.isdigit() else c for c in text), "$"]
    return [f"{one}{other}" for one, other in pairwise(classes)]


def _in_range(known: Sequence[str]) -> list[Callable[[str], bool]]:
    """For dates and times: each two-digit number stays in the range seen at its position."""
    numbers = [re.findall(r"\d+", text) for text in known]
    if not numbers[0] or len({len(found) for found in numbers}) > 1:
        return []

    def within(index: int, low: int, high: int) -> Callable[[str], bool]:
        def good(text: str) -> bool:
            number = re.findall(r"\d+", text)[index]
            return len(number) == _WIDTH and low <= int(number) <= high

        return good

    columns = enumerate(zip(*numbers, strict=True))
    return [
        within(index, min(map(int, column)), max(map(int, column)))
        for index, column in columns
        if len({len(number) for number in column}) == 1 and len(column[0]) == _WIDTH
    ]


def _balanced(text: str) -> bool:
    opened: list[str] = []
    for character in text:
        if character in "([{":
            opened.append(")]}"["([{".index(character)])
        elif character in ")]}" and (not opened or opened.pop() != character):
            return False
    return not opened
