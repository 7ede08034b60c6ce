"""CanItEdit (arXiv:2312.12450): programs to edit as an instruction says, as JSONL.

A line has ``full_name``, ``before`` and ``after`` (whole programs), ``instruction_descriptive`` and
``instruction_lazy``, ``tests`` (a program to run after the edited one, in its namespace) and ``taxonomy``
with ``change_kind`` and ``topic``. (``id``, ``name`` and ``libraries`` are not needed.) The dataset is a
parquet file; ``datasets.load_dataset("nuprl/CanItEdit", split="test").to_json(PATH)`` makes it JSONL.

What its asserts look at is compared on the host; see `envkit.environments.code_editor.formats.asserts`.
"""

from __future__ import annotations

import ast
import functools
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import final

from envkit.env import ImportedTasks
from envkit.environments.code_editor.formats.asserts import WEAKNESS, looks_of
from envkit.environments.code_editor.formats.rows import Row, read_rows
from envkit.environments.code_editor.formats.stated import PYTHON, LeftOut, collected, statements
from envkit.grading import Leniency
from envkit.inputs.call import Call
from envkit.mining.build import SOLUTION
from envkit.types import JSON, Task

_ASK = "Edit the program as told above. A python block takes the place of the whole program"


@final
@dataclass(frozen=True, slots=True)
class Edited:
    """A program to edit, with tests of its own.

    Args:
        id: unique within the benchmark.
        said: the instruction.
        before: the program as the agent meets it.
        after: a right form of it.
        tests: a program with asserts.
        operator: kind of change.
        metadata: further public facts.
    """

    id: str
    said: str
    before: str
    after: str
    tests: str
    operator: str
    metadata: Mapping[str, JSON]

    def task(self, benchmark: str) -> Task:
        """See `envkit.environments.code_editor.formats.stated.Problem`."""
        if self.before == self.after:
            raise LeftOut("without a difference between wrong and right")
        if _foreign(self.after) or _foreign(self.tests):
            raise LeftOut("that import other than the standard library")
        looks = looks_of(self.tests, self.after)
        calls = [Call((str(index), repr(place.source))) for index, place in enumerate(looks.places)]
        return Task(
            id=f"{benchmark}/{self.id}",
            split="heldout",
            prompt=self.said.strip(),
            files={SOLUTION: self.before},
            metadata={
                "benchmark": benchmark,
                "evaluation_only": True,
                "operator": self.operator,
                "source": f"{benchmark}:{self.id}",
                "ask": _ASK,
                "whole": True,
                **self.metadata,
            },
            hidden={
                "reference": self.after,
                "function": "look",
                "parameters": ["place", "source"],
                "modules": [],
                "examples": [],
                "killers": [call.to_plain() for call in calls],
                "fresh": 0,
                "policy": asdict(PYTHON),
                "leniency": asdict(Leniency(mappings=True, arguments=False)),
                "tests": looks.program,
                "looks": [place.to_json() for place in looks.places],
                "weakness": WEAKNESS if looks.weak else "",
            },
        )


def read(path: Path, *, lazy: bool = False) -> ImportedTasks:
    """All items of a file.

    Args:
        path: the file.
        lazy: whether the agent is told as a person in a hurry would say it, not in detail.

    Raises:
        TaskFileError: a line is not as said above.
    """
    instruction = "lazy" if lazy else "descriptive"
    benchmark = "canitedit-lazy" if lazy else "canitedit"
    return collected(benchmark, read_rows(path), functools.partial(_problem, instruction))


def _problem(instruction: str, row: Row) -> Edited:
    before, after, tests = (
        row.text(field).replace("\r\n", "\n").strip("\n").rstrip() + "\n"
        for field in ("before", "after", "tests")
    )
    taxonomy = row.row("taxonomy")
    return Edited(
        id=row.text("full_name"),
        said=row.text(f"instruction_{instruction}"),
        before=before,
        after=after,
        tests=tests,
        operator=taxonomy.text("change_kind"),
        metadata={"topic": taxonomy.text("topic"), "instruction": instruction},
    )


def _foreign(source: str) -> bool:
    """Whether code imports what a sandbox does not hold."""
    for node in (inner for statement in statements(source) for inner in ast.walk(statement)):
        match node:
            case ast.Import(names):
                modules = [alias.name for alias in names]
            case ast.ImportFrom(str() as module):
                modules = [module]
            case _:
                continue
        if any(module.partition(".")[0] not in sys.stdlib_module_names for module in modules):
            return True
    return False
