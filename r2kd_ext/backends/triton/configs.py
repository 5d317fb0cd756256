"""Block sizes and warps by number of classes and accumulating type: a fixed table, no autotuning.

Nothing here has been timed on a GPU yet (docs/gpu.md). The limits follow from registers: no line
spills on sm_80, sm_90 or sm_100 (python_tests/test_triton_compile.py); gradient_kernel with 8192
numbers in a row does.
"""

from __future__ import annotations

from typing import NamedTuple

# Rows that fit in registers, by the padded number of classes up to which a line holds: numbers in
# a tile of rows, warps. Beyond the last line rows are taken in blocks.
_WHOLE_ROWS = {
    False: ((1024, 1024, 4), (2048, 2048, 8), (4096, 4096, 16)),
    True: ((256, 512, 4), (2048, 512, 8)),
}
_MOST_ROWS = 64  # in a tile
_BLOCKS = {False: (4096, 16), True: (2048, 16)}  # numbers in a block of a long row, warps
_FUSED = {False: 2048, True: 1024}  # padded classes up to which rows_kernel does the columns too
_COLUMNS = {False: (8, 128, 4), True: (4, 128, 4)}  # rows, columns of a tile, warps
_FINISH = {False: (2048, 4), True: (1024, 4)}  # numbers in a tile, warps
_MAX_PARTS = 256  # partial moments of the columns; finish_kernel takes all in one tile
_ROWS_PER_PART = 8  # at least: the partial moments are then no more traffic than the logits
SUM_BLOCK = 1024
WEIGHED_ROWS = 2048  # rows that weigh_kernel takes at a time
_SORTED_COLS = 4096  # in registers; twice as many take minutes to compile
_SORTED_BLOCK = 64  # at least
_NUMBERS_PER_WARP = 256  # of a sorted row: 8 keys of 64 bits in a thread
POOLED_ROWS = 32  # a lane each, so that no lane reads what another one wrote


class Config(NamedTuple):
    """A tile of `rows` x `block` numbers; `block` < C where a row is taken in blocks."""

    rows: int
    block: int
    warps: int


SPARSE = Config(8, 128, 4)  # rows of a sparse weight, samples or pixels of a tile


class Table(NamedTuple):
    """The configurations of all kernels for one number of classes.

    `fused`: rows_kernel computes the columns' partial moments, columns_kernel does not run.
    `long`: long_rows_kernel and long_gradient_kernel take the place of the other two.
    """

    rows: Config
    columns: Config
    fused: bool
    long: bool


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << (n - 1).bit_length()


def table(cols: int, double: bool) -> Table:
    """The configurations for C = `cols`; `double`: accumulating in float64."""
    padded = max(power_of_two(cols), 8)
    columns = Config(*_COLUMNS[double])
    for limit, tile, warps in _WHOLE_ROWS[double]:
        if padded <= limit:
            rows = Config(min(max(tile // padded, 1), _MOST_ROWS), padded, warps)
            return Table(rows, columns, fused=padded <= _FUSED[double], long=False)
    block, warps = _BLOCKS[double]
    return Table(Config(1, block, warps), columns, fused=False, long=True)


def parts(rows: int, tile_rows: int) -> tuple[int, int]:
    """Number of parts that the rows are split into, and tiles of `tile_rows` rows in each."""
    tiles = -(-rows // tile_rows)
    wanted = max(1, min(tiles, _MAX_PARTS, rows // _ROWS_PER_PART))
    each = -(-tiles // wanted)
    return -(-tiles // each), each


def sorts_in_registers(cols: int, double: bool) -> bool:
    """Whether rows are sorted by the kernels, else by torch.sort: float64 and an index do not fit
    into a key of 64 bits."""
    return cols <= _SORTED_COLS and not double


def sort(cols: int) -> Config:
    """The tile of a row that is sorted in registers."""
    block = max(power_of_two(cols), _SORTED_BLOCK)
    return Config(1, block, max(block // _NUMBERS_PER_WARP, 1))


def pass_over(cols: int) -> Config:
    """The tile in which a row is passed over, block by block."""
    block = min(max(power_of_two(cols), 16), SUM_BLOCK)
    return Config(1, block, max(block // 128, 1))  # with 256 to a warp, float64 spills


def finish(parts: int, cols: int, double: bool) -> Config:
    """finish_kernel's tile: all parts, padded to a power of two, times a block of columns."""
    padded = power_of_two(parts)
    tile, warps = _FINISH[double]
    return Config(padded, min(tile // padded, max(power_of_two(cols), 8)), warps)
