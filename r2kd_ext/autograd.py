"""The torch.autograd.Function layer over the ops."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import ops, reference
from ._arguments import CorrelationOptions, RankOptions, flatten_rows
from .autograd_rank import differentiable_rho
from .backends import is_interpreted, native, native_rank, triton


def _differentiable_gradient(
    grad_loss: Tensor,
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None,
    options: CorrelationOptions,
    sample_weight: Tensor | None = None,
) -> Tensor:
    """The gradient as a function that can be differentiated again, by the reference."""
    loss = reference.correlation_from_options(student, teacher, mask, options, sample_weight)
    (grad,) = torch.autograd.grad(loss, student, grad_loss, create_graph=True)
    return grad


def _differentiable_rank_gradient(
    grad_loss: Tensor,  # []
    student: Tensor,  # [B, C]
    teacher: Tensor,  # [B, C]
    mask: Tensor | None,  # [B] bool
    options: RankOptions,
) -> Tensor:
    """The same of the term of soft ranks."""
    rho = differentiable_rho(student, teacher, mask, options.strength, options.eps, "native")
    loss = options.weight * reference.row_distance(rho, mask, None)
    (grad,) = torch.autograd.grad(loss, student, grad_loss, create_graph=True)
    return grad


class CorrelationFunction(torch.autograd.Function):
    """loss = correlation(student, teacher) through the ops; the teacher gets no gradient.

    Keeps the logits (which exist anyway), the mask and O(B + C) statistics for backward. Leading
    dimensions are flattened here and not before, since a flattened copy would be kept, too.
    A backward with create_graph=True goes through the plain PyTorch reference.
    """

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,  # [..., C]
        teacher: Tensor,  # [..., C]
        mask: Tensor | None,  # one bool per row
        options: CorrelationOptions,
        sample_weight: Tensor | None,  # [B] float64
        backend: str,  # "native" or "triton"
    ) -> Tensor:
        rows = flatten_rows(student, teacher, mask)
        arguments: Any = (*rows, *options, sample_weight)
        if is_interpreted(backend, student.device):
            loss, stats = triton.correlation(*arguments)
        else:
            loss, stats = ops.correlation(*arguments, triton=backend == "triton")
        # Teachers are often run in inference mode. Such logits cannot be saved, since they have no
        # version counter that would tell of a change in place; they are kept as they are.
        inferred = not torch.compiler.is_compiling() and teacher.is_inference()
        ctx.inferred = teacher if inferred else None
        ctx.save_for_backward(student, None if inferred else teacher, mask, stats, sample_weight)
        ctx.options = options
        ctx.backend = backend
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        student, teacher, mask, stats, sample_weight = ctx.saved_tensors
        teacher = teacher if ctx.inferred is None else ctx.inferred
        rows = flatten_rows(student, teacher, mask)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            grad = _differentiable_gradient(grad_loss, *rows, ctx.options, sample_weight)
        else:
            arguments = (grad_loss, *rows, stats, *ctx.options[:4])
            if is_interpreted(ctx.backend, student.device):
                grad = triton.correlation_backward(*arguments)
            else:
                grad = ops.correlation_backward(*arguments, triton=ctx.backend == "triton")
        return grad.reshape(student.shape), None, None, None, None, None


class ContiguousCorrelationFunction(torch.autograd.Function):
    """The same for tensors that `native.contiguous_call` accepts, without the dispatcher.

    On 64 x 100 logits, calling costs more than computing; this path has half of the call cost. The
    statistics are kept in `state`, outside of torch. The rank term comes with it; backward need not
    know of that of hard ranks, a constant.
    """

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,  # [B, C]
        teacher: Tensor,  # [B, C]
        mask: Tensor | None,  # [B] bool
        options: CorrelationOptions,
        call: native.ContiguousCall,
        rank_options: RankOptions | None,
    ) -> Tensor:
        loss, ctx.state = native.correlation_contiguous(call, student, teacher, mask, options)
        ctx.soft = None
        if rank_options is not None:
            native_rank.add_rank_loss(call, student, teacher, mask, rank_options, loss)
            if rank_options.soft:
                ctx.soft = call, rank_options
        if teacher.is_inference():  # cannot be saved; see CorrelationFunction
            ctx.inferred = teacher
            ctx.save_for_backward(student, None, mask)
        else:
            ctx.save_for_backward(student, teacher, mask)
        ctx.options = options
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        student, teacher, mask = ctx.saved_tensors
        if teacher is None:
            teacher = ctx.inferred
        if torch.is_grad_enabled():
            grad = _differentiable_gradient(grad_loss, student, teacher, mask, ctx.options)
            if ctx.soft is not None:
                grad = grad + _differentiable_rank_gradient(
                    grad_loss, student, teacher, mask, ctx.soft[1]
                )
        else:
            grad = native.correlation_contiguous_backward(
                ctx.state, grad_loss, student, teacher, mask
            )
            if ctx.soft is not None:
                call, rank_options = ctx.soft
                native_rank.add_rank_loss_gradient(
                    call, grad_loss, student, teacher, mask, rank_options, grad
                )
        return grad, None, None, None, None, None


# Function.apply without its Python part, which only serves functorch (`native.contiguous_call`
# refuses tensors under its transforms) and takes 2 of the 19 us of a small forward.
apply_contiguous = super(torch.autograd.Function, ContiguousCorrelationFunction).apply
