"""The CUDA kernels of the ranks on the CPU, every thread of a block a fibre (emulated_cuda/).

This runs the kernels themselves: their indices, their arithmetic, the scratch memory, and whether
all threads reach every barrier. What the hardware does is left to test_rank_gpu.py.
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import pytest
import torch
from cases import DTYPES, each_dtype, generator, make_logits
from compare import accumulator, assert_same_bits, pools_of
from emulation import GUARD, emulated_library
from rank_formula import hard_ranks, soft_ranks
from rank_formula import spearman as spearman_formula
from torch import Tensor

from r2kd_ext.backends import native_rank
from r2kd_ext.backends.native import _DTYPE_CODES

SOURCES = ("rank", "hard_spearman", "soft_spearman", "soft_rank")
HARD, SOFT, SOFT_BACKWARD, SOFT_RANK, SOFT_RANK_BACKWARD = range(5)
INF, NAN = torch.inf, torch.nan


class Plan(NamedTuple):
    threads: int
    small: int
    merges: int
    blocks: int
    at_entries: int
    at_merged: int
    at_sums: int
    at_begins: int
    at_y_ranks: int
    at_slopes: int
    block_bytes: int
    scratch_bytes: int


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return emulated_library(tmp_path_factory.mktemp("ranks"), "emulated_ranks.cpp", SOURCES)


def _strided(x: Tensor) -> tuple[ctypes.c_void_p, ctypes.Array[ctypes.c_int64], int]:
    return _pointer(x), (ctypes.c_int64 * 2)(*x.stride()), _DTYPE_CODES[x.dtype]


def _pointer(x: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(x.data_ptr())


def _wide(*numbers: int) -> list[ctypes.c_int64]:
    return [ctypes.c_int64(n) for n in numbers]


class Kernels:
    """The ops' kernels by the emulated entries: outputs and scratch are poisoned first."""

    def __init__(
        self, library: ctypes.CDLL, *, backwards: bool = False, most_blocks: int = 1 << 30
    ) -> None:
        self.library, self.order = library, (int(backwards), ctypes.c_uint(most_blocks))

    def plan(self, op: int, rows: int, cols: int, double: bool) -> Plan:
        out = (ctypes.c_int64 * len(Plan._fields))()
        self.library.plan(op, *_wide(rows, cols), int(double), out)
        return Plan(*out)

    def _run(
        self, op: int, shape: tuple[int, ...], double: bool, name: str, *arguments: object
    ) -> None:
        rows, cols = shape
        size = self.plan(op, rows, cols, double).scratch_bytes
        scratch = torch.full((size + 2 * GUARD,), 0xEE, dtype=torch.uint8)
        self.library.set_order(*self.order)
        start = ctypes.c_void_p(scratch.data_ptr() + GUARD)
        assert getattr(self.library, name)(*_wide(rows, cols), *arguments, start) == 0
        guards = torch.cat([scratch[:GUARD], scratch[GUARD + size :]])
        assert bool((guards == 0xEE).all()), "written outside of the scratch memory"

    def spearman(
        self, x: Tensor, y: Tensor, mask: Tensor | None, soft: bool, strength: float, eps: float
    ) -> Tensor:
        dtype = accumulator(x.dtype, y.dtype)
        rho = torch.full((x.shape[0],), 77.0, dtype=dtype)
        mask_stride = ctypes.c_int64(0 if mask is None else mask.stride(0))
        self._run(
            SOFT if soft else HARD, x.shape, dtype is torch.float64, "spearman",
            ctypes.c_double(eps), ctypes.c_double(strength), int(soft), *_strided(x), *_strided(y),
            None if mask is None else _pointer(mask), mask_stride, _pointer(rho),
        )  # fmt: skip
        return rho

    def spearman_backward(
        self, grad_rho: Tensor, x: Tensor, y: Tensor, mask: Tensor | None, strength: float,
        eps: float,
    ) -> Tensor:  # fmt: skip
        double = accumulator(x.dtype, y.dtype) is torch.float64
        grad = torch.full(x.shape, 77.0, dtype=x.dtype)
        mask_stride = ctypes.c_int64(0 if mask is None else mask.stride(0))
        self._run(
            SOFT_BACKWARD, x.shape, double, "spearman_backward",
            ctypes.c_double(eps), ctypes.c_double(strength), *_strided(x), *_strided(y),
            None if mask is None else _pointer(mask), mask_stride,
            _pointer(grad_rho), *_wide(grad_rho.stride(0)), _pointer(grad),
        )  # fmt: skip
        return grad

    def soft_rank(self, x: Tensor, strength: float) -> tuple[Tensor, Tensor]:
        ranks = torch.full(x.shape, 77.0, dtype=accumulator(x.dtype))
        order = torch.full(x.shape, 77, dtype=torch.int32)
        self._run(
            SOFT_RANK, x.shape, x.dtype is torch.float64, "soft_rank", ctypes.c_double(strength),
            *_strided(x), _pointer(ranks), _pointer(order),
        )  # fmt: skip
        return ranks, order

    def soft_rank_backward(
        self, grad_ranks: Tensor, order: Tensor, strength: float, dtype: torch.dtype
    ) -> Tensor:
        grad = torch.full(order.shape, 77.0, dtype=dtype)
        self._run(
            SOFT_RANK_BACKWARD, order.shape, False, "soft_rank_backward",
            ctypes.c_double(strength), *_strided(grad_ranks), _pointer(order), _pointer(grad),
            _DTYPE_CODES[dtype],
        )  # fmt: skip
        return grad


