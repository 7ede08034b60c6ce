"""Sentences of a report: headline, warnings, method and limits."""

from __future__ import annotations

import math

from envkit.measure.number_text import bounds, percent, points, share
from envkit.measure.report.data import ReportData, Row
from envkit.measure.report.summary import DifferenceSummary, RowSummary, Summary
from envkit.measure.report.tables import HELD_OUT_FAILED
from envkit.measure.stats import FEW_DIFFERING, LEVEL, POWER, RESAMPLES, Interval, minimum_detectable

FEW_CLUSTERS = 30  # with fewer, percentile intervals are clearly too narrow
#: Shares of samples above which a report warns.
_MANY_VOIDS, _MANY_CUT_OFF, _MANY_HELD_OUT_FAILED, MANY_RAISED = 0.01, 0.05, 0.05, 0.01
#: Kinds of rows whose settings of sampling are all known.
_ASKED = {"local", "live"}
#: The interval if resampling finds no variation.
EXACT = (
    "If an agent solved nothing, or everything, resampling finds no variation. The interval is then "
    "the exact one of Clopper and Pearson, with each source as one trial. It is exact for the mean "
    "over sources; the mean over tasks may differ if solved sources have more tasks. A difference of 0 "
    "on every source, or of 100 points on every source, is treated alike: sources that differ but were "
    "missed by chance are assumed to differ all in one direction."
)
#: The interval if resampling finds little variation.
NEAR_EDGE = (
    f"If fewer than {FEW_DIFFERING} sources have a result other than 0 %, or other than 100 %, there is "
    "little variation to resample. The interval is then widened: the shares of sources above and below that "
    "result have exact intervals, too, and sources that were missed by chance are assumed to differ from it "
    "as much as possible. Differences are treated alike, at 0 and at 100 points either way. "
    f"With fewer than {FEW_DIFFERING} sources in all, it can still be too narrow."
)


def headline(data: ReportData, summary: Summary) -> tuple[str, ...]:
    """Sum up the results: the first difference, each further one, then each row that is in no difference."""
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
    second = f"{share(rows[first.pair.against].solve_rate.interval)} for {described[first.pair.against]}"
    lead = f"{_solves(rows[first.pair.row])}, against {second}: {_judged(first)}"
    return (lead, *(f"{entry.pair.meaning}: {_judged(entry)}" for entry in summary.differences[1:]), *alone)


def warnings(data: ReportData, summary: Summary) -> tuple[str, ...]:
    """List the run's own warnings, then those that follow from the numbers."""
    sentences = list(data.warnings)
    if data.isolation != "sandbox":
        none = data.isolation == "none"
        fault = "The sandbox did not isolate" if none else "The application ran outside the sandbox"
        sentences.append(f"{fault} (isolation: {data.isolation}).")
    for row, numbers in zip(data.rows, summary.rows, strict=True):
        sentences += row_warnings(row.name, row, numbers)
        sentences += _few_sources(row.name, numbers.solve_rate.interval)
    origins = {row.name: row.origin for row in data.rows}
    for entry in summary.differences:
        name = f"{entry.pair.row} minus {entry.pair.against}"
        asked, other = origins[entry.pair.row], origins[entry.pair.against]
        are_known = {asked.kind, other.kind} <= _ASKED
        if are_known and (unequal := asked.unequal_settings(other)):
            sentences.append(f"{name}: the two were not asked alike. They differ in {', '.join(unequal)}.")
        if entry.pair.unsolved_by:
            name += f" where {entry.pair.unsolved_by} fails"
        if entry.unpaired:
            sentences.append(
                f"{name}: {entry.unpaired} tasks are left out: only one of the two has results on them."
            )
        sentences += _few_sources(name, entry.interval)
    return tuple(sentences)


def is_too_narrow(interval: Interval) -> bool:
    """True if an interval was resampled from few sources, and not widened, or too few for that to help."""
    is_widened = interval.widened and interval.clusters >= FEW_DIFFERING
    return 1 < interval.clusters < FEW_CLUSTERS and not (interval.exact or is_widened)


def _few_sources(name: str, interval: Interval | None) -> list[str]:
    if interval is None or not is_too_narrow(interval):
        return []
    return [f"{name}: with {interval.clusters} sources the interval is too narrow to rely on."]


