"""Schemas and fake kernels of the sparse ops, one place. Backends only register their kernels.

A sparse weight [R, K] comes as its nonzero entries in CSR form: `values` [nnz] row by row,
`columns` [nnz] int32, and `row_offsets` [R + 1] int32, where row r has the entries from
row_offsets[r] up to row_offsets[r + 1]. Within a row columns ascend and are in [0, K). The kernels
rely on this and do not look: `sparse.check_csr` does. All of these, and `bias` [R], are contiguous
and on the device of x; values and bias have its dtype, float32, bfloat16 or float16. Sums are taken
in float32.

csr_linear:  x [B, K], any strides -> [B, R] contiguous; y = x W^T + bias.
csr_conv2d:  x [B, C, H, W], any strides -> [B, R, H', W'], channels-last where x is (and is not
contiguous as well), else contiguous. K = C / groups * kh * kw: a column is
(channel within the group * kh + i) * kw + j, that of `conv.weight.flatten(1)`. Padding is with
zeros and symmetric. Either may come with B = 0 and nnz = 0; H' and W' are at least 1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .backends import choose_sparse, cuda_sparse, native_sparse, reference_sparse, triton

_library = torch.library.Library("r2kd", "FRAGMENT")
_library.define(
    "csr_linear(Tensor x, Tensor values, Tensor columns, Tensor row_offsets, Tensor? bias) "
    "-> Tensor"
)
_library.define(
    "csr_conv2d(Tensor x, Tensor values, Tensor columns, Tensor row_offsets, Tensor? bias, "
    "int[2] kernel_size, int[2] stride, int[2] padding, int[2] dilation, int groups) -> Tensor"
)


@torch.library.register_fake("r2kd::csr_linear")
def _csr_linear_fake(
    x: Tensor, values: Tensor, columns: Tensor, row_offsets: Tensor, bias: Tensor | None
) -> Tensor:
    return x.new_empty((x.shape[0], row_offsets.shape[0] - 1))


@torch.library.register_fake("r2kd::csr_conv2d")
def _csr_conv2d_fake(
    x: Tensor,
    values: Tensor,
    columns: Tensor,
    row_offsets: Tensor,
    bias: Tensor | None,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    return reference_sparse.conv2d_output(
        x, row_offsets.shape[0] - 1, kernel_size, stride, padding, dilation
    )


_library.impl("csr_linear", native_sparse.csr_linear, "CPU")
_library.impl("csr_conv2d", native_sparse.csr_conv2d, "CPU")


_GPU_KERNELS = {"native": cuda_sparse, "triton": triton, "reference": reference_sparse}


def _gpu_kernels(device: torch.device) -> Any:
    return _GPU_KERNELS[choose_sparse(device).backend]


def _csr_linear_gpu(x: Tensor, *rest: Any) -> Tensor:
    return _gpu_kernels(x.device).csr_linear(x, *rest)


def _csr_conv2d_gpu(x: Tensor, *rest: Any) -> Tensor:
    return _gpu_kernels(x.device).csr_conv2d(x, *rest)


for _key in ("CUDA", "XPU"):
    _library.impl("csr_linear", _csr_linear_gpu, _key)
    _library.impl("csr_conv2d", _csr_conv2d_gpu, _key)

csr_linear = torch.ops.r2kd.csr_linear.default
csr_conv2d = torch.ops.r2kd.csr_conv2d.default
