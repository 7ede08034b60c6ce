"""Statistics of solve rates: pass@k, intervals that resample clusters, detectable differences.

Tasks made from one source function succeed and fail together, so the independent unit is the
function (the cluster), not the task: every interval here resamples clusters, or counts them where they
are all alike. SciPy's ``bootstrap`` has no clusters, hence own code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats: TypeAlias = NDArray[np.float64]

RESAMPLES = 10_000
LEVEL = 0.95
POWER = 0.80


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its confidence interval.

    Args:
        estimate: the mean over items.
        low: lower end; minus infinity where it cannot be estimated (one cluster, and not ``exact``).
        high: upper end; plus infinity likewise.
        clusters: how many independent clusters stand behind it.
        exact: it was computed, not resampled, because no cluster differs from another; see `rate_interval`.
    """

    estimate: float
    low: float
    high: float
    clusters: int
    exact: bool = False

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def pass_at_k(samples: ArrayLike, solved: ArrayLike, k: int) -> Floats:
    """Unbiased chance, per task, that at least one of ``k`` fresh samples solves it.

    ``1 - C(n-c, k) / C(n, k)``, Chen et al. 2021, arXiv:2107.03374, as a product that cannot overflow.

    Args:
        samples: n, graded samples per task (voids left out), shape ``(tasks,)``, each >= k.
        solved: c, how many of them solved it, shape ``(tasks,)``, 0 <= c <= n.
        k: size of the draw, >= 1.

    Returns:
        Shape ``(tasks,)``, in [0, 1].

    Raises:
        ValueError: shapes or ranges are wrong; with fewer than k samples pass@k cannot be known.
    """
    n, c = np.asarray(samples, dtype=np.int64), np.asarray(solved, dtype=np.int64)
    if n.ndim != 1 or n.shape != c.shape:
        raise ValueError(f"samples has shape {n.shape} and solved {c.shape}; both must be (tasks,)")
    if k < 1:
        raise ValueError(f"k is {k}; it must be at least 1")
    if np.any(n < k):
        raise ValueError(f"pass@{k} needs {k} samples per task, one has {n.min()}; leave such tasks out")
    if np.any((c < 0) | (c > n)):
        raise ValueError("solved must lie between 0 and samples for every task")
    drawn_k = np.arange(k)
    # With fewer than k failures one factor is exactly 0, so the factors after it do not matter.
    all_fail = np.prod((n - c - drawn_k[:, None]) / (n - drawn_k[:, None]), axis=0)
    return 1.0 - all_fail


