"""Mine an installed package: make repair tasks of its functions, each with one small bug."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from envkit.grading import Answer, canonical, opaque, same
from envkit.inputs.call import Call
from envkit.mining.build import build_task, calls_of, known_calls
from envkit.mining.mutations import Mutation, mutations, spread
from envkit.mining.package_functions import PackageFunction, package_functions, require_split
from envkit.mining.run_variants import VariantBatch, variant_answers
from envkit.sandbox import SandboxBackend
from envkit.types import JSON, Task

#: Functions that share one sandboxed process, because starting a process costs more than running them.
_PER_SANDBOX = 8
#: Mutants tried per mutant kept.
_TRIED_PER_KEPT = 3
#: Fewest generated calls with a usable answer. With fewer, the task could be solved by memorizing examples.
_FEWEST_CALLS = 4
#: Fewest calls that must kill a mutant. A bug that rarely shows gives no training signal.
_FEWEST_KILLERS = 2
#: Longest answer that is compared, in characters of JSON.
_MAX_ANSWER = 2000


@dataclass(frozen=True, slots=True)
class _Mutant:
    """A mutation, its module text, and the indices of the calls that kill it."""

    mutation: Mutation
    text: str
    killers: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class _Trial:
    """A function with its remaining mutants and the original's answers."""

    function: PackageFunction
    calls: Sequence[Call]
    mutants: Sequence[_Mutant]
    original: Sequence[Answer | None] = ()
    usable: tuple[int, ...] = ()


def mine(
    package: str,
    *,
    seed: int,
    split: str,
    backend: SandboxBackend,
    per_function: int = 6,
    max_chars: int = 700,
    exclude: Callable[[PackageFunction], bool] | None = None,
    progress: Callable[[int, int, int], None] | None = None,
    workers: int = 2,
) -> list[Task]:
    """Make repair tasks of a package's functions.

    The same arguments and package version give the same tasks, byte for byte.

    Args:
        package: distribution name of an installed package.
        seed: decides generated inputs and the choice of mutants.
        split: ``"train"`` or ``"heldout"``.
        backend: makes the sandboxes in which originals and mutants run.
        per_function: most tasks made from one function.
        max_chars: longest function, in characters of the text that the agent sees.
        exclude: True for functions to leave out, such as near-duplicates of held-out functions.
        progress: called with (functions done, functions in all, tasks so far).
        workers: number of sandboxes that run in parallel.

    Raises:
        UsageError: the package is not installed, or not for this split.
        SandboxError: the machinery failed.
    """
    require_split(package, split)
    found = package_functions(package, max_chars)
    chosen = [one for one in found if exclude is None or not exclude(one)]
    chunks = [chosen[at : at + _PER_SANDBOX] for at in range(0, len(chosen), _PER_SANDBOX)]
    tasks: list[Task] = []
    done = 0

    def make(chunk: Sequence[PackageFunction]) -> list[Task]:
        return _mine_chunk(chunk, seed, split, backend, per_function)

    with ThreadPoolExecutor(workers) as pool:
        for chunk, some in zip(chunks, pool.map(make, chunks), strict=True):
            tasks += some
            done += len(chunk)
            if progress is not None:
                progress(done, len(chosen), len(tasks))
    return tasks


def _mine_chunk(
    chunk: Sequence[PackageFunction],
    seed: int,
    split: str,
    backend: SandboxBackend,
    per_function: int,
) -> list[Task]:
    trials: list[_Trial] = []
    for function in chunk:
        text = function.slice.text
        changes = mutations(text, function.slice.function)
        every = [_Mutant(one, one.apply(text)) for one in changes]
        tried = _spread(every, _TRIED_PER_KEPT * per_function, f"tried/{seed}/{function.source}")
        trials.append(_Trial(function, calls_of(function, seed), tried))
    survivors: list[_Trial] = []
    for trial, (original, *rows) in zip(trials, _ask(backend, trials), strict=True):
        usable = _usable(original, trial.function)
        alive = [
            replace(one, killers=killers)
            for one, row in zip(trial.mutants, rows, strict=True)
            if len(killers := _killers(original, row, usable)) >= _FEWEST_KILLERS
        ]
        if usable and alive:
            kept = _spread(alive, per_function, f"kept/{seed}/{trial.function.source}")
            survivors.append(replace(trial, mutants=kept, original=original, usable=usable))
    # Repeat with another process, hash seed and order of calls. Unstable answers cannot decide a reward.
    tasks: list[Task] = []
    for trial, (again, *rows) in zip(survivors, _ask(backend, survivors, again=True), strict=True):
        if None in again or _killers(trial.original, again, trial.usable):
            continue
        for one, row in zip(trial.mutants, rows, strict=True):
            if one.killers == _killers(trial.original, row, trial.usable):
                tasks.append(
                    build_task(trial.function, split, one.mutation, one.killers, trial.calls, trial.original)
                )
    return tasks


def _ask(
    backend: SandboxBackend, trials: Sequence[_Trial], *, again: bool = False
) -> list[list[list[Answer | None]]]:
    """Answers in the order of ``trial.calls``; ``again`` calls in reverse with another hash seed."""
    turn = -1 if again else 1
    batches = [
        VariantBatch(
            trial.function.slice.function,
            [trial.function.slice.text, *(mutant.text for mutant in trial.mutants)],
            trial.calls[::turn],
        )
        for trial in trials
    ]
    found = variant_answers(backend, batches, 2 if again else 1) if batches else []
    return [[row[::turn] for row in rows] for rows in found]


def _usable(original: Sequence[Answer | None], function: PackageFunction) -> tuple[int, ...]:
    """Indices of the calls whose answers can be expected values; none if the function is unfit."""
    if None in original:  # a hang would repeat at every visit
        return ()
    usable = tuple(index for index, answer in enumerate(original) if answer and _is_usable(answer))
    # Without generated calls, the task could be solved by memorizing the examples.
    generated = sum(index >= len(known_calls(function)) for index in usable)
    # A function whose answers are all the same cannot be distinguished from a constant.
    distinct = {canonical(_whole(answer)) for index in usable if (answer := original[index])}
    return usable if generated >= _FEWEST_CALLS and len(distinct) > 1 else ()


def _is_usable(answer: Answer) -> bool:
    """True if an answer of the original can be an expected value."""
    whole = _whole(answer)
    return answer.raises is None and not opaque(whole) and len(canonical(whole)) <= _MAX_ANSWER


def _whole(answer: Answer) -> JSON:
    return [answer.value, answer.after]


def _killers(
    original: Sequence[Answer | None], row: Sequence[Answer | None], usable: Sequence[int]
) -> tuple[int, ...]:
    """Indices of the calls that a variant answers differently; calls without an answer do not count."""
    pairs = ((index, original[index], row[index]) for index in usable)
    return tuple(index for index, want, got in pairs if want and got and not same(want, got))


def _spread(mutants: Sequence[_Mutant], count: int, seed: str) -> list[_Mutant]:
    known = {one.mutation: one for one in mutants}
    return [known[one] for one in spread([*known], count, seed)]
