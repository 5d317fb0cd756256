"""Checks of the sparse layers' Triton kernels that only a session in Triton's interpreter can run.

test_triton_sparse.py starts that session; by hand:
TRITON_INTERPRET=1 pytest python_tests/triton_sparse_checks.py
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sparse_cases import DTYPES, check, csr, sparse
from torch.nn import functional as F

from r2kd_ext import ops_sparse
from r2kd_ext.backends import triton
from r2kd_ext.backends.triton import configs

ROWS, BLOCK = configs.SPARSE.rows, configs.SPARSE.block


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("batch", "rows", "cols", "density"),
    [
        (1, 1, 1, 1.0),  # a tile with one number in it
        (BLOCK + 3, 2 * ROWS + 1, 17, 0.3),  # more than one tile either way, the last not full
        (5, ROWS, 40, 0.02),  # rows without an entry
        (3, 5, 6, 0.0),  # no entry at all
        (2, 3, 90, 1.0),  # long sums
    ],
)
def test_linear(batch: int, rows: int, cols: int, density: float, dtype: torch.dtype) -> None:
    torch.manual_seed(rows)
    weight = sparse(rows, cols, density=density, dtype=dtype)
    x = torch.randn(batch, cols).to(dtype)
    for bias in (None, torch.randn(rows).to(dtype)):
        y = triton.csr_linear(x, *csr(weight), bias)
        assert y.is_contiguous()
        check(y, F.linear, x, weight, bias)


def test_linear_layouts() -> None:
    torch.manual_seed(1)
    weight = sparse(6, 9, density=0.5)
    wide = torch.randn(7, 18)
    for x in (wide[:, ::2], torch.randn(9, 7).t(), torch.randn(1, 9).expand(7, 9), wide[:0, :9]):
        check(triton.csr_linear(x, *csr(weight), None), F.linear, x, weight, None)


# Kernel, stride, padding, dilation, groups, size: each differs between the two directions once.
CONVOLUTIONS = [
    ((1, 1), (1, 1), (0, 0), (1, 1), 1, (5, 4)),
    ((3, 3), (1, 1), (1, 1), (1, 1), 1, (9, 11)),  # more pixels than a tile has
    ((2, 5), (1, 3), (2, 0), (1, 1), 2, (7, 9)),
    ((3, 2), (2, 1), (0, 7), (3, 2), 3, (7, 5)),  # kernels that see nothing but padding
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_conv2d(case: tuple[Any, ...], dtype: torch.dtype) -> None:
    kernel, stride, padding, dilation, groups, size = case
    torch.manual_seed(2)
    weight = sparse(5 * groups, 3, *kernel, density=0.4, dtype=dtype)
    bias = torch.randn(5 * groups).to(dtype)
    images = torch.randn(2, 3 * groups, *size).to(dtype)
    options = (stride, padding, dilation, groups)
    for x in (
        images,
        images.to(memory_format=torch.channels_last),
        images[:1].expand(2, -1, -1, -1),
    ):
        y = triton.csr_conv2d(x, *csr(weight.flatten(1)), bias, kernel, *options)
        check(y, lambda a, w, b: F.conv2d(a, w, b, *options), x, weight, bias)
        meta = [t.to("meta") for t in (x, *csr(weight.flatten(1)), bias)]
        fake = ops_sparse.csr_conv2d(*meta, kernel, *options)
        assert (y.shape, y.stride(), y.dtype) == (fake.shape, fake.stride(), fake.dtype)


def test_what_is_left_out_adds_nothing() -> None:
    x = torch.tensor([[1.0, float("inf"), float("nan")]])
    matrix = csr(torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]))
    y = triton.csr_linear(x, *matrix, None)[0]
    assert y[0] == 2
    assert y[1] == float("inf")
    assert y[2].isnan()


def test_no_images() -> None:
    matrix = csr(sparse(4, 27, density=0.5))
    x = torch.randn(0, 3, 5, 5)
    options: tuple[Any, ...] = ([3, 3], [1, 1], [1, 1], [1, 1], 1)
    assert triton.csr_conv2d(x, *matrix, None, *options).shape == (0, 4, 5, 5)
