"""The value term and its gradient in numpy, written from the mathematics and from nothing else.

It shares no code with the package, so it can serve as the truth: in float64 for kernels that
accumulate in float32, in extended precision (`numpy.longdouble`) for kernels that accumulate in
float64. Next to every figure it gives the error that *one* rounding of every intermediate can
cause (`*_rounding`), which is the natural unit for the error of an implementation.

With p = softmax(student / T), q = softmax(teacher / T), and a tilde for "minus its mean" where
the correlation is centred:

    r = S_pq / N,   N = sqrt(S_pp) sqrt(S_qq) + eps,   S_pq = sum(p~ q~), ...
    dr/dp = q~ / N - (S_pq sqrt(S_qq)) / (N^2 sqrt(S_pp)) p~
    dz_j = p_j (g_j - sum_k p_k g_k) / T
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class Value(NamedTuple):
    """Loss and gradient with respect to the student's logits, and what one rounding costs each."""

    loss: Any  # []
    grad: Array  # [B, C]
    loss_rounding: Any  # []
    grad_rounding: Array  # [B, C]


class _Direction(NamedTuple):
    """r along one axis and its gradient, with bounds of their errors."""

    r: Array  # [B, 1] for rows, [1, C] for columns
    r_error: Array
    slope: Array  # [B, C], dr/dp
    slope_error: Array


def _softmax(x: Array, temperature: Any, unit: Any, tiny: Any) -> tuple[Array, Array]:
    """Softmax along rows, and the error of an exponential whose argument is rounded once."""
    with np.errstate(invalid="ignore"):
        below_max = (x.max(axis=1, keepdims=True) - x) / temperature  # [B, C], inf where -inf
    exponential = np.exp(-below_max)
    p = exponential / exponential.sum(axis=1, keepdims=True)
    possible = np.isfinite(below_max)
    # A rounded argument x (1 + unit) changes exp(x) by the factor 1 + unit * x. `tiny` is what
    # underflow can lose. A class at -inf has p = 0 without error.
    error = np.where(possible, unit * p * (1 + np.where(possible, below_max, 0)) + tiny, 0)
    return p, error


def _divide(a: Array, b: Array) -> Array:
    """a / b, and 0 where b is 0."""
    return np.divide(a, b, out=np.zeros(np.broadcast(a, b).shape, a.dtype), where=b != 0)


def _direction(
    p: Array, q: Array, p_error: Array, q_error: Array,
    axis: int, centered: bool, eps: Any, unit: Any, tiny: Any,
) -> _Direction:  # fmt: skip
    def total(x: Array) -> Array:
        return np.asarray(x.sum(axis=axis, keepdims=True))

    if centered:
        p, q = p - p.mean(axis=axis, keepdims=True), q - q.mean(axis=axis, keepdims=True)
        p_error = p_error + p_error.mean(axis=axis, keepdims=True) + unit * abs(p)
        q_error = q_error + q_error.mean(axis=axis, keepdims=True) + unit * abs(q)
    length = p.shape[axis]
    a, b = np.sqrt(total(p * p)), np.sqrt(total(q * q))
    # A square below `tiny` is lost, so a norm can be off by the root of their number.
    a_error = np.sqrt(total(p_error**2)) + unit * a + np.sqrt(length * tiny)
    b_error = np.sqrt(total(q_error**2)) + unit * b + np.sqrt(length * tiny)
    s = total(p * q)
    s_error = total(abs(p) * q_error + abs(q) * p_error + p_error * q_error + unit * abs(p * q))
    s_error = s_error + length * tiny
    n = a * b + eps
    n_error = a * b_error + b * a_error + a_error * b_error + unit * n
    with np.errstate(divide="ignore", invalid="ignore"):
        n_least = np.maximum(np.maximum(n - n_error, eps), tiny)
        r = s / n
        inverse_error = n_error / (n * n_least)
        r_error = s_error / n_least + abs(s) * inverse_error + unit * abs(r)
        # dr/dp = q / n - r (b / n) (p / a): p / a is a unit vector, so its error is at most 2.
        unit_p = _divide(p, a)
        unit_p_error = np.minimum(_divide(p_error, a) + abs(unit_p) * _divide(a_error, a), 2)
        ratio = b / n
        ratio_error = b_error / n_least + b * inverse_error
        slope = q / n - r * ratio * unit_p
        slope_error = (
            q_error / n_least + abs(q) * inverse_error
            + (r_error * (ratio + ratio_error) + abs(r) * ratio_error)
            * np.minimum(abs(unit_p) + unit_p_error, 1)
            + abs(r) * ratio * unit_p_error
            + unit * (abs(q) / n + abs(r * ratio * unit_p))
        )  # fmt: skip
    return _Direction(r, r_error, slope, slope_error)


def value_term(
    student: Array,
    teacher: Array,
    temperature: float = 4.0,
    *,
    correlation: str = "cosine",
    inter_weight: float = 2.0,
    intra_weight: float = 2.0,
    temperature_scaling: bool = True,
    mask: Array | None = None,
    eps: float = 1e-8,
    rounding: type = np.float32,
    precision: type = np.float64,
) -> Value:
    """The value term of logits (B, C) in `precision`, with the cost of one rounding in `rounding`.

    The options are those of `r2kd_ext.correlation_kd`.
    """
    number = np.dtype(precision).type
    unit = number(np.finfo(rounding).eps) / 2
    tiny = number(np.finfo(rounding).tiny)
    z: Array = student.astype(precision)  # [B, C]
    y: Array = teacher.astype(precision)  # [B, C]
    grad, grad_rounding = np.zeros_like(z), np.zeros_like(z)
    kept = np.arange(len(z)) if mask is None else np.flatnonzero(mask)
    if len(kept) == 0:
        return Value(number(0), grad, number(0), grad_rounding)
    t = number(temperature)
    scale = t * t if temperature_scaling else number(1)
    p, p_error = _softmax(z[kept], t, unit, tiny)  # [n, C]
    q, q_error = _softmax(y[kept], t, unit, tiny)

    loss, loss_rounding = number(0), number(0)
    g, g_error = np.zeros_like(p), np.zeros_like(p)  # dloss/dp
    for weight, axis in ((inter_weight, 1), (intra_weight, 0)):
        if weight == 0:
            continue
        found = _direction(
            p, q, p_error, q_error, axis, correlation == "pearson", number(eps), unit, tiny
        )
        w = number(weight) * scale
        loss = loss + w * (1 - found.r.mean())
        loss_rounding = loss_rounding + w * (found.r_error.mean() + 2 * unit)
        g = g - w / found.r.size * found.slope
        g_error = g_error + w / found.r.size * (found.slope_error + unit * abs(found.slope))
    with np.errstate(invalid="ignore"):
        along = (p * g).sum(axis=1, keepdims=True)
        along_error = (p * g_error + p_error * (abs(g) + g_error) + unit * p * abs(g)).sum(
            axis=1, keepdims=True
        )
        grad[kept] = p * (g - along) / t
        grad_rounding[kept] = (
            p_error * (abs(g - along) + g_error + along_error)
            + p * (g_error + along_error + unit * (abs(g) + abs(along)))
            + np.where(p_error > 0, tiny, 0)  # p (g - along) may underflow before / t
        ) / t + np.where(p_error > 0, tiny, 0)  # fmt: skip
    return Value(loss, grad, loss_rounding, grad_rounding)
