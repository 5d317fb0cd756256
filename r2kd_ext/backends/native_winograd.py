"""The compiled Winograd convolution on CPU tensors: addresses and sizes in, tensors out.

Arguments have been checked by the caller.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _core
from .native import _threads


def winograd_conv2d(
    x: Tensor,  # [B, C, H, W]
    weight: Tensor,  # [K / 16, 36, C, 16]
    bias: Tensor | None,  # [K]
    other: Tensor | None,  # [B, K, H, W]
    relu: bool,
    out: Tensor,  # [B, K, H, W] channels-last; may be other
) -> None:
    x = x.contiguous(memory_format=torch.channels_last)
    if other is not None:
        other = other.contiguous(memory_format=torch.channels_last)
    batch, channels, height, width = x.shape
    _core.winograd_conv2d(
        batch, height, width, channels, out.shape[1], x.data_ptr(), weight.data_ptr(),
        0 if bias is None else bias.data_ptr(), 0 if other is None else other.data_ptr(),
        relu, out.data_ptr(), _threads(),
    )  # fmt: skip
