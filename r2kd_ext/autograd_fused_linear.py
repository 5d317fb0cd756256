"""The torch.autograd.Function layer over the op `fused_linear_correlation`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import ops_fused_linear

# Of a gradient that is converted to 16 bits, so many elements at a time.
_BLOCK = 2**22


def _scaled(gradient: Tensor, factor: Tensor, like: torch.dtype) -> Tensor:
    """gradient * factor, rounded to `like` after the product; no copy of it in between."""
    if gradient.dtype == like or torch.compiler.is_compiling():
        return (gradient * factor).to(like)
    scaled = torch.empty_like(gradient, dtype=like)
    for source, target in zip(
        gradient.view(-1).split(_BLOCK), scaled.view(-1).split(_BLOCK), strict=True
    ):
        target.copy_(source * factor)
    return scaled


class FusedLinearCorrelationFunction(torch.autograd.Function):
    """The loss of hidden states and heads; forward computes the gradients, backward scales them.

    Keeps the gradients that are asked for, in float32 or float64, and nothing else. The teacher
    gets none. They do not depend on the graph any more, so a second derivative is refused.
    """

    @staticmethod
    def forward(
        ctx: Any,
        student_hidden: Tensor,  # [N, H]
        student_weight: Tensor,  # [V, H]
        student_bias: Tensor | None,  # [V]
        needs_grad: tuple[bool, bool, bool],
        backend: str,
        *rest: Any,  # the op's other arguments, up to `needs_grad`
    ) -> Tensor:
        student = (student_hidden, student_weight, student_bias)
        loss, *gradients = ops_fused_linear.fused_linear_correlation(
            *student, *rest, needs_grad, backend
        )
        ctx.save_for_backward(*gradients)
        ctx.needs_grad = needs_grad
        ctx.dtypes = [None if x is None else x.dtype for x in student]
        ctx.count = len(rest)
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise NotImplementedError(
                "fused_linear_correlation_kd has no second derivative (create_graph=True): use "
                "r2kd_ext.reference.fused_linear_correlation_kd, which holds all logits"
            )
        gradients = [
            _scaled(gradient, grad_loss, dtype) if needed else None
            for gradient, dtype, needed in zip(
                ctx.saved_tensors, ctx.dtypes, ctx.needs_grad, strict=True
            )
        ]
        return *gradients, None, None, *(None,) * ctx.count
