"""The CUDA C++ kernels on CUDA tensors: addresses, sizes and strides in, tensors out.

`correlation` and `correlation_backward` are kernels of the ops of the same name. They launch on
the current stream of the tensors' device, wait for nothing and branch on nothing that is in a
tensor, so that a CUDA graph can capture every call. Arguments have been checked by the caller.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from .. import _core
from .._dtypes import accumulator
from .native import _DTYPE_CODES, statistics_size


def is_compiled() -> bool:
    """Whether this installation has the CUDA kernels."""
    return _core.CUDA_COMPILED


@lru_cache(maxsize=1024)
def plan(
    rows: int,
    cols: int,
    centered: bool,
    inter: bool,
    intra: bool,
    student_dtype: torch.dtype,
    teacher_dtype: torch.dtype,
    weighed: bool,  # whether there is a mask or a sample weight
    device: int,
) -> _core.CudaPlan:
    """What a call would launch, by which paths, and the bytes of scratch that its forward needs."""
    return _core.cuda_correlation_plan(
        rows, cols, centered, inter, intra,
        _DTYPE_CODES[student_dtype], _DTYPE_CODES[teacher_dtype], weighed, device,
    )  # fmt: skip


def _check_classes(cols: int) -> None:
    if cols > _core.MAX_CUDA_COLS:
        raise ValueError(
            f"student_logits must have at most {_core.MAX_CUDA_COLS} classes with the CUDA "
            f"kernels, got {cols}"
        )


def _stream_of(device: int) -> int:
    return torch._C._cuda_getCurrentRawStream(device)


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
    _check_classes(cols)
    student_dtype, teacher_dtype = student.dtype, teacher.dtype
    dtype = accumulator(student_dtype, teacher_dtype)
    stats = student.new_empty(statistics_size(rows, cols), dtype=dtype)
    if rows == 0 or (inter_weight == 0 and intra_weight == 0):
        return student.new_zeros((), dtype=dtype), stats
    device = student.get_device()
    weight = None if sample_weight is None else sample_weight.contiguous()
    planned = plan(
        rows, cols, centered, inter_weight != 0, intra_weight != 0,
        student_dtype, teacher_dtype, mask is not None or weight is not None, device,
    )  # fmt: skip
    student_row, student_col = student.stride()
    teacher_row, teacher_col = teacher.stride()
    loss = student.new_empty((), dtype=dtype)  # []
    # Freed on return, and used again on this stream no sooner than the kernels are done with it.
    scratch = student.new_empty(planned["scratch_bytes"], dtype=torch.uint8)
    _core.cuda_correlation_forward(
        rows, cols, temperature, centered, inter_weight, intra_weight, eps,
        student.data_ptr(), student_row, student_col, _DTYPE_CODES[student_dtype],
        teacher.data_ptr(), teacher_row, teacher_col, _DTYPE_CODES[teacher_dtype],
        0 if mask is None else mask.data_ptr(), 0 if mask is None else mask.stride(0),
        0 if weight is None else weight.data_ptr(),
        loss.data_ptr(), stats.data_ptr(), scratch.data_ptr(), device, _stream_of(device),
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
    if rows == 0 or (inter_weight == 0 and intra_weight == 0):
        return student.new_zeros((rows, cols))
    device = student.get_device()
    student_row, student_col = student.stride()
    teacher_row, teacher_col = teacher.stride()
    grad_student = student.new_empty((rows, cols))  # [B, C]
    _core.cuda_correlation_backward(
        rows, cols, temperature, centered, inter_weight, intra_weight,
        student.data_ptr(), student_row, student_col, _DTYPE_CODES[student.dtype],
        teacher.data_ptr(), teacher_row, teacher_col, _DTYPE_CODES[teacher.dtype],
        0 if mask is None else mask.data_ptr(), 0 if mask is None else mask.stride(0),
        grad_loss.data_ptr(), stats.data_ptr(), grad_student.data_ptr(),
        device, _stream_of(device),
    )  # fmt: skip
    return grad_student
