"""The CUDA kernels of the sparse layers on the CPU, every thread a fibre (emulated_cuda/).

This runs the kernels themselves: their indices, their arithmetic, shared memory, and whether all
threads reach every barrier. What the hardware does is left to test_sparse_kernels_gpu.py.
"""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import pytest
import torch
from compare import assert_same_bits
from emulation import emulated_library
from sparse_cases import DTYPES, check, csr, laid_out, sparse
from torch import Tensor
from torch.nn import functional as F

from r2kd_ext.backends.native import _DTYPE_CODES
from r2kd_ext.backends.reference_sparse import conv2d_output

POISON = 77.0
ENTRIES = 2048  # bytes of shared memory that the warps of a block have for entries


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("sparse")
    return emulated_library(folder, "emulated_sparse.cpp", ("csr_linear", "csr_conv2d"))


class LinearPlan(NamedTuple):
    rows: int
    samples: int
    columns: int
    row_tiles: int
    tiles: int
    shared_bytes: int


class Conv2dPlan(NamedTuple):
    rows: int
    bands: int
    band_rows: int
    lane_blocks: int
    tile_rows: int
    tile_cols: int
    tiles_down: int
    tiles_across: int
    whole: int
    patch_cols: int
    positions: int
    unit_columns: int
    units: int
    staged_units: int
    row_tiles: int
    tiles: int
    shared_bytes: int


def _pointer(x: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(0 if x is None else x.data_ptr())


def _numbers(*numbers: int) -> ctypes.Array[ctypes.c_int64]:
    return (ctypes.c_int64 * len(numbers))(*numbers)


class Kernels:
    """The ops' kernels by the emulated entries: outputs are poisoned first."""

    def __init__(
        self, library: ctypes.CDLL, *, backwards: bool = False, most_blocks: int = 1 << 30,
        multiprocessors: int = 132,
    ) -> None:  # fmt: skip
        self.library, self.multiprocessors = library, multiprocessors
        self.set_up = int(backwards), ctypes.c_uint(most_blocks), multiprocessors

    def plan_linear(self, batch: int, rows: int, cols: int) -> LinearPlan:
        out = _numbers(*[0] * len(LinearPlan._fields))
        sizes = (ctypes.c_int64(n) for n in (batch, rows, cols))
        self.library.plan_linear(*sizes, self.multiprocessors, out)
        return LinearPlan(*out)

    def plan_conv2d(self, *sizes: int) -> Conv2dPlan:
        out = _numbers(*[0] * len(Conv2dPlan._fields))
        self.library.plan_conv2d(_numbers(*sizes), self.multiprocessors, out)
        return Conv2dPlan(*out)

    def csr_linear(
        self, x: Tensor, values: Tensor, columns: Tensor, row_offsets: Tensor, bias: Tensor | None
    ) -> Tensor:
        rows = len(row_offsets) - 1
        y = torch.full((x.shape[0], rows), POISON, dtype=x.dtype)
        self.library.set_up(*self.set_up)
        sizes = (ctypes.c_int64(n) for n in (x.shape[0], rows, x.shape[1]))
        strides = (ctypes.c_int64(n) for n in x.stride())
        code = self.library.csr_linear(
            *sizes, _pointer(x), *strides, _DTYPE_CODES[x.dtype], _pointer(values),
            _pointer(columns), _pointer(row_offsets), _pointer(bias), _pointer(y),
        )  # fmt: skip
        assert code == 0
        return y

    def csr_conv2d(
        self, x: Tensor, values: Tensor, columns: Tensor, row_offsets: Tensor, bias: Tensor | None,
        kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int],
        dilation: tuple[int, int], groups: int,
    ) -> Tensor:  # fmt: skip
        rows = len(row_offsets) - 1
        options = [list(pair) for pair in (kernel, stride, padding, dilation)]
        y = conv2d_output(x, rows, *options).fill_(POISON)
        sizes = (*x.shape, *y.shape[1:], *kernel, *stride, *padding, *dilation, groups)
        self.library.set_up(*self.set_up)
        code = self.library.csr_conv2d(
            _numbers(*sizes), _pointer(x), _numbers(*x.stride()), _DTYPE_CODES[x.dtype],
            _pointer(values), _pointer(columns), _pointer(row_offsets), _pointer(bias),
            _pointer(y), int(not y.is_contiguous()),
        )  # fmt: skip
        assert code == 0
        return y


