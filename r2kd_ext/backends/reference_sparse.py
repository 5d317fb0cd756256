"""The sparse ops in plain PyTorch: the specification, on any device.

The dense weight is written out on every call. Arguments have been checked by the caller.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def dense_weight(values: Tensor, columns: Tensor, row_offsets: Tensor, cols: int) -> Tensor:
    """The dense weight [R, cols] of its nonzero entries in CSR form."""
    rows = row_offsets.numel() - 1
    row_of = torch.arange(rows, device=values.device).repeat_interleave(
        row_offsets.diff().long(), output_size=values.numel()
    )  # [nnz]
    weight = values.new_zeros((rows, cols))  # [R, cols]
    weight[row_of, columns.long()] = values
    return weight


def conv2d_output(
    x: Tensor,  # [B, C, H, W]
    channels: int,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> Tensor:
    """What `csr_conv2d` writes to, uninitialised: channels-last where x is."""
    size = [
        (x.shape[2 + i] + 2 * padding[i] - dilation[i] * (kernel_size[i] - 1) - 1) // stride[i] + 1
        for i in range(2)
    ]
    channels_last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return torch.empty(
        (x.shape[0], channels, *size),
        dtype=x.dtype,
        device=x.device,
        memory_format=torch.channels_last if channels_last else torch.contiguous_format,
    )  # [B, R, H', W']


def csr_linear(
    x: Tensor,  # [B, K]
    values: Tensor,  # [nnz]
    columns: Tensor,  # [nnz] int32
    row_offsets: Tensor,  # [R + 1] int32
    bias: Tensor | None,  # [R]
) -> Tensor:
    return F.linear(x, dense_weight(values, columns, row_offsets, x.shape[1]), bias)


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
    channels = x.shape[1] // groups
    weight = dense_weight(values, columns, row_offsets, channels * kernel_size[0] * kernel_size[1])
    weight = weight.view(-1, channels, *kernel_size)  # [R, C / groups, kh, kw]
    y = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    return conv2d_output(x, weight.shape[0], kernel_size, stride, padding, dilation).copy_(y)
