"""The action language: every form is parsed, and everything else gets a hint."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envkit.environments.code_editor.actions import Command, Malformed, Replace, Rewrite, parse

EDIT = Replace(("    return a",), ("    return b",))
FUNCTION = "def f(a):\n    return a\n"


@pytest.mark.parametrize(
    ("text", "actions"),
    [
        ("```diff\n-    return a\n+    return b\n```", [EDIT]),
        ("```diff\n     if a:\n-x\n+y\n```", [Replace(("    if a:", "x"), ("    if a:", "y"))]),
        ("```diff\n-x\n```", [Replace(("x",), ())]),
        ("```diff\n-x\n-y\n+z\n```", [Replace(("x", "y"), ("z",))]),
        (
            "```diff\n--- a/f.py\n+++ b/f.py\n@@ -1,2 +1,2 @@\n-a\n+b\n@@ -9 +9 @@\n-c\n+d\n```",
            [Replace(("a",), ("b",)), Replace(("c",), ("d",))],
        ),
        ("```diff\ndiff --git a/f b/f\nindex 12ab..34cd 100644\n-a\n+b\n```", [Replace(("a",), ("b",))]),
        ("```diff\nindex = 0\n-a\n+b\n```", [Replace(("index = 0", "a"), ("index = 0", "b"))]),
        (f"```python\n{FUNCTION}```", [Rewrite(FUNCTION)]),
        (f"```py\n{FUNCTION}```", [Rewrite(FUNCTION)]),
        (f"```Python title\n{FUNCTION}```", [Rewrite(FUNCTION)]),
        (f"```python3\n{FUNCTION}```", [Rewrite(FUNCTION)]),
        ("```diff\n-a\n\\ No newline at end of file\n+b\n```", [Replace(("a",), ("b",))]),
        (f"  ```python\n{FUNCTION}  ```", [Rewrite(FUNCTION)]),
        ("<<<<<<< SEARCH\na\n=======\nb\nc\n>>>>>>> REPLACE", [Replace(("a",), ("b", "c"))]),
        ("<<<<<<< SEARCH\na\n=======\n>>>>>>> REPLACE", [Replace(("a",), ())]),
        ("<<<<<<< SEARCH\na\n\nb\n=======\n\n>>>>>>> REPLACE", [Replace(("a", "", "b"), ("",))]),
        ("view", [Command("view")]),
        ("view f", [Command("view", "f")]),
        ("view solution.py Stack.push", [Command("view", "solution.py Stack.push")]),
        ("view 3-7", [Command("view", "3-7")]),
        ("outline", [Command("outline")]),
        ("definition Stack.push", [Command("definition", "Stack.push")]),
        ("run", [Command("run")]),
        ("undo", [Command("undo")]),
        ("submit", [Command("submit")]),
    ],
)
def test_every_action_is_parsed(text: str, actions: list[object]) -> None:
    assert parse(text) == actions


@pytest.mark.parametrize(
    ("text", "actions"),
    [
        # An edit and then a command.
        ("I see.\n```diff\n-    return a\n+    return b\n```\nNow test it:\nrun", [EDIT, Command("run")]),
        # The closing fence may be missing, with and without a command after the edit.
        ("```diff\n-    return a\n+    return b", [EDIT]),
        ("```diff\n-    return a\n+    return b\nsubmit\n", [EDIT, Command("submit")]),
        (f"```python\n{FUNCTION}submit", [Rewrite(FUNCTION), Command("submit")]),
        # A fence without a language, or with another one.
        ("```\n-    return a\n+    return b\n```", [EDIT]),
        (f"```\n{FUNCTION}```", [Rewrite(FUNCTION)]),
        ("```bash\nrun\n```", [Command("run")]),
        ("```\nview f\n```", [Command("view", "f")]),
        # A search/replace block in a fence, several blocks, an edit in two fences.
        ("```python\n<<<<<<< SEARCH\na\n=======\nb\n>>>>>>> REPLACE\n```", [Replace(("a",), ("b",))]),
        (
            "```diff\n-a\n+b\n```\nand\n```diff\n-c\n+d\n```",
            [Replace(("a",), ("b",)), Replace(("c",), ("d",))],
        ),
        ("```diff\n-a\n+b\n```python\n" + FUNCTION, [Replace(("a",), ("b",)), Rewrite(FUNCTION)]),
        # Windows line ends, inline code, surrounding blanks.
        ("```diff\r\n-    return a\r\n+    return b\r\n```\r\nrun\r\n", [EDIT, Command("run")]),
        ("  `submit`  \n\n", [Command("submit")]),
        # Blank lines at the end of a diff are not part of it; form feeds do not end lines.
        ("```diff\n-    return a\n+    return b\n \n\n```", [EDIT]),
        # The last command counts.
        ("undo\nsubmit", [Command("submit")]),
    ],
)
def test_variants_of_the_format_are_accepted(text: str, actions: list[object]) -> None:
    assert parse(text) == actions


@pytest.mark.parametrize(
    ("text", "mend"),
    [
        ("", "no action"),
        ("please fix it", "no action"),
        ("I will submit this", "no action"),
        ("submit it", "no action"),
        ("view = compute(1)", "no action"),
        ("view a b c", "no action"),
        ("```", "no action"),
        ("```python\n```", "no action"),
        ("<<<<<<< SEARCH\na\n=======\nb", "no action"),
        ("```diff\n```", "changes nothing"),
        ("```diff\n a\n```", "changes nothing"),
        ("```diff\n-a\n+a\n```", "changes nothing"),
        ("```diff\n+a\n```", "at least one line to look for"),
        ("<<<<<<< SEARCH\n\n=======\nb\n>>>>>>> REPLACE", "at least one line to look for"),
    ],
)
def test_malformed_actions_are_explained(text: str, mend: str) -> None:
    (action,) = parse(text)
    assert isinstance(action, Malformed)
    assert mend in action.hint


def test_no_action_explains_all_of_them() -> None:
    (action,) = parse("what now?")
    assert isinstance(action, Malformed)
    assert all(word in action.hint for word in ("```diff", "```python", "SEARCH", "undo", "submit"))


@pytest.mark.parametrize(
    "character", ["\u202e", "\u2066", "\u200b", "\ufeff", "\r", "\x1b", "\0", "\x0c", "\ud800"]
)
def test_deceptive_characters_are_refused(character: str) -> None:
    (action,) = parse(f"```diff\n-a\n+b # {character}x\n```\nsubmit")
    assert isinstance(action, Malformed)
    assert "invisible or control characters" in action.hint


def test_homoglyphs_are_not_replaced() -> None:
    assert parse("```diff\n-\u0430\n+a\n```") == [Replace(("\u0430",), ("a",))]


@given(st.text(st.characters(exclude_categories=()), max_size=300))
def test_any_text_is_an_action_or_a_hint(text: str) -> None:
    assert parse(text)


PIECES = ("```", "```diff", "```python", "-", "+", "a", "def f(): pass", " ", "--- a", "+++ b", "@@ -1 +1 @@")
PIECES += (
    "<<<<<<< SEARCH",
    "=======",
    ">>>>>>> REPLACE",
    "run",
    "view 1-",
    "submit",
    "\\ No newline at end of file",
)


@given(st.lists(st.sampled_from(PIECES), max_size=12))
def test_any_mix_of_markers_is_an_action_or_a_hint(pieces: list[str]) -> None:
    assert parse("\n".join(pieces))


HOSTILE = (
    "<<<<<<< SEARCH\n=======\n",
    "<<<<<<< SEARCH\n",
    "```\n",
    "```a\n",
    "run\n",
    "--- a\n",
    " ",
    "`",
    "view a ",
)


@pytest.mark.parametrize("piece", HOSTILE)
def test_hostile_text_is_parsed_quickly(piece: str) -> None:
    """A backtracking parser would not return from this text."""
    assert parse(piece * 10_000 + "x")
