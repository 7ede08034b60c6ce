"""Mine a checkout: make repair tasks of its functions, graded by its own pytest suite."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from envkit.env.hidden import to_json
from envkit.environments.code_editor.graders.suite import SUITE_LIMITS, grade_suite, outcomes, with_pytest
from envkit.environments.code_editor.mining.bugs import mutation_id
from envkit.environments.code_editor.mining.build import edit_between
from envkit.environments.code_editor.mining.difficulty import difficulty
from envkit.environments.code_editor.mining.duplicates import Fingerprint, is_near
from envkit.environments.code_editor.mining.functions import Function, functions
from envkit.environments.code_editor.mining.hidden import Suite, SuiteHidden, SuiteSite
from envkit.environments.code_editor.mining.mutations.mutate import Mutation, mutations, spread
from envkit.environments.code_editor.mining.suite.checkout import Checkout, read_checkout, require_imports
from envkit.environments.code_editor.mining.suite.run_variants import SuiteRun, importable, run_suite_variants
from envkit.errors import SandboxError, UsageError
from envkit.sandbox import SandboxBackend
from envkit.types import Task, Verdict

#: One of this many modules is held out, chosen by a hash of its name.
ONE_HELD_OUT_OF: Final = 5
#: Value of the task's ``graded_by``; see `envkit.environments.code_editor.graders.suite`.
GRADED_BY: Final = "pytest-suite"
#: Variants that share one sandboxed process.
_PER_SANDBOX: Final = 16
#: Mutants tried per mutant kept.
_TRIED_PER_KEPT: Final = 3
#: Hash seed and number of runs of the unchanged suite. Tests that fail in any run do not grade. The first run
#: is a single one, in case the suite does not end. Seed 0 is a sandbox's default and saves a second start.
_RUNS: Final = ((0, 1), (0, 2), (1, 3))
#: CPU seconds of the unchanged suite. With a repair it may take twice as long.
_SUITE_CPU_S: Final = SUITE_LIMITS.cpu_s / 2
#: A mutant counts as endless if it takes this many times the original's CPU seconds, and at least the floor.
_SLOWER, _FLOOR_S = 8, 2.0


@dataclass(frozen=True, slots=True)
class Mined:
    """Result of mining a checkout.

    Args:
        tasks: tasks of the requested split.
        stable: tests that pass in every run on the checkout; each task needs all of them to pass.
        flaky: tests that pass in some runs.
        failing: tests that never pass.
        duplicates: functions left out as near-duplicates of others or of held-out ones.
    """

    tasks: tuple[Task, ...]
    stable: tuple[str, ...]
    flaky: tuple[str, ...]
    failing: tuple[str, ...]
    duplicates: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Site:
    """A function and its file."""

    module: str
    path: str
    function: Function

    @property
    def qualname(self) -> str:
        return f"{self.module}.{self.function.qualname}"


@dataclass(frozen=True, slots=True)
class _Mutant:
    """A mutation of a site, its module's text, and the tests that kill it."""

    site: _Site
    mutation: Mutation
    text: str
    killers: tuple[str, ...] = ()


def split_of(project: str, module: str) -> str:
    """Return ``"train"`` or ``"heldout"``. It depends on the two names alone, not on the version.

    >>> split_of("shop", "shop.stock"), split_of("shop", "shop.prices")
    ('train', 'heldout')
    """
    drawn = int(hashlib.sha256(f"{project}/{module}".encode()).hexdigest(), 16)
    return "heldout" if drawn % ONE_HELD_OUT_OF == 0 else "train"


