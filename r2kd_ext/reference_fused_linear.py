"""`fused_linear_correlation_kd` in plain PyTorch: the specification. See `reference`."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _arguments_linear as linear
from ._dtypes import accumulator
from .backends.reference_rows import row_term


def _logits(
    hidden: Tensor,  # [N, H]
    weight: Tensor,  # [V, H]
    bias: Tensor | None,  # [V]
    scale: float,
    softcap: float,
    rounded: torch.dtype | None,
) -> Tensor:
    """[N, V] in float32, or float64 where an operand is."""
    operands = [x for x in (hidden, weight, bias) if x is not None]
    dtype = accumulator(*(x.dtype for x in operands))
    if rounded is not None and dtype == torch.float32:
        operands = [x.to(rounded) for x in operands]
    logits = torch.nn.functional.linear(*(x.to(dtype) for x in operands)) * scale
    return softcap * torch.tanh(logits / softcap) if softcap else logits


def _spread(values: Tensor, indices: Tensor, classes: int) -> Tensor:
    """Log-probabilities (N, k) of some classes -> of all (N, V): what is left, spread evenly."""
    linear.check_places("teacher_topk indices", indices, 0, classes)
    log_p = values.to(accumulator(values.dtype))  # [N, k]
    rest = (1 - log_p.double().exp().sum(1, keepdim=True)).clamp(min=0)  # [N, 1]
    rest = rest / max(1, classes - log_p.shape[1])
    full = rest.log().to(log_p.dtype).repeat(1, classes)  # [N, V]
    return full.scatter(1, indices.long(), log_p)


def fused_linear_correlation_kd(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher_hidden: Tensor | None = None,
    teacher_weight: Tensor | None = None,
    temperature: float = 1.0,
    *,
    student_bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    correlation: str = "pearson",
    weight: float = 1.0,
    temperature_scaling: bool = True,
    mask: Tensor | None = None,
    labels: Tensor | None = None,
    ignore_index: int = -100,
    logit_scale: float | tuple[float, float] = 1.0,
    logit_softcap: float | tuple[float | None, float | None] | None = None,
    vocab_map: Tensor | None = None,
    teacher_topk: tuple[Tensor, Tensor] | None = None,
    eps: float = 1e-8,
) -> Tensor:
    """Correlation distance between the rows of two language models' logits in plain PyTorch.

    Arguments, result and errors are those of `r2kd_ext.fused_linear_correlation_kd`, except that
    there is neither a chunk nor a backend to choose. Differentiable any number of times. Holds the
    N x V logits of both models, and several more tensors of that size for backward.
    """
    options = linear.check_options(
        temperature, correlation, weight, temperature_scaling, eps, logit_scale, logit_softcap
    )
    inputs = linear.check_inputs(
        student_hidden, student_weight, teacher_hidden, teacher_weight, student_bias, teacher_bias,
        mask, labels, ignore_index, vocab_map, teacher_topk,
    )  # fmt: skip
    device = student_hidden.device
    rounded = linear.autocast_dtype(device)
    hidden = inputs.student_hidden
    if inputs.mask is not None:  # a NaN in a dropped row must not reach the weight's gradient
        hidden = hidden.where(inputs.mask.unsqueeze(1), 0.0)
    with torch.autocast(device.type, enabled=False):
        z = _logits(
            hidden, inputs.student_weight, inputs.student_bias,
            options.student_scale, options.student_softcap, rounded,
        )  # fmt: skip
        if inputs.topk_values is not None and inputs.topk_indices is not None:
            y = _spread(inputs.topk_values, inputs.topk_indices, z.shape[1])
        else:
            assert inputs.teacher_hidden is not None
            assert inputs.teacher_weight is not None
            y = _logits(
                inputs.teacher_hidden, inputs.teacher_weight, inputs.teacher_bias,
                options.teacher_scale, options.teacher_softcap, rounded,
            )  # fmt: skip
        if inputs.vocab_map is not None:
            linear.check_places("vocab_map", inputs.vocab_map, -1, y.shape[1])
            known = inputs.vocab_map >= 0  # [V]
            y = y[:, inputs.vocab_map.long().clamp(min=0)].where(known, -torch.inf)
        values = (options.temperature, options.centered, options.weight, options.eps)
        return row_term(z, y, inputs.mask, *values)[0]
