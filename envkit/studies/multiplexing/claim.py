"""Do many adapters on one base decode nearly as fast as the base?"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Final

from envkit.errors import UsageError
from envkit.measure.number_text import number
from envkit.measure.report.svg_charts import Bar
from envkit.measure.report.tables import Table
from envkit.measure.stats import Interval
from envkit.studies.grid.finding import FAILED, HELD, StudyFinding, above, all_of, only_if
from envkit.studies.grid.grid import Grid
from envkit.studies.grid.measurements import MULTIPLEX

ARMS: Final = ("base",)
PARTS: Final = (MULTIPLEX,)
#: Rank of the adapters.
RANK: Final = 8
_ROWS: Final = 64
#: The range of six rounds holds the median in 97 of 100 repetitions.
_ROUNDS: Final = 6
_SHARE, _TIMES, _EXACT = 0.75, 6.0, 1e-4
CLAIM: Final = (
    "Adapters multiplex on one base: 64 rows of 32 adapters decode at 75 % of the base's speed or more, at "
    "least 6 times as fast as one adapter after another, and each row as if it were alone."
)
PUBLISHED: Final = (
    "Punica: 12 times the throughput of serving one adapter after another; S-LoRA: up to 4 times that of "
    "PEFT; a vendor: 88 % of the base's speed with 16 adapters in a batch. All on GPUs.",
)


def counts_of(rows: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the numbers of adapters to decode together, and one by one.

    Args:
        rows: that are decoded; the largest number of adapters has two rows each.
    """
    most = rows // 2
    return tuple(sorted({1, min(8, most), most})), (most,)


def judge(grid: Grid) -> StudyFinding:
    """See `CLAIM`."""
    [cell] = grid.cells("base")
    found = cell.multiplexed
    if found is None:
        raise UsageError("decoding with many adapters is not measured yet; run the study to measure it")
    together, one_by_one = counts_of(found.rows)
    most = max(together)
    base, many = found.speeds["base"], found.speeds[f"{most} together"]
    share, times = _ratio(many, base), _ratio(many, found.speeds[f"{one_by_one[-1]} one by one"])
    is_claimed = found.rows == _ROWS and len(base) >= _ROUNDS
    verdict = all_of(
        [above(share, _SHARE), above(times, _TIMES), HELD if found.difference <= _EXACT else FAILED]
    )
    return StudyFinding(
        only_if(is_claimed, verdict=verdict),
        (
            f"{found.rows} rows of {most} adapters of rank {found.rank} decode at {_told(share, 2)} of the "
            f"base's speed, and {_told(times, 1)} times as fast as one adapter after another: median ratio "
            f"and range of {len(base)} rounds.",
            f"A bound holds or fails if it does so in every round, of at least {_ROUNDS}, and with {_ROWS} "
            "rows.",
            "Largest difference of log-probabilities between a row in the mixed batch and the same row "
            f"alone, in float32: {found.difference:.1e}; at most {_EXACT:g} counts as equal.",
            f"On {found.machine.cores} cores of {found.machine.cpu}, {found.machine.threads} threads, "
            f"{found.machine.dtype}. The adapters' numbers are random. Prompts are read before the time is "
            "taken.",
        ),
        (
            Table(
                "Speed of decoding",
                ("Way", "Tokens/s", "Lowest", "Highest", "Share of the base"),
                tuple(
                    (
                        way,
                        number(median(speeds)),
                        number(min(speeds)),
                        number(max(speeds)),
                        number(_ratio(speeds, base).estimate, 2),
                    )
                    for way, speeds in found.speeds.items()
                ),
            ),
        ),
        tuple(
            Bar(place, way, median(speeds), min(speeds), max(speeds), f"{median(speeds):.0f} tokens/s")
            for place, (way, speeds) in enumerate(found.speeds.items())
        ),
        axis="Tokens per second, with the range of the rounds",
    )


def _ratio(one: Sequence[float], other: Sequence[float]) -> Interval:
    """Median and range over the rounds of the ratio of two speeds."""
    ratios = [a / b for a, b in zip(one, other, strict=True)]
    return Interval(median(ratios), min(ratios), max(ratios), len(ratios))


def _told(ratio: Interval, digits: int) -> str:
    low, high = number(ratio.low, digits), number(ratio.high, digits)
    return f"{number(ratio.estimate, digits)} [{low}, {high}]"