def mine_checkout(
    root: Path,
    *,
    seed: int,
    split: str,
    backend: SandboxBackend,
    per_function: int = 6,
    max_chars: int = 700,
    packages: Sequence[str] = (),
    fingerprints: Iterable[Fingerprint] = (),
    progress: Callable[[int, int, int], None] | None = None,
    workers: int = 2,
) -> Mined:
    """Make repair tasks of a checkout's functions and methods.

    The suite runs only in sandboxes. A task is kept if the same stable tests kill its mutant in two processes
    with different hash seeds, and if the grader fails the mutant in a new sandbox.

    Args:
        root: folder with the project's sources and its suite; see `read_checkout`.
        seed: decides the choice of mutants.
        split: ``"train"`` or ``"heldout"``; `split_of` assigns each module.
        backend: makes the sandboxes; a copy of it that holds pytest is used.
        per_function: most tasks made from one function.
        max_chars: longest function, in characters of its file.
        packages: what the suite needs in addition to pytest; see `envkit.sandbox.Contents.packages`.
        fingerprints: near-duplicates of functions with these fingerprints are left out.
        progress: called with (variants run, variants in all, tasks so far).
        workers: number of sandboxes that run in parallel.

    Raises:
        UsageError: it cannot be mined; the message says why.
        SandboxError: the machinery failed.
    """
    checkout = read_checkout(root)
    fitted = with_pytest(backend, packages)
    require_imports(checkout, importable(fitted))
    stable, flaky, failing, used_s = _tests(checkout, fitted)
    cpu_s = min(_SUITE_CPU_S, max(_FLOOR_S, _SLOWER * used_s))
    sites, duplicates = _sites(checkout, split, max_chars, fingerprints)
    mutants = [one for site in sites for one in _mutants(checkout, site, seed, per_function)]
    total, run = len(mutants), 0

    def report_progress(found: int, more: int = 0) -> None:
        nonlocal run
        run += more
        if progress is not None:
            progress(run, total, found)

    def run_suite(chunk: Sequence[_Mutant], hash_seed: int = 0) -> list[_Mutant]:
        variants = [{one.site.path: one.text} for one in chunk]
        ran = run_suite_variants(fitted, checkout, variants, hash_seed=hash_seed, cpu_s=cpu_s)
        return [
            _Mutant(one.site, one.mutation, one.text, _killers(stable, found))
            for one, found in zip(chunk, ran, strict=True)
        ]

    def confirm(chunk: Sequence[_Mutant]) -> list[Task]:
        again = run_suite(chunk, 1)
        return [
            _task(checkout, one, split, stable, packages)
            for one, other in zip(chunk, again, strict=True)
            if one.killers == other.killers and _fails(checkout, one, fitted, stable)
        ]

    with ThreadPoolExecutor(workers) as pool:
        killed: dict[_Site, list[_Mutant]] = {}
        for chunk in pool.map(run_suite, _chunks(mutants)):
            for one in chunk:
                if one.killers:
                    killed.setdefault(one.site, []).append(one)
            report_progress(0, len(chunk))
        kept = [
            one
            for site, mutants_of_site in killed.items()
            for one in _spread(mutants_of_site, per_function, f"kept/{seed}/{site.qualname}")
        ]
        total += len(kept)
        tasks: list[Task] = []
        for chunk, confirmed in zip(_chunks(kept), pool.map(confirm, _chunks(kept)), strict=True):
            tasks += confirmed
            report_progress(len(tasks), len(chunk))
    return Mined(tuple(tasks), stable, flaky, failing, duplicates)


def _chunks(mutants: Sequence[_Mutant]) -> list[Sequence[_Mutant]]:
    return [mutants[at : at + _PER_SANDBOX] for at in range(0, len(mutants), _PER_SANDBOX)]


def _tests(
    checkout: Checkout, backend: SandboxBackend
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...], float]:
    """Stable, flaky and failing tests of the checkout, and the CPU seconds of the longest run."""
    runs: list[Mapping[str, str]] = []
    last_words, used_s = "", 0.0
    for hash_seed, count in _RUNS:
        unchanged: list[Mapping[str, str]] = [{}] * count
        for ran in run_suite_variants(backend, checkout, unchanged, hash_seed=hash_seed, cpu_s=_SUITE_CPU_S):
            last_words = " ".join(ran.stderr.split())[-300:]
            if ran.outcomes is None:
                raise UsageError(
                    f"{checkout.name}: the suite does not run to its end in {_SUITE_CPU_S:g} CPU seconds; "
                    f"leave slow tests out, for instance by testpaths; last output: {last_words or 'nothing'}"
                )
            runs.append(ran.outcomes)
            used_s = max(used_s, ran.cpu_s)
    # Run once more, in the same way as the grader.
    runs.append(outcomes(backend, _encoded(checkout.code), _encoded(checkout.tests)))
    every = sorted({test for run in runs for test in run})
    passes = {test: sum(run.get(test) == "passed" for run in runs) for test in every}
    stable = tuple(test for test in every if passes[test] == len(runs))
    if not stable:
        raise UsageError(
            f"{checkout.name}: none of its {len(every)} tests passes each time in a sandbox, so none can "
            f"grade; last output: {last_words or 'nothing'}"
        )
    flaky = tuple(test for test in every if 0 < passes[test] < len(runs))
    return stable, flaky, tuple(test for test in every if not passes[test]), used_s


