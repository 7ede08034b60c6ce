"""MBPP (arXiv:2108.07732): functions to write from one sentence, as JSONL.

A line has ``task_id``, ``text`` (``prompt`` in the sanitized file), ``code`` and ``test_list`` (asserts).
There is no bug in it: the file as the agent meets it has the ``def`` line, and raises `NotImplementedError`.
"""

from __future__ import annotations

import ast
from pathlib import Path

from envkit.env import ImportedTasks
from envkit.environments.code_editor.formats.rows import Row, read_rows
from envkit.environments.code_editor.formats.stated import (
    LeftOut,
    Stated,
    asserted,
    collected,
    forms,
    statements,
    unwritten,
)


def read(path: Path) -> ImportedTasks:
    """All items of a file whose tests call one function.

    Raises:
        TaskFileError: a line is not as said above.
    """
    return collected("mbpp", read_rows(path), _problem)


def _problem(row: Row) -> Stated:
    number = row.data.get("task_id")
    if not isinstance(number, int) or isinstance(number, bool):
        raise row.error("task_id", repr(number)[:40], "a whole number")
    said = row.text("text") if "text" in row.data else row.text("prompt")
    code = row.text("code").replace("\r\n", "\n").replace("\t", "    ").rstrip()
    asserts = [*row.items("test_list")]
    for index, line in enumerate(asserts):
        if not isinstance(line, str):
            raise row.error(f"test_list[{index}]", type(line).__name__, "a text")
    tests = statements("\n".join(map(str, asserts)))
    defined = [node.name for node in statements(code) if isinstance(node, ast.FunctionDef)]
    called = [name for name in defined if asserted(tests, name)]
    if len(called) != 1:
        raise LeftOut("whose asserts do not call one function with literals")
    return Stated(
        id=str(number),
        said=said,
        ask="Write the function",
        wrong=unwritten(code, called[0]),
        right=f"{code}\n",
        function=called[0],
        examples=asserted(tests, called[0]),
        source=str(number),
        operator="unwritten",
        metadata={},
        forms=forms(tests, called[0]),
    )
