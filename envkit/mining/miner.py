"""The miner: an installed package becomes repair tasks, one small bug each."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from envkit.grading import Answer, canonical, opaque, same
from envkit.mining.batch import batch_answers
from envkit.mining.build import build_task, calls_of
from envkit.mining.doctests import modules_of
from envkit.mining.mutations import OPERATORS, Mutation, mutations
from envkit.mining.subjects import Subject, require_split, subjects
from envkit.sandbox import SandboxBackend
from envkit.types import JSON, Task

#: Mutants tried for each one kept.
_TRIED_PER_KEPT = 3
#: Fewest calls with a usable answer; with fewer, too little is known of the function.
_FEWEST_CALLS = 4
#: Fewest calls that must tell a mutant from its original; a bug that hardly shows teaches little.
_FEWEST_KILLERS = 2
#: Longest answer that is compared, in characters of JSON.
_MAX_ANSWER = 2000


@dataclass(frozen=True, slots=True)
class _Mutant:
    """A mutation, its module text, and the calls, by index, that tell it from the original."""

    mutation: Mutation
    text: str
    killers: tuple[int, ...] = ()


def mine(
    package: str,
    *,
    seed: int,
    split: str,
    backend: SandboxBackend,
    per_function: int = 6,
    max_chars: int = 700,
    exclude: Callable[[Subject], bool] | None = None,
    progress: Callable[[int, int, int], None] | None = None,
    workers: int = 2,
) -> list[Task]:
    """Make repair tasks of a package's functions.

    The same arguments and package version give the same tasks, byte for byte.

    Args:
        package: distribution name of an installed package.
        seed: decides generated inputs and the choice of mutants.
        split: ``"train"`` or ``"heldout"``.
        backend: where the originals and mutants run.
        per_function: most tasks made from one function.
        max_chars: longest function, as it is shown.
        exclude: subjects to leave out, near-duplicates of held-out functions for instance.
        progress: called with (functions done, functions in all, tasks so far).
        workers: sandboxes at work at once.

    Raises:
        UsageError: the package is not installed, or not for this split.
        SandboxError: the machinery failed.
    """
    require_split(package, split)
    chosen = [one for one in subjects(package, max_chars) if exclude is None or not exclude(one)]
    tasks: list[Task] = []

    def make(subject: Subject) -> list[Task]:
        return mine_subject(subject, seed, split, backend, per_function)

    with ThreadPoolExecutor(workers) as pool:
        for done, some in enumerate(pool.map(make, chosen), 1):
            tasks += some
            if progress is not None:
                progress(done, len(chosen), len(tasks))
    return tasks


def mine_subject(
    subject: Subject, seed: int, split: str, backend: SandboxBackend, per_function: int
) -> list[Task]:
    """The tasks of one function; none where its answers are too few, too large or not repeatable."""
    rng = random.Random(f"{seed}/{subject.source}")
    text, function = subject.slice.text, subject.slice.function
    calls = calls_of(subject, seed)
    modules = modules_of(calls)

    def ask(mutants: Sequence[_Mutant], hash_seed: int) -> list[list[Answer | None]]:
        variants = [text, *(mutant.text for mutant in mutants)]
        return batch_answers(backend, variants, function, calls, modules, hash_seed)

    every = [_Mutant(mutation, mutation.apply(text)) for mutation in mutations(text, function)]
    tried = _spread(every, _TRIED_PER_KEPT * per_function, rng)
    original, *rows = ask(tried, 1)
    usable = [index for index, answer in enumerate(original) if answer and _is_usable(answer)]
    alive = [
        _Mutant(one.mutation, one.text, killers)
        for one, row in zip(tried, rows, strict=True)
        if len(killers := _killers(original, row, usable)) >= _FEWEST_KILLERS
    ]
    kept = _spread(alive, per_function, rng)
    # A function that says the same to every call cannot be told from a constant.
    told = {canonical(_whole(answer)) for index in usable if (answer := original[index])}
    # One that hangs on a generated call would do so again at each visit.
    if None in original or len(usable) < _FEWEST_CALLS or len(told) < 2 or not kept:
        return []
    # Another process with another hash seed: what depends on either is no ground for a reward.
    again, *rows = ask(kept, 2)
    if any(_killers(original, again, usable)) or None in [again[index] for index in usable]:
        return []
    return [
        build_task(subject, split, one.mutation, one.killers, calls, original)
        for one, row in zip(kept, rows, strict=True)
        if set(one.killers) == set(_killers(original, row, usable))
    ]


def _is_usable(answer: Answer) -> bool:
    """Whether an original's answer is fit to be an expectation."""
    whole = _whole(answer)
    return answer.raises is None and not opaque(whole) and len(canonical(whole)) <= _MAX_ANSWER


def _whole(answer: Answer) -> JSON:
    return [answer.value, answer.after]


def _killers(
    original: Sequence[Answer | None], row: Sequence[Answer | None], usable: Sequence[int]
) -> tuple[int, ...]:
    """Calls that a variant answers, and answers differently."""
    pairs = ((index, original[index], row[index]) for index in usable)
    return tuple(index for index, want, got in pairs if want and got and not same(want, got))


def _spread(mutants: Sequence[_Mutant], count: int, rng: random.Random) -> list[_Mutant]:
    """Up to ``count`` of them by seeded choice: operators take turns, each on its least used line."""
    left = rng.sample(list(mutants), len(mutants))
    # In a drawn order: else the operators with the most sites would always come first.
    rank = {operator: index for index, operator in enumerate(rng.sample(OPERATORS, len(OPERATORS)))}
    operators, lines = Counter[str](), Counter[int]()
    chosen: list[_Mutant] = []
    while left and len(chosen) < count:
        best = min(
            left,
            key=lambda one: (
                operators[one.mutation.operator],
                rank[one.mutation.operator],
                lines[one.mutation.line],
            ),
        )
        left.remove(best)
        operators[best.mutation.operator] += 1
        lines[best.mutation.line] += 1
        chosen.append(best)
    return chosen
