"""The sentences of a report: numbers as text, the headline, warnings and limits."""

from __future__ import annotations

import math

from envkit.bench.data import Arm, ReportData
from envkit.bench.stats import LEVEL, POWER, RESAMPLES, Interval, minimum_detectable
from envkit.bench.summary import ArmSummary, DifferenceSummary, Summary

MINUS = "\N{MINUS SIGN}"
NONE = "\N{EN DASH}"
NOT_KNOWN = "not known"
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


def number(value: float, digits: int = 1) -> str:
    """Fixed decimals, thousands separated, a true minus sign, a dash for what is not finite."""
    if not math.isfinite(value):
        return NONE
    rounded = round(value, digits) + 0.0  # no negative zero
    return f"{rounded:,.{digits}f}".replace("-", MINUS)


def percent(part: float) -> str:
    """A share of 1 in percent, without the sign."""
    return number(100 * part)


def points(difference: float) -> str:
    """A difference of shares in percentage points, always signed."""
    text = percent(difference)
    return text if text in (NONE, "0.0") or text.startswith(MINUS) else f"+{text}"


def dollars(amount: float) -> str:
    """Dollars with three significant digits, a dash where they are not known.

    >>> dollars(0.000123), dollars(4.5), dollars(1234.0), dollars(float("inf"))
    ('$0.000123', '$4.50', '$1,234', 'none solved')
    """
    if math.isnan(amount):
        return NONE
    if math.isinf(amount):
        return "none solved"
    if amount == 0:
        return "$0"
    digits = max(0, 2 - math.floor(math.log10(abs(amount))))
    return f"{MINUS if amount < 0 else ''}${abs(amount):,.{min(digits, 8)}f}"


def bounds(interval: Interval | None, *, signed: bool = False) -> str:
    """The interval's ends in percent or points, in brackets."""
    if interval is None:
        return NONE
    if not math.isfinite(interval.low):
        return "not estimable"
    show = points if signed else percent
    return f"[{show(interval.low)}, {show(interval.high)}]"


def share(interval: Interval | None) -> str:
    """A share with its interval, in percent."""
    return "no result" if interval is None else f"{percent(interval.estimate)} % {bounds(interval)}"


def headline(data: ReportData, summary: Summary) -> tuple[str, ...]:
    """What happened: one sentence, then one for each further difference and each arm that is in none."""
    paired = {name for entry in summary.differences for name in (entry.pair.arm, entry.pair.against)}
    measured = [arm for arm in summary.arms if arm.solve_rate.interval is not None]
    alone = [f"{_solves(arm)}." for arm in measured if not arm.control and arm.name not in paired]
    if not summary.differences:
        if not measured:
            return ("Nothing was measured: the run has no evaluation.",)
        return tuple(alone or [f"{_solves(measured[-1])}."])
    first = summary.differences[0]
    arms = {arm.name: arm for arm in summary.arms}
    described = {arm.name: f"{arm.name} ({arm.description})" for arm in data.arms}
    other = f"{share(arms[first.pair.against].solve_rate.interval)} for {described[first.pair.against]}"
    lead = f"{_solves(arms[first.pair.arm])}, against {other}: {_judged(first)}"
    return (lead, *(f"{entry.pair.meaning}: {_judged(entry)}" for entry in summary.differences[1:]), *alone)


def warnings(data: ReportData, summary: Summary) -> tuple[str, ...]:
    """What a reader must know before trusting a number: the run's own warnings, then what the rows show."""
    found = list(data.warnings)
    if data.isolation != "sandbox":
        none = data.isolation == "none"
        what = "The sandbox did not isolate" if none else "The application ran outside the sandbox"
        found.append(f"{what} (isolation: {data.isolation}).")
    for arm, numbers in zip(data.arms, summary.arms, strict=True):
        found += doubts(arm.name, arm, numbers)
    for entry in summary.differences:
        name = f"{entry.pair.arm} minus {entry.pair.against}"
        if entry.unpaired:
            found.append(f"{name}: {entry.unpaired} tasks measured in only one of the arms are left out.")
        interval = entry.interval
        if interval is not None and not interval.exact and 1 < interval.clusters < FEW_CLUSTERS:
            functions = interval.clusters
            found.append(f"{name}: with {functions} source functions the interval is too narrow to rely on.")
    return tuple(found)


def doubts(name: str, arm: Arm, numbers: ArmSummary) -> list[str]:
    """What an arm's own numbers warn of; ``name`` is what it is called there."""
    found: list[str] = []
    measured, drawn = numbers.solve_rate.interval, numbers.voids + numbers.samples
    if arm.expected is not None and measured is not None and measured.estimate != arm.expected:
        found.append(
            f"The control {name} solved {percent(measured.estimate)} % instead of {percent(arm.expected)} %: "
            "grading or task files are broken, trust no number here."
        )
    if numbers.voids > _MANY_VOIDS * drawn:
        found.append(
            f"{name}: {numbers.voids} of {drawn} samples were lost to broken machinery or to a provider that "
            "did not answer; they are left out, which may favour either side."
        )
    cut = sum(item.cut_off for item in arm.items)
    if arm.expected is None and cut > _MANY_CUT_OFF * numbers.samples:
        found.append(
            f"{name}: {cut} of {numbers.samples} samples were cut off at the limit of tokens; it may do "
            "better with a higher one."
        )
    return found


def method(summary: Summary) -> tuple[str, ...]:
    """How to read the numbers."""
    clusters = max((rate.clusters for arm in summary.arms if (rate := arm.solve_rate.interval)), default=0)
    lines = [
        "pass@1 is the chance that one sample solves a task, averaged over tasks; pass@k the chance that at "
        "least one of k does (unbiased estimator, arXiv:2107.03374).",
        f"Intervals cover {100 * LEVEL:g} % and come from {RESAMPLES:,} bootstrap draws of source functions, "
        "because tasks made from one function are not independent. Differences are paired: same tasks and "
        "same draws in both arms.",
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
        "Each arm is one model. The intervals say how results would vary with other source functions, not "
        "with other training seeds.",
        NEAR_EDGE,
    ]
    if (count := len(summary.differences)) > 1:
        general.append(
            f"Each of the {count} comparisons has its own {100 * LEVEL:g} % interval; none is widened for "
            "there being several."
        )
    return (*general, *data.limits)


def _solves(arm: ArmSummary) -> str:
    interval = arm.solve_rate.interval
    if interval is None:
        return f"{arm.name} was not measured"
    return (
        f"{arm.name} solves {percent(interval.estimate)} % of {arm.tasks} held-out tasks {bounds(interval)}"
    )


def _judged(entry: DifferenceSummary) -> str:
    """The difference with its interval, then in plain words what that interval allows to say."""
    interval, pair = entry.interval, entry.pair
    if interval is None:
        return "no task was measured in both arms."
    if not math.isfinite(interval.low):
        return f"{points(interval.estimate)} points, of one source function: too few to say how sure that is."
    shown = f"{points(interval.estimate)} points {bounds(interval, signed=True)}"
    if interval.low > 0:
        return f"{shown}. The interval lies above zero."
    if interval.high < 0:
        return f"{shown}. The interval lies below zero: {pair.arm} is worse than {pair.against}."
    text = f"{shown}. The interval includes zero, so this run does not show a difference."
    if math.isfinite(entry.detectable):
        text += f" It could reliably have found one of {percent(entry.detectable)} points or more."
    return text
