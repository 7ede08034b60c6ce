"""HumanEvalFix, the repair part of HumanEvalPack (arXiv:2308.07124), its Python file as JSONL.

Each line has ``task_id``, ``declaration`` (imports and the ``def`` line), ``buggy_solution`` and
``canonical_solution`` (bodies), ``test`` (asserts),
``entry_point`` and ``bug_type``; ``docstring`` is optional.
"""

from __future__ import annotations

from pathlib import Path

from envkit.env.authored import ImportedTasks
from envkit.environments.code_editor.formats.problems import (
    CallProblem,
    applied_normalizers,
    collect,
    known_calls,
    statements,
    with_docstring_calls,
)
from envkit.environments.code_editor.formats.records import Record, read_records


def read(path: Path) -> ImportedTasks:
    """Read all items of a file; its asserts become the known calls.

    Raises:
        TaskFileError: a line does not have the form above.
    """
    return collect("humanevalpack", read_records(path), _problem)


def _problem(record: Record) -> CallProblem:
    name, task_id, test = record.text("entry_point"), record.text("task_id"), record.text("test")
    declaration, broken, reference = (
        record.text(field) for field in ("declaration", "buggy_solution", "canonical_solution")
    )
    docstring, bug = record.text("docstring", ""), record.text("bug_type")
    tests = statements(test)
    called = name if known_calls(tests, name) else "candidate"
    known = known_calls(tests, called)
    return CallProblem(
        id=task_id,
        prompt=docstring,
        ask="Fix the bug",
        broken=f"{declaration.rstrip()}\n{broken.strip(chr(10)).rstrip()}\n",
        reference=f"{declaration.rstrip()}\n{reference.strip(chr(10)).rstrip()}\n",
        function=name,
        examples=with_docstring_calls(known, docstring, name),
        source=name,
        operator=bug,
        metadata={},
        normalizers=applied_normalizers(tests, called),
    )
