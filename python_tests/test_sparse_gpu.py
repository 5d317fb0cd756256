"""The sparse ops' Triton kernels on a CUDA device, against float64."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from sparse_cases import DTYPES, check, csr, sparse
from torch.nn import functional as F

from r2kd_ext.backends import triton

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="GPU tests skipped: torch sees no CUDA device"
    ),
    pytest.mark.skipif(
        importlib.util.find_spec("triton") is None,
        reason="backend 'triton' skipped: the package triton is not installed",
    ),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 1), (257, 100, 300), (64, 1000, 513)], ids=str)
def test_csr_linear_triton(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    batch, rows, cols = shape
    torch.manual_seed(rows)
    weight, x = sparse(rows, cols, density=0.1, dtype=dtype), torch.randn(batch, cols).to(dtype)
    bias = torch.randn(rows).to(dtype)
    moved = [t.cuda() for t in (x, *csr(weight), bias)]
    check(triton.csr_linear(*moved).cpu(), F.linear, x, weight, bias)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_csr_conv2d_triton(layout: torch.memory_format, groups: int, dtype: torch.dtype) -> None:
    torch.manual_seed(groups)
    weight = sparse(24, 16 // groups, 3, 3, density=0.2, dtype=dtype)
    x = torch.randn(5, 16, 17, 19).to(dtype).to(memory_format=layout)
    options: tuple[Any, ...] = ([2, 1], [1, 2], [1, 2], groups)
    arguments: tuple[Any, ...] = (*csr(weight.flatten(1).cuda()), None, [3, 3], *options)
    y = triton.csr_conv2d(x.cuda(), *arguments)
    assert y.is_contiguous(memory_format=layout)
    check(y.cpu(), lambda a, w, b: F.conv2d(a, w, b, *options), x, weight, None)
