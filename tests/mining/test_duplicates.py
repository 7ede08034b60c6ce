"""The same code under other names does not cross the split."""

from __future__ import annotations

import ast
from collections.abc import Callable

from envkit.mining.duplicates import THRESHOLD, fingerprint, resembling, similarity
from envkit.mining.package_functions import package_functions

ONE = '''
def total(items: list[int], start: int = 0) -> int:
    """Adds."""
    result = start
    for item in items:
        if item > 0 and item % 2 == 0:
            result += item
    return result
'''
RENAMED = """
def gather(values, base=0):
    acc = base
    for v in values:
        if v > 0 and v % 2 == 0:
            acc += v
    return acc
"""
OTHER = """
def total(items):
    seen = set()
    return [item for item in items if not (item in seen or seen.add(item))]
"""


def likeness(one: str, other: str) -> float:
    shapes = [fingerprint(node) for node in ast.parse(one + other).body if isinstance(node, ast.FunctionDef)]
    return similarity(*shapes)


def test_names_annotations_and_docstrings_do_not_matter() -> None:
    assert likeness(ONE, RENAMED) == 1


def test_a_small_change_does_not_hide_a_copy() -> None:
    assert THRESHOLD < likeness(ONE, RENAMED.replace("return acc", "return acc or base")) < 1


def test_other_code_is_other_code() -> None:
    assert likeness(ONE, OTHER) < 0.3
    assert likeness(ONE, ONE.replace("item % 2", "len(item)")) < 1


def test_copies_of_held_out_functions_are_recognised(install: Callable[..., None]) -> None:
    call = '    """Does.\n\n    >>> {}([1, 2])\n    2\n    """\n'
    held = RENAMED.replace("    acc = base", call.format("gather") + "    acc = base")
    copied = ONE.replace('    """Adds."""\n', call.format("total"))
    new = OTHER.replace("def total(items):\n", "def distinct(items):\n" + call.format("distinct"))
    install("held-out", "1", {"held_out/__init__.py": held})
    install("training", "1", {"training/__init__.py": copied + new})
    resembles = resembling(["held-out"])
    assert {one.slice.function: resembles(one) for one in package_functions("training")} == {
        "total": True,
        "distinct": False,
    }


def test_a_held_out_function_itself_would_be_recognised() -> None:
    resembles = resembling(["toolz"])
    assert all(resembles(one) for one in package_functions("toolz"))
