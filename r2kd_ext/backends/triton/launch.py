"""Launchers of the correlation's Triton kernels: the kernels of the ops of the same name.

Nothing here waits for the device, and no branch depends on what is in a tensor, so that a CUDA
graph can capture every call. Arguments have been checked by the caller.
"""

from __future__ import annotations

import struct
from contextlib import AbstractContextManager
from fractions import Fraction
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..._dtypes import accumulator
from ..native import statistics_size
from . import configs, interpreter
from .backward import gradient_kernel, long_gradient_kernel
from .columns import COSINE_MOMENTS, PEARSON_MOMENTS
from .forward import (
    columns_kernel,
    finish_kernel,
    long_rows_kernel,
    loss_kernel,
    rows_kernel,
    weigh_kernel,
)

# log2(e), to twice the digits of a double.
_LOG2_E = Fraction(14426950408889634073599246810018921374, 10**37)


def packed(x: float, double: bool) -> float | int:
    """A number >= 0 as a kernel takes it (`arithmetic.scalar`).

    Triton passes a float as float32. In float64 the bits of -x go as an integer: the sign bit keeps
    it outside of int32, so that Triton always makes it an int64.
    """
    return struct.unpack("<q", struct.pack("<d", -x))[0] if double else x


@lru_cache(maxsize=256)
def _exp_scale(temperature: float, double: bool) -> tuple[float | int, float | int]:
    """log2(e) / T as a number of the accumulating type and what its rounding down left."""
    exact = _LOG2_E / Fraction(temperature)
    scale = _rounded_down(exact, double)
    return packed(scale, double), packed(float(exact - Fraction(scale)), double)


def _rounded_down(exact: Fraction, double: bool) -> float:
    scale = float(exact)
    if not double:
        scale = struct.unpack("<f", struct.pack("<f", scale))[0]
    if Fraction(scale) <= exact:
        return scale
    kind, bits = ("<d", "<q") if double else ("<f", "<i")
    below = struct.unpack(bits, struct.pack(kind, scale))[0] - 1
    return float(struct.unpack(kind, struct.pack(bits, below))[0])


def on_device_of(x: Tensor) -> AbstractContextManager[Any]:
    """Makes the device of x the current one, on whose current stream Triton launches."""
    if x.device.type == "cpu":
        return interpreter.quiet()
    return getattr(torch, x.device.type).device(x.device)


