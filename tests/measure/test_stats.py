"""pass@k and the cluster bootstrap against brute force, closed forms and simulation."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from envkit.measure.stats import (
    clopper_pearson,
    cluster_sd,
    holm,
    mcnemar_exact,
    mean_interval,
    minimum_detectable,
    paired_interval,
    pass_at_k,
    permutation_p,
    rate_interval,
    ratio_interval,
    seeds_interval,
)

CLUSTERED = st.lists(st.tuples(st.integers(0, 7), st.floats(-1, 1)), min_size=1, max_size=30)


def _names(numbers: object) -> list[str]:
    return [f"f{number}" for number in np.asarray(numbers).tolist()]


@pytest.mark.parametrize("n", range(1, 7))
def test_pass_at_k_counts_every_draw(n: int) -> None:
    for k, c in itertools.product(range(1, n + 1), range(n + 1)):
        draws = list(itertools.combinations([True] * c + [False] * (n - c), k))
        assert pass_at_k([n], [c], k)[0] == pytest.approx(sum(map(any, draws)) / len(draws), abs=1e-12)


def test_pass_at_k_does_not_overflow() -> None:
    exact = 1 - Fraction(math.comb(9_990, 128), math.comb(10_000, 128))
    assert pass_at_k([10_000], [10], 128)[0] == pytest.approx(float(exact), rel=1e-9)


@settings(deadline=None)
@given(st.data())
def test_pass_at_k_rises_with_k_from_the_plain_share(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 40))
    c = data.draw(st.integers(0, n))
    curve = [pass_at_k([n], [c], k)[0] for k in range(1, n + 1)]
    assert curve[0] == pytest.approx(c / n)
    assert all(0 <= low <= high + 1e-12 <= 1 + 1e-9 for low, high in itertools.pairwise(curve))
    assert curve[-1] == (1.0 if c else 0.0)


@pytest.mark.parametrize(
    ("samples", "solved", "k", "message"),
    [
        ([8, 3], [1, 1], 4, "pass@4 needs 4 samples"),
        ([8], [1], 0, "k is 0"),
        ([8], [9], 1, "between 0 and samples"),
        ([8], [-1], 1, "between 0 and samples"),
        ([8, 8], [1], 1, "must be"),
    ],
)
def test_pass_at_k_refuses(samples: list[int], solved: list[int], k: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pass_at_k(samples, solved, k)


def test_interval_is_the_quantile_of_all_resamples() -> None:
    """Four clusters of unequal size: all 256 equally likely resamples are enumerated."""
    groups = {"a": [1.0, 0.0, 0.5], "b": [0.2], "c": [0.9, 0.8], "d": [0.0]}
    values = [value for group in groups.values() for value in group]
    names = [name for name, group in groups.items() for _ in group]
    means = np.array(
        [
            np.mean([v for name in picked for v in groups[name]])
            for picked in itertools.product("abcd", repeat=4)
        ]
    )
    found = mean_interval(values, names)
    assert found.estimate == pytest.approx(np.mean(values))
    for end, tail in ((found.low, 0.025), (found.high, 0.975)):
        assert np.mean(means < end - 1e-9) <= tail + 0.01
        assert np.mean(means <= end + 1e-9) >= tail - 0.01


@settings(deadline=None)
@given(CLUSTERED)
def test_interval_contains_the_estimate(items: list[tuple[int, float]]) -> None:
    found = mean_interval([value for _, value in items], _names([i for i, _ in items]), resamples=1000)
    assert found.low - 1e-9 <= found.estimate <= found.high + 1e-9
    assert found.clusters == len({i for i, _ in items})


@settings(deadline=None)
@given(CLUSTERED, st.randoms(use_true_random=False))
def test_order_of_items_does_not_matter(items: list[tuple[int, float]], random: Random) -> None:
    mixed = list(items)
    random.shuffle(mixed)
    first, second = (
        mean_interval([v for _, v in each], _names([i for i, _ in each]), resamples=200)
        for each in (items, mixed)
    )
    assert [first.estimate, first.low, first.high] == pytest.approx(
        [second.estimate, second.low, second.high]
    )


def test_one_cluster_gives_an_infinite_interval() -> None:
    found = mean_interval([0.2, 0.9, 0.7], ["f", "f", "f"])
    assert (found.estimate, found.low, found.high) == (pytest.approx(0.6), -math.inf, math.inf)
    assert not found.excludes_zero


def test_equal_values_have_no_width() -> None:
    found = mean_interval(np.full(20, 0.25), _names(np.arange(20) // 2))
    assert (found.low, found.estimate, found.high) == (0.25, 0.25, 0.25)


def test_copies_within_a_cluster_leave_the_interval_unchanged() -> None:
    values = np.random.default_rng(1).random(30)
    once = mean_interval(values, _names(np.arange(30)))
    copied = mean_interval(values.repeat(5), _names(np.arange(30).repeat(5)))
    as_if_independent = mean_interval(values.repeat(5), _names(np.arange(150)))
    assert [copied.low, copied.high] == pytest.approx([once.low, once.high])
    assert as_if_independent.high - as_if_independent.low < 0.6 * (copied.high - copied.low)


def test_coverage_holds_with_clusters_and_fails_without() -> None:
    rng = np.random.default_rng(7)
    clusters = np.arange(160) // 4
    hits = np.zeros(2)
    for _ in range(200):
        values = rng.normal(0, 1, 40)[clusters] + rng.normal(0, 0.5, 160)
        for i, names in enumerate((clusters, np.arange(160))):
            found = mean_interval(values, _names(names), resamples=300)
            hits[i] += found.low <= 0 <= found.high
    assert hits[0] / 200 > 0.90
    assert hits[1] / 200 < 0.80


def test_paired_interval_uses_the_same_draws_for_both() -> None:
    first = 0.9 * np.random.default_rng(2).random(60)
    names = _names(np.arange(60) // 3)
    shifted = paired_interval(first + 0.1, first, names)
    assert [shifted.low, shifted.high] == pytest.approx([0.1, 0.1])
    assert shifted.excludes_zero
    assert not paired_interval(first, first, names).excludes_zero
    reverse = paired_interval(first, first + 0.1, names)
    assert reverse.high < 0
    assert reverse.excludes_zero


@pytest.mark.parametrize("clusters", [1, 2, 6, 40, 500])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_all_solved_or_none_is_the_exact_interval_over_clusters(clusters: int, level: float) -> None:
    names = _names(np.arange(3 * clusters) // 3)
    for solved in (0, 1):
        found = rate_interval(np.full(3 * clusters, solved), names, level=level)
        exact = binomtest(solved * clusters, clusters).proportion_ci(level, method="exact")
        assert (found.estimate, found.clusters, found.exact) == (solved, clusters, True)
        assert [found.low, found.high] == pytest.approx([exact.low, exact.high], rel=1e-12)


def test_rates_that_differ_are_resampled() -> None:
    names = _names(np.arange(20) // 2)
    for rates in (np.arange(20) % 2, np.full(20, 0.25)):
        assert rate_interval(rates, names) == mean_interval(rates, names)
        assert not rate_interval(rates, names).exact


def test_nearly_alike_rates_have_no_narrower_interval_than_alike_ones() -> None:
    names = _names(np.arange(64))
    before = paired_interval(np.ones(64), np.ones(64), names)
    for lost in range(1, 10):
        worse = np.ones(64)
        worse[:lost] = 0
        found = paired_interval(worse, np.ones(64), names)
        assert found.low < before.low
        assert not found.exact
        rate = rate_interval(1 - worse, names)
        assert rate.high == pytest.approx(clopper_pearson(lost, 64).high)
        assert rate.low <= clopper_pearson(lost, 64).low + 1e-9
        before = found
    mirrored = paired_interval(np.ones(64), worse, names)
    assert (mirrored.low, mirrored.high) == (pytest.approx(-before.high), pytest.approx(-before.low))


def test_few_clusters_of_partial_rates_give_mirrored_intervals() -> None:
    """None of them has a rate of 0 or 1, so that no value is shared by more of them than another."""
    names = _names(np.arange(8))
    ours, theirs = np.array([3, 2, 3, 2, 3, 2, 3, 3]) / 4, np.array([1, 1, 1, 1, 1, 0, 1, 1]) / 4
    found, mirrored = paired_interval(ours, theirs, names), paired_interval(theirs, ours, names)
    assert (mirrored.low, mirrored.high) == (pytest.approx(-found.high), pytest.approx(-found.low))
    assert found.excludes_zero
    rate, lost = rate_interval(ours, names), rate_interval(1 - ours, names)
    assert (lost.low, lost.high) == (pytest.approx(1 - rate.high), pytest.approx(1 - rate.low))
    won, lost = paired_interval([1, 0.5], [0, 0], ["a", "b"]), paired_interval([0, 0], [1, 0.5], ["a", "b"])
    assert (lost.low, lost.high) == (pytest.approx(-won.high), pytest.approx(-won.low))


def test_few_clusters_show_no_difference() -> None:
    for names in map(list, ("ab", "abc", "abcd", "abcde")):
        won = np.ones(len(names))
        won[-1] = 0.5
        assert not paired_interval(won, np.zeros(len(names)), names).excludes_zero
    assert paired_interval([1, 1, 1, 1, 1, 1, 0.5], [0] * 7, [*"abcdefg"]).excludes_zero


def test_equal_rates_of_0_or_1_give_an_exact_interval_around_0() -> None:
    """For rates of 0 or 1: Newcombe's square-and-add of the two exact intervals."""
    names = _names(np.arange(80) // 2)
    for solved in (0, 1):
        rates = np.full(80, solved)
        found, rate = paired_interval(rates, rates, names), rate_interval(rates, names)
        reach = math.hypot(rate.high - solved, solved - rate.low)
        assert (found.low, found.estimate, found.high) == (pytest.approx(-reach), 0, pytest.approx(reach))
        assert found.exact
    mixed = np.random.default_rng(6).random(80)
    assert paired_interval(mixed, mixed, names) == found
    # Within a function the two may take turns.
    turns = np.arange(80) % 2
    assert paired_interval(turns, 1 - turns, names) == found


def test_an_arm_that_wins_everything_may_not_always_win() -> None:
    """At level 95 %, a sign test finds it from six functions on; so does the interval."""
    for clusters in range(1, 12):
        won, lost, names = np.ones(clusters), np.zeros(clusters), _names(np.arange(clusters))
        found, reverse = paired_interval(won, lost, names), paired_interval(lost, won, names)
        assert found.excludes_zero == (binomtest(clusters, clusters).pvalue < 0.05) == (clusters >= 6)
        assert (found.estimate, found.high, found.exact) == (1, 1, True)
        # A function is won, or lost: the exact interval of how many are won, as a difference.
        share = binomtest(clusters, clusters).proportion_ci(method="exact")
        assert found.low == pytest.approx(2 * share.low - 1)
        assert (reverse.low, reverse.high) == (-found.high, -found.low)


@pytest.mark.parametrize("truth", [0.03, 0.17, 0.5, 0.83])
def test_rates_near_an_end_are_covered_where_no_cluster_differs(truth: float) -> None:
    """Of all samples, at most 2.5 % on either side may be alike and exclude the truth."""
    rng, missed = np.random.default_rng(8), np.zeros(2)
    for _ in range(2000):
        solved = rng.random(20) < truth
        if solved.all() or not solved.any():
            found = rate_interval(solved, _names(np.arange(20)), resamples=10)
            missed += (truth < found.low, truth > found.high)
    assert missed.max() / 2000 <= 0.025 + 0.01


def test_a_rate_is_a_share() -> None:
    for rates in ([0.5, 1.5], [-0.1, 0.0]):
        with pytest.raises(ValueError, match="outside 0 to 1"):
            rate_interval(rates, ["a", "b"])
        with pytest.raises(ValueError, match="outside 0 to 1"):
            paired_interval([0.0, 0.0], rates, ["a", "b"])
    with pytest.raises(ValueError, match="not finite"):
        rate_interval([math.nan, 0.0], ["a", "b"])


def test_the_seed_decides_the_draws() -> None:
    values, names = np.arange(12.0), _names(np.arange(12))
    assert mean_interval(values, names, seed=3) == mean_interval(values, names, seed=3)
    assert mean_interval(values, names, seed=3) != mean_interval(values, names, seed=4)


@pytest.mark.parametrize(
    ("values", "clusters", "message"),
    [([], [], "shape"), ([1.0], ["a", "b"], "2 cluster names"), ([1.0, math.nan], ["a", "b"], "not finite")],
)
def test_interval_refuses(values: list[float], clusters: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mean_interval(values, clusters)


def test_paired_refuses_different_items() -> None:
    with pytest.raises(ValueError, match="same items"):
        paired_interval([1.0, 2.0], [1.0], ["a", "b"])


def test_cluster_sd_of_equal_clusters_is_the_sd_of_their_means() -> None:
    values = np.random.default_rng(3).random((25, 4))
    found = cluster_sd(values.ravel(), _names(np.arange(100) // 4))
    assert found == pytest.approx(values.mean(axis=1).std(ddof=1))
    assert cluster_sd([1.0, 2.0], ["a", "a"]) == math.inf


def test_cluster_sd_of_unequal_clusters_agrees_with_the_bootstrap() -> None:
    rng = np.random.default_rng(4)
    clusters = np.arange(200).repeat(rng.integers(1, 5, 200))
    values = rng.random(200)[clusters] + 0.1 * rng.random(len(clusters))
    found = mean_interval(values, _names(clusters))
    half_width = 1.96 * cluster_sd(values, _names(clusters)) / math.sqrt(200)
    assert (found.high - found.low) / 2 == pytest.approx(half_width, rel=0.05)


def test_minimum_detectable_is_found_four_times_in_five() -> None:
    detectable = minimum_detectable(100, 0.25)
    assert detectable == pytest.approx(0.070, abs=0.0005)
    error = 0.25 / math.sqrt(100)
    measured = detectable + error * np.random.default_rng(5).normal(size=20_000)
    assert np.mean(np.abs(measured) > 1.96 * error) == pytest.approx(0.80, abs=0.01)
    with pytest.raises(ValueError, match="clusters is 0"):
        minimum_detectable(0, 0.25)


@pytest.mark.parametrize("seed", range(20))
def test_exact_tests_agree_with_statsmodels(seed: int) -> None:
    from statsmodels.stats.contingency_tables import mcnemar
    from statsmodels.stats.multitest import multipletests

    rng = np.random.default_rng(seed)
    first, second = (int(count) for count in rng.integers(0, 30, size=2))
    theirs = mcnemar([[7, first], [second, 3]], exact=True).pvalue
    assert mcnemar_exact(first, second) == pytest.approx(theirs, rel=1e-12)
    p_values = rng.uniform(0, 0.2, size=7)
    assert holm(list(p_values)) == pytest.approx(multipletests(p_values, method="holm")[1], rel=1e-12)


def test_no_difference_at_all_is_no_evidence() -> None:
    assert mcnemar_exact(0, 0) == 1.0
    assert permutation_p([1, 0, 1], [1, 0, 1], ["a", "b", "c"]) == 1.0
    assert holm([]) == []


def test_one_cluster_is_no_evidence() -> None:
    assert permutation_p([1, 1], [0, 1], ["a", "a"]) == 1.0


def test_permutations_exchange_whole_clusters() -> None:
    """Eight clusters that all say the same: only 2 of their 256 exchanges are as extreme."""
    clusters = [f"c{i // 5}" for i in range(40)]
    assert permutation_p([1.0] * 40, [0.0] * 40, clusters) == pytest.approx(2 / 256)
    # Items taken for independent would be far more certain.
    assert permutation_p([1.0] * 40, [0.0] * 40, [f"i{i}" for i in range(40)]) < 1e-3


def test_permutation_p_is_uniform_under_no_effect() -> None:
    rng = np.random.default_rng(0)
    found = [
        permutation_p(x := rng.normal(size=30), x + rng.normal(size=30), [str(i // 3) for i in range(30)])
        for _ in range(300)
    ]
    assert np.mean(np.array(found) < 0.05) == pytest.approx(0.05, abs=0.035)


def test_a_ratio_is_of_totals_and_infinite_where_nothing_is_solved() -> None:
    found = ratio_interval([2.0, 4.0, 6.0], [1, 1, 2], ["a", "b", "c"])
    assert found.estimate == 3.0
    assert found.low <= 3.0 <= found.high
    nothing = ratio_interval([1.0, 1.0], [0, 0], ["a", "b"])
    assert nothing.estimate == nothing.low == nothing.high == math.inf
    seldom = ratio_interval([1.0] * 6, [1, 0, 0, 0, 0, 0], list("abcdef"))
    assert seldom.estimate == 6.0
    assert seldom.high == math.inf


def test_a_ratio_covers_the_truth() -> None:
    """Cost 1 per item, a third solved: 3 per solved; the interval holds it about 95 times of 100."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(200):
        solved = rng.uniform(size=120) < 1 / 3
        found = ratio_interval(np.ones(120), solved, [str(i) for i in range(120)], resamples=500)
        held += found.low <= 3.0 <= found.high
    assert 182 <= held <= 200


@pytest.mark.parametrize("rates", [(0.3, 0.6), (0.0, 0.0), (1.0, 1.0), (1.0, 0.0)])
def test_one_seed_on_each_side_is_the_paired_interval(rates: tuple[float, float]) -> None:
    a, b = (np.random.default_rng(i).random(60) < rate for i, rate in enumerate(rates))
    names = _names(np.arange(60) // 3)
    assert seeds_interval(a[None], b[None], names) == paired_interval(a, b, names)
    assert seeds_interval(a[None], None, names) == rate_interval(a, names)


def test_a_mean_over_seeds_covers_the_truth_and_one_of_functions_alone_does_not() -> None:
    rng, names, hits = np.random.default_rng(11), _names(np.arange(120) // 3), np.zeros(3)
    for _ in range(200):
        functions = np.repeat(rng.normal(0, 0.15, 40), 3)
        sides = [
            rng.random((3, 120)) < np.clip(0.5 + functions + rng.normal(0, 0.08, (3, 1)), 0, 1)
            for _ in range(2)
        ]
        a, b = sides
        mean = seeds_interval(a, None, names, resamples=400)
        difference = seeds_interval(a, b, names, resamples=400)
        one = paired_interval(a.mean(axis=0), b.mean(axis=0), names, resamples=400)
        hits += [
            found.low <= truth <= found.high for found, truth in ((mean, 0.5), (difference, 0), (one, 0))
        ]
    assert hits[0] / 200 > 0.92
    assert hits[1] / 200 > 0.92
    assert hits[2] / 200 < 0.85


def test_equal_seeds_add_nothing() -> None:
    a, b = (np.random.default_rng(i).random(60) < 0.5 for i in range(2))
    names = _names(np.arange(60) // 3)
    assert seeds_interval([a, a], [b, b, b], names) == paired_interval(a, b, names)


@pytest.mark.parametrize("solved", [2, 98])
def test_seeds_that_differ_are_as_uncertain_as_sources_alone_and_stay_in_range(solved: int) -> None:
    a = np.array([np.arange(100) < count for count in (solved, solved + 2)], dtype=np.float64)
    names = _names(np.arange(100))
    found, alone = seeds_interval(a, None, names), rate_interval(a.mean(axis=0), names)
    assert 0 <= found.low <= alone.low <= found.estimate <= alone.high <= found.high <= 1
    against = seeds_interval(a, np.eye(2, 100), names)
    assert against.low >= -1
    assert against.high <= 1


def test_seeds_that_cancel_out_are_not_alike() -> None:
    a, b = np.array([[0.0] * 8, [1.0] * 8]), np.full((1, 8), 0.5)
    found = seeds_interval(a, b, [*"abcdefgh"])
    assert (found.low, found.estimate, found.high) == (-1, 0, 1)
    assert not found.exact
    assert seeds_interval(a, b, ["a"] * 8).low == -math.inf


def test_seeds_are_measured_on_the_same_items() -> None:
    with pytest.raises(ValueError, match=r"found shapes \(2, 3\) and \(1, 2\); expected \(seeds, items\)"):
        seeds_interval(np.zeros((2, 3)), np.zeros((1, 2)), ["f", "f", "g"])
    with pytest.raises(ValueError, match="found 2 and 1 seeds; expected pairs"):
        seeds_interval(np.zeros((2, 2)), np.zeros((1, 2)), ["f", "g"], by_seed=True)


@pytest.mark.parametrize("share", [0.1, 0.2, 0.3, 0.4, 0.7, 0.8])
def test_rounding_is_no_difference(share: float) -> None:
    clusters = [f"{number}" for number in range(20)]
    found = seeds_interval(np.full((3, 20), share), np.full((1, 20), share), clusters)
    assert found.exact
    assert found.low < -0.1
    assert found.high > 0.1


def test_differences_that_cancel_out_in_each_cluster_are_none() -> None:
    clusters = [f"{number // 2}" for number in range(40)]
    a, b = [0.1, 0.2] * 20, [0.3, 0.0] * 20
    found = paired_interval(a, b, clusters)
    assert found.exact
    assert found.low < 0 < found.high
    assert permutation_p(a, b, clusters) == 1
