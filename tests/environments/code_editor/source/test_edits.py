"""Edits as pure functions of text: their place, their indentation, and refusals."""

from __future__ import annotations

import re
import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envkit.environments.code_editor.actions import Replace, Rewrite
from envkit.environments.code_editor.source.edits import EditError, apply_replace, apply_rewrite, show_change

SOURCE = """\
def other(a):
    if a:
        return a
    return 0


def f(a):
    \"\"\"Doc.\"\"\"
    if a:
        return a
    return 1


class Stack:
    @property
    def top(self):
        return self.items[0]

    def size(self):
        return len(self.items)
"""


def replaced(old: str, new: str, source: str = SOURCE, focus: str | None = "f") -> str:
    return apply_replace(source, Replace(tuple(old.split("\n")), tuple(new.split("\n"))), focus)


# Replacing lines.


def test_a_line_that_occurs_once_is_replaced() -> None:
    assert replaced("    return 1", "    return 2") == SOURCE.replace("return 1", "return 2")


def test_trailing_blanks_are_ignored() -> None:
    assert replaced("    return 1  ", "    return 2") == SOURCE.replace("return 1", "return 2")


def test_several_lines_can_be_deleted() -> None:
    source = apply_replace(SOURCE, Replace(("    if a:", "        return a", "    return 1"), ()), "f")
    assert source == SOURCE.replace("    if a:\n        return a\n    return 1\n", "")


def test_the_focus_decides_between_equal_lines() -> None:
    changed = replaced("        return a", "        return -a")
    assert changed == SOURCE[:60] + SOURCE[60:].replace("return a", "return -a")
    assert changed.count("return -a") == 1


def test_an_edit_outside_the_focus_is_allowed_if_unique() -> None:
    assert "return 7" in replaced("    return 0", "    return 7")


def test_ambiguous_lines_are_refused_with_their_places() -> None:
    with pytest.raises(EditError, match="stand at lines 3, 10; add a line of context"):
        replaced("        return a", "        return -a", focus=None)
    with pytest.raises(EditError, match="stand at lines 3, 10;"):
        replaced("        return a", "        return -a", focus="size")
    with pytest.raises(EditError, match="stand at lines 2, 4;"):
        replaced("    x = 1", "    x = 2", "def f():\n    x = 1\n    y = 1\n    x = 1\n")


def test_a_line_of_context_makes_a_match_unique() -> None:
    changed = replaced("        return a\n    return 0", "        return -a\n    return 0", focus=None)
    assert changed == SOURCE.replace("return a", "return -a", 1)


def test_missing_lines_are_refused_with_the_nearest_line() -> None:
    with pytest.raises(EditError, match=r"do not stand in the file\. The nearest line is: return 1$"):
        replaced("    return 11", "    return 2")
    with pytest.raises(EditError, match=r"do not stand in the file\.$"):
        replaced("zzzz", "    return 2")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("if a:\n    return a\nreturn 1", "if a:\n    return a + 1\nelse:\n    return 0\nreturn 2"),
        (" if a:\n   return a\n return 1", " if a:\n   return a + 1\n else:\n   return 0\n return 2"),
        ("\tif a:\n\t\treturn a\n\treturn 1", "\tif a:\n\t\treturn a + 1\n\telse:\n\t\treturn 0\n\treturn 2"),
        ("            if a:\n                return a\n            return 1",
         "            if a:\n                return a + 1\n            else:\n                return 0\n"
         "            return 2"),
    ],
)  # fmt: skip
def test_indentation_is_adapted_to_the_replaced_lines(old: str, new: str) -> None:
    wanted = "    if a:\n        return a + 1\n    else:\n        return 0\n    return 2\n"
    assert replaced(old, new) == SOURCE.replace("    if a:\n        return a\n    return 1\n", wanted)


def test_a_new_line_is_indented_like_the_old_line_of_its_depth() -> None:
    """Context lines may lack one blank, as in a diff without the blank before context."""
    changed = replaced(
        "   if a:\n        return a\n    return 1", "   if a:\n        return -a\n    return 1"
    )
    assert changed == SOURCE[:60] + SOURCE[60:].replace("return a", "return -a")


