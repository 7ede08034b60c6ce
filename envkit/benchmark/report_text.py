"""The sentences of a report: the headline, warnings and limits."""

from __future__ import annotations

import math

from envkit.benchmark.number_text import bounds, percent, points, share
from envkit.benchmark.report_data import ReportData, Row
from envkit.benchmark.stats import LEVEL, POWER, RESAMPLES, minimum_detectable
from envkit.benchmark.summary import DifferenceSummary, RowSummary, Summary

FEW_CLUSTERS = 30  # below this, percentile intervals are noticeably too narrow
#: Shares of samples from which a reader should know.
_MANY_VOIDS, _MANY_CUT_OFF = 0.01, 0.05
#: How intervals are made where there is nothing to resample.
EXACT = (
    "Where nothing was solved, or everything, draws cannot differ: the interval is then the exact one of "
    "Clopper and Pearson, with each source function as one trial. It is exact for the mean over functions; "
    "that over tasks may differ where solved functions have more tasks. Likewise where a difference is 0 on "
    "every function, or 100 points on every one: those that may have been missed by chance are taken to "
    "differ all one way."
)
#: What intervals cannot tell where there is little to resample.
NEAR_EDGE = (
    "Where all but a few source functions gave the same result, as happens close to 0 % and 100 %, there is "
    "little to draw from, and intervals are too narrow."
)


def headline(data: ReportData, summary: Summary) -> tuple[str, ...]:
    """What happened: one sentence, then one for each further difference and each row that is in none."""
    paired = {name for entry in summary.differences for name in (entry.pair.row, entry.pair.against)}
    measured = [row for row in summary.rows if row.solve_rate.interval is not None]
    alone = [f"{_solves(row)}." for row in measured if not row.control and row.name not in paired]
    if not summary.differences:
        if not measured:
            return ("Nothing was measured: the run has no evaluation.",)
        return tuple(alone or [f"{_solves(measured[-1])}."])
    first = summary.differences[0]
    rows = {row.name: row for row in summary.rows}
    described = {row.name: f"{row.name} ({row.description})" for row in data.rows}
    other = f"{share(rows[first.pair.against].solve_rate.interval)} for {described[first.pair.against]}"
    lead = f"{_solves(rows[first.pair.row])}, against {other}: {_judged(first)}"
    return (lead, *(f"{entry.pair.meaning}: {_judged(entry)}" for entry in summary.differences[1:]), *alone)


def warnings(data: ReportData, summary: Summary) -> tuple[str, ...]:
    """What a reader must know before trusting a number: the run's own warnings, then what the rows show."""
    found = list(data.warnings)
    if data.isolation != "sandbox":
        none = data.isolation == "none"
        what = "The sandbox did not isolate" if none else "The application ran outside the sandbox"
        found.append(f"{what} (isolation: {data.isolation}).")
    for row, numbers in zip(data.rows, summary.rows, strict=True):
        found += row_warnings(row.name, row, numbers)
    for entry in summary.differences:
        name = f"{entry.pair.row} minus {entry.pair.against}"
        if entry.unpaired:
            found.append(f"{name}: {entry.unpaired} tasks measured in only one of the rows are left out.")
        interval = entry.interval
        if interval is not None and not interval.exact and 1 < interval.clusters < FEW_CLUSTERS:
            functions = interval.clusters
            found.append(f"{name}: with {functions} source functions the interval is too narrow to rely on.")
    return tuple(found)


def row_warnings(name: str, row: Row, numbers: RowSummary) -> list[str]:
    """What a row's own numbers warn of; ``name`` is what it is called there."""
    found: list[str] = []
    measured, drawn = numbers.solve_rate.interval, numbers.voids + numbers.samples
    if row.expected is not None and measured is not None and measured.estimate != row.expected:
        found.append(
            f"The control {name} solved {percent(measured.estimate)} % instead of {percent(row.expected)} %: "
            "grading or task files are broken, trust no number here."
        )
    if numbers.voids > _MANY_VOIDS * drawn:
        found.append(
            f"{name}: {numbers.voids} of {drawn} samples were lost to broken machinery or to a provider that "
            "did not answer; they are left out, which may favour either side."
        )
    cut = sum(result.cut_off for result in row.results)
    if row.expected is None and cut > _MANY_CUT_OFF * numbers.samples:
        found.append(
            f"{name}: {cut} of {numbers.samples} samples were cut off at the limit of tokens; it may do "
            "better with a higher one."
        )
    return found


def method(summary: Summary) -> tuple[str, ...]:
    """How to read the numbers."""
    clusters = max((rate.clusters for row in summary.rows if (rate := row.solve_rate.interval)), default=0)
    lines = [
        "pass@1 is the chance that one sample solves a task, averaged over tasks; pass@k the chance that at "
        "least one of k does (unbiased estimator, arXiv:2107.03374).",
        f"Intervals cover {100 * LEVEL:g} % and come from {RESAMPLES:,} bootstrap draws of source functions, "
        "because tasks made from one function are not independent. Differences are paired: same tasks and "
        "same draws in both rows.",
        EXACT,
        "Smallest detectable is the true difference that a comparison with the observed spread finds "
        f"{100 * POWER:g} % of the time. Smaller effects can be there and go unseen.",
        "Tokens per solve counts all that the model wrote, failures included, for each solved sample. Voids "
        "are samples lost to broken machinery or to a provider that did not answer; they are in no number "
        "but seconds.",
    ]
    if clusters:
        planned = percent(minimum_detectable(clusters, 0.25))
        lines.append(
            f"Known before any result: {clusters} source functions with a standard deviation of 25 points "
            f"between them detect {planned} points."
        )
    return tuple(lines)


def limits(data: ReportData, summary: Summary) -> tuple[str, ...]:
    """What the numbers cannot tell."""
    general = [
        "Each row is one model. The intervals say how results would vary with other source functions, not "
        "with other training seeds.",
        NEAR_EDGE,
    ]
    if (count := len(summary.differences)) > 1:
        general.append(
            f"Each of the {count} comparisons has its own {100 * LEVEL:g} % interval; none is widened for "
            "there being several."
        )
    return (*general, *data.limits)


def _solves(row: RowSummary) -> str:
    interval = row.solve_rate.interval
    if interval is None:
        return f"{row.name} was not measured"
    return (
        f"{row.name} solves {percent(interval.estimate)} % of {row.tasks} held-out tasks {bounds(interval)}"
    )


def _judged(entry: DifferenceSummary) -> str:
    """The difference with its interval, then in plain words what that interval allows to say."""
    interval, pair = entry.interval, entry.pair
    if interval is None:
        return "no task was measured in both rows."
    if not math.isfinite(interval.low):
        return f"{points(interval.estimate)} points, of one source function: too few to say how sure that is."
    shown = f"{points(interval.estimate)} points {bounds(interval, signed=True)}"
    if interval.low > 0:
        return f"{shown}. The interval lies above zero."
    if interval.high < 0:
        return f"{shown}. The interval lies below zero: {pair.row} is worse than {pair.against}."
    text = f"{shown}. The interval includes zero, so this run does not show a difference."
    if math.isfinite(entry.detectable):
        text += f" It could reliably have found one of {percent(entry.detectable)} points or more."
    return text
