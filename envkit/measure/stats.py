"""Statistics of solve rates: pass@k, cluster bootstrap intervals, tests and detectable differences.

Tasks made from one source succeed and fail together. The independent unit is therefore the source
(the cluster), not the task. Every interval resamples clusters. If all clusters have a rate of 0, or all of 1,
it is computed exactly from their number; so is that of a difference of 0, 1 or -1. SciPy's ``bootstrap``
cannot resample clusters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
#: NumPy's ``ArrayLike`` would be wider, but NumPy 2.5 does not type it for Python 3.11.
Numbers: TypeAlias = Sequence[float] | Sequence[Sequence[float]] | Floats | NDArray[np.int64]

RESAMPLES = 10_000
#: If fewer clusters than this differ from all others, draws of clusters vary too little.
FEW_DIFFERING = 10
LEVEL = 0.95
#: Decimals of sums of shares; what lies beyond is rounding.
_DECIMALS = 12
POWER = 0.80


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its confidence interval.

    Args:
        estimate: the mean over items.
        low: lower end; minus infinity if it cannot be estimated (one cluster, and not ``exact``).
        high: upper end; plus infinity likewise.
        clusters: number of independent clusters.
        exact: True if it was computed, not resampled, because all clusters have 0, or all 1, or all -1; see
            `rate_interval`.
        widened: True if it was resampled, and its ends then moved apart because few clusters differ.
    """

    estimate: float
    low: float
    high: float
    clusters: int
    exact: bool = False
    widened: bool = False

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def pass_at_k(samples: Numbers, solved: Numbers, k: int) -> Floats:
    """Unbiased estimate, per task, of the probability that at least one of ``k`` samples solves it.

    ``1 - C(n-c, k) / C(n, k)``, Chen et al. 2021, arXiv:2107.03374, as a product that cannot overflow.

    Args:
        samples: n, graded samples per task (voids left out), shape ``(tasks,)``, each >= k.
        solved: c, number of samples that solved the task, shape ``(tasks,)``, 0 <= c <= n.
        k: number of samples drawn, >= 1.

    Returns:
        Shape ``(tasks,)``, in [0, 1].

    Raises:
        ValueError: shapes or ranges are wrong, or a task has fewer than k samples.
    """
    n, c = np.asarray(samples, dtype=np.int64), np.asarray(solved, dtype=np.int64)
    if n.ndim != 1 or n.shape != c.shape:
        raise ValueError(f"samples has shape {n.shape} and solved {c.shape}; both must be (tasks,)")
    if k < 1:
        raise ValueError(f"k is {k}; it must be at least 1")
    if np.any(n < k):
        raise ValueError(f"pass@{k} needs {k} samples per task, but one has {n.min()}; leave such tasks out")
    if np.any((c < 0) | (c > n)):
        raise ValueError("solved must lie between 0 and samples for every task")
    drawn_k = np.arange(k)
    # With fewer than k failures one factor is exactly 0, so the factors after it do not matter.
    all_fail = np.prod((n - c - drawn_k[:, None]) / (n - drawn_k[:, None]), axis=0)
    return 1.0 - all_fail