# Batch, rows and columns; the share that is not zero; rows of a warp and samples of a lane.
LINEAR = [
    ((1, 1, 1), 1.0, (4, 1)),  # one of everything: all lanes and warps but one are past the end
    ((33, 35, 70), 0.3, (4, 1)),  # a second tile of samples and of rows, both short
    ((3, 40, 1100), 0.1, (4, 1)),  # three blocks of columns, the last one short
    ((5, 4, 300), 1.0, (4, 1)),  # rows of many more entries than a warp loads at a time
    ((20, 3, 64), 0.0, (4, 1)),  # no entry at all: the bias alone
    # Tall tiles, which need enough of them.
    ((31, 144, 530), 0.05, (16, 1)),
    ((60, 130, 270), 0.1, (16, 2)),
    ((130, 80, 150), 0.1, (16, 4)),
    ((100, 261, 9), 0.5, (16, 4)),  # outputs of a warp in no whole pieces of 16 bytes
]
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@each_dtype
@pytest.mark.parametrize(("shape", "density", "tile"), LINEAR, ids=str)
def test_linear(
    shape: tuple[int, int, int], density: float, tile: tuple[int, int], dtype: torch.dtype,
    library: ctypes.CDLL,
) -> None:  # fmt: skip
    batch, rows, cols = shape
    kernels = Kernels(library, most_blocks=3, multiprocessors=2)
    plan = kernels.plan_linear(*shape)
    assert (plan.rows, plan.samples) == tile
    torch.manual_seed(rows)
    weight = sparse(rows, cols, density=density, dtype=dtype)
    weight[rows // 3] = 0
    bias = torch.randn(rows).to(dtype)
    x = torch.randn(batch, cols).to(dtype)
    check(kernels.csr_linear(x, *csr(weight), bias), F.linear, x, weight, bias)


@pytest.mark.parametrize("multiprocessors", [1, 2, 3, 132])
def test_no_bit_depends_on_the_tiles(multiprocessors: int, library: ctypes.CDLL) -> None:
    """Samples and rows in the tiles of a large call, and by themselves."""
    torch.manual_seed(3)
    weight, x, bias = sparse(150, 600, density=0.05), torch.randn(130, 600), torch.randn(150)
    kernels = Kernels(library, multiprocessors=multiprocessors)
    samples = kernels.plan_linear(130, 150, 600).samples
    assert samples == {1: 4, 2: 4, 3: 4, 132: 1}[multiprocessors]
    whole = kernels.csr_linear(x, *csr(weight), bias)
    part = Kernels(library).csr_linear(x[60:70], *csr(weight[125:131]), bias[125:131])
    assert_same_bits(part, whole[60:70, 125:131].contiguous())


@pytest.mark.parametrize("layout", ["every_second", "transposed", "expanded"])
@each_dtype
def test_linear_layouts(layout: str, dtype: torch.dtype, library: ctypes.CDLL) -> None:
    torch.manual_seed(4)
    weight = sparse(20, 37, density=0.3, dtype=dtype)
    x = laid_out((9, 37), layout, dtype)
    check(Kernels(library).csr_linear(x, *csr(weight), None), F.linear, x, weight, None)


class Conv2dCase(NamedTuple):
    x: tuple[int, int, int, int]
    rows: int
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    density: float = 0.3


CONV2D = {
    "one of everything": Conv2dCase((1, 1, 1, 1), 1, (1, 1), padding=(0, 0), density=1.0),
    "images in the lanes, a second block": Conv2dCase((35, 3, 5, 9), 5),
    "bands of rows in the lanes, the last one short": Conv2dCase((3, 2, 23, 6), 4),
    "two rows of pixels to a tile": Conv2dCase((33, 2, 3, 4), 3),
    "more rows of the weight than a block has": Conv2dCase((32, 2, 1, 8), 21, density=0.6),
    "blocks of channels, the last one short": Conv2dCase((32, 40, 2, 8), 3),
    "stride and dilation": Conv2dCase((4, 3, 9, 13), 4, (2, 3), (2, 1), (0, 2), (3, 2)),
    "stride without overlap: columns instead of channels": Conv2dCase(
        (33, 70, 4, 15), 4, (1, 1), (2, 2), (0, 0)
    ),
    "a kernel that no block can hold": Conv2dCase((32, 2, 24, 25), 2, (24, 23), padding=(0, 0)),
    "more padding than image": Conv2dCase((2, 2, 2, 3), 3, (2, 5), padding=(3, 9)),
    "groups": Conv2dCase((5, 6, 4, 7), 9, groups=3),
    "a group for each channel": Conv2dCase((2, 5, 4, 8), 5, groups=5, density=1.0),
    "no entry at all": Conv2dCase((2, 3, 4, 5), 3, density=0.0),
    "four rows to a warp": Conv2dCase((32, 4, 2, 8), 30, density=0.1),
    "eight rows to a warp": Conv2dCase((32, 4, 2, 8), 70, density=0.1),
}


def run_conv2d(
    kernels: Kernels, case: Conv2dCase, layout: str, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    torch.manual_seed(case.rows)
    channels = case.x[1] // case.groups
    weight = sparse(case.rows, channels, *case.kernel, density=case.density, dtype=dtype)
    weight[case.rows // 3] = 0
    bias = torch.randn(case.rows).to(dtype)
    x = laid_out(case.x, layout, dtype)
    options: tuple[Any, ...] = (case.stride, case.padding, case.dilation, case.groups)
    y = kernels.csr_conv2d(x, *csr(weight.flatten(1)), bias, case.kernel, *options)
    check(y, lambda a, w, b: F.conv2d(a, w, b, *options), x, weight, bias)
    return x, y


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("name", CONV2D)
def test_conv2d(name: str, layout: str, library: ctypes.CDLL) -> None:
    kernels = Kernels(library, most_blocks=7, multiprocessors=2)
    x, y = run_conv2d(kernels, CONV2D[name], layout, torch.float32)
    last = not x.is_contiguous() and layout == "channels_last"
    wanted = torch.channels_last if last else torch.contiguous_format
    assert y.is_contiguous(memory_format=wanted)


@pytest.mark.parametrize(
    "layout", ["contiguous", "channels_last", "every_second", "transposed", "expanded"]
)
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("width", [8, 7])
def test_conv2d_dtypes_and_layouts(
    width: int, dtype: torch.dtype, layout: str, library: ctypes.CDLL
) -> None:
    """Whole pieces of 16 bytes in a row of pixels, and odd widths."""
    case = Conv2dCase((6, 4, 4, width), 16, density=0.4)
    run_conv2d(Kernels(library, multiprocessors=1), case, layout, dtype)


def test_order_of_threads_changes_no_bit(library: ctypes.CDLL) -> None:
    """What one thread reads and another writes is behind a barrier."""
    torch.manual_seed(5)
    weight, x = sparse(40, 600, density=0.1), torch.randn(40, 600)
    images, kernel = torch.randn(33, 90, 3, 5), sparse(6, 90, 1, 1, density=0.3)
    entries, one = csr(kernel.flatten(1)), ((1, 1), (0, 0), (1, 1))
    results = []
    for backwards in (False, True):
        kernels = Kernels(library, backwards=backwards, most_blocks=2)
        results.append((
            kernels.csr_linear(x, *csr(weight), None),
            kernels.csr_conv2d(images, *entries, None, one[0], *one, 1),
        ))  # fmt: skip
    for a, b in zip(*results, strict=True):
        assert_same_bits(a, b)


def test_what_is_left_out_adds_nothing(library: ctypes.CDLL) -> None:
    x = torch.tensor([[1.0, torch.inf, torch.nan]])
    matrix = csr(torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]))
    y = Kernels(library).csr_linear(x, *matrix, None)[0]
    assert y[0] == 2
    assert y[1] == torch.inf
    assert y[2].isnan()


def test_plans_of_linear(library: ctypes.CDLL) -> None:
    """Tiles cover everything, and two blocks fit into a multiprocessor of sm_80 (164 KiB)."""
    kernels = Kernels(library)
    for batch in (1, 32, 33, 64, 256, 4096, 2**31):
        for rows in (1, 10, 100, 2048, 4096, 10**6):
            for cols in (1, 31, 512, 4096, 2**31 - 1):
                plan = kernels.plan_linear(batch, rows, cols)
                tall, wide = 8 * plan.rows, 32 * plan.samples
                assert plan.row_tiles == -(-rows // tall)
                assert plan.tiles == plan.row_tiles * -(-batch // wide)
                assert min(cols, 128) <= plan.columns <= 512
                assert plan.shared_bytes == ENTRIES + 4 * plan.columns * (wide + 1)
                assert plan.shared_bytes <= 80 * 1024
                if plan.rows > 4:  # a tall tile is neither mostly empty nor one of few
                    assert plan.tiles >= 132
                    assert 2 * rows > tall
                    assert 2 * batch > wide


KERNELS = [((1, 1), (1, 1), (1, 1)), ((3, 3), (1, 1), (1, 1)), ((1, 1), (2, 2), (1, 1)),
           ((3, 3), (2, 2), (4, 1)), ((31, 200), (1, 1), (1, 1)),
           ((2, 2), (9, 9), (99, 3))]  # fmt: skip


def test_plans_of_conv2d(library: ctypes.CDLL) -> None:
    kernels = Kernels(library)
    for batch in (1, 3, 32, 64, 2**31):
        for channels, rows, groups in ((1, 1, 1), (128, 256, 1), (64, 64, 64), (6, 10, 2)):
            for size in ((1, 1), (7, 7), (16, 16), (1, 300), (224, 4)):
                for kernel, stride, dilation in KERNELS:
                    out = size
                    numbers = (
                        batch, channels, 1000, 1000, rows, *out, *kernel, *stride, 0, 0,
                        *dilation, groups,
                    )  # fmt: skip
                    plan = kernels.plan_conv2d(*numbers)
                    area = kernel[0] * kernel[1]
                    assert (plan.bands - 1) * plan.band_rows < out[0] <= plan.bands * plan.band_rows
                    assert plan.lane_blocks == -(-batch * plan.bands // 32)
                    assert (plan.tile_rows, plan.tile_cols) <= (2, 4) or plan.tile_rows == 1
                    assert 1 <= plan.tile_cols <= 8
                    assert plan.tiles_down == -(-plan.band_rows // plan.tile_rows)
                    assert plan.tiles_across == -(-out[1] // plan.tile_cols)
                    assert plan.units * plan.unit_columns == channels // groups * area
                    assert 1 <= plan.staged_units <= plan.units
                    assert plan.staged_units * plan.positions <= 512
                    assert plan.positions <= 8 * plan.unit_columns  # no more than unfolded
                    assert plan.row_tiles == -(-(rows // groups) // (8 * plan.rows))
                    tiles = groups * plan.tiles_down * plan.tiles_across * plan.lane_blocks
                    assert plan.tiles == plan.row_tiles * tiles
                    places = plan.staged_units * plan.positions
                    table = 4 * plan.staged_units * plan.unit_columns
                    assert plan.shared_bytes == ENTRIES + table + 4 * 33 * places
                    assert plan.shared_bytes <= 80 * 1024
