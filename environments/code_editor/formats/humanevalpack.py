"""HumanEvalFix, the repair part of HumanEvalPack (arXiv:2308.07124), its Python file as JSONL.

A line has ``task_id``, ``declaration`` (imports and the ``def`` line), ``buggy_solution`` and
``canonical_solution`` (bodies), ``test`` (asserts),
``entry_point`` and ``bug_type``; ``docstring`` where there is one.
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
    """All items of a file; what it asserts becomes the known calls.

    Raises:
        TaskFileError: a line is not as said above.
    """
    return collected("humanevalpack", read_rows(path), _problem)


def _problem(row: Row) -> Stated:
    name, task_id, test = row.text("entry_point"), row.text("task_id"), row.text("test")
    declaration, wrong, right = (
        row.text(field) for field in ("declaration", "buggy_solution", "canonical_solution")
    )
    said, bug = row.text("docstring", ""), row.text("bug_type")
    tests = statements(test)
    called = name if asserted(tests, name) else "candidate"
    known = asserted(tests, called)
    return Stated(
        id=task_id,
        said=said,
        ask="Fix the bug",
        wrong=f"{declaration.rstrip()}\n{wrong.strip(chr(10)).rstrip()}\n",
        right=f"{declaration.rstrip()}\n{right.strip(chr(10)).rstrip()}\n",
        function=name,
        examples=with_docstring_calls(known, said, name),
        source=name,
        operator=bug,
        metadata={},
        forms=forms(tests, called),
    )
