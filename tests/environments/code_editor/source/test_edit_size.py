"""The size of an edit in tokens, and edits that do not count."""

from __future__ import annotations

import pytest

from envkit.environments.code_editor.source.dependencies import statement_texts
from envkit.environments.code_editor.source.edit_size import _common, _tokens, changed_tokens

CODE = """\
def total(values, start=0):
    result = start
    for value in values:
        result += value
    return result
"""


@pytest.mark.parametrize(
    ("old", "new", "tokens"),
    [
        ("+= value", "-= value", 1),
        ("+= value", "+= value * 2", 2),
        ("start=0", "start=1", 1),
        ("return result", "return start", 1),
        ("        result += value\n", "        return\n", 4),
        # Unchanged tokens between two changes count.
        ("    for value in values:\n        result +=", "    for result in values:\n        result -=", 7),
        # A line moved into the loop.
        ("    return result", "        return result", 1),
    ],
)
def test_the_size_is_the_tokens_between_first_and_last_change(old: str, new: str, tokens: int) -> None:
    edited = CODE.replace(old, new)
    assert changed_tokens(CODE, edited) == changed_tokens(edited, CODE) == tokens


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("values", "values"),
        ("    result = start\n", "    # the sum so far\n\n    result = start  # here\n"),
        ("    result = start\n", '    """All of them."""\n    result  =  start\n'),
        ("    result = start\n", "    result: int = start\n"),
        ("(values, start=0)", "(values: list[int], start: int = 0) -> int"),
        ("    ", "        "),
        ("    result = start\n", "    (result) = \\\n start;\n    pass\n"),
        ("start=0", "start=0,"),
    ],
)
def test_comments_and_layout_do_not_count(old: str, new: str) -> None:
    assert changed_tokens(CODE, CODE.replace(old, new)) == 0


@pytest.mark.parametrize(
    "source", ["(" * 100_000, "-" * 100_000 + "1", "x = " + "1 + " * 60_000 + "1", "\0", "def f(:"]
)
def test_invalid_code_is_not_measured(source: str) -> None:
    assert changed_tokens(CODE, source) is None
    assert changed_tokens(source, CODE) is None


def test_only_changed_statements_are_written_out() -> None:
    """Equal statements at both ends change nothing, even if there are very many."""
    many = "".join(f"x{number} = [{number}, {number}]\n" for number in range(6_000))
    assert changed_tokens(many + CODE + many, many + CODE.replace("+= value", "-= value") + many) == 1
    assert changed_tokens(many, many + many) is None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("b = 2", "def f():\n    return 1\nb = 2"),
        ("b = 2", "@a\nclass A:\n    pass"),
        ("def f(): return 1\nb = 2", "b = 2"),
        ("b = 2\nb = 2", "b = 2"),
        ("b = 2", "b = 3; c = 4"),
        ("'a'\nb = 2", "b = 2"),
        ("", "import b"),
    ],
)
@pytest.mark.parametrize(
    "frame", ["{}\n", "a = 1\n{}\n", "{}\nz = 9\n", "def g():\n    pass\n{}\nclass Z: a\n"]
)
def test_leaving_out_equal_statements_does_not_change_the_size(old: str, new: str, frame: str) -> None:
    before, after = frame.format(old), frame.format(new)
    some, others = ([*statement_texts(text)] for text in (before, after))
    tokens, others_tokens = _tokens(some), _tokens(others)
    same = _common(tokens, others_tokens)
    end = min(_common(tokens[::-1], others_tokens[::-1]), min(len(tokens), len(others_tokens)) - same)
    assert changed_tokens(before, after) == max(len(tokens), len(others_tokens)) - same - end
