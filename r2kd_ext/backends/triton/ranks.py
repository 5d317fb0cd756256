"""Kernels of hard and soft ranks.

places_kernel    the place of every element of a row in the stable ascending order
hard_kernel      Spearman's rho of hard ranks, from a row and the other one's places
long_hard_kernel the same from the orders of both
sort_kernel      a row in order, where it came from, and where its finite elements begin and end
pools_kernel     pool-adjacent-violators
ranks_kernel     soft ranks and the pooled order (csrc/include/r2kd/rank.h) from the pools
moments_kernel   rho of soft ranks, or its gradient with respect to the first ones
pool_means_kernel, soft_gradient_kernel  the gradient of soft ranks from the pooled order

The first four sort in registers: keys are 64-bit integers with the float in the upper half and the
index in the lower, so equal floats keep their order. All that is pooled is computed in float64.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .arithmetic import correlation_from_moments, scalar


@triton.jit
def load_row(x, row, cols, x_row, x_col, BLOCK: tl.constexpr):
    """A row as float32 (-0 as 0), its columns, and which of them exist."""
    col = tl.arange(0, BLOCK)  # [K]
    within = col < cols
    place = x + row * x_row + col.to(tl.int64) * x_col
    value = tl.load(place, mask=within, other=0.0).to(tl.float32)  # [K]
    return tl.where(value == 0.0, 0.0, value), col, within


@triton.jit
def sorted_keys(value, col, within):
    """Keys in ascending order, those of the padding last."""
    bits = value.to(tl.int32, bitcast=True)
    bits = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)  # integers in the order of the floats
    key = (bits.to(tl.int64) << 32) | col.to(tl.int64)
    return tl.sort(tl.where(within, key, 0x7FFFFFFFFFFFFFFF))


@triton.jit
def has_nan(value):
    return tl.max((value != value).to(tl.int32), 0) != 0


@triton.jit
def places_kernel(
    x,  # [B, C]
    places,  # [B, C] int32, from 0; -1 in a row with a NaN
    cols, x_row, x_col,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    value, col, within = load_row(x, row, cols, x_row, x_col, BLOCK)
    index = sorted_keys(value, col, within).to(tl.int32)  # [K] by place
    tl.store(places + row * cols + index, tl.where(has_nan(value), -1, col), mask=within)


@triton.jit
def store_hard_rho(rho, row, distance, nan, mask, mask_stride, square, norms, MASKED: tl.constexpr):
    """rho = (|a|^2 - |a - b|^2 / 2) / (|a|^2 + eps) of two permutations."""
    result = (scalar(square, True) - distance * 0.5) / scalar(norms, True)
    result = tl.where(nan, float("nan"), result)
    if MASKED:
        result = tl.where(tl.load(mask + row * mask_stride) != 0, result, 0.0)
    tl.store(rho + row, result)


@triton.jit
def hard_kernel(
    x,  # [B, C]
    y_places,  # [B, C] int32, of places_kernel
    mask,  # [B] or unused
    rho,  # [B]
    cols, x_row, x_col, mask_stride, square, norms,
    MASKED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    value, col, within = load_row(x, row, cols, x_row, x_col, BLOCK)
    index = sorted_keys(value, col, within).to(tl.int32)  # [K] by place
    other = tl.load(y_places + row * cols + index, mask=within, other=0)  # [K]
    apart = tl.where(within, col - other, 0).to(tl.int64)
    distance = tl.sum(apart * apart, 0).to(tl.float64)
    nan = has_nan(value) | (tl.min(other, 0) < 0)
    store_hard_rho(rho, row, distance, nan, mask, mask_stride, square, norms, MASKED)


@triton.jit
def long_hard_kernel(
    x_order,  # [B, C] int64: the index of the element in each place
    y_places,  # [B, C] int64
    nan,  # [B]: whether a row of either has a NaN
    mask,  # [B] or unused
    rho,  # [B]
    cols, mask_stride, square, norms,
    MASKED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    distance = tl.zeros([BLOCK], tl.float64)
    for begin in range(0, cols, BLOCK):
        place = begin + tl.arange(0, BLOCK)  # [K]
        within = place < cols
        index = tl.load(x_order + row * cols + place, mask=within, other=0)
        other = tl.load(y_places + row * cols + index, mask=within, other=0)
        apart = tl.where(within, place - other, 0).to(tl.float64)
        distance += apart * apart
    poisoned = tl.load(nan + row) != 0
    distance = tl.sum(distance, 0)
    store_hard_rho(rho, row, distance, poisoned, mask, mask_stride, square, norms, MASKED)


@triton.jit
def sort_kernel(
    x,  # [B, C]
    in_order,  # [B, C] float32
    order,  # [B, C] int32: the index of the element in each place
    bounds,  # [B, 2] int32: places of the first finite and the first +inf; -1 with a NaN
    cols, x_row, x_col,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    value, col, within = load_row(x, row, cols, x_row, x_col, BLOCK)
    key = sorted_keys(value, col, within)  # [K] by place
    bits = (key >> 32).to(tl.int32)
    bits = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    tl.store(in_order + row * cols + col, bits.to(tl.float32, bitcast=True), mask=within)
    tl.store(order + row * cols + col, key.to(tl.int32), mask=within)
    first = tl.sum((within & (value == float("-inf"))).to(tl.int32), 0)
    last = cols - tl.sum((within & (value == float("inf"))).to(tl.int32), 0)
    nan = has_nan(value)
    tl.store(bounds + row * 2, tl.where(nan, -1, first))
    tl.store(bounds + row * 2 + 1, tl.where(nan, -1, last))


@triton.jit
def base_of(in_order, place, first, last):
    """An element of the row, from which all are counted: a common offset then takes no digits."""
    middle = (first + last) // 2
    return tl.load(in_order + place + middle, mask=first < last, other=0.0).to(tl.float64)


@triton.jit(do_not_specialize=["rows"])
def pools_kernel(
    in_order,  # [B, C]
    bounds,  # [B, 2] int32
    sums,  # [B, C] float64: of each pool, less `base_of` for every element
    begins,  # [B, C] int32: the place where each pool begins
    counts,  # [B] int32: number of pools
    rows, cols, half_strength,
    ROWS: tl.constexpr,
):  # fmt: skip
    """One lane to a row, in step: a lane either takes the pool below into its own, or puts its own
    onto the stack and begins a new one. Every lane reads only what it wrote itself."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)  # [R]
    here = row < rows
    place = row * cols
    half = scalar(half_strength, True)
    k = tl.load(bounds + row * 2, mask=here, other=0)
    last = tl.load(bounds + row * 2 + 1, mask=here, other=0)
    base = base_of(in_order, place, k, last)
    total = tl.load(in_order + place + k, mask=k < last, other=0.0).to(tl.float64) - base
    mean = total
    begin = k
    depth = tl.zeros([ROWS], tl.int32)
    top_begin = depth
    top_sum = tl.zeros([ROWS], tl.float64)
    top_mean = top_sum
    while tl.max((k < last).to(tl.int32), 0) > 0:
        length = (k + 1 - top_begin).to(tl.float64)
        # The middles of two neighbours lie half of their joint length apart.
        apart = mean - top_mean > half * length
        going = k < last
        merge = going & (depth > 0) & (apart == 0)
        push = going & (merge == 0)

        tl.store(sums + place + depth, total, mask=push)
        tl.store(begins + place + depth, begin, mask=push)
        merged_sum = total + top_sum
        merged_mean = merged_sum / tl.where(merge, length, 1.0)
        k = tl.where(push, k + 1, k)
        depth = tl.where(push, depth + 1, tl.where(merge, depth - 1, depth))
        following = tl.load(in_order + place + k, mask=push & (k < last), other=0.0)
        following = following.to(tl.float64) - base

        below = merge & (depth > 0)
        below_sum = tl.load(sums + place + depth - 1, mask=below, other=0.0)
        below_begin = tl.load(begins + place + depth - 1, mask=below, other=0)
        below_length = tl.where(below, top_begin - below_begin, 1).to(tl.float64)
        next_begin = tl.where(push, k, tl.where(merge, top_begin, begin))
        top_begin = tl.where(push, begin, tl.where(merge, below_begin, top_begin))
        top_sum = tl.where(push, total, tl.where(merge, below_sum, top_sum))
        top_mean = tl.where(push, mean, tl.where(merge, below_sum / below_length, top_mean))
        begin = next_begin
        total = tl.where(push, following, tl.where(merge, merged_sum, total))
        mean = tl.where(push, following, tl.where(merge, merged_mean, mean))
    tl.store(counts + row, depth, mask=here)


