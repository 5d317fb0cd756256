"""Schema, fake kernel and registration of the op `fused_linear_correlation`.

The one kernel is `linear_chunks`, for every device: it stands on `torch.mm` and the op
`correlation`.

Gradients are given in float32 (float64 where the student has it): that of a weight is a sum over
all chunks, and what backward multiplies it by may be a loss scale that a 16-bit number needs.
A gradient that is not asked for comes as an empty tensor.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import linear_chunks
from ._arguments_linear import LinearInputs, LinearOptions

_library = torch.library.Library("r2kd", "FRAGMENT")
_library.define(
    "fused_linear_correlation(Tensor student_hidden, Tensor student_weight, Tensor? student_bias, "
    "Tensor? teacher_hidden, Tensor? teacher_weight, Tensor? teacher_bias, Tensor? vocab_map, "
    "Tensor? topk_values, Tensor? topk_indices, Tensor? mask, float temperature, bool centered, "
    "float weight, float eps, float student_scale, float teacher_scale, float student_softcap, "
    "float teacher_softcap, ScalarType? autocast, int? chunk_rows, bool[3] needs_grad, "
    "str backend) -> (Tensor loss, Tensor grad_hidden, Tensor grad_weight, Tensor grad_bias)"
)
_TENSORS = len(LinearInputs._fields)
_OPTIONS = len(LinearOptions._fields)


def _unpack(arguments: tuple[Any, ...]) -> tuple[LinearInputs, LinearOptions, tuple[Any, ...]]:
    inputs = LinearInputs(*arguments[:_TENSORS])
    options = LinearOptions(*arguments[_TENSORS : _TENSORS + _OPTIONS])
    return inputs, options, arguments[_TENSORS + _OPTIONS :]


@torch.library.register_fake("r2kd::fused_linear_correlation")
def _fused_linear_correlation_fake(*arguments: Any) -> tuple[Tensor, ...]:
    inputs, _, (_, _, needs_grad, _) = _unpack(arguments)
    loss = inputs.student_hidden.new_empty(
        (), dtype=linear_chunks.gradient_and_loss_dtypes(inputs)[1]
    )
    return loss, *linear_chunks.empty_gradients(inputs, needs_grad)


def _fused_linear_correlation(*arguments: Any) -> tuple[Tensor, ...]:
    inputs, options, (autocast, chunk_rows, needs_grad, backend) = _unpack(arguments)
    # Autocast would round the products of the chunks. What it asks for is in `autocast`.
    with torch.autocast(inputs.student_hidden.device.type, enabled=False):
        return linear_chunks.fused_linear_correlation(
            inputs, options, autocast, chunk_rows, needs_grad, backend
        )


_library.impl("fused_linear_correlation", _fused_linear_correlation, "CompositeExplicitAutograd")

fused_linear_correlation = torch.ops.r2kd.fused_linear_correlation.default
