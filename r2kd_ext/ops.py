"""Schemas and fake kernels of the ops, one place. Backends only register their kernels.

The ops are the layer that `torch.compile`, `torch.export` and dispatch modes see. Their arguments
are 2-D logits [B, C], a bool mask [B] or None, scalars whose weights already contain every factor,
and contiguous float64 sample weights [B] or None. `stats` is what forward leaves for backward,
O(B + C) numbers laid out as csrc/include/r2kd/correlation.h says. The rank ops are in `ops_rank`.

`triton` is what `backends.choose` has decided where a device has kernels of both kinds: Triton's,
or (False) those compiled with the package.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._dtypes import accumulator
from .backends import cuda, native
from .backends import triton as triton_kernels

_library = torch.library.Library("r2kd", "DEF")
_library.define(
    "correlation(Tensor student, Tensor teacher, Tensor? mask, float temperature, bool centered, "
    "float inter_weight, float intra_weight, float eps, Tensor? sample_weight=None, *, "
    "bool triton=False) -> (Tensor loss, Tensor stats)"
)
_library.define(
    "correlation_backward(Tensor grad_loss, Tensor student, Tensor teacher, Tensor? mask, "
    "Tensor stats, float temperature, bool centered, float inter_weight, float intra_weight, "
    "*, bool triton=False) -> Tensor"
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
    *,
    triton: bool = False,
) -> tuple[Tensor, Tensor]:
    dtype = accumulator(student.dtype, teacher.dtype)
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
    *,
    triton: bool = False,
) -> Tensor:
    return student.new_empty(student.shape)


def _correlation_gpu(student: Tensor, *rest: Any, triton: bool = False) -> tuple[Tensor, Tensor]:
    kernels: Any = cuda if student.is_cuda and not triton else triton_kernels
    return kernels.correlation(student, *rest)


def _correlation_backward_gpu(
    grad_loss: Tensor, student: Tensor, *rest: Any, triton: bool = False
) -> Tensor:
    kernels: Any = cuda if student.is_cuda and not triton else triton_kernels
    return kernels.correlation_backward(grad_loss, student, *rest)


_library.impl("correlation", native.correlation, "CPU")
_library.impl("correlation_backward", native.correlation_backward, "CPU")
for _key in ("CUDA", "XPU"):
    _library.impl("correlation", _correlation_gpu, _key)
    _library.impl("correlation_backward", _correlation_backward_gpu, _key)

correlation = torch.ops.r2kd.correlation.default
correlation_backward = torch.ops.r2kd.correlation_backward.default