@triton.jit(do_not_specialize=["steps"])
def ranks_kernel(
    in_order,  # [B, C]
    order,  # [B, C] int32; the pooled order when done
    bounds,  # [B, 2] int32
    sums, begins, counts,  # of pools_kernel
    ranks,  # [B, C]
    cols,
    steps,  # of a binary search among at most C pools
    strength,
    offset,  # is taken off every rank
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    place = row * cols
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)  # [K]
    within = k < cols
    first = tl.load(bounds + row * 2)
    last = tl.load(bounds + row * 2 + 1)
    count = tl.load(counts + row)
    nan = tl.zeros([BLOCK], tl.int32) + first < 0
    finite = (k >= first) & (k < last)
    pool = tl.zeros([BLOCK], tl.int32)
    above = pool + count - 1
    for _ in range(steps):
        middle = (pool + above + 1) // 2
        reached = tl.load(begins + place + middle, mask=finite, other=0) <= k
        pool = tl.where(reached, middle, pool)
        above = tl.where(reached, above, middle - 1)
    begin = tl.load(begins + place + pool, mask=finite, other=0)
    end = tl.load(begins + place + pool + 1, mask=finite & (pool + 1 < count), other=0)
    end = tl.where(pool + 1 < count, end, last)
    length = tl.where(finite, end - begin, 1).to(tl.float64)
    mean = tl.load(sums + place + pool, mask=finite, other=0.0) / length
    value = tl.load(in_order + place + k, mask=finite, other=0.0).to(tl.float64)
    value = value - base_of(in_order, place, first, last)
    # Equal infinite elements share the mean of their places, each as a pool of its own.
    low = k < first
    ends = tl.where(finite, begin + end, tl.where(low, first, last + cols))
    rank = (ends + 1).to(tl.float64) * 0.5 - scalar(offset, True)
    rank += tl.where(length > 1.0, (value - mean) / scalar(strength, True), 0.0)
    rank = tl.where(nan, float("nan"), rank)
    flags = tl.where(finite & (begin != k), 0, -0x80000000) | tl.where(finite, 0, 0x40000000)
    # Threads may share an element: what is stored must not depend on whether it was stored before.
    index = tl.load(order + place + k, mask=within, other=0) & 0x3FFFFFFF
    tl.store(ranks + place + index, rank, mask=within & (nan == 0))
    tl.store(ranks + place + k, rank, mask=within & nan)
    tl.store(order + place + k, tl.where(nan, -1, index | flags), mask=within)