class _Operands:
    """The tensors of one call as kernels take them."""

    def __init__(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> None:
        self.rows, self.cols = student.shape
        self.dtype = accumulator(student.dtype, teacher.dtype)
        self.double = self.dtype == torch.float64
        self.masked = mask is not None
        if student.device.type == "cpu":
            student, teacher = interpreter.readable(student), interpreter.readable(teacher)
        self.logits = (student, teacher)
        self.mask = None if mask is None else mask.view(torch.uint8)  # [B]
        self.mask_stride = 0 if mask is None else mask.stride(0)
        self.strides = (*student.stride(), *teacher.stride(), self.mask_stride)


def correlation(
    student: Tensor,  # [B, C]
    teacher: Tensor,  # [B, C]
    mask: Tensor | None,  # [B] bool
    temperature: float,
    centered: bool,
    inter_weight: float,
    intra_weight: float,
    eps: float,
    sample_weight: Tensor | None = None,  # [B] float64
) -> tuple[Tensor, Tensor]:
    given = _Operands(student, teacher, mask)
    rows, cols, double = given.rows, given.cols, given.double
    inter, intra = inter_weight != 0, intra_weight != 0
    stats = student.new_empty(statistics_size(rows, cols), dtype=given.dtype)
    if rows == 0 or not (inter or intra):
        return student.new_zeros((), dtype=given.dtype), stats
    loss = student.new_empty((), dtype=given.dtype)  # []
    with on_device_of(student):
        weighted = inter and sample_weight is not None
        weight = sample_weight.contiguous() if sample_weight is not None and weighted else None
        totals = None
        if mask is not None or weighted:
            totals = stats.new_empty(3, dtype=torch.float64)
            weigh_kernel[(1,)](
                given.mask, weight, totals, rows, given.mask_stride,
                MASKED=given.masked, WEIGHTED=weighted,
                BLOCK=configs.WEIGHED_ROWS, num_warps=16,
            )  # fmt: skip
        # Where not all rows count alike, the kernels divide by `totals` instead.
        row_weight = packed(inter_weight / rows if totals is None else inter_weight, double)
        col_weight = packed(intra_weight / cols, double)
        packed_eps = packed(eps, double)
        scale = _exp_scale(temperature, double)
        flags = {"DOUBLE": double, "MASKED": given.masked, "WEIGHTED": weighted}
        table = configs.table(cols, double)
        fused = intra and table.fused
        tile = table.rows if fused else table.columns
        parts, tiles = configs.parts(rows, tile.rows) if intra else (0, 0)
        moments = PEARSON_MOMENTS if centered else COSINE_MOMENTS
        partials = stats.new_empty(parts * moments * cols)  # [P, M, C]
        counts = stats.new_empty(parts)  # [P]

        row_tile = table.rows
        if table.long:
            row_parts = rows
        else:
            row_parts, row_tiles = (parts, tiles) if fused else (-(-rows // row_tile.rows), 1)
        row_losses = stats.new_empty(row_parts)
        if table.long:
            long_rows_kernel[(rows,)](
                *given.logits, given.mask, weight, totals, stats, row_losses,
                rows, cols, *given.strides, *scale, row_weight, packed_eps,
                **flags, CENTERED=centered, INTER=inter, BLOCK=row_tile.block,
                num_warps=row_tile.warps,
            )  # fmt: skip
        else:
            rows_kernel[(row_parts,)](
                *given.logits, given.mask, weight, totals, stats, row_losses, partials, counts,
                rows, cols, row_tiles, *given.strides,
                *scale, row_weight, packed_eps, packed(1 / cols, double),
                **flags, CENTERED=centered, INTER=inter, COLUMNS=fused,
                ROWS=row_tile.rows, BLOCK=row_tile.block, num_warps=row_tile.warps,
            )  # fmt: skip
        if intra and not fused:
            columns_kernel[(-(-cols // tile.block), parts)](
                *given.logits, given.mask, stats, partials, counts,
                rows, cols, tiles, *given.strides, *scale,
                DOUBLE=double, MASKED=given.masked, CENTERED=centered,
                ROWS=tile.rows, BLOCK=tile.block, num_warps=tile.warps,
            )  # fmt: skip
        col_parts = 0
        col_losses = counts
        if intra:
            finish = configs.finish(parts, cols, double)
            col_parts = -(-cols // finish.block)
            col_losses = stats.new_empty(col_parts)
            finish_kernel[(col_parts,)](
                partials, counts, stats, col_losses, loss, totals, row_losses, row_parts,
                rows, parts, cols, row_weight, col_weight, packed_eps,
                **flags, CENTERED=centered, INTER=inter, LOSS=col_parts == 1,
                PARTS=finish.rows, BLOCK=finish.block, SUM_BLOCK=configs.SUM_BLOCK,
                num_warps=finish.warps,
            )  # fmt: skip
        if col_parts != 1:
            loss_kernel[(1,)](
                loss, totals, row_losses, row_parts, col_losses, col_parts, row_weight, col_weight,
                **flags, INTER=inter, INTRA=intra, BLOCK=configs.SUM_BLOCK, num_warps=4,
            )  # fmt: skip
    return loss, stats


def correlation_backward(
    grad_loss: Tensor,  # []
    student: Tensor,  # [B, C]
    teacher: Tensor,  # [B, C]
    mask: Tensor | None,  # [B] bool
    stats: Tensor,
    temperature: float,
    centered: bool,
    inter_weight: float,
    intra_weight: float,
) -> Tensor:
    given = _Operands(student, teacher, mask)
    rows, cols, double = given.rows, given.cols, given.double
    inter, intra = inter_weight != 0, intra_weight != 0
    if rows == 0 or not (inter or intra):
        return student.new_zeros((rows, cols))
    grad_student = student.new_empty((rows, cols))  # [B, C]
    target = interpreter.writable(grad_student) if student.device.type == "cpu" else grad_student
    table = configs.table(cols, double)
    tile = table.rows
    arguments = (
        grad_loss, *given.logits, given.mask, stats, target, rows, cols, *given.strides,
        *_exp_scale(temperature, double),
        packed(1 / temperature, double), packed(1 / cols, double),
    )  # fmt: skip
    options = {
        "DOUBLE": double, "MASKED": given.masked, "CENTERED": centered,
        "INTER": inter, "INTRA": intra, "BLOCK": tile.block, "num_warps": tile.warps,
    }  # fmt: skip
    with on_device_of(student):
        if table.long:
            long_gradient_kernel[(rows,)](*arguments, **options)
        else:
            gradient_kernel[(-(-rows // tile.rows),)](*arguments, **options, ROWS=tile.rows)
    return grad_student if target is grad_student else grad_student.copy_(target)
