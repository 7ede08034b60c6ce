"""Mine an installed package: make tasks of its functions, to repair one small bug or several, or to write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from envkit.env.compare import canonical, opaque
from envkit.env.hidden import text_file
from envkit.environments.code_editor.graders.oracle import Answer, same
from envkit.environments.code_editor.inputs.call import Call
from envkit.environments.code_editor.inputs.trial_calls import calls_that_fit
from envkit.environments.code_editor.mining.bugs import (
    WRITE,
    Bug,
    bug_of,
    several_bugs,
    slipped_bugs,
    unwritten,
)
from envkit.environments.code_editor.mining.build import SOLUTION, build_task, calls_of, known_calls
from envkit.environments.code_editor.mining.mutations.mutate import Mutation, is_python, mutations, spread
from envkit.environments.code_editor.mining.mutations.run_variants import VariantBatch, variant_answers
from envkit.environments.code_editor.mining.mutations.search import examples_of, fitting_mutants
from envkit.environments.code_editor.mining.mutations.slips import slips
from envkit.environments.code_editor.mining.package_functions import (
    PackageFunction,
    package_functions,
    require_split,
)
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
class Wanted:
    """The tasks to make of each function, at most.

    Args:
        single: to repair one mutation.
        several: to repair two or three.
        write: True for one to write the function.
        slips: to repair a slip, alone or beside other bugs; see the module ``mutations.slips``.
    """

    single: int = 6
    several: int = 0
    write: bool = False
    slips: int = 0


@dataclass(frozen=True, slots=True)
class _Mutant:
    """A bug, its mutation if it is a single one, and the indices of the calls that kill it."""

    bug: Bug
    mutation: Mutation | None = None
    killers: tuple[int, ...] = ()
    is_slip: bool = False


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
    version: str | None = None,
    seed: int,
    split: str,
    backend: SandboxBackend,
    wanted: Wanted = Wanted(),
    max_chars: int = 700,
    exclude: Callable[[PackageFunction], bool] | None = None,
    progress: Callable[[int, int, int], None] | None = None,
    workers: int = 2,
) -> list[Task]:
    """Make tasks of a package's functions.

    Each task knows if search alone solves it: ``metadata["enumerate"]`` is True if the first single mutation
    of the broken function for which the shown examples hold answers all calls of mining as the original does.

    The same arguments and package version give the same tasks, byte for byte.

    Args:
        package: distribution name of an installed or fetched package.
        version: its version; by default the one that Python would import.
        seed: decides generated inputs and the choice of mutants.
        split: ``"train"``, ``"heldout"`` or ``"test"``.
        backend: makes the sandboxes in which originals and mutants run.
        wanted: the tasks to make of each function.
        max_chars: longest function, in characters of the text that the agent sees.
        exclude: True for functions to leave out, such as near-duplicates of held-out functions.
        progress: called with (functions done, functions in all, tasks so far).
        workers: number of sandboxes that run in parallel.

    Raises:
        UsageError: the package is not installed, or not for this split.
        SandboxError: the machinery failed.
    """
    require_split(package, split)
    found = package_functions(package, max_chars, version=version)
    chosen = [one for one in found if exclude is None or not exclude(one)]
    chunks = [chosen[at : at + _PER_SANDBOX] for at in range(0, len(chosen), _PER_SANDBOX)]
    tasks: list[Task] = []
    done = 0

    def make(chunk: Sequence[PackageFunction]) -> list[Task]:
        return _mine_chunk(chunk, seed, split, backend, wanted)

    with ThreadPoolExecutor(workers) as pool:
        for chunk, some in zip(chunks, pool.map(make, chunks), strict=True):
            tasks += some
            done += len(chunk)
            if progress is not None:
                progress(done, len(chosen), len(tasks))
    return tasks


def _mine_chunk(
    chunk: Sequence[PackageFunction], seed: int, split: str, backend: SandboxBackend, wanted: Wanted
) -> list[Task]:
    tried = [_single_bugs(function, seed, wanted) for function in _with_examples(backend, chunk)]
    noticed = _keep_killed(backend, [trial for trial in tried if trial.mutants or wanted.write])
    further = [_further_bugs(trial, seed, wanted) for trial in noticed]
    combined = {
        one.function.source: one for one in _keep_killed(backend, [one for one in further if one.mutants])
    }
    chosen = [_chosen(trial, combined.get(trial.function.source), seed, wanted) for trial in noticed]
    return _labelled(backend, _stable(backend, chosen, split), chosen)


def _with_examples(backend: SandboxBackend, functions: Sequence[PackageFunction]) -> list[PackageFunction]:
    """Find examples by trial for the functions that have none; those that answer too little are left out."""
    unknown = [one for one in functions if not one.examples]
    batches = [
        VariantBatch(one.slice.function, [one.slice.text], one.trials, all_calls=True) for one in unknown
    ]
    found: dict[str, list[int]] = {}
    for function, [row] in zip(unknown, variant_answers(backend, batches, 1) if batches else [], strict=True):
        texts = [
            # Arguments after the call do not count: they differ whatever the function does.
            canonical(one.value) if one is not None and _is_usable(one) and one.value is not None else None
            for one in row
        ]
        found[function.source] = calls_that_fit(texts)
    known = [one if one.examples else one.with_trials(found[one.source]) for one in functions]
    return [one for one in known if one.examples]


def _single_bugs(function: PackageFunction, seed: int, wanted: Wanted) -> _Trial:
    text = function.slice.text
    count = _TRIED_PER_KEPT * max(wanted.single, wanted.several, wanted.slips)
    tried = spread(mutations(text, function.slice.function), count, f"tried/{seed}/{function.source}")
    return _Trial(function, calls_of(function, seed), [_Mutant(bug_of([one], text), one) for one in tried])


def _further_bugs(trial: _Trial, seed: int, wanted: Wanted) -> _Trial:
    """The function with several bugs at once, without its body, and with slips."""
    function, text = trial.function, trial.function.slice.text
    known = [one.mutation for one in trial.mutants if one.mutation is not None]
    count = _TRIED_PER_KEPT * wanted.several
    bugs = several_bugs(known, text, count, f"several/{seed}/{function.source}")
    if wanted.write and (whole := unwritten(text, function.slice.function)) is not None:
        bugs.append(whole)
    slipped = slipped_bugs(
        slips(text, function.slice.function) if wanted.slips else (),
        known,
        text,
        _TRIED_PER_KEPT * wanted.slips,
        f"slips/{seed}/{function.source}",
    )
    made = [*map(_Mutant, bugs), *(_Mutant(bug, is_slip=True) for bug in slipped)]
    return replace(trial, mutants=made)


def _keep_killed(backend: SandboxBackend, trials: Sequence[_Trial]) -> list[_Trial]:
    """Keep the functions that are fit for tasks, each with the mutants that enough calls kill."""
    found: list[_Trial] = []
    for trial, (original, *rows) in zip(trials, _ask(backend, trials), strict=True):
        if usable := _usable(original, trial.function):
            killed = [
                replace(one, killers=killers)
                for one, row in zip(trial.mutants, rows, strict=True)
                if len(killers := _killers_of(one, original, row, usable)) >= _FEWEST_KILLERS
            ]
            found.append(replace(trial, mutants=killed, original=original, usable=usable))
    return found


def _chosen(trial: _Trial, combined: _Trial | None, seed: int, wanted: Wanted) -> _Trial:
    """Choose the bugs that become tasks."""
    by_mutation = {one.mutation: one for one in trial.mutants if one.mutation is not None}
    kept = spread([*by_mutation], wanted.single, f"kept/{seed}/{trial.function.source}")
    others = combined.mutants if combined is not None else ()
    slipped = [one for one in others if one.is_slip][: wanted.slips]
    write = [one for one in others if one.bug.operator == WRITE]
    several = [one for one in others if not one.is_slip and one.bug.operator != WRITE][: wanted.several]
    return replace(trial, mutants=[*(by_mutation[one] for one in kept), *several, *write, *slipped])


def _stable(backend: SandboxBackend, trials: Sequence[_Trial], split: str) -> list[Task]:
    """Make the tasks whose answers are the same with another process, hash seed and order of calls.

    Unstable answers cannot decide a reward.
    """
    tasks: list[Task] = []
    kept = [trial for trial in trials if trial.mutants]
    for trial, (again, *rows) in zip(kept, _ask(backend, kept, again=True), strict=True):
        if None in again or _killers(trial.original, again, trial.usable):
            continue
        for one, row in zip(trial.mutants, rows, strict=True):
            if one.killers == _killers_of(one, trial.original, row, trial.usable):
                tasks.append(
                    build_task(trial.function, split, one.bug, one.killers, trial.calls, trial.original)
                )
    return tasks


def _labelled(backend: SandboxBackend, tasks: Sequence[Task], trials: Sequence[_Trial]) -> list[Task]:
    """Add ``metadata["enumerate"]``: True if search alone solves the task."""
    by_source = {trial.function.source: trial for trial in trials}
    texts = [text_file(task, SOLUTION, "the broken program") for task in tasks]
    named = [(str(task.metadata["function"]), examples_of(task)) for task in tasks]
    found = fitting_mutants(backend, [(text, *rest) for text, rest in zip(texts, named, strict=True)])
    searched = [
        replace(by_source[task.source], mutants=[] if text is None else [_Mutant(Bug("", "", text, 0, 0, 0))])
        for task, text in zip(tasks, found, strict=True)
    ]
    labelled: list[Task] = []
    for task, trial, (_, *rows) in zip(tasks, searched, _ask(backend, searched), strict=True):
        solved = any(
            None not in (row[index] for index in trial.usable)
            and not _killers(trial.original, row, trial.usable)
            for row in rows
        )
        labelled.append(replace(task, metadata={**task.metadata, "enumerate": solved}))
    return labelled


def _ask(
    backend: SandboxBackend, trials: Sequence[_Trial], *, again: bool = False
) -> list[list[list[Answer | None]]]:
    """Answers in the order of ``trial.calls``; ``again`` calls in reverse with another hash seed."""
    turn = -1 if again else 1
    batches = [
        VariantBatch(
            trial.function.slice.function,
            [trial.function.slice.text, *(mutant.bug.text for mutant in trial.mutants)],
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


def _killers_of(
    mutant: _Mutant,
    original: Sequence[Answer | None],
    row: Sequence[Answer | None],
    usable: Sequence[int],
) -> tuple[int, ...]:
    """Like `_killers`; every call kills a text that does not parse, and so answers none."""
    if mutant.is_slip and not is_python(mutant.bug.text):
        return tuple(usable)
    return _killers(original, row, usable)


def _killers(
    original: Sequence[Answer | None], row: Sequence[Answer | None], usable: Sequence[int]
) -> tuple[int, ...]:
    """Indices of the calls that a variant answers differently; calls without an answer do not count."""
    pairs = ((index, original[index], row[index]) for index in usable)
    return tuple(index for index, want, got in pairs if want and got and not same(want, got))
