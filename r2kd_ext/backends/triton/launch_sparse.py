"""Launchers of the sparse layers' Triton kernels: the kernels of the ops of the same name.

Nothing here waits for the device or branches on what is in a tensor. Arguments have been checked
by the caller.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..reference_sparse import conv2d_output
from . import configs, interpreter
from .launch import on_device_of
from .sparse import csr_conv2d_kernel, csr_linear_kernel


def _readable(*tensors: Tensor | None) -> list[Tensor | None]:
    return [t if t is None or t.device.type != "cpu" else interpreter.readable(t) for t in tensors]


def csr_linear(
    x: Tensor,  # [B, K]
    values: Tensor,  # [nnz]
    columns: Tensor,  # [nnz] int32
    row_offsets: Tensor,  # [R + 1] int32
    bias: Tensor | None,  # [R]
) -> Tensor:
    batch, rows = x.shape[0], row_offsets.shape[0] - 1
    y = x.new_empty((batch, rows))  # [B, R]
    if y.numel() == 0:
        return y
    target = interpreter.writable(y) if x.device.type == "cpu" else y
    # The samples of a tile are neighbours in memory: one pass over x, where each of its columns is
    # read by every row that has an entry there.
    x = x.t().contiguous().t()
    x, values, bias = _readable(x, values, bias)  # type: ignore[assignment]
    tile = configs.SPARSE
    row_blocks = -(-rows // tile.rows)
    with on_device_of(x):
        csr_linear_kernel[(row_blocks * -(-batch // tile.block),)](
            x, values, columns, row_offsets, bias, target, batch, rows, row_blocks, *x.stride(),
            BIASED=bias is not None, ROWS=tile.rows, BLOCK=tile.block, num_warps=tile.warps,
        )  # fmt: skip
    return y if target is y else y.copy_(target)


def csr_conv2d(
    x: Tensor,  # [B, C, H, W]
    values: Tensor,  # [nnz]
    columns: Tensor,  # [nnz] int32
    row_offsets: Tensor,  # [R + 1] int32
    bias: Tensor | None,  # [R]
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    rows = row_offsets.shape[0] - 1
    y = conv2d_output(x, rows, kernel_size, stride, padding, dilation)  # [B, R, H', W']
    if y.numel() == 0:
        return y
    target = y
    if x.device.type == "cpu" and y.dtype is torch.bfloat16:
        target = torch.empty_like(y, dtype=torch.float32)
    if x.stride(3) != 1:  # neighbouring pixels are to be neighbours in memory
        x = x.contiguous()
    x, values, bias = _readable(x, values, bias)  # type: ignore[assignment]
    pixels = y.shape[0] * y.shape[2] * y.shape[3]
    tile = configs.SPARSE
    row_blocks = -(-rows // tile.rows)
    with on_device_of(x):
        csr_conv2d_kernel[(row_blocks * -(-pixels // tile.block),)](
            x, values, columns, row_offsets, bias, target, pixels, rows, row_blocks,
            *x.stride(), *target.stride(), *x.shape[2:], *y.shape[2:],
            x.shape[1] // groups, rows // groups, *kernel_size, *stride, *padding, *dilation,
            BIASED=bias is not None, ROWS=tile.rows, BLOCK=tile.block, num_warps=tile.warps,
        )  # fmt: skip
    return y if target is y else y.copy_(target)
