"""Weights in CSR form: from dense ones, and the checks that the kernels rely on."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_MOST = 2**31 - 1


class Csr(NamedTuple):
    """The nonzero entries of a weight [R, K]; see `ops_sparse` for the form."""

    values: Tensor  # [nnz]
    columns: Tensor  # [nnz] int32
    row_offsets: Tensor  # [R + 1] int32


def csr_from_dense(weight: Tensor) -> Csr:
    """The entries of a weight [R, K] that are not exactly zero; -0.0 is zero, NaN is not.

    Raises ValueError where they, or the columns, are more than an int32 counts.
    """
    entries = weight != 0  # [R, K]
    counts = entries.sum(1)
    if int(counts.sum()) > _MOST or weight.shape[1] > _MOST:
        raise ValueError(
            f"weight must have at most {_MOST} nonzero entries and columns for format 'csr', "
            f"got {int(counts.sum())} in shape {tuple(weight.shape)}"
        )
    row_offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)]).int()
    columns = entries.nonzero()[:, 1].int()
    return Csr(weight[entries].contiguous(), columns, row_offsets)


def check_csr(csr: Csr, rows: int, cols: int, prefix: str = "") -> None:
    """Raise unless these are the entries of a weight [rows, cols] that a kernel may read.

    `prefix` comes before the names of the tensors in messages. Raises TypeError for a wrong dtype,
    ValueError for everything else.
    """
    for name, tensor in csr._asdict().items():
        wanted = "a floating-point dtype" if name == "values" else "dtype torch.int32"
        if not (tensor.is_floating_point() if name == "values" else tensor.dtype == torch.int32):
            raise TypeError(f"{prefix}{name} must have {wanted}, got {tensor.dtype}")
        if tensor.dim() != 1:
            raise ValueError(
                f"{prefix}{name} must have one dimension, got shape {tuple(tensor.shape)}"
            )
        if tensor.is_meta:
            raise ValueError(f"{prefix}{name} must have numbers, got a tensor on the meta device")
    values, columns, row_offsets = csr
    if len(columns) != len(values):
        raise ValueError(
            f"{prefix}columns must have one element per value, {len(values)}, got {len(columns)}"
        )
    if len(row_offsets) != rows + 1:
        raise ValueError(
            f"{prefix}row_offsets must have one element more than the weight has rows, "
            f"{rows + 1}, got {len(row_offsets)}"
        )
    first, last = int(row_offsets[0]), int(row_offsets[-1])
    if first != 0 or last != len(values):
        raise ValueError(
            f"{prefix}row_offsets must go from 0 to the number of values, {len(values)}, "
            f"got {first} to {last}"
        )
    if bool((row_offsets[1:] < row_offsets[:-1]).any()):
        raise ValueError(f"{prefix}row_offsets must not descend")
    if len(columns) == 0:
        return
    least, greatest = (int(x) for x in columns.aminmax())
    if least < 0 or greatest >= cols:
        raise ValueError(
            f"{prefix}columns must be in [0, {cols}), got {least if least < 0 else greatest}"
        )
    ascends = columns[1:] > columns[:-1]  # [nnz - 1]
    starts = row_offsets[(row_offsets > 0) & (row_offsets < len(columns))].long()
    ascends[starts - 1] = True  # the last entry of a row and the first of the next
    if not bool(ascends.all()):
        place = int((~ascends).nonzero()[0, 0]) + 1
        row = int((row_offsets <= place).sum()) - 1
        raise ValueError(
            f"{prefix}columns must ascend within each row, got {int(columns[place - 1])} before "
            f"{int(columns[place])} in row {row}"
        )
