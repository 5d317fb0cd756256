"""The torch.autograd.Function layer over the rank ops."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import ops_rank, reference
from ._dtypes import accumulator
from .backends import is_interpreted, native_rank, triton


def _kernels(backend: str, *tensors: Tensor) -> tuple[Any, dict[str, bool]]:
    """The kernels themselves where nothing would see the ops (5 us less per call), else the ops;
    and what to call them with."""
    if is_interpreted(backend, tensors[0].device):
        return triton, {}
    if not torch.compiler.is_compiling() and all(native_rank.is_plain(x) for x in tensors):
        return native_rank, {}
    return ops_rank, {"triton": backend == "triton"}


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def hard_spearman(x: Tensor, y: Tensor, mask: Tensor | None, eps: float, backend: str) -> Tensor:
    """rho [B] of hard ranks of x and y (..., C); no gradient."""
    x, y = x.detach(), y.detach()
    flat_mask = None if mask is None else mask.reshape(-1)
    kernels, which = _kernels(backend, x, y)
    rho: Tensor = kernels.spearman(_rows(x), _rows(y), flat_mask, False, 1.0, eps, **which)
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
        backend: str,
    ) -> Tensor:
        ctx.save_for_backward(order)
        ctx.strength, ctx.dtype, ctx.backend = strength, grad_ranks.dtype, backend
        kernels, which = _kernels(backend, grad_ranks)
        grad: Tensor = kernels.soft_rank_backward(
            _rows(grad_ranks), order, strength, dtype, **which
        )
        return grad.reshape(grad_ranks.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (order,) = ctx.saved_tensors
        result = SoftRankGradientFunction.apply(grad, order, ctx.strength, ctx.dtype, ctx.backend)
        return result, None, None, None, None


class SoftRankFunction(torch.autograd.Function):
    """ranks [..., C] of x [..., C]. Keeps one int32 per element for an O(C) backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, strength: float, backend: str) -> Tensor:
        kernels, which = _kernels(backend, x)
        ranks, order = kernels.soft_rank(_rows(x), strength, **which)
        ctx.save_for_backward(order)
        ctx.strength, ctx.dtype, ctx.backend = strength, x.dtype, backend
        return ranks.reshape(x.shape)

    @staticmethod
    def backward(ctx: Any, grad_ranks: Tensor) -> tuple[Tensor | None, ...]:
        (order,) = ctx.saved_tensors
        options = (order, ctx.strength, ctx.dtype)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            grad = SoftRankGradientFunction.apply(grad_ranks, *options, ctx.backend)
        else:
            kernels, which = _kernels(ctx.backend, grad_ranks)
            grad = kernels.soft_rank_backward(_rows(grad_ranks), *options, **which)
            grad = grad.reshape(grad_ranks.shape)
        return grad, None, None


class ContiguousSoftRankFunction(torch.autograd.Function):
    """The same for a tensor that `native_rank.contiguous_rows` accepts: a third of the call's cost
    (`ContiguousCorrelationFunction` says why)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # [..., C]
        strength: float,
        call: native_rank.ContiguousRows,
    ) -> Tensor:
        ranks, order = native_rank.soft_rank_contiguous(call, x, strength)
        ctx.save_for_backward(order)
        ctx.strength, ctx.dtype = strength, x.dtype
        return ranks

    @staticmethod
    def backward(ctx: Any, grad_ranks: Tensor) -> tuple[Tensor | None, ...]:
        (order,) = ctx.saved_tensors
        if torch.is_grad_enabled() or (call := native_rank.contiguous_rows(grad_ranks)) is None:
            rows = order.reshape(-1, order.shape[-1])
            options = (rows, ctx.strength, ctx.dtype, "native")
            return SoftRankGradientFunction.apply(grad_ranks, *options), None, None
        grad = native_rank.soft_rank_contiguous_backward(
            call, grad_ranks, order, ctx.strength, ctx.dtype
        )
        return grad, None, None


# Function.apply without its functorch part (see `autograd.apply_contiguous`).
apply_contiguous_soft_rank = super(torch.autograd.Function, ContiguousSoftRankFunction).apply


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
        backend: str,
    ) -> Tensor:
        flat_mask = None if mask is None else mask.reshape(-1)
        kernels, which = _kernels(backend, x, y)
        rho: Tensor = kernels.spearman(_rows(x), _rows(y), flat_mask, True, strength, eps, **which)
        # An inference tensor cannot be saved; it is kept as it is (see CorrelationFunction).
        inferred = not torch.compiler.is_compiling() and y.is_inference()
        ctx.inferred = y if inferred else None
        ctx.save_for_backward(x, None if inferred else y, mask)
        ctx.strength, ctx.eps, ctx.backend = strength, eps, backend
        return rho

    @staticmethod
    def backward(ctx: Any, grad_rho: Tensor) -> tuple[Tensor | None, ...]:
        x, y, mask = ctx.saved_tensors
        y = y if ctx.inferred is None else ctx.inferred
        wants_x, wants_y = ctx.needs_input_grad[:2]
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            rho = differentiable_rho(x, y, mask, ctx.strength, ctx.eps, ctx.backend)
            wanted = [t for t, wants in ((x, wants_x), (y, wants_y)) if wants]
            grads = iter(torch.autograd.grad(rho, wanted, grad_rho, create_graph=True))
            return next(grads) if wants_x else None, next(grads) if wants_y else None, *[None] * 4
        flat_mask = None if mask is None else mask.reshape(-1)
        kernels, which = _kernels(ctx.backend, x, y, grad_rho)

        def gradient(a: Tensor, b: Tensor) -> Tensor:
            options = (flat_mask, ctx.strength, ctx.eps)
            grad = kernels.spearman_backward(grad_rho, _rows(a), _rows(b), *options, **which)
            return grad.reshape(a.shape)

        grad_x = gradient(x, y) if wants_x else None
        grad_y = gradient(y, x) if wants_y else None
        return grad_x, grad_y, None, None, None, None


def differentiable_rho(
    x: Tensor, y: Tensor, mask: Tensor | None, strength: float, eps: float, backend: str
) -> Tensor:
    """The same rho [B] as a function that can be differentiated any number of times."""
    a, b = _rows(x), _rows(y)
    if mask is not None:
        keep = mask.reshape(-1, 1)
        a, b = a.where(keep, 0.0), b.where(keep, 0.0)
    dtype = accumulator(x.dtype, y.dtype)
    a, b = (SoftRankFunction.apply(z.to(dtype), strength, backend) for z in (a, b))
    rho = reference.rank_correlation(a, b, eps)
    return rho if mask is None else rho.where(mask.reshape(-1), 0.0)
