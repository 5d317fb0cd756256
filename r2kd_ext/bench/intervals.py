"""Confidence intervals that assume no distribution of the times."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

LEVEL = 0.95


class Interval(NamedTuple):
    """An estimate with the bounds of its interval; (0, inf) where too few values allow none."""

    estimate: float
    low: float
    high: float

    def excludes(self, value: float) -> bool:
        return not self.low <= value <= self.high


def median_interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """The median of positive numbers, between two of their order statistics.

    The k-th smallest and the k-th largest of n independent values enclose the median of what they
    are drawn from with probability 1 - 2 P(X < k), X binomial with n trials of 1/2. k is the
    largest for which that is at least `level`; there is none for fewer than 6 values at 95%.
    """
    count = len(values)
    ordered = sorted(values)
    tail, k = 0.0, 0
    while True:
        tail += math.comb(count, k) / 2**count  # P(X < k + 1)
        if 2 * tail > 1 - level or 2 * (k + 1) > count:
            break
        k += 1
    bounds = (ordered[k - 1], ordered[-k]) if k else (0.0, math.inf)
    return Interval(statistics.median(values), *bounds)


def ratio_interval(new: Sequence[float], old: Sequence[float], level: float = LEVEL) -> Interval:
    """By what factor the positive numbers `new` are larger than `old`, two independent samples.

    The estimate is the median of all quotients new_i / old_j, the bounds are two of them: the
    interval of Hodges and Lehmann (*Estimates of Location Based on Rank Tests*, Annals of
    Mathematical Statistics 34, 1963) for logarithms, which inverts the Wilcoxon-Mann-Whitney test.
    """
    quotients = sorted(a / b for a in new for b in old)
    ways = _ways_of_u(len(new), len(old))
    total, tail, k = sum(ways), 0, 0
    for u in range(len(ways) // 2):
        tail += ways[u]  # of U <= u
        if 2 * tail > (1 - level) * total:
            break
        k = u + 1
    bounds = (quotients[k - 1], quotients[-k]) if k else (0.0, math.inf)
    return Interval(statistics.median(quotients), *bounds)


def _ways_of_u(n: int, m: int) -> list[int]:
    """How many orders of n and m values have Mann-Whitney's U = 0, 1, ..., n m.

    These are the coefficients of the product over i <= m of (1 - q^(n + i)) / (1 - q^i).
    """
    ways = [1] + [0] * (n * m)
    for i in range(1, m + 1):
        for u in range(n * m, n + i - 1, -1):
            ways[u] -= ways[u - n - i]
        for u in range(i, n * m + 1):
            ways[u] += ways[u - i]
    return ways
