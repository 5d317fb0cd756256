"""Ranks by scipy, numpy and plain Python, from their definitions and from nothing else.

They share no code and no method with the package: hard ranks are scipy's, the isotonic regression
is its minimax formula (Barlow et al., *Statistical Inference under Order Restrictions*, 1972),
v_k = max over a <= k of min over b >= k of the mean of the places a to b.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

Array = npt.NDArray[np.float64]


def hard_ranks(x: Array) -> Array:
    """Ranks 1, ..., C along the last axis of (B, C), equal elements in the order of their index."""
    return np.asarray(rankdata(x, method="ordinal", axis=1), dtype=np.float64)


def spearman(a: Array, b: Array, eps: float = 1e-8) -> Array:
    """The published correlation (B,) of ranks (B, C)."""
    classes = a.shape[1]
    a, b = (r / (classes * (classes + 1) / 2) for r in (a, b))
    a, b = (r - r.mean(axis=1, keepdims=True) for r in (a, b))
    norms = np.sqrt(np.square(a).sum(axis=1)) * np.sqrt(np.square(b).sum(axis=1))
    return np.asarray((a * b).sum(axis=1) / (norms + eps))


def isotonic(y: Array) -> Array:
    """The nearest non-decreasing sequence to y (C,) in the Euclidean norm."""
    count = len(y)
    total = np.concatenate([[0.0], np.cumsum(y, dtype=np.longdouble)])
    first, last = np.triu_indices(count)
    means = np.full((count, count), np.inf, dtype=np.longdouble)  # [first, last]
    means[first, last] = (total[last + 1] - total[first]) / (last + 1 - first)
    # smallest[a, k] = min over b >= k of the mean of a, ..., b
    smallest = np.minimum.accumulate(means[:, ::-1], axis=1)[:, ::-1]
    return np.array([smallest[: k + 1, k].max() for k in range(count)], dtype=np.float64)


def soft_ranks(x: Array, strength: float) -> Array:
    """The projection of the finite rows x / strength (B, C) onto the permutahedron."""
    place = np.arange(1.0, x.shape[1] + 1)
    ranks = np.empty_like(x)
    for row, out in zip(x / strength, ranks, strict=True):
        order = np.argsort(row, kind="stable")
        out[order] = row[order] - isotonic(row[order] - place)
    return ranks


def distance_to_permutahedron(ranks: Array) -> float:
    """How far a point (C,) is outside of the convex hull of the permutations of 1, ..., C.

    Rado's theorem: a point is inside if the sum of all is that of the permutation and no sum of
    the k smallest is below 1 + ... + k.
    """
    place = np.arange(1.0, len(ranks) + 1)
    sums = np.cumsum(np.sort(ranks)) - np.cumsum(place)
    return float(max(-sums.min(), abs(sums[-1])))


def soft_rank_jacobian(x: Array, strength: float) -> Array:
    """d rank_k / d x_l of one row (C,), its pools found in exact rational arithmetic."""
    order = np.argsort(x, kind="stable")
    value = [Fraction(float(x[j])) / Fraction(strength) for j in order]
    gap = [v - k for k, v in enumerate(value)]
    jacobian = np.zeros((len(x), len(x)))
    start = 0
    while start < len(x):  # the longest prefix of least mean is the next pool
        best, end, total = None, start, Fraction(0)
        for k in range(start, len(x)):
            total += gap[k]
            mean = total / (k + 1 - start)
            if best is None or mean <= best:
                best, end = mean, k + 1
        pool = order[start:end]
        jacobian[np.ix_(pool, pool)] -= 1 / len(pool)
        jacobian[pool, pool] += 1
        start = end
    return jacobian / strength
