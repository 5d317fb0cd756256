"""Launchers of the Triton kernels of ranks: the kernels of the ops of the same name.

Nothing here waits for the device. Arguments have been checked by the caller.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..._dtypes import accumulator
from . import configs, interpreter
from .launch import on_device_of, packed
from .ranks import (
    hard_kernel,
    long_hard_kernel,
    moments_kernel,
    places_kernel,
    pool_means_kernel,
    pools_kernel,
    ranks_kernel,
    soft_gradient_kernel,
    sort_kernel,
)


def _readable(x: Tensor) -> Tensor:
    return interpreter.readable(x) if x.device.type == "cpu" else x


def _mask_arguments(mask: Tensor | None) -> tuple[Tensor | None, int]:
    return (None, 0) if mask is None else (mask.view(torch.uint8), mask.stride(0))


def _eps(eps: float, cols: int) -> float:
    """eps where ranks are not divided by C (C + 1) / 2."""
    return eps * (cols * (cols + 1) / 2) ** 2


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
        with on_device_of(x):
            if soft:
                a, b = (_soft_ranks(t, strength, torch.float64, centred=True)[0] for t in (x, y))
                _moments(a, b, mask, eps, rho=rho)
            else:
                _hard_rho(_readable(x), _readable(y), mask, eps, rho)
    return rho


def _hard_rho(x: Tensor, y: Tensor, mask: Tensor | None, eps: float, rho: Tensor) -> None:
    rows, cols = x.shape
    square = cols * (cols * cols - 1) / 12
    numbers = (packed(square, True), packed(square + _eps(eps, cols), True))
    given_mask, mask_stride = _mask_arguments(mask)
    masked = {"MASKED": mask is not None}
    if configs.sorts_in_registers(cols, rho.dtype == torch.float64):
        tile = configs.sort(cols)
        block = {"BLOCK": tile.block, "num_warps": tile.warps}
        places = x.new_empty((rows, cols), dtype=torch.int32)
        places_kernel[(rows,)](y, places, cols, *y.stride(), **block)
        hard_kernel[(rows,)](
            x, places, given_mask, rho, cols, *x.stride(), mask_stride, *numbers, **masked, **block
        )
        return
    # Contiguous, since what torch.sort returns is laid out as its input is.
    orders = [torch.sort(t.contiguous(), dim=1, stable=True).indices for t in (x, y)]  # [B, C]
    place = torch.arange(cols, device=x.device).expand(rows, cols)
    places = torch.empty_like(orders[1]).scatter_(1, orders[1], place)
    nan = (x.isnan().any(1) | y.isnan().any(1)).view(torch.uint8)  # [B]
    tile = configs.pass_over(cols)
    long_hard_kernel[(rows,)](
        orders[0], places, nan, given_mask, rho, cols, mask_stride, *numbers, **masked,
        BLOCK=tile.block, num_warps=tile.warps,
    )  # fmt: skip


def _sorted(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows in order, the order as int32, and the bounds of what is finite, as of sort_kernel."""
    rows, cols = x.shape
    if configs.sorts_in_registers(cols, x.dtype == torch.float64):
        in_order = x.new_empty((rows, cols), dtype=torch.float32)
        order = x.new_empty((rows, cols), dtype=torch.int32)
        bounds = x.new_empty((rows, 2), dtype=torch.int32)
        tile = configs.sort(cols)
        sort_kernel[(rows,)](
            x, in_order, order, bounds, cols, *x.stride(), BLOCK=tile.block, num_warps=tile.warps
        )
        return in_order, order, bounds
    in_order, order = torch.sort(x.contiguous(), dim=1, stable=True)
    ends = [x.isneginf().sum(1), cols - x.isposinf().sum(1)]  # [B] each
    bounds = torch.stack(ends, 1).masked_fill(x.isnan().any(1, True), -1)
    return in_order, order.int(), bounds.int()


