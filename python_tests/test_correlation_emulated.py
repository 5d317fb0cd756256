"""The CUDA kernels of the correlation on the CPU, every thread of a block a fibre (emulated_cuda/).

As on sm_80: clusters, which share a row on later GPUs, are not emulated.
"""

from __future__ import annotations

import ctypes
from typing import Any

import pytest
import torch
from cases import make_logits, make_mask
from compare import Outcome, accumulator, assert_same_bits, assert_true
from compare import run as run_autograd
from emulation import GUARD, emulated_library
from torch import Tensor

from r2kd_ext import reference
from r2kd_ext.backends.native import _DTYPE_CODES, statistics_size

KERNELS = ("correlation", "weigh", "tile", "rows", "columns", "finish", "loss", "backward")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("correlation")
    found = emulated_library(folder, "emulated_correlation.cpp", KERNELS)
    found.scratch_bytes.restype = ctypes.c_int64
    return found


class Params(ctypes.Structure):
    """CorrelationParams of csrc/include/r2kd/correlation.h."""

    _fields_ = [
        ("rows", ctypes.c_int64), ("cols", ctypes.c_int64), ("temperature", ctypes.c_double),
        ("inter_weight", ctypes.c_double), ("intra_weight", ctypes.c_double),
        ("eps", ctypes.c_double), ("centered", ctypes.c_bool),
    ]  # fmt: skip


def pointer(x: Tensor | None) -> ctypes.c_void_p | None:
    return None if x is None else ctypes.c_void_p(x.data_ptr())


def strided(x: Tensor) -> tuple[ctypes.c_void_p | None, ctypes.Array[ctypes.c_int64], int]:
    return pointer(x), (ctypes.c_int64 * 2)(*x.stride()), _DTYPE_CODES[x.dtype]


def run(
    library: ctypes.CDLL, student: Tensor, teacher: Tensor, *, temperature: float = 4.0,
    correlation: str = "cosine", inter_weight: float = 2.0, intra_weight: float = 2.0,
    mask: Tensor | None = None, sample_weight: Tensor | None = None, backwards: bool = False,
) -> Outcome:  # fmt: skip
    """Loss and gradient, with everything that the kernels write to poisoned first."""
    (rows, cols), factor = student.shape, temperature**2
    dtype = accumulator(student.dtype, teacher.dtype)
    params = ctypes.byref(
        Params(rows, cols, temperature, factor * inter_weight, factor * intra_weight, 1e-8,
               correlation == "pearson")
    )  # fmt: skip
    library.set_order(int(backwards))
    codes = (_DTYPE_CODES[student.dtype], _DTYPE_CODES[teacher.dtype])
    weighed = int(mask is not None or sample_weight is not None)
    size = library.scratch_bytes(params, *codes, weighed)
    scratch = torch.full((size + 2 * GUARD,), 0xEE, dtype=torch.uint8)
    loss = torch.full((), torch.nan, dtype=dtype)
    stats = torch.full((statistics_size(rows, cols),), torch.nan, dtype=dtype)
    grad = torch.full((rows, cols), torch.nan, dtype=student.dtype)
    stride = ctypes.c_int64(0 if mask is None else mask.stride(0))
    given = (params, *strided(student), *strided(teacher), pointer(mask), stride)
    inside = ctypes.c_void_p(scratch.data_ptr() + GUARD)
    assert library.forward(
        *given, pointer(sample_weight), pointer(loss), pointer(stats), inside
    ) == 0  # fmt: skip
    one = torch.ones((), dtype=dtype)
    assert library.backward(*given, pointer(one), pointer(stats), pointer(grad)) == 0
    guards = torch.cat([scratch[:GUARD], scratch[GUARD + size :]])
    assert bool((guards == 0xEE).all()), "written outside of the scratch memory"
    return Outcome(loss, grad)


# tile_kernel with rows in one tile and in several, one column for all threads; rows_kernel and
# columns_kernel with one part and several, whole chunks and not.
SHAPES = [(1, 1), (7, 13), (70, 100), (2, 1025), (33, 1030)]


@pytest.mark.parametrize("correlation", ["cosine", "pearson"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_path(
    shape: tuple[int, int], masked: bool, correlation: str, library: ctypes.CDLL
) -> None:
    student, teacher = make_logits(*shape)
    options: dict[str, Any] = {"correlation": correlation}
    if masked and shape != (1, 1):
        options["mask"] = make_mask(shape[0])
    assert_true(run(library, student, teacher, **options), student, teacher, **options)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(9, 37), (3, 1200)], ids=str)
def test_dtypes(shape: tuple[int, int], dtype: torch.dtype, library: ctypes.CDLL) -> None:
    student, teacher = make_logits(*shape, dtype=dtype)
    options: dict[str, Any] = {"correlation": "pearson", "temperature": 1.7}
    assert_true(run(library, student, teacher, **options), student, teacher, **options)


@pytest.mark.parametrize("terms", [{"intra_weight": 0.0}, {"inter_weight": 0.0}], ids=str)
@pytest.mark.parametrize("classes", [24, 1100])
def test_one_term(classes: int, terms: dict[str, Any], library: ctypes.CDLL) -> None:
    """Without the column term, whole chunks of 16 bytes are read at once."""
    student, teacher = make_logits(6, classes)
    assert_true(run(library, student, teacher, **terms), student, teacher, **terms)


def test_strides_and_mixed_dtypes(library: ctypes.CDLL) -> None:
    student, teacher = make_logits(6, 21)
    wide = make_logits(6, 42)[1]
    layouts = [(student.t().contiguous().t(), teacher.bfloat16()), (student, wide[:, 1::2])]
    for z, y in layouts:
        assert_true(run(library, z, y), z, y)


@pytest.mark.parametrize("shape", [(33, 65), (6, 1100)], ids=str)
def test_sample_weight(shape: tuple[int, int], library: ctypes.CDLL) -> None:
    student, teacher = make_logits(*shape, dtype=torch.float64)
    options: dict[str, Any] = {
        "sample_weight": torch.linspace(0, 2, shape[0], dtype=torch.float64).square(),
        "mask": make_mask(shape[0]),
    }
    got = run(library, student, teacher, **options)
    expected = run_autograd(reference.correlation_kd, student, teacher, **options)
    torch.testing.assert_close(got.loss, expected.loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(got.grad, expected.grad, rtol=1e-9, atol=1e-15)
    options["sample_weight"] = torch.zeros_like(options["sample_weight"])
    assert run(library, student, teacher, intra_weight=0.0, **options).loss == 0


def test_rows_that_do_not_stay_in_shared_memory(library: ctypes.CDLL) -> None:
    """The backward pass reads a row twice."""
    student, teacher = make_logits(2, 20_600)
    options: dict[str, Any] = {"correlation": "pearson"}
    assert_true(run(library, student, teacher, **options), student, teacher, **options)


@pytest.mark.parametrize("shape", [(40, 100), (17, 1030)], ids=str)
def test_order_of_threads_changes_no_bit(shape: tuple[int, int], library: ctypes.CDLL) -> None:
    student, teacher = make_logits(*shape)
    first, second = (
        run(library, student, teacher, correlation="pearson", backwards=b) for b in (False, True)
    )
    assert_same_bits(first.loss, second.loss)
    assert_same_bits(first.grad, second.grad)
