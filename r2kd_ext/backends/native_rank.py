"""The compiled rank kernels on CPU tensors: addresses, sizes and strides in, tensors out.

They are the kernels of the ops of the same name. Arguments have been checked by the caller.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import _core
from .._dtypes import accumulator
from .native import (
    _DTYPE_CODES,
    _PLAIN,
    _STRIDED,
    ContiguousCall,
    _code_of,
    _dispatch_modes,
    _threads,
    _transforms_active,
)

if TYPE_CHECKING:
    from .._arguments import RankOptions


def is_plain(x: Tensor) -> bool:
    """Whether nothing but the CPU kernel would see a call of an op on `x` (outside of tracing)."""
    return type(x) in _PLAIN and x.is_cpu and not x.is_neg() and not _dispatch_modes()


def spearman(
    x: Tensor,  # [B, C]
    y: Tensor,  # [B, C]
    mask: Tensor | None,  # [B] bool
    soft: bool,
    strength: float,
    eps: float,
) -> Tensor:
    rho = x.new_empty(x.shape[0], dtype=accumulator(x.dtype, y.dtype))  # [B]
    _core.spearman_forward(
        *x.shape, eps, strength, soft,
        x.data_ptr(), *x.stride(), _DTYPE_CODES[x.dtype],
        y.data_ptr(), *y.stride(), _DTYPE_CODES[y.dtype],
        0 if mask is None else mask.data_ptr(), 0 if mask is None else mask.stride(0),
        rho.data_ptr(), _threads(),
    )  # fmt: skip
    return rho


def add_rank_loss(
    call: ContiguousCall,
    x: Tensor,  # [B, C]
    y: Tensor,  # [B, C]
    mask: Tensor | None,  # [B] bool
    options: RankOptions,
    loss: Tensor,  # []
) -> None:
    """loss += weight (1 - mean of rho over the kept rows), of tensors that
    `native.contiguous_call` accepts."""
    rows, cols, x_code, y_code = call
    _core.rank_loss(
        rows, cols, *options, x.data_ptr(), x_code, y.data_ptr(), y_code,
        0 if mask is None else mask.data_ptr(), 0 if mask is None else mask.stride(0),
        loss.data_ptr(), _threads(),
    )  # fmt: skip


def add_rank_loss_gradient(
    call: ContiguousCall,
    grad_loss: Tensor,  # []
    x: Tensor,  # [B, C]
    y: Tensor,  # [B, C]
    mask: Tensor | None,  # [B] bool
    options: RankOptions,
    grad_x: Tensor,  # [B, C]
) -> None:
    """grad_x += the gradient of what `add_rank_loss` adds, of soft ranks."""
    rows, cols, x_code, y_code = call
    _core.rank_loss_backward(
        rows, cols, *options, x.data_ptr(), x_code, y.data_ptr(), y_code,
        0 if mask is None else mask.data_ptr(), 0 if mask is None else mask.stride(0),
        grad_loss.data_ptr(), grad_x.data_ptr(), _threads(),
    )  # fmt: skip


def spearman_backward(
    grad_rho: Tensor,  # [B]
    x: Tensor,  # [B, C]
    y: Tensor,  # [B, C]
    mask: Tensor | None,  # [B] bool
    strength: float,
    eps: float,
) -> Tensor:
    grad_x = x.new_empty(x.shape)  # [B, C]
    _core.spearman_backward(
        *x.shape, eps, strength,
        x.data_ptr(), *x.stride(), _DTYPE_CODES[x.dtype],
        y.data_ptr(), *y.stride(), _DTYPE_CODES[y.dtype],
        0 if mask is None else mask.data_ptr(), 0 if mask is None else mask.stride(0),
        grad_rho.data_ptr(), grad_rho.stride(0), grad_x.data_ptr(), _threads(),
    )  # fmt: skip
    return grad_x


def soft_rank(x: Tensor, strength: float) -> tuple[Tensor, Tensor]:  # x: [B, C]
    ranks = x.new_empty(x.shape, dtype=accumulator(x.dtype))  # [B, C]
    order = x.new_empty(x.shape, dtype=torch.int32)  # [B, C]
    _core.soft_rank_forward(
        *x.shape, strength, x.data_ptr(), *x.stride(), _DTYPE_CODES[x.dtype],
        ranks.data_ptr(), order.data_ptr(), _threads(),
    )  # fmt: skip
    return ranks, order


def soft_rank_backward(
    grad_ranks: Tensor,  # [B, C]
    order: Tensor,  # [B, C] int32
    strength: float,
    dtype: torch.dtype,
) -> Tensor:
    grad_x = grad_ranks.new_empty(grad_ranks.shape, dtype=dtype)  # [B, C]
    order = order.contiguous()
    _core.soft_rank_backward(
        *grad_ranks.shape, strength,
        grad_ranks.data_ptr(), *grad_ranks.stride(), _DTYPE_CODES[grad_ranks.dtype],
        order.data_ptr(), grad_x.data_ptr(), _DTYPE_CODES[dtype], _threads(),
    )  # fmt: skip
    return grad_x


# Rows, classes and the dtype code of a tensor that the kernels take as it lies.
ContiguousRows = tuple[int, int, int]


def contiguous_rows(x: Tensor) -> ContiguousRows | None:
    """Facts about an ordinary, contiguous CPU tensor (..., C), C >= 1, that fits; else None.

    As `native.contiguous_call`, for one tensor of any number of dimensions.
    """
    if not (
        type(x) in _PLAIN
        and x.is_cpu
        and x.layout is _STRIDED
        and x.is_contiguous()
        and not x.is_neg()
        and not _dispatch_modes()
        and not _transforms_active()
    ):
        return None
    shape, code = x.shape, _code_of(x.dtype)
    if not shape or code is None or not 0 < (cols := shape[-1]) <= _core.MAX_RANK_COLS:
        return None
    return x.numel() // cols, cols, code


def soft_rank_contiguous(
    call: ContiguousRows,
    x: Tensor,  # [..., C]
    strength: float,
) -> tuple[Tensor, Tensor]:
    """`soft_rank` of a tensor that `contiguous_rows` accepts, in its shape."""
    rows, cols, code = call
    ranks = torch.empty_like(x, dtype=torch.float64 if code == 1 else torch.float32)  # [..., C]
    order = torch.empty_like(x, dtype=torch.int32)  # [..., C]
    _core.soft_rank_forward(
        rows, cols, strength, x.data_ptr(), cols, 1, code,
        ranks.data_ptr(), order.data_ptr(), _threads(),
    )  # fmt: skip
    return ranks, order


def soft_rank_contiguous_backward(
    call: ContiguousRows,
    grad_ranks: Tensor,  # [..., C]
    order: Tensor,  # [..., C] int32
    strength: float,
    dtype: torch.dtype,
) -> Tensor:
    """`soft_rank_backward` of a gradient that `contiguous_rows` accepts, in its shape."""
    rows, cols, code = call
    grad_x = torch.empty_like(grad_ranks, dtype=dtype)  # [..., C]
    _core.soft_rank_backward(
        rows, cols, strength, grad_ranks.data_ptr(), cols, 1, code,
        order.data_ptr(), grad_x.data_ptr(), _DTYPE_CODES[dtype], _threads(),
    )  # fmt: skip
    return grad_x