def row_warnings(name: str, row: Row, numbers: RowSummary) -> list[str]:
    """Warnings that follow from one row's numbers, such as a failed control or many voids.

    Args:
        name: the row's name in the warnings.
        row: the row with its results.
        numbers: summary of the row.
    """
    sentences: list[str] = []
    measured, played = numbers.solve_rate.interval, numbers.voids + numbers.samples
    if row.expected is not None and measured is not None and measured.estimate != row.expected:
        solved = sum(result.solved for result in row.results)
        sentences.append(
            f"The control {name} solved {solved:,} of {numbers.samples:,} samples instead of "
            f"{percent(row.expected)} %. Unless it needs more turns than it had (max_turns), grading or the "
            "task files are broken: do not trust any number here."
        )
    if numbers.voids > _MANY_VOIDS * played:
        sentences.append(
            f"{name}: {numbers.voids} of {played} samples were lost to broken machinery or to a provider "
            "that did not answer. They are left out, which can make the rate too high or too low."
        )
    if numbers.held_out_failed > _MANY_HELD_OUT_FAILED * numbers.held_out:
        sentences.append(
            f"{name}: {numbers.held_out_failed} of {numbers.held_out} solved samples fail the held-out "
            "check, which asks much more than the reward does. The solve rate is too high by as much."
        )
    broke = sum(result.raised for result in row.results)
    if broke > MANY_RAISED * played:
        sentences.append(
            f"{name}: the environment raised an exception in {broke} of {played} samples, which is a bug in "
            "it. A sample in which it raised twice counts as failed. info.trace in the samples' journal says "
            "where."
        )
    cut_off = sum(result.cut_off for result in row.results)
    if row.expected is None and cut_off > _MANY_CUT_OFF * numbers.samples:
        sentences.append(
            f"{name}: {cut_off} of {numbers.samples} samples were cut off at the token limit. A higher limit "
            "may raise its rate."
        )
    return sentences


def method(summary: Summary) -> tuple[str, ...]:
    """Explain how the numbers were made."""
    clusters = max((rate.clusters for row in summary.rows if (rate := row.solve_rate.interval)), default=0)
    lines = [
        "pass@1 is the chance that one sample solves a task, averaged over tasks. pass@k is the chance that "
        "at least one of k samples does (unbiased estimator, arXiv:2107.03374).",
        f"Intervals cover {100 * LEVEL:g} %. They come from {RESAMPLES:,} bootstrap draws of sources: "
        "of what tasks were made from, such as functions, because tasks of one source are not independent. "
        "Differences are paired: same tasks and same draws for both agents.",
        EXACT,
        NEAR_EDGE,
        "Smallest detectable: a true difference of this size would be found "
        f"{100 * POWER:g} % of the time, given the observed spread. A smaller one can exist and go unseen.",
        "Tokens per solve: all tokens that the model wrote, failures included, divided by solved samples.",
        "Voids are samples lost to broken machinery or to a provider that did not answer. They count in "
        "seconds and in no other number.",
    ]
    if any(row.held_out for row in summary.rows):
        lines.append(
            f"{HELD_OUT_FAILED}: of the solved samples, those that fail a check which is no part of the "
            "reward and asks much more."
        )
    if clusters:
        planned = percent(minimum_detectable(clusters, 0.25))
        lines.append(
            f"Planned before any result: {clusters} sources detect a difference of {planned} "
            "points, if their differences have a standard deviation of 25 points."
        )
    return tuple(lines)


def limits(data: ReportData, summary: Summary) -> tuple[str, ...]:
    """List what the numbers do not show."""
    general = [
        "Each row is one model. Intervals say how results would vary with other sources, not with "
        "other training seeds.",
    ]
    if (count := len(summary.differences)) > 1:
        general.append(
            f"Each of the {count} comparisons has its own {100 * LEVEL:g} % interval. The intervals are not "
            "corrected for the number of comparisons."
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
    """State the difference with its interval, then what the interval means."""
    interval, pair = entry.interval, entry.pair
    if interval is None:
        searched = f", or none that {pair.unsolved_by} does not solve" if pair.unsolved_by else ""
        return f"no task was measured for both{searched}."
    if not math.isfinite(interval.low):
        return f"{points(interval.estimate)} points, from one source. One source gives no interval."
    text = f"{points(interval.estimate)} points {bounds(interval, signed=True)}"
    if interval.low > 0:
        return f"{text}. The interval lies above zero: {pair.row} is better than {pair.against}."
    if interval.high < 0:
        return f"{text}. The interval lies below zero: {pair.row} is worse than {pair.against}."
    text += ". The interval includes zero, so this run does not show a difference."
    if math.isfinite(entry.detectable):
        text += (
            f" A true difference of {percent(entry.detectable)} points would have been found "
            f"{100 * POWER:g} % of the time."
        )
    return text