def _sites(
    checkout: Checkout, split: str, max_chars: int, fingerprints: Iterable[Fingerprint]
) -> tuple[list[_Site], tuple[str, ...]]:
    """Functions of the split, and names of the functions left out as near-duplicates."""
    modules = {
        name: path
        for name, path in checkout.modules.items()
        if path in checkout.code and name in checkout.tested
    }
    splits = {name: split_of(checkout.name, name) for name in modules}
    if split not in splits.values():
        raise UsageError(
            f"{checkout.name}: none of its {len(modules)} modules that tests load falls to split {split!r}, "
            "which the hash of a module's name decides; take the other split, or a larger checkout"
        )
    seen = [*fingerprints]
    sites: list[_Site] = []
    duplicates: list[str] = []
    # Held-out modules first, so that near-duplicates of them are left out of training.
    for name in sorted(modules, key=lambda name: (splits[name], name)):
        for function in _functions(checkout.code[modules[name]]):
            site = _Site(name, modules[name], function)
            if is_near(function.fingerprint, seen):
                duplicates += [site.qualname] if splits[name] == split else []
                continue
            seen.append(function.fingerprint)
            if splits[name] == split and len(function.text) <= max_chars:
                sites.append(site)
    return sites, tuple(duplicates)


def _functions(source: str) -> list[Function]:
    """Functions and methods of a module; none if the module is not valid Python."""
    try:
        return functions(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []


def _mutants(checkout: Checkout, site: _Site, seed: int, per_function: int) -> list[_Mutant]:
    text = checkout.code[site.path]
    try:
        found = mutations(text, site.function.qualname)
    except ValueError:  # of several classes of one name, the first has no such method
        return []
    every = [_Mutant(site, one, one.apply(text)) for one in found]
    return _spread(every, _TRIED_PER_KEPT * per_function, f"tried/{seed}/{site.qualname}")


def _spread(mutants: Sequence[_Mutant], count: int, seed: str) -> list[_Mutant]:
    known = {one.mutation: one for one in mutants}
    return [known[one] for one in spread([*known], count, seed)]


def _killers(stable: Sequence[str], ran: SuiteRun) -> tuple[str, ...]:
    """Stable tests that a mutant fails; none if the suite does not end."""
    found = ran.outcomes
    return () if found is None else tuple(test for test in stable if found.get(test) != "passed")


def _fails(checkout: Checkout, mutant: _Mutant, backend: SandboxBackend, stable: Sequence[str]) -> bool:
    """True if the grader fails the mutant in a new sandbox."""
    rest = {path: text for path, text in checkout.code.items() if path != mutant.site.path}
    found = grade_suite(
        backend,
        {mutant.site.path: mutant.text.encode()},
        _encoded({**rest, **checkout.tests}),
        stable,
    )
    if found.verdict is Verdict.INFRA:
        raise SandboxError(f"mining {checkout.name}: {found.evidence}")
    return found.verdict is Verdict.FAIL


def _encoded(files: Mapping[str, str]) -> dict[str, bytes]:
    return {path: text.encode() for path, text in files.items()}


def _task(
    checkout: Checkout,
    mutant: _Mutant,
    split: str,
    stable: Sequence[str],
    packages: Sequence[str],
) -> Task:
    site, mutation = mutant.site, mutant.mutation
    original = checkout.code[site.path]
    shown = sorted(
        path for name in checkout.closure([site.module]) if (path := checkout.modules[name]) in checkout.code
    )
    lines = site.function.last_line - site.function.first_line + 1
    score = difficulty(mutation.operator, lines, len(mutant.killers), len(stable))
    return Task(
        id=f"{checkout.name}/{site.qualname}/{mutation_id(mutation)}",
        split=split,
        prompt=f"{site.path} has a bug, and tests of {checkout.name} fail.",
        files={**{path: checkout.code[path] for path in shown}, site.path: mutant.text},
        metadata={
            "language": "python",
            "package": checkout.name,
            "version": checkout.version,
            "commit": checkout.commit,
            "license": checkout.license,
            "origin": checkout.origins[site.path],
            "sha256": hashlib.sha256(original.encode()).hexdigest(),
            "module": site.module,
            "function": site.function.qualname,
            "qualname": site.qualname,
            "path": site.path,
            "operator": mutation.operator,
            "source": f"{checkout.name}:{site.qualname}",
            "graded_by": GRADED_BY,
            "difficulty": round(score, 4),
        },
        hidden=to_json(
            SuiteHidden(
                function=site.function.qualname,
                edit=edit_between(mutant.text, original),
                suite=Suite(
                    files={
                        path: text
                        for path, text in {**checkout.code, **checkout.tests}.items()
                        if path not in shown
                    },
                    wanted=tuple(stable),
                    killers=mutant.killers,
                    packages=tuple(packages),
                ),
                site=SuiteSite((mutation.start_byte, mutation.end_byte), mutation.line),
            )
        ),
    )
