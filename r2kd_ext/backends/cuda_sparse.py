"""The CUDA C++ kernels of sparse weights on CUDA tensors: addresses, sizes and strides in.

They are kernels of the ops of the same name. Each call is one launch on the current stream of the
tensors' device, waits for nothing and branches on nothing that is in a tensor. Arguments have been
checked by the caller.
"""

from __future__ import annotations

from torch import Tensor

from .. import _core
from .cuda import _stream_of
from .native import _DTYPE_CODES
from .reference_sparse import conv2d_output

_MOST = 2**30  # the kernels count what is in one image, and columns of its weight, in 32 bits


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
    if y.numel() == 0:
        return y
    if x.stride(1) != 1:  # the kernel reads neighbouring columns together
        x = x.contiguous()
    device = x.get_device()
    _core.cuda_csr_linear(
        batch, rows, cols, x.data_ptr(), *x.stride(), _DTYPE_CODES[x.dtype],
        values.data_ptr(), columns.data_ptr(), row_offsets.data_ptr(),
        0 if bias is None else bias.data_ptr(), y.data_ptr(), device, _stream_of(device),
    )  # fmt: skip
    return y


def _check_sizes(x: Tensor, y: Tensor, cols: int, padding: list[int]) -> None:
    sizes = (x.shape[1], y.shape[1], cols, *(x.shape[2 + i] + 2 * padding[i] for i in range(2)))
    if max(sizes) > _MOST:
        raise ValueError(
            f"x must have at most {_MOST} channels, rows and columns with its padding, and as many "
            f"inputs to a pixel with the CUDA kernels, got {tuple(x.shape)}, padding "
            f"{tuple(padding)} and {cols} inputs to a pixel of {y.shape[1]} channels"
        )


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
    _check_sizes(x, y, x.shape[1] // groups * kernel_size[0] * kernel_size[1], padding)
    if y.numel() == 0:
        return y
    device = x.get_device()
    _core.cuda_csr_conv2d(
        x.shape, x.stride(), y.shape, (*kernel_size, *stride), (*padding, *dilation), groups,
        x.data_ptr(), _DTYPE_CODES[x.dtype],
        values.data_ptr(), columns.data_ptr(), row_offsets.data_ptr(),
        0 if bias is None else bias.data_ptr(), y.data_ptr(), not y.is_contiguous(),
        device, _stream_of(device),
    )  # fmt: skip
    return y