def _soft_ranks(
    x: Tensor, strength: float, dtype: torch.dtype, *, centred: bool
) -> tuple[Tensor, Tensor]:
    """Soft ranks, less their mean (C + 1) / 2 where `centred`, and the pooled order."""
    rows, cols = x.shape
    in_order, order, bounds = _sorted(_readable(x))
    sums = x.new_empty((rows, cols), dtype=torch.float64)
    begins, counts = torch.empty_like(order), order.new_empty(rows)
    pools_kernel[(-(-rows // configs.POOLED_ROWS),)](
        in_order, bounds, sums, begins, counts, rows, cols, packed(strength / 2, True),
        ROWS=configs.POOLED_ROWS, num_warps=1,
    )  # fmt: skip
    ranks = x.new_empty((rows, cols), dtype=dtype)
    tile = configs.pass_over(cols)
    ranks_kernel[(rows, -(-cols // tile.block))](
        in_order, order, bounds, sums, begins, counts, ranks, cols, cols.bit_length(),
        packed(strength, True), packed((cols + 1) / 2 if centred else 0.0, True),
        BLOCK=tile.block, num_warps=tile.warps,
    )  # fmt: skip
    return ranks, order


def _moments(
    a: Tensor,  # [B, C] float64
    b: Tensor,  # [B, C] float64
    mask: Tensor | None,
    eps: float,
    *,
    rho: Tensor | None = None,  # [B]
    grad_rho: Tensor | None = None,  # [B]
    grad_a: Tensor | None = None,  # [B, C] float64
) -> None:
    rows, cols = a.shape
    given_mask, mask_stride = _mask_arguments(mask)
    tile = configs.pass_over(cols)
    moments_kernel[(rows,)](
        a, b, given_mask, rho, grad_rho, grad_a, cols, mask_stride,
        0 if grad_rho is None else grad_rho.stride(0), packed(_eps(eps, cols), True),
        MASKED=mask is not None, GRADIENT=grad_a is not None,
        BLOCK=tile.block, num_warps=tile.warps,
    )  # fmt: skip


def spearman_backward(
    grad_rho: Tensor,  # [B]
    x: Tensor,  # [B, C]
    y: Tensor,  # [B, C]
    mask: Tensor | None,  # [B] bool
    strength: float,
    eps: float,
) -> Tensor:
    if x.shape[0] == 0:
        return x.new_empty(x.shape)
    with on_device_of(x):
        a, order = _soft_ranks(x, strength, torch.float64, centred=True)
        b, _ = _soft_ranks(y, strength, torch.float64, centred=True)
        grad_a = torch.empty_like(a)
        _moments(a, b, mask, eps, grad_rho=grad_rho, grad_a=grad_a)
        return _soft_gradient(grad_a, order, mask, strength, x.dtype)


def soft_rank(x: Tensor, strength: float) -> tuple[Tensor, Tensor]:  # x: [B, C]
    dtype = accumulator(x.dtype)
    if x.shape[0] == 0:
        return x.new_empty(x.shape, dtype=dtype), x.new_empty(x.shape, dtype=torch.int32)
    with on_device_of(x):
        return _soft_ranks(x, strength, dtype, centred=False)


def soft_rank_backward(
    grad_ranks: Tensor,  # [B, C]
    order: Tensor,  # [B, C] int32
    strength: float,
    dtype: torch.dtype,
) -> Tensor:
    if order.shape[0] == 0:
        return grad_ranks.new_empty(order.shape, dtype=dtype)
    with on_device_of(order):
        return _soft_gradient(_readable(grad_ranks), order.contiguous(), None, strength, dtype)


def _soft_gradient(
    grad_ranks: Tensor,  # [B, C]
    order: Tensor,  # [B, C] int32
    mask: Tensor | None,  # [B] bool
    strength: float,
    dtype: torch.dtype,
) -> Tensor:
    rows, cols = order.shape
    means = grad_ranks.new_empty((rows, cols), dtype=torch.float64)
    grad_x = grad_ranks.new_empty((rows, cols), dtype=dtype)
    target = interpreter.writable(grad_x) if grad_x.device.type == "cpu" else grad_x
    given_mask, mask_stride = _mask_arguments(mask)
    tile = configs.pass_over(cols)
    block = {"BLOCK": tile.block, "num_warps": tile.warps}
    pool_means_kernel[(rows,)](grad_ranks, order, means, cols, *grad_ranks.stride(), **block)
    soft_gradient_kernel[(rows,)](
        grad_ranks, order, means, given_mask, target, cols, *grad_ranks.stride(), mask_stride,
        packed(strength, True), MASKED=mask is not None, **block,
    )  # fmt: skip
    return grad_x if target is grad_x else grad_x.copy_(target)
