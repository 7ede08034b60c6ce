"""Slips break a function: it no longer parses, or names something unknown."""

from __future__ import annotations

import ast

import pytest

from envkit.environments.code_editor.mining.bugs import bugs_by_id, slipped_bugs
from envkit.environments.code_editor.mining.mutations.mutate import is_python, mutations
from envkit.environments.code_editor.mining.mutations.slips import NAME, SYNTAX, slips

SOURCE = '''\
LIMIT = 3


def pick(items, count=None):
    """Pick (some) items."""
    kept = []
    for index, item in enumerate(items):  # all
        if index == count and kept:
            break
        elif index < LIMIT:
            kept.append(item[0])
    return {"kept": kept, "all": None}
'''


@pytest.mark.parametrize(
    ("operator", "before", "after"),
    [
        (SYNTAX, "for index, item in enumerate(items):  # all", "for index, item in enumerate(items)  # all"),
        (SYNTAX, "for index, item in enumerate(items):  # all", "for index, item in enumerate(items:  # all"),
        (SYNTAX, "if index == count and kept:", "if index = count and kept:"),
        (SYNTAX, "if index == count and kept:", "if index == count && kept:"),
        (SYNTAX, "elif index < LIMIT:", "else if index < LIMIT:"),
        (SYNTAX, "kept.append(item[0])", "kept.append(item[0)"),
        (SYNTAX, 'return {"kept": kept, "all": None}', 'return {"kept: kept, "all": None}'),
        (NAME, 'return {"kept": kept, "all": None}', 'return {"kept": kept, "all": null}'),
        (NAME, "kept.append(item[0])", "kept.apepnd(item[0])"),
        (NAME, "elif index < LIMIT:", "elif index < LMIIT:"),
    ],
)  # fmt: skip
def test_a_token_is_left_out_or_foreign_and_a_name_is_misspelt(
    operator: str, before: str, after: str
) -> None:
    found = slips(SOURCE, "pick")
    assert (operator, before, after) in {
        (one.operator, one.before_line.strip(), one.after_line.strip()) for one in found
    }


def test_a_line_is_indented_wrongly() -> None:
    moved = {
        one.after_line for one in slips(SOURCE, "pick") if one.before_line.strip() == one.after_line.strip()
    }
    assert {"        break", "   kept = []", "        kept = []"} <= moved


def test_only_syntax_errors_do_not_parse_and_docstring_and_comments_stay() -> None:
    found = slips(SOURCE, "pick")
    assert {one.operator for one in found} == {SYNTAX, NAME}
    texts = [one.apply(SOURCE) for one in found]
    assert len({*texts, SOURCE}) == len(found) + 1
    for one, text in zip(found, texts, strict=True):
        assert is_python(text) == (one.operator == NAME)
        assert '    """Pick (some) items."""\n' in text
        assert "# all" in text
        if one.operator == NAME:  # nothing is renamed where it is defined
            defined = {node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}
            assert {"kept", "index", "item"} <= defined


def test_slips_stand_alone_and_beside_other_bugs_and_are_made_again_from_their_ids() -> None:
    made = slipped_bugs(slips(SOURCE, "pick"), mutations(SOURCE, "pick"), SOURCE, 9, "seed")
    assert {bug.operator for bug in made} == {SYNTAX, NAME, "2 bugs", "3 bugs"}
    assert len({bug.text for bug in made}) == 9
    assert made == slipped_bugs(slips(SOURCE, "pick"), mutations(SOURCE, "pick"), SOURCE, 9, "seed")
    assert bugs_by_id(SOURCE, "pick", [bug.id for bug in made]) == {bug.id: bug for bug in made}
    assert slipped_bugs([], mutations(SOURCE, "pick"), SOURCE, 9, "seed") == []


def test_a_function_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="no module-level function 'f'"):
        slips(SOURCE, "f")
