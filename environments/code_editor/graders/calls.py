"""Grade by calls: the repaired function must answer hidden calls as the original does."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, compress
from typing import final

from envkit.env.compare import EXACT, canonical
from envkit.env.grade import Grade
from envkit.env.taskfile import digest
from envkit.environments.code_editor.actions import replace_text_message
from envkit.environments.code_editor.editor import CodeEditor
from envkit.environments.code_editor.examples import Holds, example_runner
from envkit.environments.code_editor.graders.base import (
    EXPECTED_ANSWERS,
    REFERENCE_LIMITS,
    original_answers,
)
from envkit.environments.code_editor.graders.contract import (
    Contract,
    contract_of,
    description_of,
    is_below,
    order_counts,
)
from envkit.environments.code_editor.graders.oracle import (
    Answer,
    Program,
    Questions,
    answerable,
    answers,
    grade,
    same,
)
from envkit.environments.code_editor.graders.reach import reached_edges
from envkit.environments.code_editor.hidden import ProblemHidden, as_run, solution_of
from envkit.environments.code_editor.inputs.call import Call
from envkit.environments.code_editor.inputs.edges import (
    Examples,
    ReachedEdge,
    Signature,
    drawn_edges,
    signature_of,
)
from envkit.environments.code_editor.inputs.generate import StatedRules, generated_calls
from envkit.environments.code_editor.inputs.perturb import perturbed_calls
from envkit.environments.code_editor.mining.build import SOLUTION
from envkit.environments.code_editor.mining.hidden import RepairHidden
from envkit.environments.code_editor.mining.mutations.search import Example, examples_of
from envkit.environments.code_editor.result_cache import ResultCache
from envkit.environments.code_editor.source import docstrings
from envkit.environments.code_editor.source.syntax import definitions
from envkit.errors import BrokenTask
from envkit.sandbox import SandboxBackend
from envkit.types import Task

#: Calls at edges in one set, if the function has fewer kinds of edges than that, and enough values for them.
EDGE_CALLS = 16
#: Kinds of edges that a stated problem allows, if the call follows the rules that its examples show.
_STATED_EDGES = ("empty", "one", "two equal", "long", "zero", "negative", "large", "deep")
#: Edges that an original answers. All tasks of a function share them, because they do not depend on the bug.
REACHED_EDGES = ResultCache(1024)
#: Contracts, by task.
CONTRACTS = ResultCache(1024)


@dataclass(frozen=True, slots=True)
class _Reach:
    """The examples of a function, the edges that it answers, and the rules of a stated problem."""

    examples: Examples
    edges: Sequence[ReachedEdge]
    rules: StatedRules | None


@final
class CallGrader:
    """Grades by calls; implements `envkit.environments.code_editor.graders.base.Grader`."""

    path = SOLUTION
    weakness = ""

    def __init__(self, task: Task, hidden: RepairHidden | ProblemHidden) -> None:
        self._task, self._hidden = task, hidden
        # What is inferred of the original depends on the prompt and on the broken file too.
        self._key = digest([task])
        is_method = "." in hidden.function
        self.no_attack_reason = (
            "it attacks by a function, and the task asks for a method" if is_method else ""
        )

    def editor(self, backend: SandboxBackend) -> CodeEditor:
        # A benchmark's file is shown whole, because its bug may be outside the function.
        focus = None if isinstance(self._hidden, ProblemHidden) else self._hidden.function
        hidden = self._hidden
        run = example_runner(
            self._task, hidden.function, hidden.modules, backend, lambda: self._judge(backend)
        )
        return CodeEditor(SOLUTION, focus=focus, run_examples=run)

    def _judge(self, backend: SandboxBackend) -> Holds:
        """Compare answers to the shown examples as the grade will: with tolerances and free orders."""
        contract = self.contract(backend)
        examples = examples_of(self._task)
        calls = [example.call for example in examples]

        def make() -> Sequence[Answer | None]:
            program = self._program(self._hidden.reference.encode())
            found = original_answers(self._task, backend, program, calls)
            return _with_tolerance(contract, calls, found)

        known = EXPECTED_ANSWERS.get(("examples", self._key), make)
        wanted = {example.text: want for example, want in zip(examples, known, strict=False)}

        def holds(example: Example, answer: Answer) -> bool:
            want = wanted.get(example.text)
            if want is None:  # the original does not answer, or no tolerance is known
                return example.holds(answer)
            return same(want, answer, contract.policy, contract.leniency)

        return holds

    def read_only_files(self) -> Mapping[str, bytes]:
        return {}

    def oracle_action(self) -> str:
        """Return the whole original function.

        Chosen on pilots with the 135M model: it repairs while it copies, and rarely if it must name the wrong
        line first, as in a diff.
        """
        source = self._hidden.reference
        if isinstance(self._hidden, ProblemHidden):
            return replace_text_message(solution_of(self._task), source)
        [found] = [item for item in definitions(source) if item.name == self._hidden.function]
        code, _ = docstrings.split(found.lines(source))
        return f"```python\n{code}\n```"

    def cache_key(self, count: int, seed: int) -> Hashable:
        return self._key, count, seed

    def grade(self, source: bytes, backend: SandboxBackend, count: int, seed: int) -> Grade:
        """Grade by the stored calls and some drawn ones. Other drawn ones must confirm a PASS."""
        contract, program = self.contract(backend), self._program(source)
        first, confirming = self.asked(backend, count, seed)
        if not first.calls:
            raise BrokenTask(f"task {self._task.id}: the original answers none of its hidden calls")
        return grade(backend, program, first, leniency=contract.leniency, confirming=confirming)

    def asked(self, backend: SandboxBackend, count: int, seed: int) -> tuple[Questions, Questions]:
        """Return the calls that grade a visit, and those that confirm a PASS, with the original's answers.

        The first are those of `hidden_calls`, and calls at every edge that the original answers: each kind of
        edge of each argument, with values drawn for this seed. The second are drawn likewise; they hold no
        stored call and none of the first, and there are none if the arguments leave no room.

        Args:
            backend: makes the sandboxes in which the original runs.
            count: number of ordinary calls to draw.
            seed: seed of all draws.

        Raises:
            SandboxError: the machinery failed.
        """
        key = self.cache_key(count, seed)
        return EXPECTED_ANSWERS.get(key, lambda: self._asked(backend, count, seed))

    def hidden_calls(self, seed: int, count: int) -> list[Call]:
        """Return the calls that grade, without those at edges; first those that expose the bug."""
        hidden = self._hidden
        return [*hidden.killers, *self._drawn(seed, count), *_other_examples(hidden)]

    def contract(self, backend: SandboxBackend) -> Contract:
        """Return how answers are compared, as far as description, examples and code tell.

        If a looser comparison would accept the broken function too, answers are compared exactly: the bug may
        be the order or the rounding itself.

        Raises:
            SandboxError: the machinery failed.
        """
        return CONTRACTS.get(self._key, lambda: self._contract(backend))

    def _contract(self, backend: SandboxBackend) -> Contract:
        hidden = self._hidden
        exact = Contract(hidden.policy, hidden.leniency if isinstance(hidden, ProblemHidden) else EXACT)
        found = contract_of(
            self._statement(),
            self._signature().names,
            hidden.reference,
            hidden.function,
            exact.policy,
            exact.leniency,
            self._signature().defaults,
        )
        if not all(found.within(call) for call in hidden.examples):  # that argument is no tolerance
            found = dataclasses.replace(found, tolerance=None)
        if found == exact:
            return exact
        reference = self._program(hidden.reference.encode())
        calls, right = answerable(
            backend, reference, [*hidden.killers, *_other_examples(hidden)], REFERENCE_LIMITS
        )
        if order_counts([answer.value for answer in right]):
            found = dataclasses.replace(found, leniency=exact.leniency)
        telling = [call in hidden.killers and self._is_comparable(found, call) for call in calls]
        killers, right = list(compress(calls, telling)), list(compress(right, telling))
        program = self._program(solution_of(self._task).encode())
        broken = answers(backend, program, killers, REFERENCE_LIMITS)
        if len(broken) < len(killers):  # by its own fault, or by the machine's
            broken = max(broken, answers(backend, program, killers, REFERENCE_LIMITS), key=len)
        wanted = _with_tolerance(found, killers, right)
        differs = any(
            want is not None and not same(want, got, found.policy, found.leniency)
            for want, got in zip(wanted, broken, strict=False)
        )
        return found if differs or len(broken) < len(killers) else exact

    def _is_comparable(self, contract: Contract, call: Call) -> bool:
        """True if the original's answer to a call tells more than the tolerance of that call hides."""
        if contract.tolerance is None:
            return True
        examples = self._hidden.examples
        widest = max((contract.within(example) or 0.0 for example in examples), default=0.0)
        return not is_below(call, examples) and (contract.within(call) or 0.0) <= widest

    def _statement(self) -> str:
        """The task's description, and what the file says of the function."""
        hidden = self._hidden
        seen = description_of(solution_of(self._task), hidden.function)
        return f"{self._task.prompt}\n{seen or description_of(hidden.reference, hidden.function)}"

    def _signature(self) -> Signature:
        return signature_of(self._hidden.reference, self._hidden.function)

    def _drawn(self, seed: int, count: int) -> list[Call]:
        hidden = self._hidden
        if isinstance(hidden, ProblemHidden):
            return generated_calls(hidden.examples, seed, hidden.fresh, self._task.prompt, hidden.parameters)
        return perturbed_calls(hidden.examples, seed=seed, count=count)

    def _asked(self, backend: SandboxBackend, count: int, seed: int) -> tuple[Questions, Questions]:
        """Draw all calls, and let the original answer them in a sandbox that no candidate ever uses."""
        contract, reach = self.contract(backend), self._reach(backend)
        first = self.hidden_calls(seed, count)
        seen = _sources([*first, *self._hidden.examples])
        first_edges = self._edges(reach, seed, seen)
        seed ^= 1 << 48
        second = [call for call in self._drawn(seed, count) if call.source("") not in seen]
        seen |= _sources(second)
        second_edges = self._edges(reach, seed, seen)
        calls = [*first, *second, *chain(*first_edges, *second_edges)]
        reference = self._program(self._hidden.reference.encode())
        # Calls that the original rejects, or whose answers cannot be compared, are dropped.
        answered = answerable(backend, reference, _distinct(calls), REFERENCE_LIMITS)
        found = {call.source(""): answer for call, answer in zip(*answered, strict=True)}

        def questions(ordinary: Sequence[Call], edges: Sequence[Sequence[Call]]) -> Questions:
            spread = _spread([[call for call in some if call.source("") in found] for some in edges])
            kept = [
                call
                for call in _distinct([*ordinary, *spread])
                if call.source("") in found and self._is_comparable(contract, call)
            ]
            wanted = _with_tolerance(contract, kept, [found[call.source("")] for call in kept])
            pairs = [(call, want) for call, want in zip(kept, wanted, strict=True) if want is not None]
            return Questions([call for call, _ in pairs], [want for _, want in pairs], contract.policy)

        grading, confirming = questions(first, first_edges), questions(second, second_edges)
        killers = self._hidden.killers
        if killers and not any(call in killers for call in grading.calls):
            raise BrokenTask(f"task {self._task.id}: the original answers no call that exposes the bug")
        return grading, confirming

    def _edges(self, reach: _Reach, seed: int, seen: set[str]) -> list[list[Call]]:
        """Draw candidates for each edge, in order of preference, that were not seen; add them to ``seen``."""
        edges = drawn_edges(reach.examples, reach.edges, seed, seen)
        if reach.rules is not None:
            fitted = [[reach.rules.fitted(call, seed) for call in calls] for calls in edges]
            edges = [[call for call in calls if call and call.source("") not in seen] for calls in fitted]
        seen |= _sources(chain(*edges))
        return edges

    def _reach(self, backend: SandboxBackend) -> _Reach:
        hidden = self._hidden
        calls = [call.to_plain() for call in hidden.examples]
        stated = (hidden.fresh, self._statement()) if isinstance(hidden, ProblemHidden) else ()
        facts = [*stated, hidden.reference, hidden.function, calls]
        key = hashlib.sha256(canonical(facts).encode()).digest()

        def make() -> _Reach:
            examples = Examples(hidden.examples, self._signature())
            program = self._program(hidden.reference.encode())
            if isinstance(hidden, ProblemHidden) and hidden.fresh == 0:  # nothing is to be drawn
                return _Reach(examples, [], None)
            if not isinstance(hidden, ProblemHidden):
                return _Reach(examples, reached_edges(backend, program, examples), None)
            names, statement = hidden.parameters, self._statement()
            rules = StatedRules(hidden.examples, self._task.prompt, names, statement)
            return _Reach(examples, reached_edges(backend, program, examples, _STATED_EDGES), rules)

        return REACHED_EDGES.get(key, make)

    def _program(self, source: bytes) -> Program:
        files = {SOLUTION: as_run(self._task, source)}
        return Program(files, SOLUTION, self._hidden.function, self._hidden.modules)


def _other_examples(hidden: RepairHidden | ProblemHidden) -> list[Call]:
    """The known calls that are not among those that expose the bug."""
    return [call for call in hidden.examples if call not in hidden.killers]


def _sources(calls: Iterable[Call]) -> set[str]:
    return {call.source("") for call in calls}


def _distinct(calls: Iterable[Call]) -> list[Call]:
    return [*{call.source(""): call for call in calls}.values()]


def _spread(edges: Sequence[Sequence[Call]]) -> list[Call]:
    """The first call at each edge; second ones as long as there are fewer than `EDGE_CALLS`."""
    first = [calls[0] for calls in edges if calls]
    second = [calls[1] for calls in edges if len(calls) > 1]
    return [*first, *second[: max(0, EDGE_CALLS - len(first))]]


def _with_tolerance(
    contract: Contract, calls: Sequence[Call], answers: Sequence[Answer]
) -> list[Answer | None]:
    """Expected answers with the tolerance of their calls; ``None`` for calls that cannot be compared."""
    if contract.tolerance is None:
        return list(answers)
    within = [contract.within(call) for call in calls]
    return [
        None if far is None else dataclasses.replace(answer, within=far)
        for far, answer in zip(within, answers, strict=False)
    ]
