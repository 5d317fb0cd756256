"""How far a result may be from the truth.

The contract: the error against fp64 truth is at most that of the eager reference in the dtype
that the kernel accumulates in, plus rounding. The unit of rounding is `Value.*_rounding` of
`formula.py`: what one rounding of every intermediate can cost at this very element, with the
cancellation that the inputs force on every implementation. It is a bound of the first order, not
an estimate. The eager reference stays at about a tenth of it on ordinary logits, so one unit on
top of the reference's own error is room for another order of operations, and for nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from formula import Array, Value, value_term
from torch import Tensor

from r2kd_ext import reference

# In units of one rounding: every single element may be off by one more than the reference.
ELEMENT = 1.0
# In the norm over all elements roundings average out; the bound must not lose that.
NORM = 0.25


class Outcome(NamedTuple):
    """A loss and its gradient with respect to the student's logits."""

    loss: Tensor  # []
    grad: Tensor  # [B, C]


def accumulator(*dtypes: torch.dtype) -> torch.dtype:
    """The dtype of the loss: float64 if any input has it, else float32."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


def run(
    function: Callable[..., Tensor], student: Tensor, teacher: Tensor, **options: Any
) -> Outcome:
    """Forward and backward with respect to `student`, whose strides are kept."""
    student = student.detach().requires_grad_()
    loss = function(student, teacher, **options)
    (grad,) = torch.autograd.grad(loss, student)
    return Outcome(loss.detach(), grad)


def truth_of(student: Tensor, teacher: Tensor, **options: Any) -> Value:
    """The truth for these very (already rounded) inputs, any leading dimensions as rows."""
    double = accumulator(student.dtype, teacher.dtype) is torch.float64
    mask = options.pop("mask", None)
    return value_term(
        flat(student), flat(teacher), **options,
        mask=None if mask is None else mask.reshape(-1).numpy(),
        rounding=np.float64 if double else np.float32,
        precision=np.longdouble if double else np.float64,
    )  # fmt: skip


def eager_of(student: Tensor, teacher: Tensor, **options: Any) -> Outcome:
    """The eager reference on the same inputs, its gradient not rounded to a narrower dtype."""
    dtype = accumulator(student.dtype, teacher.dtype)
    return run(reference.correlation_kd, student.detach().to(dtype), teacher, **options)


def flat(x: Tensor) -> Array:
    """The rows of a tensor (..., C) as a float64 array (B, C)."""
    return np.asarray(x.detach().double().reshape(-1, x.shape[-1]).numpy())


def _errors(found: Any, truth: Any, unit: Any) -> Array:
    """|found - truth| in `unit`; 0 / 0 is 0, and NaN agrees with NaN."""
    error = np.where(np.isnan(truth) & np.isnan(found), 0, abs(found - truth))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(error == 0, 0, error / unit))


def _norm(x: Array) -> float:
    return float(np.sqrt(np.square(x[np.isfinite(x)].astype(np.longdouble)).sum()))


def _check_kind(got: Outcome, student: Tensor, teacher: Tensor) -> None:
    expected = accumulator(student.dtype, teacher.dtype)
    assert got.loss.shape == (), f"the loss has shape {tuple(got.loss.shape)}, not ()"
    assert got.loss.dtype is expected, f"the loss has dtype {got.loss.dtype}, not {expected}"
    assert got.grad.shape == student.shape, (
        f"the gradient has shape {tuple(got.grad.shape)}, not {tuple(student.shape)}"
    )
    assert got.grad.dtype is student.dtype, (
        f"the gradient has dtype {got.grad.dtype}, not the student's {student.dtype}"
    )


def _check_loss(got: Outcome, eager: Outcome, truth: Value) -> None:
    error = _errors(got.loss.double().numpy(), truth.loss, truth.loss_rounding)
    own = _errors(eager.loss.double().numpy(), truth.loss, truth.loss_rounding)
    assert error <= own + ELEMENT, (  # also false for NaN
        f"loss {got.loss.item()!r} is {error:.3g} roundings from {truth.loss!r}; "
        f"the eager reference is {own:.3g} from it"
    )


def _check_grad(got: Outcome, eager: Outcome, truth: Value) -> None:
    found, own = flat(got.grad), flat(eager.grad)
    undefined = np.isnan(truth.grad)
    wrong = np.isnan(found) != undefined
    assert not wrong.any(), f"NaN in the wrong place at {np.argwhere(wrong)[:5].tolist()}"
    own_error = np.nanmax(_errors(own, truth.grad, truth.grad_rounding), initial=0)
    bound = (own_error + ELEMENT) * truth.grad_rounding
    stored = torch.finfo(got.grad.dtype)
    narrow = got.grad.dtype is not got.loss.dtype
    if narrow:  # stored in the student's dtype: half a unit in its last place, on top
        bound = bound + stored.eps / 2 * (abs(truth.grad) + bound)
        bound = bound + stored.smallest_normal * stored.eps / 2
    error = _errors(found, truth.grad, bound)
    error[undefined] = 0
    assert (error <= 1).all(), (
        f"{(~(error <= 1)).sum()} gradient elements of {error.size} are off, the worst at "
        f"{(at := np.unravel_index(error.argmax(), error.shape))}: {found[at]!r} for "
        f"{truth.grad[at]!r}, {error[at]:.3g} times the bound; one rounding is "
        f"{truth.grad_rounding[at]:.3g}, the eager reference is up to {own_error:.3g} roundings off"
    )
    far = _norm(found - truth.grad)
    allowed = _norm(own - truth.grad) + NORM * _norm(truth.grad_rounding)
    if narrow:
        allowed += float(stored.eps) / 2 * _norm(truth.grad)
        allowed += float(stored.smallest_normal * stored.eps) / 2 * error.size**0.5
    assert far <= allowed, (
        f"the gradient is {far:.3g} from the truth in norm, allowed {allowed:.3g}"
    )


def assert_true(
    got: Outcome, student: Tensor, teacher: Tensor, *, factor: float = 1.0, **options: Any
) -> None:
    """Raise AssertionError unless `got` is as near to the truth as the contract demands.

    `factor` is what the loss was multiplied by before backward, a power of two or a number whose
    product costs one more rounding.
    """
    _check_kind(got, student, teacher)
    truth, eager = truth_of(student, teacher, **options), eager_of(student, teacher, **options)
    _check_loss(got, eager, truth)
    if factor != 1:
        eager = eager._replace(grad=eager.grad * factor)
        truth = truth._replace(
            grad=truth.grad * factor, grad_rounding=truth.grad_rounding * abs(factor)
        )
    _check_grad(got, eager, truth)


def assert_same_bits(a: Tensor, b: Tensor) -> None:
    """Raise AssertionError unless both have the same dtype, shape and bits, NaN included."""
    assert a.dtype is b.dtype
    assert a.shape == b.shape
    same = a.contiguous().view(-1).view(torch.uint8) == b.contiguous().view(-1).view(torch.uint8)
    assert bool(same.all()), f"{int((~same).sum())} of {same.numel()} bytes differ"


def pools_of(order: Tensor) -> Tensor:
    """Pool, flag of infinities and index of each element, int64 [B, C], of a pooled order.

    Ascending in each row, so that two backends may leave the elements of a pool in any order.
    """
    bits = order.long() & 0xFFFFFFFF
    pool = (bits >> 31).cumsum(1)
    return ((pool << 32) | (bits & 0x7FFFFFFF)).sort(1).values
