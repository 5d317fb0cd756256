"""Schemas, checks and fake kernels of the Winograd convolution.

winograd_conv2d:   relu(conv2d(x, w, padding=1) + bias + other), the last three where asked, of a
                   3 x 3 convolution with stride 1. x [B, C, H, W], other [B, K, H, W], both of any
                   strides -> [B, K, H, W] channels-last. weight [K / 16, 36, C, 16] is what
                   `winograd.transform_weight` makes of w [K, C, 3, 3]; C and K are multiples of 16.
                   Forward only, float32, on a CPU. An infinite input makes NaN of all outputs of
                   its tiles.
winograd_conv2d_:  the same into `other`, which is channels-last and has a storage of its own.

The bits of an image do not depend on its batch, nor on the number of threads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .backends import native_winograd
from .winograd import PANEL, POINTS

_library = torch.library.Library("r2kd", "FRAGMENT")
_library.define(
    "winograd_conv2d(Tensor x, Tensor weight, Tensor? bias, Tensor? other, bool relu) -> Tensor"
)
_library.define(
    "winograd_conv2d_(Tensor x, Tensor weight, Tensor? bias, Tensor(a!) other, bool relu) -> ()"
)


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, other: Tensor | None) -> list[int]:
    """The shape of the result. Raises ValueError unless the kernel may read all of them."""
    named = {"x": x, "weight": weight, "bias": bias, "other": other}
    for name, tensor in named.items():
        if tensor is not None and tensor.dtype != torch.float32:
            raise ValueError(f"{name} must be float32, got {tensor.dtype}")
    if x.dim() != 4 or x.shape[1] % PANEL or x.shape[1] == 0:
        raise ValueError(
            f"x must be [B, C, H, W] with C a multiple of {PANEL}, got {tuple(x.shape)}"
        )
    expected = (POINTS, x.shape[1], PANEL)
    if weight.dim() != 4 or tuple(weight.shape[1:]) != expected or not weight.is_contiguous():
        raise ValueError(
            f"weight must be [K / {PANEL}, {', '.join(map(str, expected))}] and contiguous, as "
            f"transform_weight makes it for an x of {x.shape[1]} channels, got "
            f"{tuple(weight.shape)} with strides {weight.stride()}"
        )
    channels = PANEL * weight.shape[0]
    shape = [x.shape[0], channels, *x.shape[2:]]
    if bias is not None and (tuple(bias.shape) != (channels,) or not bias.is_contiguous()):
        raise ValueError(f"bias must be [{channels}] and contiguous, got {tuple(bias.shape)}")
    if other is not None and list(other.shape) != shape:
        raise ValueError(f"other must be {shape}, got {list(other.shape)}")
    return shape


def _result(x: Tensor, shape: list[int]) -> Tensor:
    return torch.empty(
        shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last
    )  # [B, K, H, W]


@torch.library.register_fake("r2kd::winograd_conv2d")
def _fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, other: Tensor | None, relu: bool
) -> Tensor:
    return _result(x, _check(x, weight, bias, other))


@torch.library.register_fake("r2kd::winograd_conv2d_")
def _fake_in_place(
    x: Tensor, weight: Tensor, bias: Tensor | None, other: Tensor, relu: bool
) -> None:
    _check(x, weight, bias, other)


def _conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, other: Tensor | None, relu: bool
) -> Tensor:
    out = _result(x, _check(x, weight, bias, other))
    native_winograd.winograd_conv2d(x, weight, bias, other, relu, out)
    return out


def _conv2d_in_place(
    x: Tensor, weight: Tensor, bias: Tensor | None, other: Tensor, relu: bool
) -> None:
    _check(x, weight, bias, other)
    if not other.is_contiguous(memory_format=torch.channels_last):
        raise ValueError(f"other must be channels-last, got strides {other.stride()}")
    if x.numel() > 0 and other.untyped_storage().data_ptr() == x.untyped_storage().data_ptr():
        raise ValueError("other must not share its storage with x, which is read meanwhile")
    native_winograd.winograd_conv2d(x, weight, bias, other, relu, other)


_library.impl("winograd_conv2d", _conv2d, "CPU")
_library.impl("winograd_conv2d_", _conv2d_in_place, "CPU")

winograd_conv2d = torch.ops.r2kd.winograd_conv2d.default
winograd_conv2d_ = torch.ops.r2kd.winograd_conv2d_.default
