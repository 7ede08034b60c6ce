"""HumanEval (arXiv:2107.03374), as its package ships it: functions to write from their docstrings, as JSONL.

A line has ``task_id``, ``prompt`` (imports, ``def`` line and docstring), ``canonical_solution`` (the body),
``test`` (asserts on ``candidate``) and ``entry_point``. There is no bug in it: the file as the agent meets it
raises `NotImplementedError`. (The environment's own held-out tasks have bugs put into these functions.)
"""

from __future__ import annotations

from pathlib import Path

from envkit.env import ImportedTasks
from envkit.environments.code_editor.formats.rows import Row, read_rows
from envkit.environments.code_editor.formats.stated import (
    Stated,
    asserted,
    collected,
    forms,
    statements,
    with_docstring_calls,
)


def read(path: Path) -> ImportedTasks:
    """All items of a file, which may be packed with gzip.

    Raises:
        TaskFileError: a line is not as said above.
    """
    return collected("human-eval", read_rows(path), _problem)


def _problem(row: Row) -> Stated:
    name, task_id, test = row.text("entry_point"), row.text("task_id"), row.text("test")
    prompt, body = row.text("prompt").rstrip(), row.text("canonical_solution").strip("\n").rstrip()
    tests = statements(test)
    known = asserted(tests, "candidate")
    return Stated(
        id=task_id,
        said="",  # the file says it
        ask="Write the function",
        wrong=f"{prompt}\n    raise NotImplementedError\n",
        right=f"{prompt}\n{body}\n",
        function=name,
        examples=with_docstring_calls(known, prompt, name),
        source=name,
        operator="unwritten",
        metadata={},
        forms=forms(tests, "candidate"),
    )
