"""The compiled sparse kernels on CPU tensors: addresses, sizes and strides in, tensors out.

They are the kernels of the ops of the same name. Arguments have been checked by the caller.
"""

from __future__ import annotations

from torch import Tensor

from .. import _core
from .native import _DTYPE_CODES, _threads
from .reference_sparse import conv2d_output


def csr_linear(
    x: Tensor,  # [B, K]
    values: Tensor,  # [nnz]
    columns: Tensor,  # [nnz] int32
    row_offsets: Tensor,  # [R + 1] int32
    bias: Tensor | None,  # [R]
) -> Tensor:
    batch, cols = x.shape
    rows = row_offsets.shape[0] - 1
    y = x.new_empty((batch, rows))  # [B, R]
    _core.csr_linear(
        batch, rows, cols, x.data_ptr(), *x.stride(), _DTYPE_CODES[x.dtype],
        values.data_ptr(), columns.data_ptr(), row_offsets.data_ptr(),
        0 if bias is None else bias.data_ptr(), y.data_ptr(), _threads(),
    )  # fmt: skip
    return y


def csr_conv2d(
    x: Tensor,  # [B, C, H, W]
    values: Tensor,  # [nnz]
    columns: Tensor,  # [nnz] int32
    row_offsets: Tensor,  # [R + 1] int32
    bias: Tensor | None,  # [R]
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    rows = row_offsets.shape[0] - 1
    y = conv2d_output(x, rows, kernel_size, stride, padding, dilation)  # [B, R, H', W']
    _core.csr_conv2d(
        x.shape, x.stride(), y.shape, (*kernel_size, *stride), (*padding, *dilation), groups,
        x.data_ptr(), _DTYPE_CODES[x.dtype],
        values.data_ptr(), columns.data_ptr(), row_offsets.data_ptr(),
        0 if bias is None else bias.data_ptr(), y.data_ptr(), not y.is_contiguous(), _threads(),
    )  # fmt: skip
    return y
