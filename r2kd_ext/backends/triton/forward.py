"""Kernels of the correlation's forward.

weigh_kernel       the weight and the number of the kept rows, with a mask or sample weights
rows_kernel        whole rows in registers; the columns' partial moments too where C is small
long_rows_kernel   rows in blocks, one pass, with a running maximum
columns_kernel     the columns' partial moments from the rows' statistics, where C is not small
finish_kernel      merges the partial moments, writes the columns' statistics
loss_kernel        sums r over rows and columns

Statistics are laid out as in csrc/include/r2kd/correlation.h. Everything that is summed is summed
in an order that the shape alone decides: the same bits in every run.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .arithmetic import add_to_split, correlation_from_moments, divide, scalar, scaled_exp
from .columns import add_tile, merge_means, store_partial


@triton.jit
def kept_rows(mask, mask_stride, row, rows, MASKED: tl.constexpr):
    """Whether each row exists and is kept."""
    keep = row < rows
    if MASKED:
        keep = keep & (tl.load(mask + row * mask_stride, mask=keep, other=0) != 0)
    return keep


@triton.jit(do_not_specialize=["rows"])
def weigh_kernel(
    mask,  # [B] or unused
    sample_weight,  # [B] float64, or unused
    totals,  # [3] float64: weight and number of the kept rows, 1 / weight (0 where that is 0)
    rows, mask_stride,
    MASKED: tl.constexpr, WEIGHTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    count = tl.zeros([BLOCK], tl.float64)
    weight = count
    for start in range(0, rows, BLOCK):
        row = start + tl.arange(0, BLOCK).to(tl.int64)  # [K]
        keep = kept_rows(mask, mask_stride, row, rows, MASKED)
        count += keep.to(tl.float64)
        if WEIGHTED:
            weight += tl.load(sample_weight + row, mask=keep, other=0.0)
    number = tl.sum(count, 0)
    total = number
    if WEIGHTED:
        total = tl.sum(weight, 0)
    tl.store(totals, total)
    tl.store(totals + 1, number)
    inverse = 1.0 / tl.where(total == 0.0, 1.0, total)
    tl.store(totals + 2, tl.where(total == 0.0, 0.0, inverse))


@triton.jit
def row_weight(
    inter_weight, totals, DOUBLE: tl.constexpr, MASKED: tl.constexpr, WEIGHTED: tl.constexpr
):
    """What the rows' sum of 1 - r, each times its share where rows are weighted, is multiplied by.

    `inter_weight` is divided by the rows already where there is neither mask nor weight.
    """
    weight = scalar(inter_weight, DOUBLE)
    if MASKED and not WEIGHTED:
        ACC: tl.constexpr = tl.float64 if DOUBLE else tl.float32
        weight = weight / tl.load(totals + 1).to(ACC)
    return weight


@triton.jit
def row_share(sample_weight, totals, row, keep, DOUBLE: tl.constexpr):
    """Weight of each row over that of all kept ones, 0 where that is 0."""
    weight = tl.load(sample_weight + row, mask=keep, other=0.0)
    share = weight * tl.load(totals + 2)  # a division in float64 would spill
    return share.to(tl.float64 if DOUBLE else tl.float32)


@triton.jit(do_not_specialize=["rows", "tiles"])
def rows_kernel(
    student, teacher,  # [B, C]
    mask,  # [B] or unused
    sample_weight,  # [B] float64, or unused
    totals,  # [3] of weigh_kernel, or unused
    stats,  # [6 B + 5 C]
    row_losses,  # [P]: sum of 1 - r over the rows of each program, each times its share
    partials,  # [P, M, C]: the columns' partial moments; unused without COLUMNS
    counts,  # [P]: kept rows of each program; unused without COLUMNS
    rows, cols, tiles,  # tiles: how many tiles of rows each program takes
    student_row, student_col, teacher_row, teacher_col, mask_stride,
    scale, scale_rest, inter_weight, eps, class_mean,
    DOUBLE: tl.constexpr, MASKED: tl.constexpr, WEIGHTED: tl.constexpr,
    CENTERED: tl.constexpr, INTER: tl.constexpr, COLUMNS: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    ACC: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    program = tl.program_id(0)
    scale = scalar(scale, DOUBLE)
    scale_rest = scalar(scale_rest, DOUBLE)
    eps = scalar(eps, DOUBLE)
    class_mean = scalar(class_mean, DOUBLE)
    weight = row_weight(inter_weight, totals, DOUBLE, MASKED, WEIGHTED)
    col = tl.arange(0, BLOCK)  # [K]
    within = col < cols
    far = col.to(tl.int64)

    pp = tl.zeros([BLOCK], ACC)
    pp_rest, qq, qq_rest, pq, pq_rest = pp, pp, pp, pp, pp
    mean_p, rest_p, mean_q, rest_q = pp, pp, pp, pp
    count = tl.sum(tl.zeros([ROWS], ACC), 0)
    row_loss = count
    for tile in range(tiles):
        row = (program.to(tl.int64) * tiles + tile) * ROWS + tl.arange(0, ROWS)  # [R]
        keep = kept_rows(mask, mask_stride, row, rows, MASKED)
        valid = keep[:, None] & within[None, :]
        z = tl.load(
            student + row[:, None] * student_row + far[None, :] * student_col,
            mask=valid, other=float("-inf"),
        ).to(ACC)  # [R, K]  # fmt: skip
        y = tl.load(
            teacher + row[:, None] * teacher_row + far[None, :] * teacher_col,
            mask=valid, other=float("-inf"),
        ).to(ACC)  # [R, K]  # fmt: skip
        z_max = tl.max(z, 1)  # [R]
        y_max = tl.max(y, 1)
        p = scaled_exp(z - z_max[:, None], scale, scale_rest)
        q = scaled_exp(y - y_max[:, None], scale, scale_rest)
        one = tl.zeros([ROWS], ACC) + 1.0
        p_scale = divide(one, tl.sum(p, 1), DOUBLE)
        q_scale = divide(one, tl.sum(q, 1), DOUBLE)
        p = p * p_scale[:, None]
        q = q * q_scale[:, None]

        place = stats + row * 6
        tl.store(place, z_max, mask=keep)
        tl.store(place + 1, p_scale, mask=keep)
        tl.store(place + 2, y_max, mask=keep)
        tl.store(place + 3, q_scale, mask=keep)
        if INTER:
            if CENTERED:
                a = tl.where(within[None, :], p - class_mean, 0.0)
                b = tl.where(within[None, :], q - class_mean, 0.0)
            else:
                a = p
                b = q
            r, alpha, beta = correlation_from_moments(
                tl.sum(a * a, 1), tl.sum(b * b, 1), tl.sum(a * b, 1), eps, DOUBLE
            )
            distance = 1.0 - r
            slope = -weight  # of the loss in each r
            if WEIGHTED:
                share = row_share(sample_weight, totals, row, keep, DOUBLE)  # [R]
                distance *= share
                slope = slope * share
            tl.store(place + 4, slope * alpha, mask=keep)
            tl.store(place + 5, slope * beta, mask=keep)
            row_loss += tl.sum(tl.where(keep, distance, 0.0), 0)
        if COLUMNS:
            tile_rows = tl.sum(keep.to(ACC), 0)
            (
                pp, pp_rest, qq, qq_rest, pq, pq_rest, mean_p, rest_p, mean_q, rest_q
            ) = add_tile(
                p, q, keep[:, None], count, tile_rows,
                pp, pp_rest, qq, qq_rest, pq, pq_rest, mean_p, rest_p, mean_q, rest_q, CENTERED,
            )  # fmt: skip
            count += tile_rows

    if INTER:
        tl.store(row_losses + program, row_loss)
    if COLUMNS:
        MOMENTS: tl.constexpr = 7 if CENTERED else 3
        tl.store(counts + program, count)
        store_partial(
            partials + program.to(tl.int64) * MOMENTS * cols, col, within, cols,
            pp + pp_rest, qq + qq_rest, pq + pq_rest, mean_p, rest_p, mean_q, rest_q, CENTERED,
        )  # fmt: skip


@triton.jit
def block_exponentials(x, maximum, scale, scale_rest):
    """exp((x - m) / T) with the new running maximum m, m, and what older exponentials shrink by."""
    now = tl.maximum(maximum, tl.max(x, 0))
    # Nothing but -inf so far: its exponentials are 0, not those of -inf minus -inf.
    origin = tl.where(now == float("-inf"), 0.0, now)
    shrink = tl.where(now == maximum, 1.0, scaled_exp(maximum - origin, scale, scale_rest))
    return scaled_exp(x - origin, scale, scale_rest), now, shrink


@triton.jit(do_not_specialize=["rows"])
def long_rows_kernel(
    student, teacher,  # [B, C]
    mask,  # [B] or unused
    sample_weight,  # [B] float64, or unused
    totals,  # [3] of weigh_kernel, or unused
    stats,  # [6 B + 5 C]
    row_losses,  # [B]: 1 - r times the row's share, and 0 for rows that are dropped
    rows, cols,
    student_row, student_col, teacher_row, teacher_col, mask_stride,
    scale, scale_rest, inter_weight, eps,
    DOUBLE: tl.constexpr, MASKED: tl.constexpr, WEIGHTED: tl.constexpr,
    CENTERED: tl.constexpr, INTER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    ACC: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    row = tl.program_id(0).to(tl.int64)
    scale = scalar(scale, DOUBLE)
    scale_rest = scalar(scale_rest, DOUBLE)
    eps = scalar(eps, DOUBLE)
    weight = row_weight(inter_weight, totals, DOUBLE, MASKED, WEIGHTED)
    zero = tl.sum(tl.zeros([BLOCK], ACC), 0)
    row_loss = zero
    if kept_rows(mask, mask_stride, row, rows, MASKED):
        z_max = zero + float("-inf")
        y_max = zero + float("-inf")
        # Of the exponentials e and h of student and teacher: sums, and sums of products, centred
        # by the means so far where the correlation is.
        sum_e, sum_h, ee, hh, eh, count = zero, zero, zero, zero, zero, zero
        for start in range(0, cols, BLOCK):
            col = start + tl.arange(0, BLOCK)  # [K]
            within = col < cols
            far = col.to(tl.int64)
            z = tl.load(
                student + row * student_row + far * student_col, mask=within, other=float("-inf")
            ).to(ACC)  # [K]
            y = tl.load(
                teacher + row * teacher_row + far * teacher_col, mask=within, other=float("-inf")
            ).to(ACC)  # [K]
            e, z_max, shrink_e = block_exponentials(z, z_max, scale, scale_rest)
            h, y_max, shrink_h = block_exponentials(y, y_max, scale, scale_rest)
            sum_e *= shrink_e
            sum_h *= shrink_h
            ee *= shrink_e * shrink_e
            hh *= shrink_h * shrink_h
            eh *= shrink_e * shrink_h
            block_e = tl.sum(e, 0)
            block_h = tl.sum(h, 0)
            if INTER:
                if CENTERED:
                    width = tl.sum(within.to(ACC), 0)
                    mean_e = block_e / width
                    mean_h = block_h / width
                    e = tl.where(within, e - mean_e, 0.0)
                    h = tl.where(within, h - mean_h, 0.0)
                    before = tl.maximum(count, 1.0)
                    de = mean_e - sum_e / before
                    dh = mean_h - sum_h / before
                    count += width
                    factor = (count - width) * (width / count)
                    ee += de * de * factor
                    hh += dh * dh * factor
                    eh += de * dh * factor
                ee += tl.sum(e * e, 0)
                hh += tl.sum(h * h, 0)
                eh += tl.sum(e * h, 0)
            sum_e += block_e
            sum_h += block_h
        p_scale = divide(zero + 1.0, sum_e, DOUBLE)
        q_scale = divide(zero + 1.0, sum_h, DOUBLE)
        place = stats + row * 6
        tl.store(place, z_max)
        tl.store(place + 1, p_scale)
        tl.store(place + 2, y_max)
        tl.store(place + 3, q_scale)
        if INTER:
            r, alpha, beta = correlation_from_moments(
                ee * p_scale * p_scale, hh * q_scale * q_scale, eh * p_scale * q_scale, eps, DOUBLE
            )
            row_loss = 1.0 - r
            slope = -weight  # of the loss in r
            if WEIGHTED:
                share = row_share(sample_weight, totals, row, row < rows, DOUBLE)
                row_loss *= share
                slope = slope * share
            tl.store(place + 4, slope * alpha)
            tl.store(place + 5, slope * beta)
    if INTER:
        tl.store(row_losses + row, row_loss)


@triton.jit(do_not_specialize=["rows", "tiles"])
def columns_kernel(
    student, teacher,  # [B, C]
    mask,  # [B] or unused
    stats,  # [6 B + 5 C]
    partials,  # [P, M, C]: the columns' partial moments
    counts,  # [P]: kept rows of each part
    rows, cols, tiles,  # tiles: how many tiles of rows each program takes
    student_row, student_col, teacher_row, teacher_col, mask_stride,
    scale, scale_rest,
    DOUBLE: tl.constexpr, MASKED: tl.constexpr, CENTERED: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    ACC: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    MOMENTS: tl.constexpr = 7 if CENTERED else 3
    part = tl.program_id(1)
    scale = scalar(scale, DOUBLE)
    scale_rest = scalar(scale_rest, DOUBLE)
    col = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)  # [K]
    within = col < cols
    far = col.to(tl.int64)

    pp = tl.zeros([BLOCK], ACC)
    pp_rest, qq, qq_rest, pq, pq_rest = pp, pp, pp, pp, pp
    mean_p, rest_p, mean_q, rest_q = pp, pp, pp, pp
    count = tl.sum(tl.zeros([ROWS], ACC), 0)
    for tile in range(tiles):
        row = (part.to(tl.int64) * tiles + tile) * ROWS + tl.arange(0, ROWS)  # [R]
        keep = kept_rows(mask, mask_stride, row, rows, MASKED)
        valid = keep[:, None] & within[None, :]
        z = tl.load(
            student + row[:, None] * student_row + far[None, :] * student_col,
            mask=valid, other=float("-inf"),
        ).to(ACC)  # [R, K]  # fmt: skip
        y = tl.load(
            teacher + row[:, None] * teacher_row + far[None, :] * teacher_col,
            mask=valid, other=float("-inf"),
        ).to(ACC)  # [R, K]  # fmt: skip
        place = stats + row * 6
        z_max = tl.load(place, mask=keep, other=0.0)  # [R]
        p_scale = tl.load(place + 1, mask=keep, other=0.0)
        y_max = tl.load(place + 2, mask=keep, other=0.0)
        q_scale = tl.load(place + 3, mask=keep, other=0.0)
        p = scaled_exp(z - z_max[:, None], scale, scale_rest) * p_scale[:, None]
        q = scaled_exp(y - y_max[:, None], scale, scale_rest) * q_scale[:, None]
        tile_rows = tl.sum(keep.to(ACC), 0)
        (
            pp, pp_rest, qq, qq_rest, pq, pq_rest, mean_p, rest_p, mean_q, rest_q
        ) = add_tile(
            p, q, keep[:, None], count, tile_rows,
            pp, pp_rest, qq, qq_rest, pq, pq_rest, mean_p, rest_p, mean_q, rest_q, CENTERED,
        )  # fmt: skip
        count += tile_rows

    tl.store(counts + part, count, mask=tl.program_id(0) == 0)
    store_partial(
        partials + part.to(tl.int64) * MOMENTS * cols, col, within, cols,
        pp + pp_rest, qq + qq_rest, pq + pq_rest, mean_p, rest_p, mean_q, rest_q, CENTERED,
    )  # fmt: skip


@triton.jit
def total_of(source, length, DOUBLE: tl.constexpr, BLOCK: tl.constexpr):
    """The sum of `length` numbers, in fixed order."""
    ACC: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    value = tl.zeros([BLOCK], ACC)
    rest = value
    for start in range(0, length, BLOCK):
        place = start + tl.arange(0, BLOCK)
        value, rest = add_to_split(
            value, rest, tl.load(source + place, mask=place < length, other=0.0)
        )
    return tl.sum(value, 0) + tl.sum(rest, 0)


@triton.jit
def store_loss(
    loss, totals, row_losses, row_parts, inter_weight, columns_loss,
    DOUBLE: tl.constexpr, MASKED: tl.constexpr, WEIGHTED: tl.constexpr, INTER: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """loss = weight of a row times sum_i (1 - r_i) + the columns' part; 0 where no row is kept."""
    value = columns_loss
    if INTER:
        weight = row_weight(inter_weight, totals, DOUBLE, MASKED, WEIGHTED)
        rows_loss = weight * total_of(row_losses, row_parts, DOUBLE, BLOCK)
        if WEIGHTED:
            rows_loss = tl.where(tl.load(totals) == 0.0, 0.0, rows_loss)
        value += rows_loss
    if MASKED:
        value = tl.where(tl.load(totals + 1) > 0.0, value, 0.0)
    tl.store(loss, value)