@triton.jit
def moments_kernel(
    a, b,  # [B, C] float64: ranks less their mean
    mask,  # [B] or unused
    rho,  # [B]; unused with GRADIENT
    grad_rho,  # [B]; unused without GRADIENT
    grad_a,  # [B, C] float64; unused without GRADIENT
    cols, mask_stride, grad_stride, eps,
    MASKED: tl.constexpr, GRADIENT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    place = row * cols
    aa = tl.zeros([BLOCK], tl.float64)
    bb = aa
    ab = aa
    for begin in range(0, cols, BLOCK):
        col = begin + tl.arange(0, BLOCK)  # [K]
        p = tl.load(a + place + col, mask=col < cols, other=0.0)
        q = tl.load(b + place + col, mask=col < cols, other=0.0)
        aa += p * p
        bb += q * q
        ab += p * q
    r, alpha, beta = correlation_from_moments(
        tl.sum(aa, 0), tl.sum(bb, 0), tl.sum(ab, 0), scalar(eps, True), True
    )
    keep = True
    if MASKED:
        keep = tl.load(mask + row * mask_stride) != 0
    if GRADIENT:
        grad = tl.load(grad_rho + row * grad_stride).to(tl.float64)
        for begin in range(0, cols, BLOCK):
            col = begin + tl.arange(0, BLOCK)  # [K]
            p = tl.load(a + place + col, mask=col < cols, other=0.0)
            q = tl.load(b + place + col, mask=col < cols, other=0.0)
            slope = tl.where(keep, grad * (alpha * q - beta * p), 0.0)
            tl.store(grad_a + place + col, slope, mask=col < cols)
    else:
        tl.store(rho + row, tl.where(keep, r, 0.0))


@triton.jit
def join_pools(begin, total, next_begin, next_total):
    """Where the last pool begins, -1 where that is unknown, and the sum over it so far."""
    joined = tl.where(next_begin >= 0, next_total, total + next_total)
    return tl.maximum(begin, next_begin), joined


@triton.jit
def pool_means_kernel(
    grad_ranks,  # [B, C]
    order,  # [B, C] int32, pooled
    means,  # [B, C] float64: of the gradients in a pool, in the place where it begins
    cols, grad_row, grad_col,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    place = row * cols
    begin = tl.zeros([1], tl.int32)
    total = tl.zeros([1], tl.float64)
    for block in range(0, cols, BLOCK):
        k = block + tl.arange(0, BLOCK)  # [K]
        packed = tl.load(order + place + k, mask=k < cols, other=-1)
        following = tl.load(order + place + k + 1, mask=k + 1 < cols, other=-1)
        index = (packed & 0x3FFFFFFF).to(tl.int64)
        grad = tl.load(
            grad_ranks + row * grad_row + index * grad_col,
            mask=(k < cols) & (packed != -1), other=0.0,
        ).to(tl.float64)  # [K]  # fmt: skip
        here, sums = tl.associative_scan((tl.where(packed < 0, k, -1), grad), 0, join_pools)
        sums = tl.where(here >= 0, sums, total + sums)  # the pool that came from the last block
        here = tl.where(here >= 0, here, begin)
        ends = (k < cols) & (following < 0)
        tl.store(means + place + here, sums / (k + 1 - here).to(tl.float64), mask=ends)
        is_last = k == block + BLOCK - 1
        begin = tl.sum(tl.where(is_last, here, 0), 0) + tl.zeros([1], tl.int32)
        total = tl.sum(tl.where(is_last, sums, 0.0), 0) + tl.zeros([1], tl.float64)


@triton.jit
def later(a, b):
    return tl.maximum(a, b)


@triton.jit
def soft_gradient_kernel(
    grad_ranks,  # [B, C]
    order,  # [B, C] int32, pooled
    means,  # [B, C] float64, of pool_means_kernel
    mask,  # [B] or unused
    grad_x,  # [B, C]
    cols, grad_row, grad_col, mask_stride, strength,
    MASKED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    place = row * cols
    nan = tl.load(order + place) == -1
    begin = tl.zeros([1], tl.int32)
    for block in range(0, cols, BLOCK):
        k = block + tl.arange(0, BLOCK)  # [K]
        within = k < cols
        packed = tl.load(order + place + k, mask=within, other=0)
        here = tl.associative_scan(tl.where(packed < 0, k, -1), 0, later)
        here = tl.maximum(here, begin)
        index = tl.where(nan, k, packed & 0x3FFFFFFF).to(tl.int64)
        grad = tl.load(
            grad_ranks + row * grad_row + index * grad_col, mask=within, other=0.0
        ).to(tl.float64)  # [K]  # fmt: skip
        mean = tl.load(means + place + here, mask=within, other=0.0)
        slope = (grad - mean) / scalar(strength, True)
        slope = tl.where((packed & 0x40000000) != 0, 0.0, slope)
        slope = tl.where(nan, float("nan"), slope)
        if MASKED:
            slope = tl.where(tl.load(mask + row * mask_stride) != 0, slope, 0.0)
        tl.store(grad_x + place + index, slope, mask=within)
        begin = tl.max(here, 0) + tl.zeros([1], tl.int32)