def test_new_lines_above_the_old_ones_get_the_first_indentation() -> None:
    changed = replaced("     return 1", "x = 1\n     return x")
    assert changed == SOURCE.replace("    return 1", "    x = 1\n    return x")


def test_blank_lines_stay_blank() -> None:
    assert replaced("return 1", "x = 1\n\nreturn x") == SOURCE.replace("return 1", "x = 1\n\n    return x")


@given(st.lists(st.sampled_from(["", "a", "  a", "b", "    b"]), min_size=1, max_size=8), st.data())
def test_an_exact_edit_can_be_taken_back(lines: list[str], data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(lines) - 1))
    end = data.draw(st.integers(start + 1, len(lines)))
    old = tuple(lines[start:end])
    if not any(line.strip() for line in old):
        return
    source = "\n".join(lines)
    if sum(tuple(lines[at : at + len(old)]) == old for at in range(len(lines))) > 1:
        with pytest.raises(EditError, match="stand at lines"):
            apply_replace(source, Replace(old, ("    new",)))
    else:
        changed = apply_replace(source, Replace(old, ("    new",)))
        assert apply_replace(changed, Replace(("    new",), old)) == source


# Showing a change.


@given(st.lists(st.sampled_from("abcd"), max_size=30), st.lists(st.sampled_from("abcd"), max_size=30))
def test_a_shown_change_leads_from_the_old_text_to_the_new_one(old: list[str], new: list[str]) -> None:
    before, after = ["", *old, ""], ["", *new, ""]
    rows = show_change("f.py", "\n".join(before), "\n".join(after)).split("\n")
    if before == after:
        assert rows == [""]
        return
    assert rows[:2] == ["--- f.py", "+++ f.py"]
    at, rebuilt = 0, list[str]()
    for row in rows[2:]:
        if hunk := re.fullmatch(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@", row):
            start = int(hunk[1]) - (hunk[2] != "0")
            rebuilt += before[at:start]
            at = start
            assert len(rebuilt) == int(hunk[3]) - (hunk[4] != "0")
        elif row.startswith("+"):
            rebuilt.append(row[1:])
        else:
            assert before[at] == row[1:]
            at += 1
            if row.startswith(" "):
                rebuilt.append(row[1:])
    assert [*rebuilt, *before[at:]] == after


def test_a_long_change_is_shown_as_one_hunk() -> None:
    old = [f"a{number}" for number in range(300)]
    new = [line.upper() for line in old]
    shown = show_change("f.py", "\n".join(["w", "x", *old, "y", "z"]), "\n".join(["w", "x", *new, "y", "z"]))
    assert shown.startswith("--- f.py\n+++ f.py\n@@ -2,302 +2,302 @@\n x\n-a0\n-a1\n")
    assert shown.endswith("\n-a299\n+A0\n" + shown.partition("\n+A0\n")[2])
    assert shown.endswith("+A298\n+A299\n y")


# Rewriting definitions.


def test_a_definition_inside_another_one_of_the_block_is_replaced_in_it() -> None:
    block = "class Stack:\n    def size(self):\n        return 0\n\ndef size(self):\n    return 7\n"
    changed = rewritten(block)
    assert "class Stack:\n    def size(self):\n        return 7\n" in changed
    assert "def top" not in changed


def test_the_last_definition_of_a_name_counts() -> None:
    assert "return 2" in rewritten("def other(a):\n    return 1\n\ndef other(a):\n    return 2\n")


def test_definitions_that_lie_in_each_other_too_deeply_are_refused() -> None:
    def nested(depth: int) -> str:
        return "".join(f"{'    ' * n}def f{n}():\n" for n in range(depth)) + "    " * depth + "pass\n"

    def block(depth: int) -> str:
        """Each definition holds the later ones, so that they are there to be replaced again."""
        return "".join(
            f"def f{n}():\n" + "".join(f"    {line}\n" for line in nested(depth).split("\n")[n + 1 :])
            for n in range(depth)
        )

    with pytest.raises(EditError, match="lie in each other too deeply"):
        rewritten(textwrap.dedent(block(12)), nested(12))


def rewritten(block: str, source: str = SOURCE) -> str:
    return apply_rewrite(source, Rewrite(block))


def test_a_function_replaces_the_one_of_its_name() -> None:
    changed = rewritten("def other(a):\n    return 2\n")
    assert changed == "def other(a):\n    return 2\n" + SOURCE[SOURCE.index("\n\ndef f") :]


def test_a_docstring_is_kept_unless_there_is_a_new_one() -> None:
    assert '    """Doc."""\n    return 5\n' in rewritten("def f(a):\n    return 5\n")
    assert '    """New."""\n    return 5\n' in rewritten('def f(a):\n    """New."""\n    return 5\n')


def test_a_method_gets_the_indentation_of_its_class() -> None:
    changed = rewritten("def size(self):\n    if not self.items:\n        return 0\n    return 1\n")
    assert changed.endswith(
        "    def size(self):\n        if not self.items:\n            return 0\n        return 1\n"
    )
    assert rewritten("    def size(self):\n        return 1\n") == rewritten(
        "def size(self):\n    return 1\n"
    )


def test_a_method_keeps_its_docstring() -> None:
    source = 'class Stack:\n    def size(self):\n        """How many."""\n        return 0\n'
    assert rewritten("def size(self):\n    return 1\n", source) == source.replace("return 0", "return 1")


def test_decorators_belong_to_the_function() -> None:
    assert rewritten("@property\ndef top(self):\n    return 1\n") == SOURCE.replace("self.items[0]", "1")
    assert "@property" not in rewritten("def top(self):\n    return 1\n")


def test_several_functions_are_replaced_at_once() -> None:
    block = "import os\n\ndef other(a):\n    return 2\n\n\ndef f(a):\n    return 3\n\nprint(f(1))\n"
    changed = rewritten(block)
    assert "return 2" in changed
    assert "return 3" in changed
    assert "print" not in changed
    assert "import" not in changed


@pytest.mark.parametrize(
    ("block", "mend"),
    [
        ("x = 1\n", "defines no function"),
        ("def g(a):\n    return 1\n", "g is not in the file, which defines: other, f, Stack"),
        ("def f(a):\n    return (1\n", r"syntax error at line 2, column 12: '\(' was never closed"),
        ("def f(a):\nreturn 1\n", "syntax error at line 2"),
    ],
)
def test_unusable_blocks_are_refused(block: str, mend: str) -> None:
    with pytest.raises(EditError, match=mend):
        rewritten(block)


def test_an_ambiguous_definition_is_refused() -> None:
    with pytest.raises(EditError, match="f stands 2 times in the file"):
        rewritten("def f(): return 1\n", "if x:\n    def f(): pass\nelse:\n    def f(): pass\n")


def test_a_homoglyph_is_a_different_name() -> None:
    with pytest.raises(EditError, match="is not in the file"):
        rewritten("def \uff46(a):\n    return 1\n")


# Files with syntax errors.

BROKEN = """\
import re

class Node:
    def get(self):
        return 1

class Solution:
    def ask(self, a:
        text = "never closed
        if a {
            return a
    def tell(self):
        return 2

other = 3
"""


def test_a_definition_in_a_broken_file_is_replaced_whole() -> None:
    block = "class Solution:\n    def ask(self, a):\n        return a\n"
    expected = BROKEN[: BROKEN.index("class Solution")] + block + "other = 3\n"
    assert apply_rewrite(BROKEN, Rewrite(block)) == expected


def test_a_definition_in_a_broken_file_is_replaced_up_to_the_next_valid_line() -> None:
    # The method has too little indentation, as if the class had ended.
    broken = "class Solution:\ndef ask(self):\n    return 1\n\ndef other():\n    return 2\n"
    block = "class Solution:\n    def ask(self):\n        return 1\n"
    assert apply_rewrite(broken, Rewrite(block)).startswith(
        block + "def ask"
    )  # the first guess that is Python


def test_a_rewrite_that_leaves_the_file_broken_follows_the_usual_rules() -> None:
    with pytest.raises(EditError, match="tell_all is not in the file"):
        apply_rewrite(BROKEN, Rewrite("def tell_all():\n    return 1\n"))
