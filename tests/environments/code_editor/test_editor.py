"""The editor over real files in a real sandbox."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from envkit import ContractError, Sandbox, SandboxBackend, UsageError
from envkit.audit.fuzz import MAX_STEP_CPU_S, sparing_old_objects
from envkit.environments.code_editor.editor import CodeEditor
from envkit.environments.code_editor.examples import ExampleResults, RunExamples
from envkit.environments.code_editor.source import syntax
from envkit.environments.code_editor.source.syntax import syntax_problem
from envkit.runtime.syntax import compiled

SOURCE = '''\
def helper(x):
    return x


def double(x):
    """Twice."""
    return helper(x) * 3


class Stack:
    def push(self, item):
        return item
'''
FIX = "```diff\n-    return helper(x) * 3\n+    return helper(x) * 2\n```"


@pytest.fixture(scope="module")
def box(backend: SandboxBackend) -> Iterator[Sandbox]:
    with backend.create() as sandbox:
        yield sandbox


@pytest.fixture
def editor(box: Sandbox) -> CodeEditor:
    return launched(box)


def results(source: str) -> ExampleResults:
    """One example, which holds if doubling doubles; the source is trusted."""
    scope: dict[str, Any] = {}
    exec(source, scope)
    found = scope["double"](2) if "double" in scope else "nothing"
    line = f"double(2) -> {found}" + (", as expected" if found == 4 else "; expected 4")
    return ExampleResults((line,), frozenset([line] if found != 4 else []))


def launched(box: Sandbox, source: str = SOURCE, run: RunExamples | None = results) -> CodeEditor:
    box.reset()
    box.write("solution.py", source.encode())
    made = CodeEditor("solution.py", focus="double", run_examples=run)
    made.launch(box)
    return made


def on_file(box: Sandbox) -> str:
    return box.read("solution.py", 1_000_000).decode()


def test_observe_shows_the_function(editor: CodeEditor) -> None:
    assert editor.observe() == 'def double(x):\n    """Twice."""\n    return helper(x) * 3'


# Edits.


def test_an_edit_changes_the_file_and_shows_what_it_changed(editor: CodeEditor, box: Sandbox) -> None:
    seen = editor.act(FIX)
    assert seen.startswith("Changed:\n--- solution.py\n+++ solution.py\n@@")
    assert "\n-    return helper(x) * 3\n+    return helper(x) * 2\n" in seen
    assert on_file(box) == editor.read() == SOURCE.replace("* 3", "* 2")


def test_a_function_is_rewritten_and_keeps_its_docstring(editor: CodeEditor) -> None:
    editor.act("```python\ndef double(x):\n    return x + x\n```")
    assert editor.observe() == 'def double(x):\n    """Twice."""\n    return x + x'


def test_an_illustration_before_the_answer_does_not_discard_it(editor: CodeEditor) -> None:
    shown, answer = "```python\nprint(double(2))\n```", "```python\ndef double(x):\n    return x + x\n```"
    assert editor.act(f"{shown}\n{answer}\nsubmit").startswith(
        "Not done. The python block defines no function"
    )
    assert "return x + x" in editor.read()
    assert editor.submitted


def test_nothing_runs_after_a_refused_last_block(editor: CodeEditor) -> None:
    editor.act("```python\ndef double(x):\n    return x + x\n```\n```python\nprint(1)\n```\nsubmit")
    assert "return x + x" in editor.read()
    assert not editor.submitted


def test_search_and_replace_edits_are_applied(editor: CodeEditor) -> None:
    editor.act("<<<<<<< SEARCH\n    return helper(x) * 3\n=======\n    return 2 * x\n>>>>>>> REPLACE")
    assert "return 2 * x" in editor.read()


@pytest.mark.parametrize(
    ("action", "mend"),
    [
        ("what?", "There is no action in that message. Say one of these:"),
        ("```diff\n-nowhere\n+x\n```", "do not stand in the file"),
        ("```python\ndef triple(x):\n    return 3\n```", "triple is not in the file"),
        (
            "```diff\n-    return x\n+    return (x\n```",
            "syntax error at line 2, column 12: '(' was never closed",
        ),
        (
            "```diff\n-def helper(x):\n-    return x\n+return 1\n```",
            "syntax error at line 1, column 1: 'return' outside function",
        ),
        ("```python\ndef helper(x):\n    return x\n```", "leaves the file as it is"),
        ("undo", "There is no edit to undo"),
        ("view nowhere", "There is no nowhere. solution.py defines:"),
        ("view 0-3", "Lines 0-3 are no range in a file of 13 lines"),
        ("view 9-2", "Lines 9-2 are no range"),
        ("view 14", "Lines 14-14 are no range"),
        ("view " + "9" * 5000, "There is no 999"),
        ("definition", "There is no name to look for"),
        ("definition nowhere", "There is no nowhere"),
        ("```diff\n-a\n+b \u202e\n```", "invisible or control characters"),
    ],
)
def test_a_failed_action_is_explained(editor: CodeEditor, action: str, mend: str) -> None:
    seen = editor.act(action)
    assert seen.startswith("Not done. ")
    assert mend in seen
    assert editor.read() == SOURCE
    assert not editor.submitted


def test_an_edit_beyond_the_size_limit_is_refused(box: Sandbox) -> None:
    editor = launched(box, "def double(x):\n    return x\n" + "#" * 262_000)
    assert "grow beyond 262144 bytes" in editor.act(
        f"```diff\n-    return x\n+    return x # {'#' * 200}\n```"
    )
    assert len(on_file(box)) < 262_144


def test_the_rest_of_a_message_is_not_run_after_a_failed_edit(editor: CodeEditor) -> None:
    for failing in ("```diff\n-nowhere\n+x\n```", "```diff\n+x\n```"):
        assert "Submitted" not in editor.act(f"{failing}\nsubmit")
    assert not editor.submitted


def test_an_edit_and_a_command_can_be_in_one_message(editor: CodeEditor) -> None:
    seen = editor.act(f"{FIX}\nsubmit")
    assert seen.endswith("Submitted.")
    assert editor.submitted


def test_undo_goes_back_one_edit_at_a_time(editor: CodeEditor) -> None:
    editor.act(FIX)
    once = editor.read()
    editor.act("```diff\n-    return x\n+    return +x\n```")
    assert "-    return +x\n+    return x" in editor.act("undo")
    assert editor.read() == once
    editor.act("undo")
    assert editor.read() == SOURCE


# Viewing.


@pytest.mark.parametrize(
    ("action", "seen"),
    [
        ("view", SOURCE),
        ("view solution.py", SOURCE),
        ("view helper", "def helper(x):\n    return x"),
        ("view solution.py push", "    def push(self, item):\n        return item"),
        ("view Stack.push", "    def push(self, item):\n        return item"),
        ("view 1-2", "def helper(x):\n    return x"),
        ("view 2", "    return x"),
        ("view 11-99", "    def push(self, item):\n        return item\n"),
        ("definition helper", "lines 1-2:\ndef helper(x):\n    return x"),
        (
            "outline",
            "solution.py defines:\ndef helper(x):  (lines 1-2)\ndef double(x):  (lines 5-7)\n"
            "class Stack:  (lines 10-12)\n  def push(self, item):  (lines 11-12)",
        ),
    ],
)
def test_view_and_definition_commands_show_code(editor: CodeEditor, action: str, seen: str) -> None:
    assert editor.act(action) == seen


def test_definitions_of_one_name_are_all_shown(box: Sandbox) -> None:
    editor = launched(
        box, "if 1:\n    def double(x):\n        return 1\nelse:\n    def double(x):\n        return 2\n"
    )
    seen = editor.act("definition double")
    assert "lines 2-3:\n    def double(x):\n        return 1\n" in seen
    assert "lines 5-6:\n    def double(x):\n        return 2" in seen


def test_without_its_focus_the_whole_file_is_observed(box: Sandbox) -> None:
    assert launched(box, "x = 1\n").observe() == "x = 1\n"


# Running.


def test_run_shows_the_results(editor: CodeEditor) -> None:
    assert editor.act("run") == "double(2) -> 6; expected 4"
    assert editor.act(f"{FIX}\nrun").endswith("\ndouble(2) -> 4, as expected")


def test_an_edit_shows_the_results_if_asked_to(editor: CodeEditor) -> None:
    assert "examples" not in editor.act("```diff\n-    return x\n+    return x + 0\n```")
    seen = editor.act("```diff\n-    return x + 0\n+    return 0 + x\n```\nrun", shows_results=True)
    assert seen.endswith("The examples now:\ndouble(2) -> 6; expected 4 (unchanged)")
    seen = editor.act("```diff\n-    return 0 + x\n+    return x + 1\n```\nsubmit", shows_results=True)
    assert seen.endswith("double(2) -> 9; expected 4\nNot submitted, because an example fails.")
    assert not editor.submitted
    seen = editor.act("```diff\n-    return x + 1\n+    return 4 / 3\n```\nsubmit", shows_results=True)
    assert seen.endswith("double(2) -> 4.0, as expected\nSubmitted.")


def test_no_submit_of_a_message_gets_past_a_failing_example(editor: CodeEditor) -> None:
    twice = "```diff\n-    return x\n+    return x + 1\n```\n```text\nsubmit\n```\nsubmit"
    assert editor.act(twice, shows_results=True).endswith("Not submitted, because an example fails.")
    assert not editor.submitted


def test_a_message_without_a_change_shows_no_results(editor: CodeEditor) -> None:
    for message in ("outline", "undo", "```diff\n-    nowhere\n+    somewhere\n```\nsubmit"):
        assert "examples" not in editor.act(message, shows_results=True)
    assert not editor.submitted


def test_run_is_refused_without_examples(box: Sandbox) -> None:
    editor = launched(box, run=None)
    assert editor.act("run") == "Not done. There are no tests to run here."
    assert editor.act(f"{FIX}\nsubmit", shows_results=True).endswith("Submitted.")


# Launching.


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_launch_without_a_text_file_is_refused(box: Sandbox, content: bytes | None) -> None:
    box.reset()
    if content is not None:
        box.write("solution.py", content)
    with pytest.raises(UsageError, match=r"solution\.py: expected a UTF-8 file"):
        CodeEditor("solution.py").launch(box)


def test_using_the_editor_before_launch_is_refused() -> None:
    editor = CodeEditor("solution.py")
    for action in (editor.observe, lambda: editor.act("view")):
        with pytest.raises(ContractError, match="not launched"):
            action()


# The edits of a message are one change.


def test_the_edits_of_a_message_are_checked_and_written_once(editor: CodeEditor, box: Sandbox) -> None:
    """The file is no valid Python between the two edits."""
    opened = "<<<<<<< SEARCH\n    return helper(x) * 3\n=======\n    return (helper(x)\n>>>>>>> REPLACE\n"
    closed = "<<<<<<< SEARCH\n    return (helper(x)\n=======\n    return (helper(x) * 2)\n>>>>>>> REPLACE\n"
    seen = editor.act(opened + closed)
    assert seen.count("Changed:") == 1
    assert on_file(box) == SOURCE.replace("helper(x) * 3", "(helper(x) * 2)")
    editor.act("undo")
    assert on_file(box) == SOURCE
    assert "syntax error" in editor.act(opened)
    assert on_file(box) == SOURCE


def test_edits_before_a_failed_one_are_kept_and_shown_first(editor: CodeEditor) -> None:
    seen = editor.act(f"{FIX}\n```diff\n-nowhere\n+x\n```\nsubmit")
    assert seen.index("Changed:") < seen.index("Not done. The lines to replace do not stand in the file")
    assert "* 2" in editor.read()
    assert not editor.submitted


def test_a_message_compiles_the_file_once(editor: CodeEditor, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled_sources: list[str] = []

    def noting(source: str, **options: Any) -> Any:
        compiled_sources.append(source)
        return compiled(source, **options)

    monkeypatch.setattr(syntax, "compiled", noting)
    syntax.syntax_problem.cache_clear()
    editor.act("".join(f"```diff\n-    return {'+' * n}x\n+    return +{'+' * n}x\n```\n" for n in range(9)))
    assert "return +++++++++x" in editor.read()
    assert len(compiled_sources) == 1


#: Messages that once held the interpreter for many seconds, or raised.
HOSTILE = {
    "a huge integer": "```python\ndef double(x):\n    return 0x" + "f" * 3_572 + "\n```",
    "a huge default": "```python\nN = 0x" + "f" * 12_000 + "\ndef double(x, y=N):\n    return N\n```",
    "many definitions": "```python\n" + "def double(x):\n    return x\n" * 500 + "```",
    "many other definitions": "```python\n"
    + "".join(f"def f{i}(x): return f{i + 1}(x)\n" for i in range(450))
    + "def double(x): return f0(x)\n```",
    "many blocks": "```python\ndef double(x):\n    return x\n```\n" * 380,
    "many edits": "<<<<<<< SEARCH\n    return x\n=======\n    return +x\n>>>>>>> REPLACE\n"
    "<<<<<<< SEARCH\n    return +x\n=======\n    return x\n>>>>>>> REPLACE\n" * 120,
    "many lines": "```python\ndef double(x):\n" + "    x\n" * 2_600 + "```",
    "many equal lines to find": "```diff\n" + "-    x\n" * 1_300 + "+    y\n```",
    "much indentation": "```python\nclass Stack:\n" + " " * 9_000 + "def push(self): 0\n```",
    "lines for much indentation": "```python\ndef push(self):\n" + " 0\n" * 4_000 + "```",
    "a long finally": "```python\ndef double(x):\n try:\n"
    + "  return\n" * 900
    + " finally:\n"
    + "  x\n" * 900
    + "```",
    "comments of another language": "<<<<<<< SEARCH\n    return x\n=======\n"
    + "/*" * 3_700
    + "1"
    + "*/" * 3_700
    + "\n>>>>>>> REPLACE\n```python\ndef double(x):\n    return x\n```",
    "many functions": "```python\ndef double(x):\n" + " lambda:0\n" * 1_600 + "```",
    "no line like it": "```diff\n-" + "ab" * 4_000 + "\n+x\n```",
}


def test_no_message_holds_the_interpreter(box: Sandbox) -> None:
    """One editor gets all messages, twice: the file grows on the way."""
    editor = launched(box)
    for _ in range(2):
        for name, message in HOSTILE.items():
            with sparing_old_objects():
                began = time.thread_time()  # of this thread: other tests of this process have left some
                seen = editor.act(message)
                assert time.thread_time() - began < MAX_STEP_CPU_S, name
            assert len(editor.read()) <= len(SOURCE) + 32_768
            assert seen.startswith(("Changed:", "Not done."))


def test_edits_of_one_message_have_a_work_limit(box: Sandbox) -> None:
    editor = launched(box, SOURCE + "#" * 200_000 + "\n")
    blocks = [f"```python\ndef double(x):\n    return x + {number}\n```\n" for number in range(4)]
    seen = editor.act("".join(blocks))
    assert "too many edits for one message" in seen
    assert "x + 0" in editor.read()
    assert editor.act(blocks[3]).startswith("Changed:")


def test_a_message_carries_out_a_few_commands_only(editor: CodeEditor) -> None:
    seen = editor.act("```text\nrun\n```\n" * 300)
    assert seen.count("expected 4\n") == 3
    assert seen.endswith("Not done. A message may have 3 commands; give the others in the next.")
    assert "Submitted." not in editor.act("```text\nrun\n```\n" * 3 + "submit")
    assert not editor.submitted


def test_an_edited_file_may_grow_by_a_fixed_amount(box: Sandbox) -> None:
    editor = launched(box)
    for number in range(5):
        seen = editor.act(f"```diff\n-    return x\n+    return x  # {'#' * 15_000}\n```\n")
        if "grow beyond" in seen:
            break
        editor.act(
            f"```diff\n-    return x  # {'#' * 15_000}\n+    x{number} = '{'#' * 100}'\n+    return x\n```"
        )
        editor.act(f"```diff\n-    return item\n+    item  # {'#' * 15_000}\n+    return item\n```")
    assert "The file would grow beyond" in seen
    assert len(on_file(box)) <= len(SOURCE) + 32_768


# No message raises or changes another file.

LINES = [line for line in SOURCE.split("\n") if line]
MESSAGES = st.one_of(
    st.text(st.characters(exclude_categories=()), max_size=80),
    st.sampled_from(
        ["view", "outline", "undo", "submit", "run", "definition push", "view ../check.py", "view /etc"]
    ),
    st.builds("view {}-{}".format, st.integers(), st.integers()),
    st.builds(
        "```diff\n{}{}\n{}{}\n```".format,
        st.sampled_from(["-", " ", "--- ", ""]),
        st.sampled_from(LINES),
        st.sampled_from(["+", "-", "+++ ../check.py\n+"]),
        st.text(max_size=30),
    ),
    st.builds(
        "```python\n{}\n{}\n```\n{}".format, st.sampled_from(LINES), st.text(max_size=30), st.text(max_size=9)
    ),
    st.builds(
        "<<<<<<< SEARCH\n{}\n=======\n{}\n>>>>>>> REPLACE".format,
        st.sampled_from(LINES),
        st.text(max_size=30),
    ),
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(messages=st.lists(MESSAGES, max_size=4))
@example(messages=["```python\n" + "(" * 3000 + "\n```"])
@example(messages=["```diff\n-    return x\n+    return x" + " + x" * 2500 + "\n```", "outline", "run"])
@example(messages=["```diff\n-    return x\n+    return '\\d'\n```", "undo"])
def test_no_message_raises_or_leaves_the_file(box: Sandbox, messages: list[str]) -> None:
    editor = launched(box)
    for message in messages:
        assert isinstance(editor.act(message), str)
    assert syntax_problem(editor.read()) is None
    assert dict(box.export(["**"], 10**6)) == {"solution.py": editor.read().encode()}
