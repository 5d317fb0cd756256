"""The compiled kernels on tensors: addresses, sizes and strides in, tensors out.

Arguments are those of the ops (`r2kd_ext.ops`) and have been checked there or above.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _core

_DTYPE_CODES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
_ROW_STATS: int = _core.ROW_STATS
_COL_STATS: int = _core.COL_STATS
_forward = _core.correlation_forward
_backward = _core.correlation_backward


def statistics_size(rows: int, cols: int) -> int:
    """Elements of the statistics that forward leaves for backward: O(rows + cols)."""
    return _ROW_STATS * rows + _COL_STATS * cols


def correlation(
    student: Tensor,  # [B, C]
    teacher: Tensor,  # [B, C]
    mask: Tensor | None,  # [B] bool
    temperature: float,
    centered: bool,
    inter_weight: float,
    intra_weight: float,
    eps: float,
) -> tuple[Tensor, Tensor]:
    rows, cols = student.shape
    student_dtype, teacher_dtype = student.dtype, teacher.dtype
    double = student_dtype == torch.float64 or teacher_dtype == torch.float64
    dtype = torch.float64 if double else torch.float32
    loss = torch.empty((), dtype=dtype)  # []
    stats = torch.empty(_ROW_STATS * rows + _COL_STATS * cols, dtype=dtype)
    student_row, student_col = student.stride()
    teacher_row, teacher_col = teacher.stride()
    _forward(
        rows, cols, temperature, centered, inter_weight, intra_weight, eps,
        student.data_ptr(), student_row, student_col, _DTYPE_CODES[student_dtype],
        teacher.data_ptr(), teacher_row, teacher_col, _DTYPE_CODES[teacher_dtype],
        0 if mask is None else mask.data_ptr(), 0 if mask is None else mask.stride(0),
        loss.data_ptr(), stats.data_ptr(), torch.get_num_threads(),
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
    rows, cols = student.shape
    student_dtype = student.dtype
    grad_student = torch.empty((rows, cols), dtype=student_dtype)  # [B, C]
    student_row, student_col = student.stride()
    teacher_row, teacher_col = teacher.stride()
    _backward(
        rows, cols, temperature, centered, inter_weight, intra_weight,
        student.data_ptr(), student_row, student_col, _DTYPE_CODES[student_dtype],
        teacher.data_ptr(), teacher_row, teacher_col, _DTYPE_CODES[teacher.dtype],
        0 if mask is None else mask.data_ptr(), 0 if mask is None else mask.stride(0),
        grad_loss.data_ptr(), stats.data_ptr(), grad_student.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return grad_student
