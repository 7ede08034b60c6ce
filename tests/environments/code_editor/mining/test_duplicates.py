"""Functions that resemble held-out ones are recognised, even if renamed."""

from __future__ import annotations

import ast
from collections.abc import Callable

from envkit.environments.code_editor.mining.duplicates import (
    THRESHOLD,
    fingerprint,
    fingerprints_of,
    is_near,
    similarity,
)
from envkit.environments.code_editor.mining.package_functions import package_functions
from envkit.environments.code_editor.tasksets import fetch_packages, pinned_packages
from envkit.runtime.display import Silent

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


def similarity_of(one: str, other: str) -> float:
    shapes = [fingerprint(node) for node in ast.parse(one + other).body if isinstance(node, ast.FunctionDef)]
    return similarity(*shapes)


def test_names_annotations_and_docstrings_do_not_change_the_similarity() -> None:
    assert similarity_of(ONE, RENAMED) == 1


def test_a_copy_with_a_small_change_is_above_the_threshold() -> None:
    assert THRESHOLD < similarity_of(ONE, RENAMED.replace("return acc", "return acc or base")) < 1


def test_different_code_has_a_low_similarity() -> None:
    assert similarity_of(ONE, OTHER) < 0.3
    assert similarity_of(ONE, ONE.replace("item % 2", "len(item)")) < 1


def test_copies_of_held_out_functions_are_recognised(install: Callable[..., None]) -> None:
    call = '    """Does.\n\n    >>> {}([1, 2])\n    2\n    """\n'
    held = RENAMED.replace("    acc = base", call.format("gather") + "    acc = base")
    copied = ONE.replace('    """Adds."""\n', call.format("total"))
    new = OTHER.replace("def total(items):\n", "def distinct(items):\n" + call.format("distinct"))
    install("held-out", "1", {"held_out/__init__.py": held})
    install("training", "1", {"training/__init__.py": copied + new})
    known = fingerprints_of({"held-out": "1"})
    found = package_functions("training")
    assert {one.slice.function: is_near(fingerprint(one.slice.node), known) for one in found} == {
        "total": True,
        "distinct": False,
    }


def test_held_out_functions_are_recognised_themselves() -> None:
    fetch_packages(Silent())
    version = pinned_packages()["toolz"]
    known = fingerprints_of({"toolz": version})
    functions = package_functions("toolz", version=version)
    assert all(is_near(fingerprint(one.slice.node), known) for one in functions)
