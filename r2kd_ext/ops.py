"""Schemas and fake kernels of the ops, one place. Backends only register their kernels.

The ops are the layer that `torch.compile`, `torch.export` and dispatch modes see. Their arguments
are 2-D logits [B, C], a bool mask [B] or None, scalars whose weights already contain every factor,
and contiguous float64 sample weights [B] or None. `stats` is what forward leaves for backward,
O(B + C) numbers whose layout belongs to the backend (csrc/include/r2kd/correlation.h; Triton uses
the same). The rank ops are in `ops_rank`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .backends import native, triton

_library = torch.library.Library("r2kd", "DEF")
_library.define(
    "correlation(Tensor student, Tensor teacher, Tensor? mask, float temperature, bool centered, "
    "float inter_weight, float intra_weight, float eps, Tensor? sample_weight=None) "
    "-> (Tensor loss, Tensor stats)"
)
_library.define(
    "correlation_backward(Tensor grad_loss, Tensor student, Tensor teacher, Tensor? mask, "
    "Tensor stats, float temperature, bool centered, float inter_weight, float intra_weight) "
    "-> Tensor"
)


@torch.library.register_fake("r2kd::correlation")
def _correlation_fake(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None,
    temperature: float,
    centered: bool,
    inter_weight: float,
    intra_weight: float,
    eps: float,
    sample_weight: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    double = torch.float64 in (student.dtype, teacher.dtype)
    dtype = torch.float64 if double else torch.float32
    rows, cols = student.shape
    loss = student.new_empty((), dtype=dtype)
    return loss, student.new_empty(native.statistics_size(rows, cols), dtype=dtype)


@torch.library.register_fake("r2kd::correlation_backward")
def _correlation_backward_fake(
    grad_loss: Tensor,
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None,
    stats: Tensor,
    temperature: float,
    centered: bool,
    inter_weight: float,
    intra_weight: float,
) -> Tensor:
    return student.new_empty(student.shape)


_library.impl("correlation", native.correlation, "CPU")
_library.impl("correlation_backward", native.correlation_backward, "CPU")
for _key in ("CUDA", "XPU"):
    _library.impl("correlation", triton.correlation, _key)
    _library.impl("correlation_backward", triton.correlation_backward, _key)

correlation = torch.ops.r2kd.correlation.default
correlation_backward = torch.ops.r2kd.correlation_backward.default
