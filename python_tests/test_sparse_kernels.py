"""The ops csr_linear and csr_conv2d against float64."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from instruction_sets import LEVELS, rerun
from sparse_cases import DTYPES, check, csr, laid_out, sparse
from torch.nn import functional as F

from r2kd_ext import ops_sparse
from r2kd_ext.backends import reference_sparse

# Register tiles end at 8, 16, ... samples (lanes) and at 8 registers; chunks at 128 rows; blocks of
# columns at some hundreds.
BATCHES = (0, 1, 3, 8, 31, 64, 65, 150)
COLS = (1, 3, 17, 100, 2500)
ROWS = (1, 5, 129, 260)


@given(
    batch=st.sampled_from(BATCHES),
    cols=st.sampled_from(COLS),
    rows=st.sampled_from(ROWS),
    density=st.sampled_from((0.0, 0.02, 0.3, 0.9, 1.0)),
    dtype=st.sampled_from(DTYPES),
    layout=st.sampled_from(("contiguous", "every_second", "transposed", "expanded")),
    biased=st.booleans(),
    seed=st.integers(0, 999),
)
def test_linear(
    batch: int, cols: int, rows: int, density: float, dtype: torch.dtype,
    layout: str, biased: bool, seed: int,
) -> None:  # fmt: skip
    torch.manual_seed(seed)
    weight = sparse(rows, cols, density=density, dtype=dtype)
    bias = torch.randn(rows).to(dtype) if biased else None
    x = laid_out((batch, cols), layout, dtype)
    y = ops_sparse.csr_linear(x, *csr(weight), bias)
    assert y.is_contiguous()
    check(y, F.linear, x, weight, bias)


@settings(max_examples=40)
@given(
    batch=st.sampled_from((0, 1, 2, 7, 8, 19)),
    channels=st.sampled_from((1, 2, 8, 33)),
    rows=st.sampled_from((1, 6, 24, 130)),
    groups=st.sampled_from((1, 1, 2, 3)),
    kernel=st.sampled_from(((1, 1), (3, 3), (2, 5), (4, 1))),
    stride=st.sampled_from(((1, 1), (2, 2), (1, 3))),
    padding=st.sampled_from(((0, 0), (1, 1), (2, 0), (0, 7))),
    dilation=st.sampled_from(((1, 1), (2, 1), (3, 3))),
    # One column of pixels, tiles of two rows, of 7 + 7, of 8, and with a remainder.
    size=st.sampled_from(((7, 1), (5, 4), (14, 14), (16, 8), (9, 19), (1, 16))),
    density=st.sampled_from((0.0, 0.05, 0.4, 1.0)),
    dtype=st.sampled_from(DTYPES),
    layout=st.sampled_from(
        ("contiguous", "channels_last", "every_second", "transposed", "expanded")
    ),
    biased=st.booleans(),
    seed=st.integers(0, 999),
)
def test_conv2d(
    batch: int, channels: int, rows: int, groups: int, kernel: tuple[int, int],
    stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int],
    size: tuple[int, int], density: float, dtype: torch.dtype, layout: str, biased: bool, seed: int,
) -> None:  # fmt: skip
    reach = [dilation[i] * (kernel[i] - 1) + 1 for i in range(2)]
    assume(all(size[i] + 2 * padding[i] >= reach[i] for i in range(2)))
    torch.manual_seed(seed)
    weight = sparse(groups * rows, channels, *kernel, density=density, dtype=dtype)
    bias = torch.randn(groups * rows).to(dtype) if biased else None
    x = laid_out((batch, groups * channels, *size), layout, dtype)
    options = (stride, padding, dilation, groups)
    y = ops_sparse.csr_conv2d(x, *csr(weight.flatten(1)), bias, kernel, *options)
    check(y, lambda a, w, b: F.conv2d(a, w, b, *options), x, weight, bias)
    last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    wanted = torch.channels_last if last else torch.contiguous_format
    assert y.is_contiguous(memory_format=wanted)


def test_a_band_of_rows_is_a_lane() -> None:
    """One large image: lanes are bands of its rows, and the last band is not whole."""
    torch.manual_seed(0)
    weight = sparse(5, 70, 3, 3, density=0.2)
    x = torch.randn(1, 70, 83, 60)
    y = ops_sparse.csr_conv2d(x, *csr(weight.flatten(1)), None, (3, 3), (1, 1), (1, 1), (1, 1), 1)
    check(y, lambda a, w, b: F.conv2d(a, w, b, padding=1), x, weight, None)


@pytest.mark.parametrize("dtype", DTYPES)
def test_number_of_threads_changes_no_bit(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    weight = sparse(200, 40, 3, 3, density=0.3, dtype=dtype)
    x = torch.randn(9, 40, 12, 4).to(dtype)
    matrix = csr(weight.flatten(1))
    flat = torch.randn(70, 360).to(dtype)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(
                (
                    ops_sparse.csr_conv2d(x, *matrix, None, (3, 3), (1, 1), (1, 1), (1, 1), 1),
                    ops_sparse.csr_linear(flat, *matrix, None),
                )
            )
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_sums_in_float32(dtype: torch.dtype) -> None:
    """4096 ones and one small number: a sum in 16 bits would stop at 256 or 2048."""
    weight = torch.ones(1, 4096, dtype=dtype)
    x = torch.full((3, 4096), 0.25, dtype=dtype)
    assert ops_sparse.csr_linear(x, *csr(weight), None).tolist() == [[1024.0]] * 3


def test_what_is_left_out_adds_nothing() -> None:
    x = torch.tensor([[1.0, float("inf"), float("nan")]])
    matrix = csr(torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]))
    y = ops_sparse.csr_linear(x, *matrix, None)[0]
    assert y[0] == 2
    assert y[1] == float("inf")
    assert y[2].isnan()


@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck(dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    matrix = csr(sparse(6, 12, density=0.5, dtype=dtype))
    bias = torch.randn(6).to(dtype)
    x = torch.randn(5, 12).to(dtype)
    torch.library.opcheck(ops_sparse.csr_linear, (x, *matrix, bias))
    for layout in ("contiguous", "channels_last"):
        images = laid_out((2, 6, 7, 9), layout, dtype)
        options: tuple[Any, ...] = ([2, 2], [2, 1], [1, 0], [1, 2], 2)
        torch.library.opcheck(ops_sparse.csr_conv2d, (images, *matrix, bias, *options))


def test_reference() -> None:
    torch.manual_seed(3)
    weight, x = sparse(6, 3, 2, 2, density=0.5), torch.randn(2, 6, 7, 9)
    options: tuple[Any, ...] = ([2, 1], [1, 0], [1, 2], 2)
    y = reference_sparse.csr_conv2d(x, *csr(weight.flatten(1)), None, [2, 2], *options)
    check(y, lambda a, w, b: F.conv2d(a, w, b, *options), x, weight, None)
    flat = torch.randn(4, 12)
    matrix = csr(weight.flatten(1))
    check(reference_sparse.csr_linear(flat, *matrix, None), F.linear, flat, weight.flatten(1), None)


@pytest.mark.slow
@pytest.mark.parametrize("level", LEVELS[:-1])
def test_other_instruction_sets(level: str) -> None:
    tests = ("test_linear", "test_conv2d", "test_a_band_of_rows_is_a_lane")
    rerun(level, __file__, tests)


def test_memory_of_a_convolution() -> None:
    """No unfolded copy: what the call adds to the peak is far below the 9 times of one."""
    code = """
import resource, torch
from r2kd_ext import ops_sparse
torch.set_num_threads(1)
x = torch.randn(16, 64, 64, 64)
weight = (torch.randn(8, 576) * (torch.rand(8, 576) < 0.1)).to_sparse_csr()
matrix = (weight.values(), weight.col_indices().int(), weight.crow_indices().int())
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
ops_sparse.csr_conv2d(x, *matrix, None, (3, 3), (1, 1), (1, 1), (1, 1), 1)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((after - before) * 1024 / (x.numel() * 4))
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True
    )
    # y is an eighth of x, the packed block is at most 2 MiB (an eighth of x as well).
    assert float(done.stdout) < 0.6
