"""The compiled rank kernels on CPU tensors: addresses, sizes and strides in, tensors out.

They are the kernels of the ops of the same name. Arguments have been checked by the caller.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _core
from .._dtypes import accumulator
from .native import _DTYPE_CODES, _PLAIN, ContiguousCall, _dispatch_modes, _threads


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
    rho = torch.empty(x.shape[0], dtype=accumulator(x.dtype, y.dtype))  # [B]
    _core.spearman_forward(
        *x.shape, eps, strength, soft,
        x.data_ptr(), *x.stride(), _DTYPE_CODES[x.dtype],
        y.data_ptr(), *y.stride(), _DTYPE_CODES[y.dtype],
        0 if mask is None else mask.data_ptr(), 0 if mask is None else mask.stride(0),
        rho.data_ptr(), _threads(),
    )  # fmt: skip
    return rho


def add_hard_rank_loss(
    call: ContiguousCall,
    x: Tensor,  # [B, C]
    y: Tensor,  # [B, C]
    mask: Tensor | None,  # [B] bool
    weight: float,
    eps: float,
    loss: Tensor,  # []
) -> None:
    """loss += weight (1 - mean of rho over the kept rows), of tensors that
    `native.contiguous_call` accepts."""
    rows, cols, x_code, y_code = call
    _core.hard_rank_loss(
        rows, cols, eps, weight, x.data_ptr(), x_code, y.data_ptr(), y_code,
        0 if mask is None else mask.data_ptr(), 0 if mask is None else mask.stride(0),
        loss.data_ptr(), _threads(),
    )  # fmt: skip


def spearman_backward(
    grad_rho: Tensor,  # [B]
    x: Tensor,  # [B, C]
    y: Tensor,  # [B, C]
    mask: Tensor | None,  # [B] bool
    strength: float,
    eps: float,
) -> Tensor:
    grad_x = torch.empty(x.shape, dtype=x.dtype)  # [B, C]
    _core.spearman_backward(
        *x.shape, eps, strength,
        x.data_ptr(), *x.stride(), _DTYPE_CODES[x.dtype],
        y.data_ptr(), *y.stride(), _DTYPE_CODES[y.dtype],
        0 if mask is None else mask.data_ptr(), 0 if mask is None else mask.stride(0),
        grad_rho.data_ptr(), grad_rho.stride(0), grad_x.data_ptr(), _threads(),
    )  # fmt: skip
    return grad_x


def soft_rank(x: Tensor, strength: float) -> tuple[Tensor, Tensor]:  # x: [B, C]
    ranks = torch.empty(x.shape, dtype=accumulator(x.dtype))  # [B, C]
    order = torch.empty(x.shape, dtype=torch.int32)  # [B, C]
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
    grad_x = torch.empty(grad_ranks.shape, dtype=dtype)  # [B, C]
    order = order.contiguous()
    _core.soft_rank_backward(
        *grad_ranks.shape, strength,
        grad_ranks.data_ptr(), *grad_ranks.stride(), _DTYPE_CODES[grad_ranks.dtype],
        order.data_ptr(), grad_x.data_ptr(), _DTYPE_CODES[dtype], _threads(),
    )  # fmt: skip
    return grad_x
