"""Does RL surface rare behaviour that the model has already?"""

from __future__ import annotations

from typing import Final

from envkit.benchmark.number_text import percent, share
from envkit.benchmark.passk import PassComparison, compare_rows
from envkit.benchmark.stats import Interval, rate_interval
from envkit.benchmark.tables import Table
from envkit.studies.founding.cells import MANY, Grid
from envkit.studies.founding.finding import (
    UNDECIDED,
    Finding,
    above,
    all_of,
    detectable,
    in_points,
    rate_bars,
    rates_table,
    seeds_sentence,
)

ARMS: Final = ("base", "r16")
PARTS: Final = (MANY,)
CLAIM: Final = (
    "RL surfaces rare behaviour that the model has already: pass@1 rises, and the base had solved at least "
    "90 % of the tasks that are learned, if only once in many samples."
)
PUBLISHED: Final = (
    "RL raises pass@1, and the base catches up at a large k (arXiv:2504.13837). Contested: training on "
    "problems that the base never solves lifts pass@256 above it (arXiv:2606.15455).",
)
_KNOWN: Final = 0.9


def judge(grid: Grid) -> Finding:
    """See `CLAIM`."""
    rise = grid.difference("r16", "base", MANY)
    [base], trained = grid.rows("base", MANY), grid.rows("r16", MANY)
    found = [compare_rows(row, base) for row in trained]
    known = _known(found, {result.task: result.source for result in base.results})
    crossings = [f"k = {each.crossing}" if each.crossing else "none" for each in found]
    samples = min(result.samples for result in base.results)
    learned = [(len(each.learned), len(each.learned_from_none)) for each in found]
    return Finding(
        all_of([above(rise, 0.0), UNDECIDED if known is None else above(known, _KNOWN)]),
        (
            detectable(grid, "r16", "base", MANY),
            f"pass@1 rises by {in_points(rise)} points.",
            f"Learned, by seed: {', '.join(f'{count} tasks' for count, _ in learned)}; of these, the base "
            f"solved none of {samples} samples in {', '.join(str(none) for _, none in learned)}.",
            "Share of learned tasks that the base had solved at least once: "
            + ("no task is learned." if known is None else f"{share(known)}."),
            f"The base catches up from: {', '.join(crossings)}.",
            "Learned: solved in half of the samples or more, and by the base in fewer.",
            seeds_sentence(grid, ARMS),
        ),
        (rates_table(grid, ARMS, MANY), _table(found)),
        rate_bars(grid, ARMS, MANY),
    )


def _known(found: list[PassComparison], sources: dict[str, str]) -> Interval | None:
    """Share of the learned tasks, of all seeds, that the base had solved; ``None`` without any."""
    learned = [(task, task not in each.learned_from_none) for each in found for task in each.learned]
    if not learned:
        return None
    return rate_interval([float(known) for _, known in learned], [sources[task] for task, _ in learned])


def _table(found: list[PassComparison]) -> Table:
    return Table(
        "pass@k in percent: trained, base, and their difference",
        ("Seed", "k", "Trained", "Base", "Difference"),
        tuple(
            (
                str(seed),
                str(point.k),
                percent(point.row.estimate),
                percent(point.against.estimate),
                in_points(point.difference),
            )
            for seed, each in enumerate(found)
            for point in each.points
        ),
    )
