"""CanItEdit (arXiv:2312.12450): programs to edit by an instruction, as JSONL.

Each line has ``full_name``, ``before`` and ``after`` (whole programs), ``instruction_descriptive`` and
``instruction_lazy``, ``tests`` (a program to run after the edited one, in its namespace) and ``taxonomy``
with ``change_kind`` and ``topic``. The dataset is a parquet file;
``datasets.load_dataset("nuprl/CanItEdit", split="test").to_json(PATH)`` makes it JSONL.

The host compares the values that its asserts see; see `envkit.environments.code_editor.formats.asserts`.
"""

from __future__ import annotations

import ast
import functools
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

from envkit.env.authored import ImportedTasks
from envkit.env.compare import Leniency
from envkit.env.hidden import to_json
from envkit.environments.code_editor.formats.asserts import WEAKNESS, probe_tests
from envkit.environments.code_editor.formats.problems import PYTHON, LeftOut, collect, statements
from envkit.environments.code_editor.formats.records import Record, read_records
from envkit.environments.code_editor.hidden import ExpectedValue, ProgramHidden
from envkit.environments.code_editor.inputs.call import Call
from envkit.environments.code_editor.mining.build import SOLUTION
from envkit.types import JSON, Task

_ASK = "Edit the program as told above. A python block takes the place of the whole program"


@final
@dataclass(frozen=True, slots=True)
class EditProblem:
    """A program to edit, graded by its own test program.

    Args:
        id: unique within the benchmark.
        prompt: the instruction.
        before: the program that the agent gets.
        after: a correct version of it.
        tests: a program with asserts.
        operator: kind of change.
        metadata: further public facts.
    """

    id: str
    prompt: str
    before: str
    after: str
    tests: str
    operator: str
    metadata: Mapping[str, JSON]

    def task(self, benchmark: str) -> Task:
        """See `envkit.environments.code_editor.formats.problems.Problem`."""
        if self.before == self.after:
            raise LeftOut("without a difference between wrong and right")
        if _foreign(self.after) or _foreign(self.tests):
            raise LeftOut("that import other than the standard library")
        probed = probe_tests(self.tests, self.after)
        calls = [Call((str(index), repr(place.source))) for index, place in enumerate(probed.places)]
        return Task(
            id=f"{benchmark}/{self.id}",
            split="heldout",
            prompt=self.prompt.strip(),
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
            hidden=to_json(
                ProgramHidden(
                    reference=self.after,
                    killers=tuple(calls),
                    leniency=Leniency(mappings=True, arguments=False),
                    tests=probed.program,
                    looks=tuple(ExpectedValue(place.value, place.numbers) for place in probed.places),
                    weakness=WEAKNESS if probed.weak else "",
                    function="look",
                    parameters=("place", "source"),
                    modules=(),
                    examples=(),
                    fresh=0,
                    policy=PYTHON,
                )
            ),
        )


def read(path: Path, *, lazy: bool = False) -> ImportedTasks:
    """Read all items of a file.

    Args:
        path: the file.
        lazy: True for the short instruction, False for the detailed one.

    Raises:
        TaskFileError: a line does not have the form above.
    """
    instruction = "lazy" if lazy else "descriptive"
    benchmark = "canitedit-lazy" if lazy else "canitedit"
    return collect(benchmark, read_records(path), functools.partial(_problem, instruction))


def _problem(instruction: str, record: Record) -> EditProblem:
    before, after, tests = (
        record.text(field).replace("\r\n", "\n").strip("\n").rstrip() + "\n"
        for field in ("before", "after", "tests")
    )
    taxonomy = record.nested("taxonomy")
    return EditProblem(
        id=record.text("full_name"),
        prompt=record.text(f"instruction_{instruction}"),
        before=before,
        after=after,
        tests=tests,
        operator=taxonomy.text("change_kind"),
        metadata={"topic": taxonomy.text("topic"), "instruction": instruction},
    )


def _foreign(source: str) -> bool:
    """True if code imports modules that the sandbox does not have."""
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
