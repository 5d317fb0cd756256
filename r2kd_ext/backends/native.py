"""The compiled kernels on CPU tensors: addresses, sizes and strides in, tensors out.

`correlation` and `correlation_backward` are the kernels of the ops of the same name. The pair
`correlation_contiguous` and `correlation_contiguous_backward` does the same for the common case at
less than half of the cost per call. Arguments have been checked by the caller. Results are made
like an argument, never by torch.empty alone, which heeds torch.set_default_device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import _core
from .._dtypes import accumulator

if TYPE_CHECKING:
    from .._arguments import CorrelationOptions

_DTYPE_CODES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
ROW_STATS: int = _core.ROW_STATS
COL_STATS: int = _core.COL_STATS
# A row's coefficients among its statistics (RowStat in csrc/include/r2kd/correlation.h).
ROW_COEFS = slice(4, 6)
_forward = _core.correlation_forward
_backward = _core.correlation_backward
_forward_contiguous = _core.correlation_forward_contiguous
# What losses are made like: that costs 1 us less than from a shape and a dtype.
_SINGLE = torch.empty((), dtype=torch.float32, device="cpu")
_DOUBLE = torch.empty((), dtype=torch.float64, device="cpu")
_PLAIN = (Tensor, torch.nn.Parameter)
_STRIDED = torch.strided
_code_of = _DTYPE_CODES.get
_threads = torch.get_num_threads
_dispatch_modes = torch._C._len_torch_dispatch_stack
_transforms_active = torch._C._are_functorch_transforms_active


def statistics_size(rows: int, cols: int) -> int:
    """Elements of the statistics that forward leaves for backward: O(rows + cols)."""
    return ROW_STATS * rows + COL_STATS * cols


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
    rows, cols = student.shape
    student_dtype, teacher_dtype = student.dtype, teacher.dtype
    dtype = accumulator(student_dtype, teacher_dtype)
    loss = student.new_empty((), dtype=dtype)  # []
    # Zeros: what a call does not need (masked rows, column means of a cosine) is not written.
    stats = student.new_zeros(ROW_STATS * rows + COL_STATS * cols, dtype=dtype)
    student_row, student_col = student.stride()
    teacher_row, teacher_col = teacher.stride()
    weight = None if sample_weight is None else sample_weight.contiguous()
    _forward(
        rows, cols, temperature, centered, inter_weight, intra_weight, eps,
        student.data_ptr(), student_row, student_col, _DTYPE_CODES[student_dtype],
        teacher.data_ptr(), teacher_row, teacher_col, _DTYPE_CODES[teacher_dtype],
        0 if mask is None else mask.data_ptr(), 0 if mask is None else mask.stride(0),
        0 if weight is None else weight.data_ptr(),
        loss.data_ptr(), stats.data_ptr(), _threads(),
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
    grad_student = student.new_empty((rows, cols))  # [B, C]
    student_row, student_col = student.stride()
    teacher_row, teacher_col = teacher.stride()
    _backward(
        rows, cols, temperature, centered, inter_weight, intra_weight,
        student.data_ptr(), student_row, student_col, _DTYPE_CODES[student_dtype],
        teacher.data_ptr(), teacher_row, teacher_col, _DTYPE_CODES[teacher.dtype],
        0 if mask is None else mask.data_ptr(), 0 if mask is None else mask.stride(0),
        grad_loss.data_ptr(), stats.data_ptr(), grad_student.data_ptr(), _threads(),
    )  # fmt: skip
    return grad_student


def correlation_moments(
    student: Tensor,  # [B, C]
    teacher: Tensor,  # [B, C]
    mask: Tensor | None,  # [B] bool
    temperature: float,
    centered: bool,
    inter_weight: float,
    intra_weight: float,
    eps: float,
    sample_weight: Tensor | None,  # [B] float64
) -> tuple[Tensor, Tensor, Tensor]:
    """Forward up to where rows of other processes come in: sums [3] and columns [3 or 5, C], in
    float64, and the statistics; see csrc/include/r2kd/correlation.h."""
    student, teacher = student.resolve_neg(), teacher.resolve_neg()
    rows, cols = student.shape
    sums = student.new_empty(_core.MOMENT_SUMS, dtype=torch.float64)
    columns = student.new_zeros((5 if centered else 3, cols), dtype=torch.float64)
    dtype = accumulator(student.dtype, teacher.dtype)
    stats = student.new_zeros(statistics_size(rows, cols), dtype=dtype)
    student_row, student_col = student.stride()
    teacher_row, teacher_col = teacher.stride()
    weight = None if sample_weight is None else sample_weight.contiguous()
    _core.correlation_moments(
        rows, cols, temperature, centered, inter_weight, intra_weight, eps,
        student.data_ptr(), student_row, student_col, _DTYPE_CODES[student.dtype],
        teacher.data_ptr(), teacher_row, teacher_col, _DTYPE_CODES[teacher.dtype],
        0 if mask is None else mask.data_ptr(), 0 if mask is None else mask.stride(0),
        0 if weight is None else weight.data_ptr(),
        sums.data_ptr(), columns.data_ptr(), stats.data_ptr(), _threads(),
    )  # fmt: skip
    return sums, columns, stats


# What the kernels need to know of two tensors that they take as they lie: rows, columns, and the
# dtype codes of student and teacher. A plain tuple, since a named one costs 0.3 us more.
ContiguousCall = tuple[int, int, int, int]


def contiguous_call(student: Tensor, teacher: Tensor) -> ContiguousCall | None:
    """Facts about two ordinary, contiguous CPU tensors of one shape [B, C], C >= 1, that fit.

    For these, outside of any tracing or dispatch mode, nothing but the CPU kernel would see a call
    of the op, and the checks of `_arguments` would pass. None for all others.
    """
    if not (
        type(student) in _PLAIN
        and type(teacher) in _PLAIN
        and student.is_cpu
        and teacher.is_cpu
        and student.layout is _STRIDED
        and teacher.layout is _STRIDED
        and student.is_contiguous()
        and teacher.is_contiguous()
        and not student.is_neg()
        and not teacher.is_neg()
        and not _dispatch_modes()
        and not _transforms_active()
    ):
        return None
    shape = student.shape
    student_code, teacher_code = _code_of(student.dtype), _code_of(teacher.dtype)
    if (
        len(shape) != 2
        or teacher.shape != shape
        or shape[1] == 0
        or student_code is None
        or teacher_code is None
    ):
        return None
    return *shape, student_code, teacher_code


def correlation_contiguous(
    call: ContiguousCall,
    student: Tensor,  # [B, C]
    teacher: Tensor,  # [B, C]
    mask: Tensor | None,  # [B] bool
    options: CorrelationOptions,
) -> tuple[Tensor, _core.CorrelationState]:
    rows, cols, student_code, teacher_code = call
    loss = torch.empty_like(_DOUBLE if student_code == 1 or teacher_code == 1 else _SINGLE)  # []
    return loss, _forward_contiguous(
        rows, cols, *options,
        student.data_ptr(), student_code, teacher.data_ptr(), teacher_code,
        0 if mask is None else mask.data_ptr(), 0 if mask is None else mask.stride(0),
        loss.data_ptr(), _threads(),
    )  # fmt: skip


def correlation_contiguous_backward(
    state: _core.CorrelationState,
    grad_loss: Tensor,  # []
    student: Tensor,  # [B, C]
    teacher: Tensor,  # [B, C]
    mask: Tensor | None,  # [B] bool
) -> Tensor:
    grad_student = torch.empty_like(student)  # [B, C]
    state.backward(
        student.data_ptr(), teacher.data_ptr(),
        0 if mask is None else mask.data_ptr(), 0 if mask is None else mask.stride(0),
        grad_loss.data_ptr(), grad_student.data_ptr(), _threads(),
    )  # fmt: skip
    return grad_student
