"""How cost grows with size: a fit of t = a + b n^k to times over doublings, and its jumps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

LEAST_SIZES = 4  # a fit has three numbers
JUMP = 1.5  # a step may take this many times what the fit says
_EXPONENTS = np.arange(0.2, 2.501, 0.01)


class Growth(NamedTuple):
    """The fit: a constant part in the unit of the times, the exponent, and the largest jump.

    A jump is the factor by which a step from one size to the next takes more than the fit of it;
    `at` is the size it leads to.
    """

    constant: float
    exponent: float
    jump: float
    at: int


def fit(sizes: Sequence[int], times: Sequence[float]) -> Growth:
    """Least squares of the relative errors, a >= 0 and b >= 0, k from 0.2 to 2.5."""
    n, t = np.asarray(sizes, float), np.asarray(times, float)
    if len(n) < LEAST_SIZES:
        raise ValueError(f"sizes must be at least {LEAST_SIZES}, got {len(n)}")
    fits = [(_fit_of(n, t, exponent), exponent) for exponent in _EXPONENTS]
    (_, constant, fitted), exponent = min(fits, key=lambda pair: pair[0][0])
    steps = (t[1:] / t[:-1]) / (fitted[1:] / fitted[:-1])
    largest = int(steps.argmax())
    return Growth(constant, float(exponent), float(steps[largest]), sizes[largest + 1])


def _fit_of(n: np.ndarray, t: np.ndarray, exponent: float) -> tuple[float, float, np.ndarray]:
    """Squared relative error, constant and fitted times of the best a and b for an exponent."""
    power = n**exponent
    candidates = []
    for columns in ((1, 1), (0, 1)):
        matrix = np.stack([np.ones_like(n), power], 1) * columns
        (a, b), *_ = np.linalg.lstsq(matrix / t[:, None], np.ones_like(t), rcond=None)
        if a >= 0 and b >= 0:
            fitted = a + b * power
            candidates.append((float(((fitted / t - 1) ** 2).sum()), float(a), fitted))
    if not candidates:
        return float("inf"), 0.0, t
    return min(candidates, key=lambda candidate: candidate[0])
