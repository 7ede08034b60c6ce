"""`envkit play`: reading actions from the terminal, and rendering observations with their text unchanged."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console
from rich.syntax import Syntax
from rich.table import Table

from envkit.cli.play.capture import CapturingBackend
from envkit.cli.play.input import read_action
from envkit.cli.play.render import (
    render_changes,
    render_first_observation,
    render_observation,
    render_result,
)
from envkit.environments.code_editor.actions import HELP, parse
from envkit.sandbox import PYTHON_OPTIONS
from envkit.sandbox.choice import sandbox_backend


def typed(*lines: str, tools: Sequence[str] = ()) -> list[str]:
    """The actions that the lines make, up to the end of input."""
    left = list(lines)
    actions: list[str] = []
    while (action := read_action(lambda more: left.pop(0) if left else None, tools)) is not None:
        actions.append(action)
    return actions


def test_a_line_is_an_action() -> None:
    assert typed("view", "", "outline", "submit") == ["view", "outline", "submit"]


@pytest.mark.parametrize(
    "block",
    [
        ("```python", "def f():", "", "    return 1", "```"),
        ("<<<<<<< SEARCH", "a", "", "=======", "b", ">>>>>>> REPLACE"),
    ],
)
def test_a_block_keeps_its_empty_lines_and_may_carry_a_command(block: tuple[str, ...]) -> None:
    assert typed(*block, "run", "", "submit") == ["\n".join([*block, "run"]), "submit"]
    assert len(parse("\n".join([*block, "run"]))) == 2


def test_a_block_behind_the_name_of_a_tool_is_its_text() -> None:
    lines = ["query", "```sql", "SELECT 1", "", "```", "", "query", "", "tables"]
    found = typed(*lines, tools=["query"])
    assert found == ["query\n```sql\nSELECT 1\n\n```", "query", "tables"]


def test_an_unfinished_action_is_sent_at_end_of_input() -> None:
    assert typed("```python", "def f(): pass") == ["```python\ndef f(): pass"]


# What is shown.


def printed(pieces: Sequence[object], *, colour: bool = False) -> str:
    # As explicit as that, since the terminal that the tests run in must not matter.
    console = Console(
        width=200,
        color_system="standard" if colour else None,
        no_color=not colour,
        force_terminal=colour,
        highlight=False,
    )
    with console.capture() as capture:
        console.print(*pieces, sep="\n")
    return capture.get()


def lines(observation: str) -> list[str]:
    return [line.rstrip() for line in printed(render_observation(observation)).splitlines()]


def test_code_and_diffs_are_coloured_and_help_stays_whole() -> None:
    diff = "--- solution.py\n+++ solution.py\n@@ -1,2 +1,2 @@\n def f():\n-    return 1\n+    return 2"
    observation = f"Fix:\n```python\ndef f(): pass\n```\n{HELP}\nChanged:\n{diff}\n2 turn(s) left"
    kinds = [type(piece) for piece in render_observation(observation)]
    assert kinds.count(Syntax) == 2
    assert lines(observation) == [line for line in observation.splitlines() if not line.startswith("```")]


def test_a_table_is_aligned_and_the_text_around_it_is_unchanged() -> None:
    observation = "books:\nid | title | price\n1 | Ash | 9.5\n12 | Night Rain | NULL\n(2 rows)\n\nSay [one]."
    assert lines(observation) == [
        "books:",
        "id   title        price",
        "───────────────────────",
        " 1   Ash            9.5",
        "12   Night Rain    NULL",
        "(2 rows)",
        "",
        "Say [one].",
    ]


@pytest.mark.parametrize(
    ("text", "head", "rows"),
    [
        ("count\n7\n(1 rows)", ["count"], 1),
        ("id | name\n(0 rows)", ["id", "name"], 0),
        ("a | b\n1 | 2\n3 | 4\n...", ["a", "b"], 2),
        ("[red]a | b\n[/] | 2\n(1 tickets)", ["[red]a", "b"], 1),
    ],
)
def test_tables_are_recognised(text: str, head: list[str], rows: int) -> None:
    [table] = [piece for piece in render_observation(text) if isinstance(piece, Table)]
    assert ([str(column.header) for column in table.columns], table.row_count) == (head, rows)


@pytest.mark.parametrize(
    "text",
    [
        "id | name\n1 | two\nlines\n(1 rows)",
        "id | name\n1 | a | b\n(1 rows)",
        "id | name\n1 | a\n(3 rows)",
        "def f(a: int | None):\n    b: int | None\n    c: int | str",
        "one\n...",
        "(3 rows)",
    ],
)
def test_text_that_is_no_table_is_unchanged(text: str) -> None:
    assert lines(text) == text.splitlines()


@pytest.mark.parametrize(
    ("text", "is_red"),
    [
        ("Error: no such column: nope", True),
        ("TypeError: no", True),
        ("Not done: there is no ticket 77", True),
        ("No call of a tool in that. Say one", True),
        ("show: ticket: Field required. It is show(ticket: int)", True),
        ("Errors are counted.", False),
        ("3 rows changed.", False),
    ],
)
def test_errors_are_red(text: str, is_red: bool) -> None:
    shown = printed(render_observation(f"{text}\nmore"), colour=True)
    assert shown == (f"\x1b[31m{text}\x1b[0m\nmore\n" if is_red else f"{text}\nmore\n")


def test_the_request_is_set_apart() -> None:
    panel, *rest = render_first_observation("Delete all.\n\nCREATE TABLE t\n\nt:\na | b\n(0 rows)")
    assert "│ Delete all." in printed([panel])
    assert "CREATE" not in printed([panel])
    assert printed(rest).startswith("CREATE TABLE t\n\nt:\na   b\n")
    panel, code = render_first_observation("Fix it:\n```python\ndef f(): ...\n```")
    assert "│ Fix it:" in printed([panel])
    assert isinstance(code, Syntax)
    assert len(render_first_observation("Do it.")) == 1


def test_a_result_shows_verdict_reward_and_evidence() -> None:
    info = {
        "solved": False,
        "verdict": "FAIL",
        "scores": {"right": 0.0, "tidy": 1.0, "short": 0.5},
        "evidence": {"right": "gave [1], expected [2]", "tidy": "as it was"},
        "weaknesses": {"tidy": "looked at one file"},
    }
    assert [line.rstrip() for line in printed(render_result(0.5, info, 1, ["short"])).splitlines()] == [
        "FAIL, reward 0.5, after 1 turn",
        "right: 0",
        "  gave [1], expected [2]",
        "tidy: 1",
        "  as it was",
        "  looked at one file",
        "short: 0.5 (only measured)",
    ]


def test_changes_are_diffs_of_what_was_there_before() -> None:
    before = {"a.py": "one\ntwo\n", "same.py": "x\n", "gone.py": "y\n"}
    text = printed(
        render_changes(before, {"a.py": b"one\n2\n", "same.py": b"x\n", "gone.py": b"", "new.py": b"z"})
    )
    assert "-two\n+2" in text.replace(" ", "").replace("\x1b", "")
    assert "-y" in text
    assert "same.py" not in text
    assert render_changes(before, {path: text.encode() for path, text in before.items()}) == []
    assert render_changes(before, {}) == [], "nothing is known of what is missing"


def test_changes_of_binary_files_are_their_sizes() -> None:
    after = {"a.png": b"\x89PNG" * 300, "same.png": b"\xff", "made-binary.txt": b"\xff"}
    text = printed(render_changes({"a.png": b"\x89PNG", "same.png": b"\xff", "made-binary.txt": "x"}, after))
    assert "a.png: binary, 4 bytes, now 1,200 bytes" in text
    assert "made-binary.txt: binary, 1 bytes, now 1 bytes" in text
    assert "same.png" not in text


def test_the_files_of_the_first_sandbox_are_read_at_its_end() -> None:
    backend = CapturingBackend(sandbox_backend())
    backend.paths = ["a", "b", "bytes", "link"]
    with backend.create() as sandbox:  # as tasks are made
        sandbox.write("a", b"nothing")
    backend.capturing = True
    with backend.create() as sandbox:
        sandbox.write("a", b"one")
        sandbox.write("bytes", b"\xff")
        link = "import os; os.symlink('a', 'link')"
        assert sandbox.run([sandbox.python, *PYTHON_OPTIONS, "-c", link]).ok
        assert backend.files == {}
        with backend.create() as other:
            other.write("a", b"two")
    assert backend.files == {"a": b"one", "b": b"", "bytes": b"\xff"}


def test_control_characters_of_an_observation_do_not_reach_the_terminal() -> None:
    seen = "\x1b[2J\x1b]0;title\x07gone\r\n```python\n\x9b2J\n```\n"
    assert not set(printed([*render_first_observation(seen), *render_observation(seen)])) & set(
        "\x1b\x07\r\x9b"
    )


def test_a_table_that_is_too_wide_is_shown_as_text() -> None:
    digits = "9" * 5000
    assert "".join(lines(f"a | b\n1 | 2\n({digits} rows)")).endswith("rows)")
    wide = " | ".join(["42"] * 60)
    assert wide.replace(" ", "") in "".join(lines(f"{wide}\n{wide}\n(1 rows)")).replace(" ", "")


# As a whole.


def played(folder: Path, env: str, task: str, *said: str) -> list[str]:
    """What is printed where nobody sits at a terminal."""
    command = [
        sys.executable,
        "-m",
        "envkit.cli",
        "play",
        env,
        "--task",
        task,
        "--seed",
        "1",
        "--max-turns",
        "3",
    ]
    environ = {**os.environ, "COLUMNS": "120"}
    done = subprocess.run(
        command, input="\n".join(said), capture_output=True, text=True, cwd=folder, env=environ, check=True
    )
    assert done.stderr == ""
    return [line.rstrip() for line in done.stdout.splitlines()]


def counters(said: list[str]) -> list[str]:
    return [line.partition(" ─")[0] for line in said if line.startswith("turn ")]


def test_a_question_is_played_to_its_end(tmp_path: Path) -> None:
    said = played(
        tmp_path,
        "sql-desk",
        "starter/products-count-0",
        "?",
        "query('SELECT nope FROM products')",
        "help",
        "SELECT COUNT(*) FROM products",
    )
    assert "│ sql-desk: starter/products-count-0 │" in said
    assert any(line.startswith("│ How many products are there?") for line in said)
    assert "Error: no such column: nope" in said
    assert counters(said) == ["turn 1 of 3, 3 left", "turn 2 of 3, 2 left"]  # help is none
    assert said.count("Say one call per turn, such as query(sql=...):") == 3
    end = said.index("PASS, reward 1, after 2 turns")
    assert said[end + 1 :] == ["answers_as_reference: 1", "  as the reference on 5 databases"]


def test_a_repair_ends_with_its_diff(tmp_path: Path) -> None:
    edit = [
        "```python",
        "def shifted_letters(text: str, shift: int) -> str:",
        "    return text",
        "```",
        "",
    ]
    said = played(tmp_path, "code-editor", "starter/shifted_letters", "help", "view", *edit, "submit", "")
    assert counters(said) == ["turn 1 of 3, 3 left", "turn 2 of 3, 2 left", "turn 3 of 3, the last"]
    assert "The examples now:" in said
    assert sum(line.startswith("- a ```diff block") for line in said) == 2
    end = said.index("FAIL, reward 0, after 3 turns")
    assert said[end + 1] == "answers_as_original: 0"
    assert "expected 'def abc'" in said[end + 2]
    assert said[end + 3 : end + 5] == ["edits_a_little: 0 (only measured)", "What was changed:"]
    assert {"--- solution.py", '-    moved = ""', "+    return text"} <= {*said[end + 4 :]}


def test_tickets_are_a_table_and_quitting_is_no_turn(tmp_path: Path) -> None:
    said = played(tmp_path, "service-desk", "train/office-urgent-0", "show(77)", "quit", "done()")
    assert any(line.startswith("no   state    priority   owner   title") for line in said)
    assert "Not done: there is no ticket 77" in said
    assert counters(said) == ["turn 1 of 3, 3 left", "turn 2 of 3, 2 left"]
    assert said[-2:] == ["> quit", "given up"]


def test_the_last_turn_is_announced(tmp_path: Path) -> None:
    said = played(tmp_path, "sql-desk", "starter/products-count-0", *["query('SELECT 1')"] * 3)
    assert counters(said)[-1] == "turn 3 of 3, the last"
    assert "FAIL, reward 0, after 3 turns" in said
    assert "  nothing was submitted" in said


def test_a_terminal_gets_a_prompt(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "envkit.cli", "play", "sql-desk", "--task", "starter/products-count-0"]
    mine, theirs = pty.openpty()
    environ = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=tmp_path, env=environ, start_new_session=True
    )
    os.close(theirs)
    os.write(mine, b"query('SELECT nope FROM products')\nquit\n")
    seen = b""
    try:
        while piece := os.read(mine, 4096):
            seen += piece
    except OSError:  # how a terminal says that nobody is at its other end
        pass
    os.close(mine)
    assert process.wait() == 0
    text = seen.decode()
    assert "> " in text
    assert "\x1b[31mError: no such column: nope\x1b[0m" in text
    assert text.rstrip().endswith("given up\x1b[0m")
