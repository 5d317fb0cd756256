"""What the CUDA kernels are made of, on the CPU: shared mathematics and plans, without any CUDA.

correlation_math.cpp puts the mathematics together as the kernels do. What it cannot show is the
kernels' own part: which thread reads what, and barriers.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from cases import SETTINGS, SHAPES, Setting, Shape, make_logits
from compare import Outcome, assert_true
from test_correlation_numerics import ruled_out
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
DTYPES = {torch.float32: "float", torch.float64: "double"}
SMALL = [s for s in SHAPES if s.rows * s.classes <= 33 * 300] + [
    s for s in SHAPES if s[:2] in ((3000, 5), (64, 100), (2, 32001))
]
KIB = 1024


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    compiler = shutil.which(os.environ.get("CXX") or "c++")
    if compiler is None:
        pytest.skip("no C++ compiler: the shared mathematics is not tested by itself")
    target = tmp_path_factory.mktemp("math") / "correlation_math.so"
    includes = [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'csrc' / 'include'}"]
    source = Path(__file__).parent / "correlation_math.cpp"
    subprocess.run(
        [compiler, "-std=c++17", "-O2", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror",
         *includes, str(source), "-o", str(target)],
        check=True,
    )  # fmt: skip
    return ctypes.CDLL(str(target))


def pointer(x: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(x.data_ptr())


def correlation(
    library: ctypes.CDLL, student: Tensor, teacher: Tensor, threads: int = 32, parts: int = 3,
    *, temperature: float = 4.0, correlation: str = "cosine", inter_weight: float = 2.0,
    intra_weight: float = 2.0, temperature_scaling: bool = True, eps: float = 1e-8,
) -> Outcome:  # fmt: skip
    rows, cols = student.shape
    factor = temperature**2 if temperature_scaling else 1.0
    stats = torch.full((6 * rows + 5 * cols,), torch.nan, dtype=student.dtype)
    grad = torch.full_like(student, torch.nan)
    function = getattr(library, f"correlation_{DTYPES[student.dtype]}")
    function.restype = ctypes.c_double
    loss = function(
        pointer(student), pointer(teacher), rows, cols, threads, parts,
        *map(ctypes.c_double, (temperature, factor * inter_weight, factor * intra_weight, eps)),
        correlation == "pearson", pointer(stats), pointer(grad),
    )  # fmt: skip
    return Outcome(torch.tensor(loss, dtype=student.dtype), grad)


def check(
    library: ctypes.CDLL, student: Tensor, teacher: Tensor, threads: int = 32, **options: Any
) -> None:
    got = correlation(library, student, teacher, threads, **options)
    assert_true(got, student, teacher, **options)


each_correlation = pytest.mark.parametrize("correlation", ["cosine", "pearson"])


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: DTYPES[d])
@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: s.name)
@pytest.mark.parametrize("shape", SMALL, ids=lambda s: f"{s.rows}x{s.classes}")
def test_values(shape: Shape, setting: Setting, dtype: torch.dtype, library: ctypes.CDLL) -> None:
    check(library, *make_logits(shape.rows, shape.classes, dtype=dtype), **setting.options)


@each_correlation
@pytest.mark.parametrize("temperature", [0.1, 1.0, 4.0, 100.0])
@pytest.mark.parametrize("spread", [1e-3, 1.0, 30.0, 1e3])
@pytest.mark.parametrize("shape", [(9, 37), (3, 9001), (700, 4)], ids=str)
def test_spread_and_temperature(
    shape: tuple[int, int], spread: float, temperature: float, correlation: str,
    library: ctypes.CDLL,
) -> None:  # fmt: skip
    logits = make_logits(*shape, spread=spread)
    check(library, *logits, temperature=temperature, correlation=correlation)


@each_correlation
def test_maximum_that_rises(correlation: str, library: ctypes.CDLL) -> None:
    """What a thread has summed shrinks again and again; some threads see nothing but -inf."""
    cols = 9001
    student, teacher = make_logits(3, cols)
    student[0] += torch.linspace(-30, 30, cols)
    teacher[0] += torch.linspace(30, -30, cols)
    student[1, :4500], teacher[1, 4400:] = -torch.inf, -torch.inf
    student[2] += torch.linspace(-3e3, 3e3, cols)
    check(library, student, teacher, correlation=correlation)
    check(library, student, teacher, 1024, correlation=correlation)


@each_correlation
def test_minus_infinity(correlation: str, library: ctypes.CDLL) -> None:
    check(library, *ruled_out(14, 35), correlation=correlation)


@each_correlation
@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("whole", [False, True])
def test_poison(poison: float, whole: bool, correlation: str, library: ctypes.CDLL) -> None:
    """A poisoned row is NaN and no other row is (-inf poisons a row that is nothing else)."""
    student, teacher = make_logits(3, 300)
    student[1, slice(None) if whole or poison == -torch.inf else 299] = poison
    found = globals()["correlation"](
        library, student, teacher, correlation=correlation, intra_weight=0.0
    )
    assert found.loss.isnan()
    assert found.grad.isnan().all(1).tolist() == [False, True, False]
    assert found.grad.isnan().any(1).tolist() == [False, True, False]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: DTYPES[d])
@pytest.mark.parametrize("temperature", [0.03, 1.0, 4.0, 700.0])
def test_exponential(temperature: float, dtype: torch.dtype, library: ctypes.CDLL) -> None:
    least = -87.0 if dtype is torch.float32 else -700.0
    d = torch.cat(
        [torch.linspace(least, 0, 100_001, dtype=torch.float64), -torch.logspace(-30, 0, 1001)]
    )
    d = (d * temperature).to(dtype)
    out = torch.empty_like(d)
    function = getattr(library, f"scaled_exp_{DTYPES[dtype]}")
    function(pointer(d), pointer(out), len(d), ctypes.c_double(temperature))
    exact = np.exp(d.numpy().astype(np.longdouble) / np.longdouble(temperature))
    error = np.abs(out.numpy() - exact) / exact / torch.finfo(dtype).eps
    assert error.max() < 1.0
    edges = torch.tensor([0.0, -0.0, -torch.inf, torch.nan, -1e30], dtype=dtype)
    out = torch.empty_like(edges)
    function(pointer(edges), pointer(out), len(edges), ctypes.c_double(temperature))
    assert out[:3].tolist() == [1, 1, 0]
    assert out[3].isnan()
    assert out[4] == 0


# --- plans ---------------------------------------------------------------------------------------


class ForwardPlan(NamedTuple):
    tiles: int
    tile_rows: int
    slices: int
    parts: int
    part_rows: int
    row_sums: int
    row_threads: int
    cluster: int
    finish_slices: int
    col_sums: int
    shared_bytes: int
    launches: int
    at_row_sums: int
    at_counts: int
    at_col_sums: int
    at_partials: int
    scratch_bytes: int


class BackwardPlan(NamedTuple):
    threads: int
    row_threads: int
    cluster: int
    resident: int
    span: int
    blocks: int
    shared_bytes: int


def _numbers(function: Callable[..., Any], arguments: tuple[int, ...], count: int) -> list[int]:
    out = (ctypes.c_int64 * count)()
    rows, cols, *rest = arguments
    function(ctypes.c_int64(rows), ctypes.c_int64(cols), *rest, out)
    return list(out)


# Dynamic shared memory that a block may have, and blocks in a cluster: sm_80, sm_86, sm_90.
DEVICES = [(163 * KIB, 1), (99 * KIB, 1), (227 * KIB, 16)]
ROWS = (1, 2, 7, 8, 64, 100, 1000, 4096, 2**20)
COLS = (1, 2, 10, 100, 128, 129, 512, 513, 1000, 1024, 1025, 4096, 21_841, 32_768, 131_072, 262_144)
each_device = pytest.mark.parametrize("device", DEVICES, ids=["sm_80", "sm_86", "sm_90"])


@each_device
@pytest.mark.parametrize(("double", "chunk"), [(0, 4), (0, 8), (1, 4)])
def test_forward_plans(
    double: int, chunk: int, device: tuple[int, int], library: ctypes.CDLL
) -> None:
    """Every row is in one part, all that a kernel has in memory fits, and the sums are few."""
    size = 8 if double else 4
    flags = itertools.product((0, 1), (0, 1), (0, 1))
    for (centered, intra, weighed), rows, cols in itertools.product(flags, ROWS, COLS):
        arguments = (rows, cols, double, chunk, centered, intra, weighed, *device)
        plan = ForwardPlan(*_numbers(library.plan_forward, arguments, 17))
        assert plan.shared_bytes <= device[0], arguments
        assert 1 <= plan.cluster <= min(device[1], 8)
        assert plan.launches <= 4 + weighed
        if plan.tiles or intra:
            assert (plan.parts - 1) * plan.part_rows < rows <= plan.parts * plan.part_rows
            assert 1 <= plan.parts <= 512
        if plan.tiles:
            assert plan.part_rows % plan.tile_rows == 0
            assert plan.slices == 1 or plan.slices * cols <= 256
        else:
            assert 1 <= plan.row_sums <= min(rows, 1024)
        if intra:
            columns = 512 // plan.finish_slices
            assert plan.col_sums == 1 or (plan.col_sums - 1) * columns < cols
            assert plan.col_sums == 1 or cols <= plan.col_sums * columns
        assert 16 <= plan.at_row_sums <= plan.at_counts <= plan.at_col_sums <= plan.at_partials
        assert plan.at_counts - plan.at_row_sums >= 8 * plan.row_sums
        assert plan.at_col_sums - plan.at_counts >= 8 * plan.parts
        assert plan.at_partials - plan.at_col_sums >= 8 * plan.col_sums
        moments = plan.parts * (7 if centered else 3) * cols * size if intra else 0
        assert plan.scratch_bytes - plan.at_partials == moments
        assert rows < 16 or moments <= max(2 * rows * cols * size, 2**20)  # as the logits at most


@each_device
@pytest.mark.parametrize(("double", "chunk"), [(0, 4), (0, 8), (1, 4)])
def test_backward_plans(
    double: int, chunk: int, device: tuple[int, int], library: ctypes.CDLL
) -> None:
    """Blocks and their columns cover the matrix, and what stays in shared memory fits."""
    size = 8 if double else 4
    for rows, cols in itertools.product(ROWS, COLS):
        arguments = (rows, cols, double, chunk, *device)
        plan = BackwardPlan(*_numbers(library.plan_backward, arguments, 7))
        slots = plan.threads // plan.row_threads
        assert plan.shared_bytes + KIB <= device[0], arguments
        assert plan.cluster <= device[1]
        assert plan.cluster * plan.span >= cols
        assert plan.span % (plan.row_threads * chunk) == 0
        assert plan.blocks // plan.cluster * slots >= rows
        assert plan.blocks % plan.cluster == 0
        if plan.resident:
            assert plan.shared_bytes == slots * 2 * plan.span * size
        assert slots == 1 or (plan.row_threads == 32 and plan.cluster == 1)


def test_paths(library: ctypes.CDLL) -> None:
    """The launches that docs/gpu.md promises, and the path of a few shapes on sm_90."""
    sm_90 = DEVICES[-1]

    def forward(rows: int, cols: int, intra: int = 1, chunk: int = 4) -> ForwardPlan:
        arguments = (rows, cols, 0, chunk, 0, intra, 0, *sm_90)
        return ForwardPlan(*_numbers(library.plan_forward, arguments, 17))

    def backward(rows: int, cols: int, chunk: int = 4) -> BackwardPlan:
        arguments = (rows, cols, 0, chunk, *sm_90)
        return BackwardPlan(*_numbers(library.plan_backward, arguments, 7))

    assert forward(64, 100).launches == 2
    assert forward(64, 200).launches == 2
    assert forward(1024, 1000).launches == 3
    assert forward(256, 21_841).launches == 4
    assert forward(64, 100, intra=0).launches == 2
    assert forward(4096, 131_072, intra=0).launches == 2
    assert forward(8, 262_144).cluster == 8
    assert backward(64, 100).row_threads == 32
    clusters = {4096: 1, 21_841: 2, 32_768: 4, 131_072: 16, 262_144: 16}
    assert {cols: backward(64, cols).cluster for cols in clusters} == clusters
    assert all(backward(64, cols).resident for cols in clusters)
    assert not backward(64, 2**20).resident
