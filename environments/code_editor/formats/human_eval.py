"""HumanEval (arXiv:2107.03374), as its package ships it: functions to write from their docstrings, as JSONL.

Each line has ``task_id``, ``prompt`` (imports, ``def`` line and docstring), ``canonical_solution`` (the
body), ``test`` (asserts on ``candidate``) and ``entry_point``. There is no bug: the file that the agent gets
raises `NotImplementedError`. (Some of the environment's own held-out tasks are made of these functions.)
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
    """Read all items of a file, which may be compressed with gzip.

    Raises:
        TaskFileError: a line does not have the form above.
    """
    return collect("human-eval", read_records(path), _problem)


def _problem(record: Record) -> CallProblem:
    name, task_id, test = record.text("entry_point"), record.text("task_id"), record.text("test")
    prompt, body = record.text("prompt").rstrip(), record.text("canonical_solution").strip("\n").rstrip()
    tests = statements(test)
    known = known_calls(tests, "candidate")
    return CallProblem(
        id=task_id,
        prompt="",  # the docstring is in the file
        ask="Write the function",
        broken=f"{prompt}\n    raise NotImplementedError\n",
        reference=f"{prompt}\n{body}\n",
        function=name,
        examples=with_docstring_calls(known, prompt, name),
        source=name,
        operator="unwritten",
        metadata={},
        normalizers=applied_normalizers(tests, "candidate"),
    )
