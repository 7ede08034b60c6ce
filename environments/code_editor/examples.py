"""Run the shown examples on an edited file: feedback for the agent, and no part of the reward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias, final

from envkit.environments.code_editor.graders.oracle import Answer, Program, answers_and_end
from envkit.environments.code_editor.hidden import as_run
from envkit.environments.code_editor.mining.build import SOLUTION, shown_answer
from envkit.environments.code_editor.mining.mutations.search import Example, examples_of
from envkit.environments.code_editor.result_cache import ResultCache
from envkit.sandbox import Limits, SandboxBackend
from envkit.types import Task

#: Limits of all examples together, which are a few calls of small functions.
RUN_LIMITS: Final = Limits(
    cpu_s=2.0, wall_s=10.0, memory_bytes=256 * 2**20, processes=16, output_bytes=65_536
)

#: Results by examples and file, because episodes of a group make equal edits.
EXAMPLE_RESULTS: Final = ResultCache(4096)


@final
@dataclass(frozen=True, slots=True)
class ExampleResults:
    """The results of all examples.

    Args:
        lines: one per example: the call, its answer, and the expected one unless it is the same.
        failed: the lines of those that do not hold.
        timed_out: wall time ended the program; a stalled machine can cause that too.
    """

    lines: tuple[str, ...]
    failed: frozenset[str]
    timed_out: bool = False

    def since(self, before: ExampleResults) -> str:
        """The lines, with those marked that fail as they did before."""
        return "\n".join(
            f"{line} (unchanged)" if line in self.failed & before.failed else line for line in self.lines
        )


#: Runs the examples on a text of the file.
RunExamples: TypeAlias = Callable[[str], ExampleResults]


#: True if an answer to an example is right.
Holds: TypeAlias = Callable[[Example, Answer], bool]


def example_runner(
    task: Task, function: str, modules: Sequence[str], backend: SandboxBackend, judge: Callable[[], Holds]
) -> RunExamples | None:
    """Return a function that runs a task's shown examples, each time in a fresh sandbox.

    So edited code never runs in the sandbox of the episode.

    Args:
        task: its examples are called.
        function: the function that they call.
        modules: standard-library modules that their arguments name.
        backend: makes the sandboxes.
        judge: returns the function that compares an answer with the expected one; called when it is needed.

    Returns:
        ``None`` if the task shows no example.
    """
    examples = examples_of(task)
    calls = [example.call for example in examples]
    asked = function, tuple(modules), tuple((example.text, example.value) for example in examples)

    def run(source: str) -> ExampleResults:
        file = as_run(task, source.encode())
        program = Program({SOLUTION: file}, SOLUTION, function, tuple(modules))

        def make() -> ExampleResults:
            # One call in a message, so that one that ends the program does not take earlier answers with it.
            found, gone = answers_and_end(backend, program, calls, RUN_LIMITS, at_once=1)
            return _results(examples, found, judge(), timed_out=gone is not None and gone.timed_out)

        return EXAMPLE_RESULTS.get((asked, file), make, lambda results: not results.timed_out)

    return run if examples else None


def _results(
    examples: Sequence[Example], found: Sequence[Answer], holds: Holds, *, timed_out: bool
) -> ExampleResults:
    lines: list[str] = []
    failed: set[str] = set()
    for index, example in enumerate(examples):
        answer = found[index] if index < len(found) else None
        seen = f"{example.text} -> {_shown(example, answer)}"
        if answer is not None and holds(example, answer):
            lines.append(f"{seen}, as expected")
        else:
            lines.append(f"{seen}; expected {example.value}")
            failed.add(lines[-1])
    return ExampleResults(tuple(lines), frozenset(failed), timed_out)


def _shown(example: Example, answer: Answer | None) -> str:
    if answer is None:
        return "no answer: the code ended early, or took too long"
    return answer.show() if answer.raises is not None else shown_answer(example.call, answer)
