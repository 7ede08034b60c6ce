"""Bugs of a function: one mutation, several, or no body."""

from __future__ import annotations

import pytest

from envkit.environments.code_editor.mining.bugs import bug_of, bugs_by_id, several_bugs, unwritten
from envkit.environments.code_editor.mining.mutations.mutate import mutations

SOURCE = '''\
import math


def before():
    return 1


@staticmethod
def mean(items: list[float]) -> float:
    """The mean. # not the body"""
    # A comment that goes with the body.
    total = 0
    for item in items:
        total = total + item
    if total > 0:
        return total / len(items)
    return 0  # é


def after(): return 2
'''


def test_several_mutations_are_made_together_each_on_its_own_line() -> None:
    known = mutations(SOURCE, "mean")
    made = several_bugs(known, SOURCE, 6, "seed")
    assert len({bug.text for bug in made}) == 6
    assert {bug.operator for bug in made} == {"2 bugs", "3 bugs"}
    by_id = {bug_of([one], SOURCE).id: one for one in known}
    for bug in made:
        parts = [by_id[name] for name in bug.id.split("+")]
        assert len({part.line for part in parts}) == len(parts) == int(bug.operator[0])
        changed = [
            one for one, other in zip(SOURCE.split("\n"), bug.text.split("\n"), strict=False) if one != other
        ]
        assert len(changed) >= len(parts) or len(SOURCE.split("\n")) != len(bug.text.split("\n"))
        assert bug_of(parts[::-1], SOURCE) == bug
    assert several_bugs(known, SOURCE, 6, "seed") == made != several_bugs(known, SOURCE, 6, "other")


def test_too_few_mutations_give_no_combination() -> None:
    [only] = mutations("def f(a):\n    return a + 1.5\n", "f")[:1]
    assert several_bugs([only], "def f(a):\n    return a + 1.5\n", 3, "seed") == []


def test_a_function_loses_its_body_and_keeps_its_docstring() -> None:
    bug = unwritten(SOURCE, "mean")
    assert bug is not None
    head, tail = SOURCE.index("    # A comment"), SOURCE.index("  # é")
    kept, _, rest = bug.text.partition("raise NotImplementedError")
    assert kept == SOURCE[:head] + "    # A comment that goes with the body.\n    "
    assert rest == SOURCE[tail:]
    assert SOURCE.encode()[bug.start_byte : bug.end_byte].decode().startswith("total = 0")
    assert bug.operator == "write"


def test_a_body_that_is_a_docstring_alone_is_replaced() -> None:
    bug = unwritten("def f():\n    'One.'\n", "f")
    assert bug is not None
    assert bug.text == "def f():\n    raise NotImplementedError\n"


def test_a_body_on_the_def_line_is_left_alone() -> None:
    assert unwritten(SOURCE, "after") is None
    with pytest.raises(ValueError, match="no module-level function 'nowhere'"):
        unwritten(SOURCE, "nowhere")


def test_bugs_are_made_again_from_their_ids() -> None:
    known = mutations(SOURCE, "mean")
    whole = unwritten(SOURCE, "mean")
    assert whole is not None
    wanted = [bug_of(known[:1], SOURCE), *several_bugs(known, SOURCE, 3, "seed"), whole]
    names = [bug.id for bug in wanted]
    assert bugs_by_id(SOURCE, "mean", [*names, "constant-000000", f"{names[0]}+constant-000000"]) == dict(
        zip(names, wanted, strict=True)
    )
