"""The CUDA C++ kernels of ranks on CUDA tensors: addresses, sizes and strides in, tensors out.

They are kernels of the ops of the same name. Each call is one launch on the current stream of the
tensors' device, waits for nothing and branches on nothing that is in a tensor. Arguments have been
checked by the caller.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _core
from .._dtypes import accumulator
from .cuda import _stream_of
from .native import _DTYPE_CODES

# RankOp of csrc/cuda/rank_plan.h.
_HARD_SPEARMAN, _SOFT_SPEARMAN, _SOFT_SPEARMAN_BACKWARD, _SOFT_RANK, _SOFT_RANK_BACKWARD = range(5)


def _scratch(op: int, x: Tensor, double: bool) -> Tensor:
    """Freed on return, and used again on this stream no sooner than the kernel is done with it."""
    rows, cols = x.shape
    return x.new_empty(_core.cuda_rank_scratch_bytes(op, rows, cols, double), dtype=torch.uint8)


def _strided(x: Tensor) -> tuple[int, int, int, int]:
    """Address, strides and dtype of x [B, C]."""
    row_stride, col_stride = x.stride()
    return x.data_ptr(), row_stride, col_stride, _DTYPE_CODES[x.dtype]


def _mask(mask: Tensor | None) -> tuple[int, int]:
    return (0, 0) if mask is None else (mask.data_ptr(), mask.stride(0))


def _place(x: Tensor) -> tuple[int, int]:
    device = x.get_device()
    return device, _stream_of(device)


def spearman(
    x: Tensor,  # [B, C]
    y: Tensor,  # [B, C]
    mask: Tensor | None,  # [B] bool
    soft: bool,
    strength: float,
    eps: float,
) -> Tensor:
    dtype = accumulator(x.dtype, y.dtype)
    rho = x.new_empty(x.shape[0], dtype=dtype)  # [B]
    if x.shape[0] > 0:
        scratch = _scratch(_SOFT_SPEARMAN if soft else _HARD_SPEARMAN, x, dtype == torch.float64)
        _core.cuda_spearman_forward(
            *x.shape, eps, strength, soft, *_strided(x), *_strided(y), *_mask(mask),
            rho.data_ptr(), scratch.data_ptr(), *_place(x),
        )  # fmt: skip
    return rho


def spearman_backward(
    grad_rho: Tensor,  # [B]
    x: Tensor,  # [B, C]
    y: Tensor,  # [B, C]
    mask: Tensor | None,  # [B] bool
    strength: float,
    eps: float,
) -> Tensor:
    grad_x = x.new_empty(x.shape)  # [B, C]
    if x.shape[0] > 0:
        double = accumulator(x.dtype, y.dtype) == torch.float64
        scratch = _scratch(_SOFT_SPEARMAN_BACKWARD, x, double)
        _core.cuda_spearman_backward(
            *x.shape, eps, strength, *_strided(x), *_strided(y), *_mask(mask),
            grad_rho.data_ptr(), grad_rho.stride(0), grad_x.data_ptr(), scratch.data_ptr(),
            *_place(x),
        )  # fmt: skip
    return grad_x


def soft_rank(x: Tensor, strength: float) -> tuple[Tensor, Tensor]:  # x: [B, C]
    ranks = x.new_empty(x.shape, dtype=accumulator(x.dtype))  # [B, C]
    order = x.new_empty(x.shape, dtype=torch.int32)  # [B, C]
    if x.shape[0] > 0:
        scratch = _scratch(_SOFT_RANK, x, x.dtype == torch.float64)
        _core.cuda_soft_rank_forward(
            *x.shape, strength, *_strided(x), ranks.data_ptr(), order.data_ptr(),
            scratch.data_ptr(), *_place(x),
        )  # fmt: skip
    return ranks, order


def soft_rank_backward(
    grad_ranks: Tensor,  # [B, C]
    order: Tensor,  # [B, C] int32
    strength: float,
    dtype: torch.dtype,
) -> Tensor:
    grad_x = grad_ranks.new_empty(grad_ranks.shape, dtype=dtype)  # [B, C]
    if grad_ranks.shape[0] > 0:
        order = order.contiguous()
        scratch = _scratch(_SOFT_RANK_BACKWARD, grad_ranks, False)
        _core.cuda_soft_rank_backward(
            *grad_ranks.shape, strength, *_strided(grad_ranks), order.data_ptr(),
            grad_x.data_ptr(), _DTYPE_CODES[dtype], scratch.data_ptr(), *_place(grad_ranks),
        )  # fmt: skip
    return grad_x
