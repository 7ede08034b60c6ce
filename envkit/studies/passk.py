"""Does RL surface rare behaviour that the model has already?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from envkit.measure.number_text import percent, share
from envkit.measure.passk import PassComparison, compare_rows
from envkit.measure.report.data import Row
from envkit.measure.report.tables import Table
from envkit.measure.stats import Interval, clopper_pearson
from envkit.studies.grid.arms import RL_ARM
from envkit.studies.grid.finding import (
    FAILED,
    HELD,
    UNDECIDED,
    StudyFinding,
    above,
    above_scripts,
    all_of,
    detectable,
    in_points,
    only_if,
    rate_bars,
    rates_table,
    seeds_sentence,
)
from envkit.studies.grid.grid import Grid
from envkit.studies.grid.measurements import MANY

ARMS: Final = ("base", RL_ARM, "warm")
PARTS: Final = (MANY,)
CLAIM: Final = (
    "RL surfaces rare behaviour that the model has already: pass@1 rises, and before RL the model had solved "
    "at least 90 % of the tasks that are learned, if only once in many samples."
)
PUBLISHED: Final = (
    "RL raises pass@1, and the base catches up at a large k (arXiv:2504.13837). Contested: training on "
    "problems that the base never solves lifts pass@256 above it (arXiv:2606.15455).",
)
_KNOWN: Final = 0.9
#: Largest share of the samples before RL that solve a task which is solved rarely.
_RARE: Final = 1 / 8
#: Samples before RL without which a task that none solves may well be solved by others.
_SAMPLES: Final = 128


def judge(grid: Grid) -> StudyFinding:
    """See `CLAIM`."""
    rise = grid.gain(RL_ARM, "warm", MANY)
    _ = grid.recipe("base", MANY)  # raises if it is not measured
    [base] = grid.rows("base", MANY)
    pairs = grid.pairs(RL_ARM, "warm", MANY)
    learned = [_learned(after, before) for after, before in pairs.values()]
    sources = {result.task: result.source for result in base.results}
    known, some = (_known(learned, sources, each) for each in (all, any))
    found = {seed: compare_rows(after, before) for seed, (after, before) in pairs.items()}
    from_base = {seed: compare_rows(after, base) for seed, (after, _) in pairs.items()}
    # Of the learned tasks; of all tasks, if none is learned. Tasks whose samples are all void do not count.
    samples = min(
        (
            result.samples
            for seed_learned, (_, before) in zip(learned, pairs.values(), strict=True)
            for result in before.results
            if result.task in (seed_learned or sources) and result.samples
        ),
        default=0,
    )
    is_above_scripts, scripts = above_scripts(grid, RL_ARM, MANY)
    none = [sum(not solved for solved in each.values()) for each in learned]
    return StudyFinding(
        only_if(is_above_scripts, verdict=all_of([above(rise, 0.0), _verdict(known, some, samples)])),
        (
            detectable(grid, RL_ARM, "warm", MANY),
            f"By RL, pass@1 rises by {in_points(rise)} points, paired by seed.",
            scripts,
            f"Learned, by seed: {', '.join(f'{len(each)} tasks' for each in learned)}. Of these, tasks that "
            f"no sample of {samples} had solved before RL: {', '.join(map(str, none))}.",
            "Share of sources whose learned tasks had all been solved at least once before RL: "
            + ("no task is learned." if known is None else f"{share(known)}, of {known.clusters} sources. ")
            + "With fewer than 36 sources, no share can be shown to be above 90 %. "
            f"With fewer than {_SAMPLES} samples before RL, none can be shown to be below it: a task "
            f"that is solved in one of 100 samples is not seen in {samples} with a chance of "
            f"{percent(0.99**samples)} %.",
            f"The warm start catches up from: {_crossings(found)}; the base from: {_crossings(from_base)}.",
            "Learned: solved rarely before RL, in an eighth of the samples at most, and in half or more "
            "after it.",
            seeds_sentence(grid, ARMS, MANY),
        ),
        (
            rates_table(grid, ARMS, MANY),
            _table("before RL", found),
            _table("the base", from_base),
        ),
        rate_bars(grid, ARMS, MANY),
    )


def _crossings(found: Mapping[int, PassComparison]) -> str:
    return ", ".join(f"k = {each.crossing}" if each.crossing else "none" for each in found.values())


def _learned(row: Row, earlier: Row) -> dict[str, bool]:
    """Tasks that were rare and no longer are; True for those that were solved at least once."""
    before = {result.task: result for result in earlier.results if result.samples}
    return {
        after.task: other.solved > 0
        for after in row.results
        if (other := before.get(after.task))
        and after.samples
        and 2 * after.solved >= after.samples
        and other.solved <= _RARE * other.samples
    }


def _verdict(known: Interval | None, some: Interval | None, samples: int) -> str:
    """Verdict on the share of learned tasks that had been solved before.

    Args:
        known: share of sources of which all of them had been; a bound from below.
        some: share of sources of which one had been; a bound from above.
        samples: of each task, before.
    """
    if known is not None and above(known, _KNOWN) == HELD:
        return HELD
    return FAILED if some is not None and above(some, _KNOWN) == FAILED and samples >= _SAMPLES else UNDECIDED


def _known(
    learned: Sequence[Mapping[str, bool]],
    sources: Mapping[str, str],
    counts: Callable[[Iterable[bool]], bool],
) -> Interval | None:
    """Share of sources whose learned tasks had been solved; ``None`` without any.

    The interval is that of Clopper and Pearson, with sources as trials.

    Args:
        learned: of each seed; see `_learned`.
        sources: of the tasks.
        counts: `all` or `any`: which of a source's tasks must have been.
    """
    by_source: dict[str, list[bool]] = {}
    for task, solved in (entry for each in learned for entry in each.items()):
        by_source.setdefault(sources[task], []).append(solved)
    return clopper_pearson(sum(map(counts, by_source.values())), len(by_source)) if by_source else None


def _table(against: str, found: Mapping[int, PassComparison]) -> Table:
    return Table(
        f"pass@k in percent: trained, {against}, and their difference",
        ("Seed", "k", "Trained", f"{against[0].upper()}{against[1:]}", "Difference"),
        tuple(
            (
                str(seed),
                str(point.k),
                percent(point.row.estimate),
                percent(point.against.estimate),
                in_points(point.difference),
            )
            for seed, each in found.items()
            for point in each.points
        ),
    )
