"""Sparse weights and the truth that the sparse layers are held against."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_ROUNDING = {dtype: torch.finfo(dtype).eps / 2 for dtype in DTYPES}
_LEAST = {torch.float32: 0.0, torch.bfloat16: 0.0, torch.float16: 2.0**-25}


def sparse(*shape: int, density: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal numbers, of which about this share is not zero."""
    return (torch.randn(shape) * (torch.rand(shape) < density)).to(dtype)


def laid_out(shape: tuple[int, ...], layout: str, dtype: torch.dtype) -> Tensor:
    """Random numbers of a shape whose strides are those of a layout."""
    if layout == "contiguous":
        return torch.randn(shape).to(dtype)
    if layout == "channels_last":
        return torch.randn(shape).to(dtype).to(memory_format=torch.channels_last)
    if layout == "every_second":
        return torch.randn(*shape[:-1], 2 * shape[-1]).to(dtype)[..., ::2]
    if layout == "transposed":
        return torch.randn(*shape[:-2], shape[-1], shape[-2]).to(dtype).transpose(-1, -2)
    if layout == "expanded":
        return torch.randn(1, *shape[1:]).to(dtype).expand(shape)
    raise AssertionError(layout)


def csr(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Values, columns and row offsets of a matrix, by torch's own conversion."""
    matrix = weight.to_sparse_csr()
    return (
        matrix.values().clone(),
        matrix.col_indices().to(torch.int32),
        matrix.crow_indices().to(torch.int32),
    )


def check(
    y: Tensor,
    dense: Callable[..., Tensor],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
) -> None:
    """y is what `dense` gives of the same numbers in float64, up to the rounding of float32 sums.

    The unit at each element is that of one rounding of the sum of magnitudes there; n additions in
    a row are off by about sqrt(n) of them.
    """
    wide = [None if t is None else t.double() for t in (x, weight, bias)]
    truth = dense(*wide)
    magnitude = dense(*[None if t is None else t.abs() for t in wide])
    assert y.dtype == x.dtype
    assert y.shape == truth.shape
    terms = int((weight != 0).flatten(1).sum(1).max()) + 1 if weight.numel() else 1
    bound = (4 + 2 * math.sqrt(terms)) * _ROUNDING[torch.float32] * magnitude
    bound += _ROUNDING[y.dtype] * truth.abs() + _LEAST[y.dtype]
    error = (y.double() - truth).abs()
    assert bool((error <= bound).all()), float((error - bound).max())
