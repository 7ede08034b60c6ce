"""Format numbers for readers: percent, points, dollars and intervals."""

from __future__ import annotations

import math

from envkit.measure.stats import Interval

MINUS = "\N{MINUS SIGN}"
NONE = "\N{EN DASH}"
NOT_KNOWN = "not known"


def number(value: float, digits: int = 1) -> str:
    """Fixed decimals, separated thousands and a true minus sign; a dash if not finite."""
    if not math.isfinite(value):
        return NONE
    rounded = round(value, digits) + 0.0  # no negative zero
    return f"{rounded:,.{digits}f}".replace("-", MINUS)


def percent(part: float) -> str:
    """A share of 1 in percent, without the percent sign."""
    return number(100 * part)


def points(difference: float) -> str:
    """A difference of shares in percentage points, always signed."""
    text = percent(difference)
    return text if text in (NONE, "0.0") or text.startswith(MINUS) else f"+{text}"


def dollars(amount: float) -> str:
    """Dollars with three significant digits; a dash for NaN, "none solved" for infinity.

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
    """Ends of an interval in percent or points, in brackets."""
    if interval is None:
        return NONE
    if not math.isfinite(interval.low):
        return "not estimable"
    show = points if signed else percent
    return f"[{show(interval.low)}, {show(interval.high)}]"


def nats(interval: Interval) -> str:
    """Mean and interval of a number of nats."""
    low, high = number(interval.low, 3), number(interval.high, 3)
    return f"{number(interval.estimate, 3)} [{low}, {high}]"


def share(interval: Interval | None) -> str:
    """Mean and interval of a share, in percent."""
    return "no result" if interval is None else f"{percent(interval.estimate)} % {bounds(interval)}"
