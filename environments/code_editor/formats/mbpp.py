"""MBPP (arXiv:2108.07732): functions to write from one sentence, as JSONL.

Each line has ``task_id``, ``text`` (``prompt`` in the sanitized file), ``code`` and ``test_list`` (asserts).
There is no bug: the agent gets the ``def`` line with a body that raises `NotImplementedError`.
"""

from __future__ import annotations

import ast
from pathlib import Path

from envkit.env.authored import ImportedTasks
from envkit.environments.code_editor.formats.problems import (
    CallProblem,
    LeftOut,
    applied_normalizers,
    collect,
    known_calls,
    statements,
    without_body,
)
from envkit.environments.code_editor.formats.records import Record, read_records


def read(path: Path) -> ImportedTasks:
    """Read the items of a file whose tests call a single function.

    Raises:
        TaskFileError: a line does not have the form above.
    """
    return collect("mbpp", read_records(path), _problem)


def _problem(record: Record) -> CallProblem:
    number = record.data.get("task_id")
    if not isinstance(number, int) or isinstance(number, bool):
        raise record.error("task_id", repr(number)[:40], "a whole number")
    text = record.text("text") if "text" in record.data else record.text("prompt")
    code = record.text("code").replace("\r\n", "\n").replace("\t", "    ").rstrip()
    asserts = [*record.items("test_list")]
    for index, line in enumerate(asserts):
        if not isinstance(line, str):
            raise record.error(f"test_list[{index}]", type(line).__name__, "a text")
    tests = statements("\n".join(map(str, asserts)))
    defined = [node.name for node in statements(code) if isinstance(node, ast.FunctionDef)]
    called = [name for name in defined if known_calls(tests, name)]
    if len(called) != 1:
        raise LeftOut("whose asserts do not call one function with literals")
    return CallProblem(
        id=str(number),
        prompt=text,
        ask="Write the function",
        broken=without_body(code, called[0]),
        reference=f"{code}\n",
        function=called[0],
        examples=known_calls(tests, called[0]),
        source=str(number),
        operator="unwritten",
        metadata={},
        normalizers=applied_normalizers(tests, called[0]),
    )