def mean_interval(
    values: ArrayLike,
    clusters: Sequence[str],
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """Mean over items with a percentile interval from resampling whole clusters.

    One draw takes as many clusters as there are, with replacement, and averages all their items
    (Cameron, Gelbach & Miller 2008, doi:10.1162/rest.90.3.414, section on the pairs cluster
    bootstrap). Equal cluster names and seed give equal draws, so several arms share theirs.

    Args:
        values: shape ``(items,)``, finite.
        clusters: the items' cluster names, length ``items``.
        resamples: number of draws.
        level: coverage in (0, 1).
        seed: of the draws.

    Raises:
        ValueError: no items, lengths differ, or a value is not finite.
    """
    sums, counts = _cluster_totals(values, clusters)
    estimate = float(sums.sum() / counts.sum())
    if len(sums) == 1:  # one function says nothing about how functions differ
        return Interval(estimate, -math.inf, math.inf, 1)
    picks = np.random.default_rng(seed).integers(len(sums), size=(resamples, len(sums)), dtype=np.int32)
    means = sums[picks].sum(axis=1) / counts[picks].sum(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(estimate, float(low), float(high), len(sums))


def rate_interval(
    rates: ArrayLike,
    clusters: Sequence[str],
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """Mean of rates as `mean_interval` gives it, but exact where all clusters have 0, or all have 1.

    Draws from equal clusters do not differ, and a width of zero would claim certainty. But where the true
    mean over clusters is ``m``, a share of ``m`` of them at least has a rate above 0, so that ``n`` of them
    are all 0 with probability ``(1 - m) ** n`` at most. A mean for which that is below ``(1 - level) / 2``
    is excluded: the interval of Clopper & Pearson 1934, doi:10.1093/biomet/26.4.404, with clusters as trials.

    Args:
        rates: shape ``(items,)``, in [0, 1].
        clusters: the items' cluster names.
        resamples, level, seed: as in `mean_interval`.

    Raises:
        ValueError: see `mean_interval`; or a rate is not in [0, 1].
    """
    found = mean_interval(_shares(rates), clusters, resamples=resamples, level=level, seed=seed)
    return _exact_if_alike(found, rates, clusters, 0.0, level)


def paired_interval(
    a: ArrayLike,
    b: ArrayLike,
    clusters: Sequence[str],
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """Mean of ``a - b`` over the same items; each draw takes the same clusters for both arms.

    Exact, as in `rate_interval`, where no cluster differs between the arms, or each by a whole 1. Where
    the true mean over clusters is ``d``, a share of ``abs(d)`` of them at least differs, and one of
    ``(1 - d) / 2`` at least differs by less than 1. For two arms that solve nothing this is also what the
    hybrid of Newcombe 1998 (Statistics in Medicine 17:2635) makes of their two exact intervals.

    Args:
        a: shape ``(items,)``, in [0, 1].
        b: shape ``(items,)``, in [0, 1], in the order of ``a``.
        clusters: the items' cluster names.
        resamples, level, seed: as in `mean_interval`.

    Raises:
        ValueError: see `rate_interval`; or the arms' shapes differ.
    """
    if np.shape(a) != np.shape(b):
        raise ValueError(f"paired arms need the same items; found shapes {np.shape(a)} and {np.shape(b)}")
    differences = _shares(a) - _shares(b)
    found = mean_interval(differences, clusters, resamples=resamples, level=level, seed=seed)
    return _exact_if_alike(found, differences, clusters, -1.0, level)


def _shares(values: ArrayLike) -> Floats:
    shares = np.asarray(values, dtype=np.float64)
    if np.any((shares < 0) | (shares > 1)):
        raise ValueError("a rate lies outside 0 to 1; give each item's share of solved samples")
    return shares


def _exact_if_alike(
    found: Interval, values: ArrayLike, clusters: Sequence[str], least: float, level: float
) -> Interval:
    """The exact interval of a mean of what lies from ``least`` to 1, if all clusters gave one end, or 0.

    It covers for values that are settled before looking, not for whichever one the clusters share.
    """
    sums, counts = _cluster_totals(values, clusters)
    value = found.estimate
    if value not in (least, 0.0, 1.0) or np.any(sums != value * counts):
        return found
    # The largest share of clusters with another value that may have gone unseen.
    unseen = 1 - ((1 - level) / 2) ** (1 / found.clusters)
    low, high = value - unseen * (value - least), value + unseen * (1 - value)
    return Interval(value, low, high, found.clusters, exact=True)


def ratio_interval(
    above: ArrayLike,
    below: ArrayLike,
    clusters: Sequence[str],
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """``sum(above) / sum(below)``, such as dollars per solved task, resampling clusters as `mean_interval`.

    Infinite where a draw has nothing below: who solves nothing pays without end for a solved task.

    Args:
        above: shape ``(items,)``, finite, >= 0.
        below: shape ``(items,)``, finite, >= 0.
        clusters: the items' cluster names.
        resamples, level, seed: as in `mean_interval`.
    """
    above_c, _ = _cluster_totals(above, clusters)
    below_c, _ = _cluster_totals(below, clusters)
    ratio = _quotients(above_c.sum(keepdims=True), below_c.sum(keepdims=True))
    if len(above_c) == 1:
        return Interval(float(ratio[0]), 0.0, math.inf, 1)
    picks = np.random.default_rng(seed).integers(len(above_c), size=(resamples, len(above_c)), dtype=np.int32)
    ratios = _quotients(above_c[picks].sum(axis=1), below_c[picks].sum(axis=1))
    # An infinite ratio is larger than any, and what lies between it and a finite one is unknown: no mixing.
    low = np.quantile(ratios, (1 - level) / 2, method="lower")
    high = np.quantile(ratios, (1 + level) / 2, method="higher")
    return Interval(float(ratio[0]), float(low), float(high), len(above_c))


def _quotients(above: Floats, below: Floats) -> Floats:
    return np.divide(above, below, out=np.full_like(above, np.inf), where=below > 0)


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Chance of so uneven a split, or a more uneven one, if both arms were equally good.

    The exact two-sided test of McNemar for items that each arm tried once: of those on which the arms
    differ, each arm should win half. It takes items for independent.

    Args:
        only_first: items that the first arm alone solved.
        only_second: items that the second arm alone solved.
    """
    differing = only_first + only_second
    return float(_scipy().binomtest(only_first, differing).pvalue) if differing else 1.0


def permutation_p(
    a: ArrayLike, b: ArrayLike, clusters: Sequence[str], *, resamples: int = RESAMPLES - 1, seed: int = 0
) -> float:
    """Two-sided p-value of a mean paired difference, by exchanging the arms within whole clusters.

    Args:
        a: shape ``(items,)``.
        b: shape ``(items,)``, in the order of ``a``.
        clusters: the items' cluster names.
        resamples: exchanges drawn; with few clusters all there are.
        seed: of the draws.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    sums, _ = _cluster_totals(first - second, clusters)
    if not sums.any():
        return 1.0

    def total(x: Floats, y: Floats, axis: int) -> Floats:
        return np.sum(x - y, axis=axis)

    found = _scipy().permutation_test(
        (sums, np.zeros_like(sums)),
        total,
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        batch=256,  # all at once would take a gigabyte for a thousand clusters
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values, raised so that all of them together err no more often than one alone would.

    Holm 1979, https://www.jstor.org/stable/4615733: the smallest times their number, the next times one
    less, never less than one before.
    """
    adjusted, least = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        least = max(least, min(1.0, p_values[index] * (len(p_values) - rank)))
        adjusted[index] = least
    return adjusted


def cluster_sd(values: ArrayLike, clusters: Sequence[str]) -> float:
    """Standard deviation between clusters, such that ``sd / sqrt(clusters)`` is the mean's standard error.

    For clusters of equal size it is the SD of the cluster means; otherwise the usual linearisation
    of a ratio of totals (Cochran, Sampling Techniques, 3rd ed., chapter 6). Infinite for one cluster.
    """
    sums, counts = _cluster_totals(values, clusters)
    if len(sums) == 1:
        return math.inf
    residuals = (sums - counts * (sums.sum() / counts.sum())) / counts.mean()
    return float(residuals.std(ddof=1))


def minimum_detectable(clusters: int, sd: float, *, level: float = LEVEL, power: float = POWER) -> float:
    """The true mean difference that a two-sided test at ``level`` finds with probability ``power``.

    ``(z[(1+level)/2] + z[power]) * sd / sqrt(clusters)``: 0.070 for 100 clusters at SD 0.25.

    Args:
        clusters: number of independent clusters, at least 1.
        sd: `cluster_sd` of the paired differences.
        level: one minus the test's error rate.
        power: chance of finding it.
    """
    if clusters < 1:
        raise ValueError(f"clusters is {clusters}; it must be at least 1")
    normal = NormalDist()
    return (normal.inv_cdf((1 + level) / 2) + normal.inv_cdf(power)) * sd / math.sqrt(clusters)


def _scipy() -> Any:
    """SciPy's statistics: untyped, and slow to import for those who want a mean."""
    import scipy.stats

    return scipy.stats


def _cluster_totals(values: ArrayLike, clusters: Sequence[str]) -> tuple[Floats, Floats]:
    """Sum of values and number of items of each cluster, in the order of the clusters' names."""
    items = np.asarray(values, dtype=np.float64)
    if items.ndim != 1 or len(items) == 0 or len(items) != len(clusters):
        raise ValueError(f"found values of shape {items.shape} and {len(clusters)} clusters; give one each")
    if not np.isfinite(items).all():
        raise ValueError("a value is not finite; leave voids out before averaging")
    _, index = np.unique(np.asarray(clusters, dtype=np.str_), return_inverse=True)
    sums, counts = np.bincount(index, weights=items), np.bincount(index)
    return sums.astype(np.float64), counts.astype(np.float64)