def special(classes: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """x, y and a mask, with a row of each kind that is treated apart (docs/rank.md)."""
    x, y = make_logits(6, classes, dtype=dtype)
    if classes >= 3:
        x[0, 0], x[0, 2], x[0, 1] = INF, -INF, -INF
        x[1, 1] = NAN
        x[2] = x[2].round()  # ties
        x[3] = 0.5
        y[4, 2] = NAN
        x[5, 0], x[5, 1] = -0.0, 0.0
    return x, y, torch.tensor([True, True, True, True, True, False])


def assert_near(got: Tensor, expected: Tensor) -> None:
    eps = torch.finfo(expected.dtype).eps
    atol = 8 * eps * float(expected.double().nan_to_num(0).abs().max())
    torch.testing.assert_close(got, expected, rtol=8 * eps, atol=atol, equal_nan=True)


# The number of classes behind every branch: one, a warp's, all threads', the large tile, runs that
# are merged (float32: beyond 4096, float64: beyond 2048), the last of them short.
CLASSES = [(1, DTYPES), (3, DTYPES), (70, DTYPES), (600, [torch.float32, torch.float64]),
           (2101, [torch.float64]), (12_500, [torch.float32])]  # fmt: skip
each_case = pytest.mark.parametrize(
    ("classes", "dtype"), [(classes, dtype) for classes, dtypes in CLASSES for dtype in dtypes]
)


@each_case
def test_hard_as_the_native_backend(classes: int, dtype: torch.dtype, library: ctypes.CDLL) -> None:
    """The same bits; three blocks take two rows each."""
    kernels = Kernels(library, most_blocks=3)
    x, y, mask = special(classes, dtype)
    got = kernels.spearman(x, y, mask, False, 1.0, 1e-8)
    assert_same_bits(got, native_rank.spearman(x, y, mask, False, 1.0, 1e-8))


@each_case
def test_soft_as_the_native_backend(classes: int, dtype: torch.dtype, library: ctypes.CDLL) -> None:
    """The same pools; the other numbers up to the order of sums."""
    kernels = Kernels(library, most_blocks=3)
    x, y, mask = special(classes, dtype)
    grad = torch.linspace(-1, 1, 6, dtype=accumulator(dtype))
    for strength in (0.05, 20.0) if classes <= 600 else (0.01,):
        got, order = kernels.soft_rank(x, strength)
        ranks, expected = native_rank.soft_rank(x, strength)
        assert_same_bits(pools_of(order), pools_of(expected))
        assert_near(got, ranks)
        weight = torch.randn(x.shape, generator=generator(classes)).to(ranks.dtype)
        arguments = (weight, order, strength, dtype)
        assert_near(
            kernels.soft_rank_backward(*arguments), native_rank.soft_rank_backward(*arguments)
        )
        soft = (mask, True, strength, 1e-8)
        assert_near(kernels.spearman(x, y, *soft), native_rank.spearman(x, y, *soft))
        back = (grad, x, y, mask, strength, 1e-8)
        assert_near(kernels.spearman_backward(*back), native_rank.spearman_backward(*back))


@pytest.mark.parametrize("classes", [40, 700])
def test_formula(classes: int, library: ctypes.CDLL) -> None:
    """Ranks of scipy and the minimax formula of isotonic regression, in float64."""
    kernels = Kernels(library)
    x, y = make_logits(3, classes, dtype=torch.float64)
    a, b = (hard_ranks(t.numpy()) for t in (x, y))
    got = kernels.spearman(x, y, None, False, 1.0, 1e-8)
    torch.testing.assert_close(
        got, torch.from_numpy(spearman_formula(a, b)), rtol=1e-12, atol=1e-13
    )
    expected = torch.from_numpy(soft_ranks(x.numpy(), 0.3))
    torch.testing.assert_close(kernels.soft_rank(x, 0.3)[0], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("classes", [70, 4200])
def test_order_of_threads_changes_no_bit(classes: int, library: ctypes.CDLL) -> None:
    """What one thread reads and another writes is behind a barrier."""
    rows = 6 if classes == 70 else 2
    x, y, mask = (t[:rows] for t in special(classes))
    grad = torch.ones(rows)
    results = []
    for backwards in (False, True):
        kernels = Kernels(library, backwards=backwards, most_blocks=rows // 2)
        ranks, order = kernels.soft_rank(x, 0.02)
        results.append([
            ranks, order,
            kernels.soft_rank_backward(ranks, order, 0.02, torch.float32),
            kernels.spearman(x, y, mask, False, 1.0, 1e-8),
            kernels.spearman(x, y, mask, True, 0.02, 1e-8),
            kernels.spearman_backward(grad, x, y, mask, 0.02, 1e-8),
        ])  # fmt: skip
    for a, b in zip(*results, strict=True):
        assert_same_bits(a, b)


def test_a_race_is_seen(library: ctypes.CDLL) -> None:
    """The emulation itself: without the barrier the result depends on the order of the threads."""
    for barrier in (True, False):
        sums = []
        for backwards in (0, 1):
            library.set_order(backwards, ctypes.c_uint(1))
            sums.append([library.neighbour(i, int(barrier)) for i in range(64)])
        assert (sums[0] == sums[1]) == barrier


@each_dtype
def test_layouts(dtype: torch.dtype, library: ctypes.CDLL) -> None:
    """Rows of any stride, expanded ones, mixed dtypes, a mask and a gradient with strides."""
    kernels = Kernels(library)
    x, y = make_logits(9, 7, dtype=dtype)
    mask = (torch.arange(18) % 4 != 0)[::2]
    grad = torch.linspace(-1, 1, 18, dtype=accumulator(dtype, torch.bfloat16))[::2]
    layouts = [(x.t().contiguous().t(), y[:, :1].expand(9, 7)), (x[::2, ::3], y[::2, 1::3]),
               (x, y.bfloat16())]  # fmt: skip
    for a, b in layouts:
        b = b[:, : a.shape[1]]
        a = a[:, : b.shape[1]]
        rows = len(a)
        for soft in (False, True):
            options = (mask[:rows], soft, 0.7, 1e-8)
            assert_near(kernels.spearman(a, b, *options), native_rank.spearman(a, b, *options))
        back = (grad[:rows], a, b, mask[:rows], 0.7, 1e-8)
        assert_near(kernels.spearman_backward(*back), native_rank.spearman_backward(*back))


@pytest.mark.parametrize("double", [False, True])
def test_plans(double: bool, library: ctypes.CDLL) -> None:
    """What a block has in scratch memory does not overlap and is aligned; blocks are enough."""
    kernels = Kernels(library)
    sizes = {"at_entries": 16 if double else 8, "at_sums": 8, "at_begins": 4, "at_y_ranks": 8,
             "at_slopes": 8}  # fmt: skip
    sizes["at_merged"] = sizes["at_entries"]
    needed = {
        HARD: {"at_begins"},
        SOFT: {"at_sums", "at_begins", "at_y_ranks"},
        SOFT_BACKWARD: {"at_sums", "at_begins", "at_y_ranks", "at_slopes"},
        SOFT_RANK: {"at_sums", "at_begins"},
        SOFT_RANK_BACKWARD: {"at_sums", "at_begins"},
    }
    for op, names in needed.items():
        for rows in (1, 70, 10**6):
            for cols in (1, 3, 256, 2049, 4097, 50_000, 2**20, 2**30 - 1):
                plan = kernels.plan(op, rows, cols, double)
                merges = op != SOFT_RANK_BACKWARD and cols > (2048 if double else 4096)
                assert bool(plan.merges) == merges
                found = {name: getattr(plan, name) for name in sizes}
                arrays = names | ({"at_entries", "at_merged"} if merges else set())
                assert {name for name, at in found.items() if at >= 0} == arrays
                ends = 0
                for at, name in sorted((found[name], name) for name in arrays):
                    assert at >= ends
                    assert at % 16 == 0
                    ends = at + cols * sizes[name]
                assert ends <= plan.block_bytes
                assert plan.block_bytes % 16 == 0
                assert 1 <= plan.blocks <= rows
                assert plan.blocks >= min(rows, 264)
                assert plan.scratch_bytes == plan.blocks * plan.block_bytes
                assert plan.threads % 32 == 0