def mean_interval(
    values: Numbers,
    clusters: Sequence[str],
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """Mean over items, with a percentile interval from resampling whole clusters.

    A draw takes as many clusters as there are, with replacement, and averages all their items (Cameron,
    Gelbach & Miller 2008, doi:10.1162/rest.90.3.414, section on the pairs cluster bootstrap). Equal cluster
    names and seed give equal draws, so the rows of a report share theirs.

    Args:
        values: shape ``(items,)``, finite.
        clusters: the items' cluster names, length ``items``.
        resamples: number of draws.
        level: coverage in (0, 1).
        seed: seed of the draws.

    Raises:
        ValueError: no items, lengths differ, or a value is not finite.
    """
    estimate, draws, count = _mean_draws(values, clusters, resamples, seed)
    return _percentiles(estimate, draws, count, level)


def _mean_draws(
    values: Numbers, clusters: Sequence[str], resamples: int, seed: int
) -> tuple[float, Floats, int]:
    """Mean over items, the means of ``resamples`` draws of clusters, and the number of clusters."""
    sums, counts = _share_totals(values, clusters)
    picks = np.random.default_rng(seed).integers(len(sums), size=(resamples, len(sums)), dtype=np.int32)
    means = sums[picks].sum(axis=1) / counts[picks].sum(axis=1)
    return float(sums.sum() / counts.sum()), means, len(sums)


def _percentiles(estimate: float, draws: Floats, clusters: int, level: float) -> Interval:
    if clusters == 1:  # one cluster does not show how clusters differ
        return Interval(estimate, -math.inf, math.inf, 1)
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(estimate, float(low), float(high), clusters)


def rate_interval(
    rates: Numbers,
    clusters: Sequence[str],
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Interval:
    """Mean of rates as in `mean_interval`, but with an exact interval if all clusters have 0, or all have 1.

    It is widened if nearly all have: see `_widened_if_alike`.

    Draws from equal clusters do not differ, and an interval of width zero would claim certainty. If the true
    mean over clusters is ``m``, at least a share ``m`` of all clusters has a rate above 0. The probability
    that ``n`` observed clusters are all 0 is then at most ``(1 - m) ** n``. Means for which this is below
    ``(1 - level) / 2`` are excluded. This is the interval of Clopper & Pearson 1934,
    doi:10.1093/biomet/26.4.404, with clusters as trials.

    Args:
        rates: shape ``(items,)``, in [0, 1].
        clusters: the items' cluster names.
        resamples, level: as in `mean_interval`.

    Raises:
        ValueError: see `mean_interval`; or a rate is not in [0, 1].
    """
    interval = mean_interval(_shares(rates), clusters, resamples=resamples, level=level)
    return _widened_if_alike(interval, rates, clusters, 0.0, level)


def paired_interval(
    a: Numbers,
    b: Numbers,
    clusters: Sequence[str],
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Interval:
    """Mean of ``a - b`` over the same items; each draw takes the same clusters for both.

    Exact, as in `rate_interval`, if the difference is 0 in every cluster, or 1, or -1. If the true mean over
    clusters is ``d``, at least a share ``abs(d)`` of all clusters differs, and at least a share
    ``(1 - d) / 2`` differs by less than 1. If both solve nothing, the result equals the hybrid interval of
    Newcombe 1998 (Statistics in Medicine 17:2635) for two exact intervals.

    Args:
        a: shape ``(items,)``, in [0, 1].
        b: shape ``(items,)``, in [0, 1], in the order of ``a``.
        clusters: the items' cluster names.
        resamples, level: as in `mean_interval`.

    Raises:
        ValueError: see `rate_interval`; or the shapes of ``a`` and ``b`` differ.
    """
    if np.shape(a) != np.shape(b):
        raise ValueError(
            f"a paired interval needs the same items in both; found shapes {np.shape(a)} and {np.shape(b)}"
        )
    differences = _shares(a) - _shares(b)
    interval = mean_interval(differences, clusters, resamples=resamples, level=level)
    return _widened_if_alike(interval, differences, clusters, -1.0, level)


def seeds_interval(
    a: Numbers,
    b: Numbers | None,
    clusters: Sequence[str],
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    by_seed: bool = False,
) -> Interval:
    """Mean of ``a`` minus mean of ``b``, each over its own training seeds, for other sources and seeds.

    Draws take the same clusters for both sides, as in `paired_interval`. To each draw is added what other
    seeds might change: for a side with several seeds, the standard error of its mean over seeds, times a draw
    of Student's t with one degree of freedom less than it has seeds. Resampling two or three seeds would give
    draws that are too much alike. With one seed a side, the result is that of `paired_interval`, and says
    nothing of other seeds.

    A seed's mean also varies because its episodes are few. Draws of clusters already contain that, so the
    interval is a little too wide. It is at least as wide as that of the seeds' mean for other sources alone,
    and ends where values do: at 0 or -1, and at 1.

    Args:
        a: shape ``(seeds, items)``, in [0, 1].
        b: shape ``(other seeds, items)``, in [0, 1]; ``None`` for the mean of ``a`` alone.
        clusters: the items' cluster names.
        resamples, level: as in `mean_interval`.
        by_seed: each seed of ``a`` began with what the same seed of ``b`` had become. Then what other seeds
            might change is the standard error of their differences.

    Raises:
        ValueError: see `paired_interval`; or ``by_seed`` is given and the numbers of seeds differ.
    """
    sides = [_shares(side) for side in (a, b) if side is not None]
    if any(side.ndim != 2 or side.shape[1] != sides[0].shape[1] for side in sides):
        shapes = " and ".join(str(side.shape) for side in sides)
        raise ValueError(f"found shapes {shapes}; expected (seeds, items) with the same items")
    means = [side.mean(axis=0) for side in sides]
    differences = means[0] if b is None else means[0] - means[1]
    estimate, draws, count = _mean_draws(differences, clusters, resamples, 0)
    rng, spread = np.random.default_rng((0, 1)), 0.0
    if by_seed:
        if len({len(side) for side in sides}) > 1:
            raise ValueError(f"found {len(sides[0])} and {len(sides[1])} seeds; expected pairs")
        sides = [sides[0] - sides[1]]
    for side in (side for side in sides if len(side) > 1):
        error = float(side.mean(axis=1).std(ddof=1)) / math.sqrt(len(side))
        draws = draws + error * rng.standard_t(len(side) - 1, size=resamples)
        spread += error
    interval = _percentiles(estimate, draws, count, level)
    lowest = 0.0 if b is None else -1.0
    of_sources = _widened_if_alike(interval, differences, clusters, lowest, level)
    if not spread:
        return of_sources
    if count == 1:
        return interval
    low, high = min(interval.low, of_sources.low), max(interval.high, of_sources.high)
    return replace(of_sources, low=max(low, lowest), high=min(high, 1.0), exact=False)


def _shares(values: Numbers) -> Floats:
    shares = np.asarray(values, dtype=np.float64)
    if np.any((shares < 0) | (shares > 1)):
        raise ValueError("a rate lies outside 0 to 1; give each item's share of solved samples")
    return shares


def _share_totals(values: Numbers, clusters: Sequence[str]) -> tuple[Floats, Floats]:
    """Sums and numbers of items of each cluster, the sums without the last digits' rounding.

    0.1 + 0.2 - 0.3 is no difference. As 5.6e-17 in every cluster, it would have an interval without 0.
    """
    sums, counts = _cluster_totals(values, clusters)
    return np.round(sums, _DECIMALS), counts


def _widened_if_alike(
    interval: Interval, values: Numbers, clusters: Sequence[str], lowest: float, level: float
) -> Interval:
    """Widen an interval if nearly all clusters have the same value: ``lowest``, 0 or 1.

    Draws show no cluster that was not observed. So the shares of clusters above and below the shared value
    have exact intervals (Clopper & Pearson), and the mean has what follows from both (MOVER: Zou & Donner
    2008, doi:10.1002/sim.3095; for pairs, Newcombe's hybrid). A cluster that was not observed may differ as
    much as values can: from ``lowest`` to 1. If all have the shared value, the interval is exact. The
    coverage holds for each of the three values, fixed in advance. If as many clusters have one as another, no
    difference (0, of pairs) is preferred, and both bounds are the wider ones of both ends: the interval of
    ``b - a`` mirrors that of ``a - b``.
    """
    sums, counts = _share_totals(values, clusters)
    differing = {value: int(np.sum(sums != value * counts)) for value in (lowest, 0.0, 1.0)}
    fewest = min(differing.values())
    if fewest >= FEW_DIFFERING or (fewest and interval.clusters == 1):
        return interval
    shared = [value for value, number in differing.items() if number == fewest]
    if lowest < 0 and 0.0 in shared:
        shared = [0.0]
    bounds = [_bounds_around(value, interval.estimate, sums, counts, lowest, level) for value in shared]
    low, high = min(low for low, _ in bounds), max(high for _, high in bounds)
    if not fewest:
        return Interval(interval.estimate, low, high, interval.clusters, exact=True)
    low, high = max(min(interval.low, low), lowest), min(max(interval.high, high), 1.0)
    return replace(interval, low=low, high=high, widened=True)


def _bounds_around(
    value: float, estimate: float, sums: Floats, counts: Floats, lowest: float, level: float
) -> tuple[float, float]:
    """Bounds of a mean over items, from exact bounds of the shares above and below ``value``."""
    above, below = sums > value * counts, sums < value * counts
    mean_above, low_above, high_above = _share_of_mean(above, sums - value * counts, counts, 1 - value, level)
    mean_below, low_below, high_below = _share_of_mean(
        below, value * counts - sums, counts, value - lowest, level
    )
    low = estimate - math.hypot(mean_above - low_above, high_below - mean_below)
    return low, estimate + math.hypot(high_above - mean_above, mean_below - low_below)


def _share_of_mean(
    chosen: NDArray[np.bool_], amounts: Floats, counts: Floats, most: float, level: float
) -> tuple[float, float, float]:
    """Return how much some clusters add to a mean over items, and its lower and upper bound.

    Args:
        chosen: those clusters.
        amounts: what each adds to the sum over items.
        counts: items of each cluster.
        most: largest amount for an item.
        level: coverage.
    """
    number, total = int(chosen.sum()), len(chosen)
    mean = float(amounts[chosen].sum() / counts.sum())
    if not number:  # by its formula, which needs no library
        return 0.0, 0.0, most * (1 - ((1 - level) / 2) ** (1 / total))
    share = clopper_pearson(number, total, level=level)
    return mean, mean * share.low / share.estimate, mean + most * (share.high - share.estimate)


def ratio_interval(
    above: Numbers,
    below: Numbers,
    clusters: Sequence[str],
    *,
    resamples: int = RESAMPLES,
) -> Interval:
    """``sum(above) / sum(below)``, such as dollars per solved task, with clusters resampled.

    A draw whose ``below`` sums to 0 gives infinity: dollars were paid, but nothing was solved.

    Args:
        above: numerators, shape ``(items,)``, finite, >= 0.
        below: denominators, shape ``(items,)``, finite, >= 0.
        clusters: the items' cluster names.
        resamples: as in `mean_interval`.
    """
    above_c, _ = _cluster_totals(above, clusters)
    below_c, _ = _cluster_totals(below, clusters)
    ratio = _quotients(above_c.sum(keepdims=True), below_c.sum(keepdims=True))
    if len(above_c) == 1:
        return Interval(float(ratio[0]), 0.0, math.inf, 1)
    picks = np.random.default_rng(0).integers(len(above_c), size=(resamples, len(above_c)), dtype=np.int32)
    ratios = _quotients(above_c[picks].sum(axis=1), below_c[picks].sum(axis=1))
    # No interpolation between quantiles: it would mix infinite and finite ratios.
    low = np.quantile(ratios, (1 - LEVEL) / 2, method="lower")
    high = np.quantile(ratios, (1 + LEVEL) / 2, method="higher")
    return Interval(float(ratio[0]), float(low), float(high), len(above_c))


def _quotients(above: Floats, below: Floats) -> Floats:
    return np.divide(above, below, out=np.full_like(above, np.inf), where=below > 0)


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """p-value of McNemar's exact two-sided test for items that each of two agents tried once.

    If both agents are equally good, each wins half of the items on which they differ. The test assumes that
    items are independent.

    Args:
        only_first: items that only the first agent solved.
        only_second: items that only the second agent solved.
    """
    differing = only_first + only_second
    return float(_scipy().binomtest(only_first, differing).pvalue) if differing else 1.0


def permutation_p(a: Numbers, b: Numbers, clusters: Sequence[str]) -> float:
    """Two-sided p-value of a mean paired difference, from swapping ``a`` and ``b`` in whole clusters.

    Swaps are drawn at random; if there are fewer than would be drawn, all are used. The p-value is 1 for one
    cluster: its swap is as extreme.

    Args:
        a: shape ``(items,)``.
        b: shape ``(items,)``, in the order of ``a``.
        clusters: the items' cluster names.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    sums, _ = _share_totals(first - second, clusters)
    if len(sums) == 1 or not sums.any():
        return 1.0

    def total(x: Floats, y: Floats, axis: int) -> Floats:
        return np.sum(x - y, axis=axis)

    result = _scipy().permutation_test(
        (sums, np.zeros_like(sums)),
        total,
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES - 1,
        batch=256,  # all at once would take a gigabyte for a thousand clusters
        rng=np.random.default_rng(0),
    )
    return float(result.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for multiple comparisons with Holm's step-down method.

    The smallest is multiplied by their number, the next by one less, and so on; none is below the one before.
    Holm 1979, https://www.jstor.org/stable/4615733.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, p_values[index] * (len(p_values) - rank)))
        adjusted[index] = largest
    return adjusted


def clopper_pearson(solved: int, trials: int, *, level: float = LEVEL) -> Interval:
    """Share of independent trials, with the exact interval of Clopper & Pearson 1934.

    Args:
        solved: successes, 0 <= solved <= trials.
        trials: at least 1.
        level: coverage in (0, 1).
    """
    found = _scipy().binomtest(solved, trials).proportion_ci(level, method="exact")
    return Interval(solved / trials, float(found.low), float(found.high), trials, exact=True)


def rank_correlation(a: Numbers, b: Numbers) -> float:
    """Spearman's rank correlation, in [-1, 1]; NaN if one of them is constant.

    Args:
        a: shape ``(items,)``, at least two.
        b: shape ``(items,)``, in the order of ``a``.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return math.nan
    return float(_scipy().spearmanr(first, second).statistic)


def cluster_sd(values: Numbers, clusters: Sequence[str]) -> float:
    """Standard deviation between clusters: ``sd / sqrt(clusters)`` is the standard error of the mean.

    For clusters of equal size it is the SD of the cluster means; otherwise the usual linearisation
    of a ratio of totals (Cochran, Sampling Techniques, 3rd ed., chapter 6). Infinite for one cluster.
    """
    sums, counts = _cluster_totals(values, clusters)
    if len(sums) == 1:
        return math.inf
    residuals = (sums - counts * (sums.sum() / counts.sum())) / counts.mean()
    return float(residuals.std(ddof=1))


def minimum_detectable(clusters: int, sd: float) -> float:
    """Smallest true mean difference that a two-sided test at `LEVEL` detects with probability `POWER`.

    ``(z[(1+LEVEL)/2] + z[POWER]) * sd / sqrt(clusters)``: 0.070 for 100 clusters at SD 0.25.

    Args:
        clusters: number of independent clusters, at least 1.
        sd: `cluster_sd` of the paired differences.
    """
    if clusters < 1:
        raise ValueError(f"clusters is {clusters}; it must be at least 1")
    normal = NormalDist()
    return (normal.inv_cdf((1 + LEVEL) / 2) + normal.inv_cdf(POWER)) * sd / math.sqrt(clusters)


def _scipy() -> Any:
    """SciPy's statistics; imported on use because the import is slow. SciPy has no types."""
    import scipy.stats

    return scipy.stats


def _cluster_totals(values: Numbers, clusters: Sequence[str]) -> tuple[Floats, Floats]:
    """Sum of values and number of items per cluster, sorted by cluster name."""
    items = np.asarray(values, dtype=np.float64)
    if items.ndim != 1 or len(items) == 0 or len(items) != len(clusters):
        raise ValueError(
            f"found values of shape {items.shape} and {len(clusters)} cluster names; give one name per value"
        )
    if not np.isfinite(items).all():
        raise ValueError("a value is not finite; leave voids out before averaging")
    _, index = np.unique(np.asarray(clusters, dtype=np.str_), return_inverse=True)
    sums, counts = np.bincount(index, weights=items), np.bincount(index)
    return sums.astype(np.float64), counts.astype(np.float64)
