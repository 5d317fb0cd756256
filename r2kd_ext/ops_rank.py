"""Schemas and fake kernels of the rank ops, one place. Backends only register their kernels.

Arguments are 2-D [B, C], a bool mask [B] or None, and checked scalars. `order` is the pooled order
of soft ranks, an int32 per element whose layout is that of csrc/include/r2kd/rank.h. `triton` is
that of `ops`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._dtypes import accumulator
from .backends import cuda_rank, native_rank
from .backends import triton as triton_kernels

_library = torch.library.Library("r2kd", "FRAGMENT")
_library.define(
    "spearman(Tensor x, Tensor y, Tensor? mask, bool soft, float strength, float eps, "
    "*, bool triton=False) -> Tensor"
)
_library.define(
    "spearman_backward(Tensor grad_rho, Tensor x, Tensor y, Tensor? mask, float strength, "
    "float eps, *, bool triton=False) -> Tensor"
)
_library.define(
    "soft_rank(Tensor x, float strength, *, bool triton=False) -> (Tensor ranks, Tensor order)"
)
_library.define(
    "soft_rank_backward(Tensor grad_ranks, Tensor order, float strength, ScalarType dtype, *, "
    "bool triton=False) -> Tensor"
)


@torch.library.register_fake("r2kd::spearman")
def _spearman_fake(
    x: Tensor,
    y: Tensor,
    mask: Tensor | None,
    soft: bool,
    strength: float,
    eps: float,
    *,
    triton: bool = False,
) -> Tensor:
    return x.new_empty(x.shape[0], dtype=accumulator(x.dtype, y.dtype))


@torch.library.register_fake("r2kd::spearman_backward")
def _spearman_backward_fake(
    grad_rho: Tensor,
    x: Tensor,
    y: Tensor,
    mask: Tensor | None,
    strength: float,
    eps: float,
    *,
    triton: bool = False,
) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.register_fake("r2kd::soft_rank")
def _soft_rank_fake(x: Tensor, strength: float, *, triton: bool = False) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.new_empty(x.shape, dtype=dtype), x.new_empty(x.shape, dtype=torch.int32)


@torch.library.register_fake("r2kd::soft_rank_backward")
def _soft_rank_backward_fake(
    grad_ranks: Tensor,
    order: Tensor,
    strength: float,
    dtype: torch.dtype,
    *,
    triton: bool = False,
) -> Tensor:
    return grad_ranks.new_empty(grad_ranks.shape, dtype=dtype)


def _gpu_kernels(x: Tensor, use_triton: bool) -> Any:
    return cuda_rank if x.is_cuda and not use_triton else triton_kernels


def _spearman_gpu(x: Tensor, *rest: Any, triton: bool = False) -> Tensor:
    return _gpu_kernels(x, triton).spearman(x, *rest)


def _spearman_backward_gpu(grad_rho: Tensor, *rest: Any, triton: bool = False) -> Tensor:
    kernels = _gpu_kernels(grad_rho, triton)
    return kernels.spearman_backward(grad_rho, *rest)


def _soft_rank_gpu(x: Tensor, strength: float, *, triton: bool = False) -> tuple[Tensor, Tensor]:
    return _gpu_kernels(x, triton).soft_rank(x, strength)


def _soft_rank_backward_gpu(grad_ranks: Tensor, *rest: Any, triton: bool = False) -> Tensor:
    kernels = _gpu_kernels(grad_ranks, triton)
    return kernels.soft_rank_backward(grad_ranks, *rest)


_library.impl("spearman", native_rank.spearman, "CPU")
_library.impl("spearman_backward", native_rank.spearman_backward, "CPU")
_library.impl("soft_rank", native_rank.soft_rank, "CPU")
_library.impl("soft_rank_backward", native_rank.soft_rank_backward, "CPU")
for _key in ("CUDA", "XPU"):
    _library.impl("spearman", _spearman_gpu, _key)
    _library.impl("spearman_backward", _spearman_backward_gpu, _key)
    _library.impl("soft_rank", _soft_rank_gpu, _key)
    _library.impl("soft_rank_backward", _soft_rank_backward_gpu, _key)

spearman = torch.ops.r2kd.spearman.default
spearman_backward = torch.ops.r2kd.spearman_backward.default
soft_rank = torch.ops.r2kd.soft_rank.default
soft_rank_backward = torch.ops.r2kd.soft_rank_backward.default
