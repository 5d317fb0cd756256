"""Intervals of medians and ratios: against scipy, and that they hold what they promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from r2kd_ext.bench.intervals import _ways_of_u, median_interval, ratio_interval


@pytest.mark.parametrize("count", [2, 5, 6, 15, 16, 40])
@pytest.mark.parametrize("level", [0.8, 0.95, 0.999])
def test_order_statistics_of_the_median(count: int, level: float) -> None:
    values = list(np.random.default_rng(count).lognormal(size=count))
    found = median_interval(values, level)
    assert found.estimate == np.median(values)

    def coverage(k: int) -> float:
        return 1 - 2 * stats.binom.cdf(k - 1, count, 0.5)

    if found.low == 0:
        assert found.high == math.inf
        assert coverage(1) < level
    else:
        k = sorted(values).index(found.low) + 1
        assert found.high == sorted(values)[-k]
        assert coverage(k) >= level
        assert coverage(k + 1) < level or 2 * (k + 1) > count + 1


@pytest.mark.parametrize(("n", "m"), [(1, 1), (3, 5), (7, 7), (15, 6)])
def test_distribution_of_u(n: int, m: int) -> None:
    ways = _ways_of_u(n, m)
    assert sum(ways) == math.comb(n + m, n)
    new = np.arange(n) + 0.25 + m // 2
    old = np.arange(m, dtype=float)
    found = stats.mannwhitneyu(new, old, alternative="less", method="exact")
    u = int(found.statistic)
    assert sum(ways[: u + 1]) / sum(ways) == pytest.approx(found.pvalue)


@pytest.mark.parametrize("level", [0.9, 0.99])
def test_the_interval_of_a_ratio_inverts_the_rank_test(level: float) -> None:
    generator = np.random.default_rng(3)
    new, old = 1.3 * generator.lognormal(0, 0.2, 12), generator.lognormal(0, 0.2, 15)
    found = ratio_interval(list(new), list(old), level)
    for factor, rejected in (
        (found.low * 0.999, True), (found.low * 1.001, False),
        (found.high * 0.999, False), (found.high * 1.001, True),
    ):  # fmt: skip
        p = stats.mannwhitneyu(new, factor * old, method="exact").pvalue
        assert (p < 1 - level) == rejected, factor


def test_too_few_values_exclude_nothing() -> None:
    assert not median_interval([1.0, 2.0]).excludes(100.0)
    assert not ratio_interval([5.0, 5.1], [1.0, 1.1]).excludes(1.0)


def test_coverage() -> None:
    """Of skewed times with outliers, as times are."""
    generator = np.random.default_rng(0)
    trials, level, missed = 2000, 0.95, [0, 0]
    for _ in range(trials):
        new, old = generator.lognormal(0, 0.5, 15), generator.lognormal(0, 0.5, 15)
        missed[0] += median_interval(list(new), level).excludes(1.0)
        missed[1] += ratio_interval(list(1.1 * new), list(old), level).excludes(1.1)
    # Both intervals cover at least 95%; the binomial's standard deviation is 10 of 2000.
    assert max(missed) < 0.05 * trials + 30
    assert min(missed) > 0.02 * trials
