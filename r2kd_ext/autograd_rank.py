"""The torch.autograd.Function layer over the rank ops."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import ops_rank, reference
from ._dtypes import accumulator
from .backends import native_rank, triton


def _kernels(interpreted: bool, *tensors: Tensor) -> Any:
    """The kernels themselves where nothing would see the ops (5 us less per call), else the ops.

    `interpreted`: Triton's interpreter takes the place of both.
    """
    if interpreted:
        return triton
    if not torch.compiler.is_compiling() and all(native_rank.is_plain(x) for x in tensors):
        return native_rank
    return ops_rank


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def hard_spearman(
    x: Tensor, y: Tensor, mask: Tensor | None, eps: float, interpreted: bool
) -> Tensor:
    """rho [B] of hard ranks of x and y (..., C); no gradient."""
    x, y = x.detach(), y.detach()
    flat_mask = None if mask is None else mask.reshape(-1)
    kernels = _kernels(interpreted, x, y)
    rho: Tensor = kernels.spearman(_rows(x), _rows(y), flat_mask, False, 1.0, eps)
    return rho


class SoftRankGradientFunction(torch.autograd.Function):
    """grad_x = J grad_ranks. J is symmetric and constant between ties, so J is its own transpose
    and every further derivative is J again, or zero."""

    @staticmethod
    def forward(
        ctx: Any,
        grad_ranks: Tensor,  # [..., C]
        order: Tensor,  # [B, C]
        strength: float,
        dtype: torch.dtype,
        interpreted: bool,
    ) -> Tensor:
        ctx.save_for_backward(order)
        ctx.strength, ctx.dtype, ctx.interpreted = strength, grad_ranks.dtype, interpreted
        grad: Tensor = _kernels(interpreted, grad_ranks).soft_rank_backward(
            _rows(grad_ranks), order, strength, dtype
        )
        return grad.reshape(grad_ranks.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (order,) = ctx.saved_tensors
        result = SoftRankGradientFunction.apply(
            grad, order, ctx.strength, ctx.dtype, ctx.interpreted
        )
        return result, None, None, None, None


class SoftRankFunction(torch.autograd.Function):
    """ranks [..., C] of x [..., C]. Keeps one int32 per element for an O(C) backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, strength: float, interpreted: bool) -> Tensor:
        ranks, order = _kernels(interpreted, x).soft_rank(_rows(x), strength)
        ctx.save_for_backward(order)
        ctx.strength, ctx.dtype, ctx.interpreted = strength, x.dtype, interpreted
        return ranks.reshape(x.shape)

    @staticmethod
    def backward(ctx: Any, grad_ranks: Tensor) -> tuple[Tensor | None, ...]:
        (order,) = ctx.saved_tensors
        options = (order, ctx.strength, ctx.dtype)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            grad = SoftRankGradientFunction.apply(grad_ranks, *options, ctx.interpreted)
        else:
            backward = _kernels(ctx.interpreted, grad_ranks).soft_rank_backward
            grad = backward(_rows(grad_ranks), *options).reshape(grad_ranks.shape)
        return grad, None, None


class SoftSpearmanFunction(torch.autograd.Function):
    """rho [B] of soft ranks of x and y [..., C], differentiable in both.

    Keeps its inputs alone: backward sorts again. A backward with create_graph=True goes through
    the soft ranks and plain PyTorch.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # [..., C]
        y: Tensor,  # [..., C]
        mask: Tensor | None,  # one bool per row
        strength: float,
        eps: float,
        interpreted: bool,
    ) -> Tensor:
        flat_mask = None if mask is None else mask.reshape(-1)
        kernels = _kernels(interpreted, x, y)
        rho: Tensor = kernels.spearman(_rows(x), _rows(y), flat_mask, True, strength, eps)
        # An inference tensor cannot be saved; it is kept as it is (see CorrelationFunction).
        inferred = not torch.compiler.is_compiling() and y.is_inference()
        ctx.inferred = y if inferred else None
        ctx.save_for_backward(x, None if inferred else y, mask)
        ctx.strength, ctx.eps, ctx.interpreted = strength, eps, interpreted
        return rho

    @staticmethod
    def backward(ctx: Any, grad_rho: Tensor) -> tuple[Tensor | None, ...]:
        x, y, mask = ctx.saved_tensors
        y = y if ctx.inferred is None else ctx.inferred
        wants_x, wants_y = ctx.needs_input_grad[:2]
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            rho = _differentiable_rho(x, y, mask, ctx.strength, ctx.eps, ctx.interpreted)
            wanted = [t for t, wants in ((x, wants_x), (y, wants_y)) if wants]
            grads = iter(torch.autograd.grad(rho, wanted, grad_rho, create_graph=True))
            return next(grads) if wants_x else None, next(grads) if wants_y else None, *[None] * 4
        flat_mask = None if mask is None else mask.reshape(-1)
        backward = _kernels(ctx.interpreted, x, y, grad_rho).spearman_backward
        options = (flat_mask, ctx.strength, ctx.eps)
        a, b = _rows(x), _rows(y)
        grad_x = backward(grad_rho, a, b, *options).reshape(x.shape) if wants_x else None
        grad_y = backward(grad_rho, b, a, *options).reshape(y.shape) if wants_y else None
        return grad_x, grad_y, None, None, None, None


def _differentiable_rho(
    x: Tensor, y: Tensor, mask: Tensor | None, strength: float, eps: float, interpreted: bool
) -> Tensor:
    """The same rho [B] as a function that can be differentiated any number of times."""
    a, b = _rows(x), _rows(y)
    if mask is not None:
        keep = mask.reshape(-1, 1)
        a, b = a.where(keep, 0.0), b.where(keep, 0.0)
    dtype = accumulator(x.dtype, y.dtype)
    a, b = (SoftRankFunction.apply(z.to(dtype), strength, interpreted) for z in (a, b))
    rho = reference.rank_correlation(a, b, eps)
    return rho if mask is None else rho.where(mask.reshape(-1), 0.0)
