"""Tasks of a checkout, which its own pytest suite grades; see `envkit.mining.suite_miner`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from envkit.grading import Grade, Handover, grade_suite
from envkit.grading.suite import WEAKNESS as WEAKNESS
from envkit.mining.build import SOLUTION
from envkit.mining.suite_batch import with_pytest
from envkit.sandbox import Sandbox, SandboxBackend
from envkit.types import JSON, Task

#: Why the attack corpus is not played: it aims at the split oracle, and is known to fool a suite.
NO_EXPLOITS = "a pytest suite grades it, which is known to be weaker"


def has_suite(task: Task) -> bool:
    """Whether a suite grades it."""
    return "suite" in task.hidden


def path_of(task: Task) -> str:
    """The one file that the agent may change."""
    return str(task.metadata.get("path", SOLUTION))


def others(task: Task) -> list[str]:
    """Files of the project that the agent may read."""
    return [path for path in task.files if path != path_of(task)] if has_suite(task) else []


def oracle_action(task: Task) -> str:
    """The edit back to the original."""
    edit = cast("Mapping[str, str]", task.hidden["edit"])
    return f"<<<<<<< SEARCH\n{edit['search']}\n=======\n{edit['replace']}\n>>>>>>> REPLACE\n"


def handed_over(task: Task, sandbox: Sandbox) -> bytes:
    """The changed file, where nothing else was changed.

    Raises:
        NotAccepted: see `envkit.grading.Handover.collect`.
        SandboxError: the machinery failed.
    """
    path = path_of(task)
    given = {other: task.files[other].encode() for other in others(task)}
    return Handover([path], given).collect(sandbox)[path]


def judge(task: Task, source: bytes, backend: SandboxBackend) -> Grade:
    """Run the suite on a changed file, in a sandbox that the agent never entered and that holds pytest."""
    suite = cast("Mapping[str, JSON]", task.hidden["suite"])
    hidden = cast("Mapping[str, str]", suite["files"])
    rest = {**{other: task.files[other] for other in others(task)}, **hidden}
    return grade_suite(
        with_pytest(backend, cast("Sequence[str]", suite["packages"])),
        {path_of(task): source},
        {path: text.encode() for path, text in rest.items()},
        cast("Sequence[str]", suite["wanted"]),
    )
