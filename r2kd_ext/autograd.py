"""The torch.autograd.Function layer over the ops."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import ops, reference
from ._arguments import CorrelationOptions
from .backends import native

_PLAIN = (Tensor, torch.nn.Parameter)
_dispatch_modes = torch._C._len_torch_dispatch_stack


def _may_skip_dispatcher(student: Tensor, teacher: Tensor, mask: Tensor | None) -> bool:
    """Whether calling the native kernel directly is the same as calling the op.

    A trip through the dispatcher costs 2.6 us each way, a sixth of what the whole call may cost on
    64 x 100 logits. It can be left out where nothing but the CPU kernel would see it: no tracing,
    no dispatch mode, no tensor subclass, no lazily negated view (these are not contiguous).
    """
    return (
        not torch.compiler.is_compiling()
        and type(student) in _PLAIN
        and type(teacher) in _PLAIN
        and (mask is None or type(mask) is Tensor)
        and student.is_contiguous()
        and teacher.is_contiguous()
        and not _dispatch_modes()
    )


class CorrelationFunction(torch.autograd.Function):
    """loss = correlation(student, teacher); the teacher gets no gradient.

    Keeps the logits (which exist anyway), the mask and O(B + C) statistics for backward.
    A backward with create_graph=True goes through the plain PyTorch reference.
    """

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,  # [B, C]
        teacher: Tensor,  # [B, C]
        mask: Tensor | None,  # [B] bool
        temperature: float,
        centered: bool,
        inter_weight: float,
        intra_weight: float,
        eps: float,
    ) -> Tensor:
        direct = _may_skip_dispatcher(student, teacher, mask)
        kernel = native.correlation if direct else ops.correlation
        loss, stats = kernel(
            student, teacher, mask, temperature, centered, inter_weight, intra_weight, eps
        )
        ctx.save_for_backward(student, teacher, mask, stats)
        ctx.direct = direct
        ctx.options = (temperature, centered, inter_weight, intra_weight, eps)
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        student, teacher, mask, stats = ctx.saved_tensors
        temperature, centered, inter_weight, intra_weight, eps = ctx.options
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            options = CorrelationOptions(temperature, centered, inter_weight, intra_weight, eps)
            loss = reference.correlation_from_options(student, teacher, mask, options)
            (grad,) = torch.autograd.grad(loss, student, grad_loss, create_graph=True)
        else:
            kernel = native.correlation_backward if ctx.direct else ops.correlation_backward
            grad = kernel(
                grad_loss, student, teacher, mask, stats,
                temperature, centered, inter_weight, intra_weight,
            )  # fmt: skip
        return grad, None, None, None, None, None, None, None
