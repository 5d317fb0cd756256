"""Kernels of the correlation's backward.

gradient_kernel       whole rows in registers
long_gradient_kernel  rows in blocks, twice: sum_k p_k g_k, then the gradient

With p and q from the rows' statistics, g = (a q~ - b p~) + (A q~ - B p~) and
dz = grad_loss / T p (g - sum_k p_k g_k); see csrc/include/r2kd/correlation.h.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .arithmetic import scalar, scaled_exp
from .forward import kept_rows


@triton.jit
def slope(
    p, q, row_a, row_b,  # p, q: [R, K], row_a, row_b: [R, 1]
    col_stats, col, within, cols,  # col, within: [1, K]
    class_mean,
    CENTERED: tl.constexpr, INTER: tl.constexpr, INTRA: tl.constexpr,
):  # fmt: skip
    """dloss/dp of a tile: [R, K]."""
    g = tl.zeros_like(p)
    if INTRA:
        col_a = tl.load(col_stats + col, mask=within, other=0.0)
        col_b = tl.load(col_stats + cols + col, mask=within, other=0.0)
    if CENTERED:
        if INTER:
            g = (q - class_mean) * row_a - (p - class_mean) * row_b
        if INTRA:
            mean_p = tl.load(col_stats + 2 * cols + col, mask=within, other=0.0)
            mean_q = tl.load(col_stats + 3 * cols + col, mask=within, other=0.0)
            rest = tl.load(col_stats + 4 * cols + col, mask=within, other=0.0)
            g += (q - mean_q) * col_a - (p - mean_p) * col_b + rest
    elif INTER and INTRA:
        g = q * (col_a + row_a) - p * (col_b + row_b)
    elif INTER:
        g = q * row_a - p * row_b
    else:
        g = q * col_a - p * col_b
    return g


@triton.jit(do_not_specialize=["rows"])
def gradient_kernel(
    grad_loss,  # []
    student, teacher,  # [B, C]
    mask,  # [B] or unused
    stats,  # [6 B + 5 C]
    grad_student,  # [B, C] contiguous
    rows, cols,
    student_row, student_col, teacher_row, teacher_col, mask_stride,
    scale, scale_rest, inverse_temperature, class_mean,
    DOUBLE: tl.constexpr, MASKED: tl.constexpr, CENTERED: tl.constexpr,
    INTER: tl.constexpr, INTRA: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    ACC: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    scale = scalar(scale, DOUBLE)
    scale_rest = scalar(scale_rest, DOUBLE)
    class_mean = scalar(class_mean, DOUBLE)
    factor = tl.load(grad_loss) * scalar(inverse_temperature, DOUBLE)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)  # [R]
    keep = kept_rows(mask, mask_stride, row, rows, MASKED)
    col = tl.arange(0, BLOCK)[None, :]  # [1, K]
    within = col < cols
    far = col.to(tl.int64)
    valid = keep[:, None] & within
    z = tl.load(
        student + row[:, None] * student_row + far * student_col, mask=valid, other=float("-inf")
    ).to(ACC)  # [R, K]
    y = tl.load(
        teacher + row[:, None] * teacher_row + far * teacher_col, mask=valid, other=float("-inf")
    ).to(ACC)  # [R, K]
    place = stats + row[:, None] * 6
    kept = keep[:, None]
    z_max = tl.load(place, mask=kept, other=0.0)  # [R, 1]
    p_scale = tl.load(place + 1, mask=kept, other=0.0)
    y_max = tl.load(place + 2, mask=kept, other=0.0)
    q_scale = tl.load(place + 3, mask=kept, other=0.0)
    row_a = tl.zeros_like(z_max)
    row_b = row_a
    if INTER:
        row_a = tl.load(place + 4, mask=kept, other=0.0)
        row_b = tl.load(place + 5, mask=kept, other=0.0)
    p = scaled_exp(z - z_max, scale, scale_rest) * p_scale
    q = scaled_exp(y - y_max, scale, scale_rest) * q_scale
    g = slope(
        p, q, row_a, row_b, stats + rows.to(tl.int64) * 6, col, within, cols, class_mean,
        CENTERED, INTER, INTRA,
    )  # fmt: skip
    mean_g = tl.sum(p * g, 1)[:, None]  # [R, 1]; p = 0 in the padding
    grad = tl.where(kept, p * (g - mean_g) * factor, 0.0)
    target = grad_student + row[:, None] * cols + col
    tl.store(target, grad.to(grad_student.dtype.element_ty), mask=(row < rows)[:, None] & within)


@triton.jit(do_not_specialize=["rows"])
def long_gradient_kernel(
    grad_loss,  # []
    student, teacher,  # [B, C]
    mask,  # [B] or unused
    stats,  # [6 B + 5 C]
    grad_student,  # [B, C] contiguous
    rows, cols,
    student_row, student_col, teacher_row, teacher_col, mask_stride,
    scale, scale_rest, inverse_temperature, class_mean,
    DOUBLE: tl.constexpr, MASKED: tl.constexpr, CENTERED: tl.constexpr,
    INTER: tl.constexpr, INTRA: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    ACC: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    scale = scalar(scale, DOUBLE)
    scale_rest = scalar(scale_rest, DOUBLE)
    class_mean = scalar(class_mean, DOUBLE)
    factor = tl.load(grad_loss) * scalar(inverse_temperature, DOUBLE)
    row = tl.program_id(0).to(tl.int64)
    col_stats = stats + rows.to(tl.int64) * 6
    target = grad_student + row * cols
    if kept_rows(mask, mask_stride, row, rows, MASKED):
        place = stats + row * 6
        z_max = tl.load(place)
        p_scale = tl.load(place + 1)
        y_max = tl.load(place + 2)
        q_scale = tl.load(place + 3)
        row_a = tl.zeros_like(z_max)
        row_b = row_a
        if INTER:
            row_a = tl.load(place + 4)
            row_b = tl.load(place + 5)
        mean_g = tl.zeros_like(z_max)
        for sweep in tl.static_range(2):
            for start in range(0, cols, BLOCK):
                col = start + tl.arange(0, BLOCK)  # [K]
                within = col < cols
                far = col.to(tl.int64)
                z = tl.load(
                    student + row * student_row + far * student_col,
                    mask=within, other=float("-inf"),
                ).to(ACC)  # [K]  # fmt: skip
                y = tl.load(
                    teacher + row * teacher_row + far * teacher_col,
                    mask=within, other=float("-inf"),
                ).to(ACC)  # [K]  # fmt: skip
                p = scaled_exp(z - z_max, scale, scale_rest) * p_scale
                q = scaled_exp(y - y_max, scale, scale_rest) * q_scale
                g = slope(
                    p, q, row_a, row_b, col_stats, col, within, cols, class_mean,
                    CENTERED, INTER, INTRA,
                )  # fmt: skip
                if sweep == 0:
                    mean_g += tl.sum(p * g, 0)
                else:
                    grad = p * (g - mean_g) * factor
                    tl.store(target + col, grad.to(grad_student.dtype.element_ty), mask=within)
    else:
        for start in range(0, cols, BLOCK):
            col = start + tl.arange(0, BLOCK)
            zeros = tl.zeros([BLOCK], grad_student.dtype.element_ty)
            tl.store(target + col, zeros, mask=col < cols)
