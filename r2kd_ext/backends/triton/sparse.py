"""Kernels of the sparse layers: weights in CSR form (`ops_sparse`).

csr_linear_kernel  y = x W^T + bias
csr_conv2d_kernel  the convolution, from the images themselves: no unfolded copy

A program has a tile of rows of the weight times positions, which are samples or output pixels. In
step s it takes entry s of each of its rows, at all positions: rows of a pruned weight have about
as many entries, so few lanes wait for others. Neighbouring programs have the same positions.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def entries_of(row_offsets, row, rows):
    """Where the entries of each row begin and end; none for rows that do not exist."""
    within = row < rows
    begin = tl.load(row_offsets + row, mask=within, other=0)
    end = tl.load(row_offsets + row + 1, mask=within, other=0)
    return begin, end


@triton.jit
def with_bias(total, bias, row, rows, BIASED: tl.constexpr):
    if BIASED:
        total += tl.load(bias + row, mask=row < rows, other=0.0).to(tl.float32)[:, None]
    return total


@triton.jit(do_not_specialize=["batch"])
def csr_linear_kernel(
    x,  # [B, K]
    values,  # [nnz]
    columns,  # [nnz] int32
    row_offsets,  # [R + 1] int32
    bias,  # [R] or unused
    y,  # [B, R] contiguous
    batch, rows, row_blocks,
    x_row, x_col,
    BIASED: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    row = (program % row_blocks) * ROWS + tl.arange(0, ROWS)  # [R]
    sample = (program // row_blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # [K]
    within = sample < batch
    place = x + sample * x_row  # [K]
    begin, end = entries_of(row_offsets, row, rows)
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    for step in range(tl.max(end - begin, 0)):
        entry = begin + step  # [R]
        exists = entry < end
        value = tl.load(values + entry, mask=exists, other=0.0).to(tl.float32)
        column = tl.load(columns + entry, mask=exists, other=0).to(tl.int64)
        taken = tl.load(
            place[None, :] + column[:, None] * x_col,
            mask=exists[:, None] & within[None, :], other=0.0,
        )  # [R, K]  # fmt: skip
        total += value[:, None] * taken.to(tl.float32)
    total = with_bias(total, bias, row, rows, BIASED)
    tl.store(
        y + sample[None, :] * rows + row[:, None], total.to(y.dtype.element_ty),
        mask=(row < rows)[:, None] & within[None, :],
    )  # fmt: skip


@triton.jit(do_not_specialize=["pixels"])
def csr_conv2d_kernel(
    x,  # [B, C, H, W]
    values,  # [nnz]
    columns,  # [nnz] int32: (channel within the group * kh + i) * kw + j
    row_offsets,  # [R + 1] int32
    bias,  # [R] or unused
    y,  # [B, R, H', W']
    pixels, rows, row_blocks,  # pixels: B H' W'
    x_batch, x_channel, x_row, x_col,
    y_batch, y_channel, y_row, y_col,
    height, width, out_height, out_width,
    group_channels, group_rows,  # C / groups, R / groups
    kernel_height, kernel_width,
    stride_row, stride_col, padding_row, padding_col, dilation_row, dilation_col,
    BIASED: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    row = (program % row_blocks) * ROWS + tl.arange(0, ROWS)  # [R]
    pixel = (program // row_blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # [K]
    within = pixel < pixels
    image = pixel // out_width
    out_col = (pixel % out_width).to(tl.int32)
    out_row = (image % out_height).to(tl.int32)
    image = image // out_height  # [K]
    top = out_row * stride_row - padding_row  # of what the kernel sees, [K]
    left = out_col * stride_col - padding_col
    place = x + image * x_batch + top.to(tl.int64) * x_row + left.to(tl.int64) * x_col  # [K]
    first_channel = row // group_rows * group_channels  # [R]
    begin, end = entries_of(row_offsets, row, rows)
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    for step in range(tl.max(end - begin, 0)):
        entry = begin + step  # [R]
        exists = entry < end
        value = tl.load(values + entry, mask=exists, other=0.0).to(tl.float32)
        column = tl.load(columns + entry, mask=exists, other=0)
        down = column // kernel_width % kernel_height * dilation_row  # [R]
        right = column % kernel_width * dilation_col
        channel = first_channel + column // (kernel_height * kernel_width)
        away = channel.to(tl.int64) * x_channel
        away += down.to(tl.int64) * x_row + right.to(tl.int64) * x_col  # [R]
        i = top[None, :] + down[:, None]  # [R, K]
        j = left[None, :] + right[:, None]
        inside = (i >= 0) & (i < height) & (j >= 0) & (j < width)
        taken = tl.load(
            place[None, :] + away[:, None],
            mask=inside & exists[:, None] & within[None, :], other=0.0,
        )  # [R, K]  # fmt: skip
        total += value[:, None] * taken.to(tl.float32)
    total = with_bias(total, bias, row, rows, BIASED)
    target = image * y_batch + out_row.to(tl.int64) * y_row + out_col.to(tl.int64) * y_col  # [K]
    tl.store(
        y + row.to(tl.int64)[:, None] * y_channel + target[None, :], total.to(y.dtype.element_ty),
        mask=(row < rows)[:, None] & within[None, :],
    )  # fmt: skip