@triton.jit(do_not_specialize=["rows", "parts", "row_parts"])
def finish_kernel(
    partials,  # [P, M, C]
    counts,  # [P]
    stats,  # [6 B + 5 C]
    col_losses,  # [number of programs]: sum of 1 - r over the columns of each; unused with LOSS
    loss,  # []; unused without LOSS, as are the next three
    totals, row_losses, row_parts,
    rows, parts, cols,
    inter_weight, col_weight, eps,  # col_weight: weight of one column
    DOUBLE: tl.constexpr, MASKED: tl.constexpr, WEIGHTED: tl.constexpr,
    CENTERED: tl.constexpr, INTER: tl.constexpr,
    LOSS: tl.constexpr,  # whether this is the only program, which then writes the loss as well
    PARTS: tl.constexpr, BLOCK: tl.constexpr, SUM_BLOCK: tl.constexpr,
):  # fmt: skip
    MOMENTS: tl.constexpr = 7 if CENTERED else 3
    eps = scalar(eps, DOUBLE)
    weight = scalar(col_weight, DOUBLE)
    col = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)  # [K]
    within = col < cols
    part = tl.arange(0, PARTS)  # [P]
    valid = (part < parts)[:, None] & within[None, :]
    place = partials + part[:, None].to(tl.int64) * MOMENTS * cols + col[None, :]  # [P, K]
    pp = tl.load(place, mask=valid, other=0.0)
    qq = tl.load(place + cols, mask=valid, other=0.0)
    pq = tl.load(place + 2 * cols, mask=valid, other=0.0)
    if CENTERED:
        n = tl.load(counts + part, mask=part < parts, other=0.0)  # [P]
        total = tl.maximum(tl.sum(n, 0), 1.0)
        n = n[:, None]
        mean_p, rest_p, dp = merge_means(
            n, total,
            tl.load(place + 3 * cols, mask=valid, other=0.0),
            tl.load(place + 4 * cols, mask=valid, other=0.0),
        )  # fmt: skip
        mean_q, rest_q, dq = merge_means(
            n, total,
            tl.load(place + 5 * cols, mask=valid, other=0.0),
            tl.load(place + 6 * cols, mask=valid, other=0.0),
        )  # fmt: skip
        pp += n * dp * dp
        qq += n * dq * dq
        pq += n * dp * dq
    r, alpha, beta = correlation_from_moments(
        tl.sum(pp, 0), tl.sum(qq, 0), tl.sum(pq, 0), eps, DOUBLE
    )
    col_stats = stats + rows.to(tl.int64) * 6
    coef_q = -weight * alpha
    coef_p = -weight * beta
    tl.store(col_stats + col, coef_q, mask=within)
    tl.store(col_stats + cols + col, coef_p, mask=within)
    if CENTERED:
        zero = tl.zeros_like(mean_p)
        mean_p, rest_p = add_to_split(mean_p, rest_p, zero)
        mean_q, rest_q = add_to_split(mean_q, rest_q, zero)
        tl.store(col_stats + 2 * cols + col, mean_p, mask=within)
        tl.store(col_stats + 3 * cols + col, mean_q, mask=within)
        # What g loses by the rounding of the means is the same for every row of a column.
        tl.store(col_stats + 4 * cols + col, coef_p * rest_p - coef_q * rest_q, mask=within)
    col_loss = tl.sum(tl.where(within, 1.0 - r, 0.0), 0)
    if LOSS:
        store_loss(
            loss, totals, row_losses, row_parts, inter_weight, weight * col_loss,
            DOUBLE, MASKED, WEIGHTED, INTER, SUM_BLOCK,
        )  # fmt: skip
    else:
        tl.store(col_losses + tl.program_id(0), col_loss)


@triton.jit(do_not_specialize=["row_parts", "col_parts"])
def loss_kernel(
    loss,  # []
    totals,  # [3] of weigh_kernel, or unused
    row_losses, row_parts,  # [row_parts]; unused without INTER
    col_losses, col_parts,  # [col_parts]; unused without INTRA
    inter_weight, col_weight,
    DOUBLE: tl.constexpr, MASKED: tl.constexpr, WEIGHTED: tl.constexpr,
    INTER: tl.constexpr, INTRA: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    ACC: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    share = tl.sum(tl.zeros([BLOCK], ACC), 0)
    if INTRA:
        share = scalar(col_weight, DOUBLE) * total_of(col_losses, col_parts, DOUBLE, BLOCK)
    store_loss(
        loss, totals, row_losses, row_parts, inter_weight, share,
        DOUBLE, MASKED, WEIGHTED, INTER, BLOCK,
    )  # fmt: skip
