"""Moments of the columns of p and q over the rows that one program sees, and their merging.

Cosine: sums of p^2, q^2 and p q. Pearson: means, and sums of products of the deviations from them;
tiles of rows are centred first and then merged by Chan, Golub and LeVeque's rule, so that no
difference of large sums is ever taken. Every running sum is in two parts (`add_to_split`): a tall
batch must not lose digits to its height, nor a column to one row far from the others.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .arithmetic import add_to_split

# Arrays of C numbers in the partial moments of one program: pp, qq, pq, and where centred the means
# of p and of q, each followed by its rest.
COSINE_MOMENTS = 3
PEARSON_MOMENTS = 7


@triton.jit
def tile_mean(p, keep, inverse):
    """Mean over the kept rows, what its rounding left, and the deviations (0 in other rows)."""
    p = tl.where(keep, p, 0.0)  # [R, K]
    mean = tl.sum(p, 0) * inverse  # [K]
    deviation = tl.where(keep, p - mean[None, :], 0.0)  # [R, K]
    rest = tl.sum(deviation, 0) * inverse  # [K]
    return mean, rest, tl.where(keep, deviation - rest[None, :], 0.0)


@triton.jit
def add_tile(
    p, q, keep,  # [R, K], [R, K], [R, 1]
    count, rows,  # rows so far and rows of the tile that are kept
    pp, pp_rest, qq, qq_rest, pq, pq_rest,  # [K]
    mean_p, rest_p, mean_q, rest_q,  # [K]
    CENTERED: tl.constexpr,
):  # fmt: skip
    """Adds a tile of rows to the running moments."""
    if CENTERED:
        inverse = 1.0 / tl.maximum(rows, 1.0)
        tile_p, tile_rest_p, p = tile_mean(p, keep, inverse)
        tile_q, tile_rest_q, q = tile_mean(q, keep, inverse)
        share = rows / tl.maximum(count + rows, 1.0)
        factor = share * count
        dp = (tile_p - mean_p) + (tile_rest_p - rest_p)
        dq = (tile_q - mean_q) + (tile_rest_q - rest_q)
        mean_p, rest_p = add_to_split(mean_p, rest_p, dp * share)
        mean_q, rest_q = add_to_split(mean_q, rest_q, dq * share)
        pp, pp_rest = add_to_split(pp, pp_rest, tl.sum(p * p, 0) + dp * dp * factor)
        qq, qq_rest = add_to_split(qq, qq_rest, tl.sum(q * q, 0) + dq * dq * factor)
        pq, pq_rest = add_to_split(pq, pq_rest, tl.sum(p * q, 0) + dp * dq * factor)
    else:
        p = tl.where(keep, p, 0.0)
        q = tl.where(keep, q, 0.0)
        pp, pp_rest = add_to_split(pp, pp_rest, tl.sum(p * p, 0))
        qq, qq_rest = add_to_split(qq, qq_rest, tl.sum(q * q, 0))
        pq, pq_rest = add_to_split(pq, pq_rest, tl.sum(p * q, 0))
    return pp, pp_rest, qq, qq_rest, pq, pq_rest, mean_p, rest_p, mean_q, rest_q


@triton.jit
def store_partial(
    target, cols, within, stride,  # [K]: place of the first array, and the distance between arrays
    pp, qq, pq, mean_p, rest_p, mean_q, rest_q,  # [K]
    CENTERED: tl.constexpr,
):  # fmt: skip
    place = target + cols
    tl.store(place, pp, mask=within)
    tl.store(place + stride, qq, mask=within)
    tl.store(place + 2 * stride, pq, mask=within)
    if CENTERED:
        tl.store(place + 3 * stride, mean_p, mask=within)
        tl.store(place + 4 * stride, rest_p, mask=within)
        tl.store(place + 5 * stride, mean_q, mask=within)
        tl.store(place + 6 * stride, rest_q, mask=within)


@triton.jit
def merge_means(counts, total, means, rests):
    """The mean over all rows, what its rounding left, and how far each partial mean is from it.

    counts: [P, 1] rows of each of P partials, total: their sum or 1; means, rests: [P, K].
    """
    mean = tl.sum(counts * means, 0) / total  # [K]
    distance = (means - mean[None, :]) + rests  # [P, K]
    rest = tl.sum(counts * distance, 0) / total  # [K]
    return mean, rest, distance - rest[None, :]
