"""Plain PyTorch: the specification of every fused function, under the same signatures.

Nothing here is fast. The tests hold the kernels against it, and it serves where no kernel runs.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import _arguments as arguments
from ._dtypes import accumulator
from .collectives import group_sum, scale_gradient
from .reference_fused_linear import fused_linear_correlation_kd as fused_linear_correlation_kd

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def _correlation(p: Tensor, q: Tensor, dim: int, eps: float) -> Tensor:
    """r(p, q) = sum(p * q) / (|p| * |q| + eps) along `dim`."""
    norms = torch.linalg.vector_norm(p, dim=dim) * torch.linalg.vector_norm(q, dim=dim)
    return (p * q).sum(dim) / (norms + eps)


def _group_correlation(p: Tensor, q: Tensor, eps: float, group: ProcessGroup) -> Tensor:
    """r (C,) of columns whose rows lie on all ranks of the group, p and q (B, C)."""

    def norm(x: Tensor) -> Tensor:
        square = group_sum((x * x).sum(0), group)
        positive = square > 0
        return square.where(positive, 1.0).sqrt().where(positive, 0.0)  # subgradient 0 at 0

    return group_sum((p * q).sum(0), group) / (norm(p) * norm(q) + eps)


def row_weights(mask: Tensor | None, sample_weight: Tensor | None, like: Tensor) -> Tensor:
    """The weight of each row (B,) in a mean over rows, float64: 1 or its own, 0 where masked."""
    rows = like.shape[0]
    weight = like.new_ones(rows, dtype=torch.float64) if sample_weight is None else sample_weight
    weight = weight.detach().double()
    return weight if mask is None else weight.where(mask, 0.0)


def row_distance(
    r: Tensor,
    mask: Tensor | None,
    sample_weight: Tensor | None,
    group: ProcessGroup | None = None,
) -> Tensor:
    """1 - (weighted) mean of the kept rows' r, r (B,) -> scalar; 0 where no row counts.

    With a group, of the rows of all its ranks.
    """
    if group is not None:
        weight = row_weights(mask, sample_weight, r).to(r.dtype)  # [B]
        total = group_sum(weight.sum(), group)  # []
        weighted = group_sum((weight * (r if mask is None else r.where(mask, 0.0))).sum(), group)
        return (1 - weighted / total.where(total != 0, 1.0)).where(total != 0, 0.0)
    if sample_weight is None:
        if mask is None:
            return 1 - r.mean() if r.shape[0] > 0 else r.sum()
        count = mask.sum().to(r.dtype)  # []
        return (1 - r.where(mask, 0.0).sum() / count.clamp(min=1)).where(count > 0, 0.0)
    weight = sample_weight.detach().to(r.dtype)  # [B]
    if mask is not None:
        r, weight = r.where(mask, 0.0), weight.where(mask, 0.0)
    total = weight.sum()  # []
    counts = total != 0
    return (1 - (weight * r).sum() / total.where(counts, 1.0)).where(counts, 0.0)


def correlation_from_options(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None,
    options: arguments.CorrelationOptions,
    sample_weight: Tensor | None = None,
    group: ProcessGroup | None = None,
) -> Tensor:
    """The value term of checked logits (B, C), mask and weights (B,); see `correlation_kd`.

    With a group, the gradient is the derivative of the loss with respect to the local logits.
    """
    z = student.to(accumulator(student.dtype, teacher.dtype))  # [B, C]
    y = teacher.detach().to(z.dtype)  # [B, C]
    keep = None if mask is None else mask.unsqueeze(1)  # [B, 1]
    if keep is not None:  # before the softmax, so that a masked NaN reaches nothing
        z, y = z.where(keep, 0.0), y.where(keep, 0.0)
    p = torch.softmax(z / options.temperature, dim=1)  # [B, C]
    q = torch.softmax(y / options.temperature, dim=1)  # [B, C]

    rows, classes = p.shape
    count = p.new_tensor(rows) if mask is None else mask.sum().to(p.dtype)  # []
    if group is not None:
        count = group_sum(count, group)
    at_least_one = count.clamp(min=1)

    def only_kept(x: Tensor) -> Tensor:
        return x if keep is None else x.where(keep, 0.0)

    loss = z[:0].sum()  # 0, with a gradient of 0 where both weights are 0
    if options.inter_weight:
        a, b = (p - p.mean(1, True), q - q.mean(1, True)) if options.centered else (p, q)
        r = _correlation(a, b, 1, options.eps)  # [B]
        loss = loss + options.inter_weight * row_distance(r, mask, sample_weight, group)
    if options.intra_weight:
        a, b = only_kept(p), only_kept(q)
        if group is None:
            if options.centered:
                a = only_kept(a - a.sum(0) / at_least_one)
                b = only_kept(b - b.sum(0) / at_least_one)
            r = _correlation(a, b, 0, options.eps)  # [C]
        else:
            if options.centered:
                # The means as constants: their derivative multiplies sums of deviations over all
                # ranks, which are 0, and the sum over one rank's rows is not.
                a = only_kept(a - group_sum(a.detach().sum(0), group) / at_least_one)
                b = only_kept(b - group_sum(b.detach().sum(0), group) / at_least_one)
            r = _group_correlation(a, b, options.eps, group)  # [C]
        loss = loss + options.intra_weight * (1 - r.sum() / classes)
    return loss.where(count > 0, 0.0)


def _hard_ranks(x: Tensor) -> Tensor:
    """Ranks 1, ..., C along rows (B, C), the earlier of two equal elements first."""
    return torch.argsort(torch.argsort(x, dim=1, stable=True), dim=1, stable=True) + 1


def _pools(row: list[float], strength: float) -> tuple[list[int], list[float]]:
    """Pool-adjacent-violators on a sorted row of finite numbers, places counted from 1.

    For each place: the number of its pool, and the middle of the places of that pool. Neighbours
    are pooled while the means of x / strength - place do not increase.
    """
    pools: list[tuple[float, int, int]] = []  # sum of x, first place, last place
    for place, x in enumerate(row, start=1):
        total, first = x, place
        while pools:
            before, start, end = pools[-1]
            rise = total / (place - first + 1) - before / (end - start + 1)
            if rise > strength * ((first + place) - (start + end)) / 2:
                break
            total, first = total + before, start
            pools.pop()
        pools.append((total, first, place))
    numbers, middles = [], []
    for number, (_, first, last) in enumerate(pools):
        numbers += [number] * (last - first + 1)
        middles += [(first + last) / 2] * (last - first + 1)
    return numbers, middles


def soft_ranks(x: Tensor, strength: float) -> Tensor:
    """Soft ranks along rows (B, C), computed in float64; see `soft_rank`."""
    z = x.double()  # [B, C]
    rows, classes = z.shape
    in_order, order = torch.sort(z.detach(), dim=1, stable=True)
    pool = torch.zeros(rows, classes, dtype=torch.int64, device="cpu")  # [B, C], by place
    middle = torch.zeros(rows, classes, dtype=torch.float64, device="cpu")  # [B, C], by place
    for i, row in enumerate(in_order.tolist()):
        if any(map(math.isnan, row)):
            continue
        first, last = row.count(-math.inf), classes - row.count(math.inf)
        numbers, middles = _pools(row[first:last], strength)
        pool[i, first:last] = pool.new_tensor(numbers)
        middle[i, first:last] = middle.new_tensor(middles) + first
        middle[i, :first] = (1 + first) / 2
        middle[i, last:] = (last + 1 + classes) / 2
    pool, middle = (
        torch.empty_like(t).scatter_(1, order.to(t.device), t).to(z.device) for t in (pool, middle)
    )  # [B, C], by index
    nan = z.isnan().any(1, True)  # [B, 1]
    finite = z.isfinite() | nan
    z = z.where(finite, 0.0)
    zeros = torch.zeros_like(z)
    size = zeros.scatter_add(1, pool, finite.to(z.dtype))  # [B, C]
    mean = zeros.scatter_add(1, pool, z) / size.clamp(min=1)  # [B, C], by pool
    ranks = middle + ((z - mean.gather(1, pool)) / strength).where(finite, 0.0)
    return ranks * torch.ones_like(ranks).where(~nan, math.nan)  # a NaN for the gradient, too


def rank_correlation(a: Tensor, b: Tensor, eps: float) -> Tensor:
    """Spearman's correlation (B,) of ranks (B, C), scaled and centred as published."""
    classes = a.shape[1]
    center, divisor = (classes + 1) / 2, classes * (classes + 1) / 2
    return _correlation((a - center) / divisor, (b - center) / divisor, 1, eps)


def spearman_from_options(
    x: Tensor, y: Tensor, mask: Tensor | None, soft: bool, strength: float, eps: float
) -> Tensor:
    """rho (B,) of checked rows (B, C), 0 where the mask (B,) is False; see `spearman`."""
    dtype = accumulator(x.dtype, y.dtype)
    if mask is not None:
        x, y = (t.where(mask.unsqueeze(1), 0.0) for t in (x, y))
    if soft:
        rho = rank_correlation(soft_ranks(x, strength), soft_ranks(y, strength), eps).to(dtype)
    else:
        rho = rank_correlation(_hard_ranks(x).to(dtype), _hard_ranks(y).to(dtype), eps)
        nan = x.isnan().any(1) | y.isnan().any(1)
        rho = rho.where(~nan, math.nan)
    return rho if mask is None else rho.where(mask, 0.0)


def spearman(x: Tensor, y: Tensor, *, rank: str = "hard", rank_strength: float = 1.0) -> Tensor:
    """Spearman's rank correlation of rows in plain PyTorch.

    Arguments, result and errors are those of `r2kd_ext.spearman`.
    """
    soft, strength = arguments.check_rank_options(rank, rank_strength)
    arguments.check_pair(("x", "y"), x, y, 1)
    a, b = (t.reshape(-1, t.shape[-1]) for t in (x, y))
    rho = spearman_from_options(a, b, None, soft, strength, arguments.SPEARMAN_EPS)
    return rho.reshape(x.shape[:-1])


def soft_rank(x: Tensor, strength: float = 1.0) -> Tensor:
    """Soft ranks along the last dimension in plain PyTorch.

    Arguments, result and errors are those of `r2kd_ext.soft_rank`. Pool-adjacent-violators is a
    loop in Python; the ranks are then an affine function of x, differentiable any number of times.
    """
    strength = arguments.check_strength("strength", strength)
    arguments.check_rows("x", x)
    arguments.check_classes("x", x)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return soft_ranks(x.reshape(-1, x.shape[-1]), strength).to(dtype).reshape(x.shape)


def rank_loss(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None,
    options: arguments.RankOptions,
    sample_weight: Tensor | None,
    group: ProcessGroup | None = None,
) -> Tensor:
    """The rank term of checked logits (B, C), mask and weights (B,); see `correlation_kd`."""
    rho = spearman_from_options(
        student, teacher.detach(), mask, options.soft, options.strength, options.eps
    )
    return options.weight * row_distance(rho, mask, sample_weight, group)


def correlation_kd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 4.0,
    *,
    correlation: str = "cosine",
    inter_weight: float = 2.0,
    intra_weight: float = 2.0,
    rank_weight: float = 0.0,
    rank: str = "hard",
    rank_strength: float = 1.0,
    temperature_scaling: bool = True,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
    eps: float = 1e-8,
    group: ProcessGroup | None = None,
) -> Tensor:
    """Correlation-distance distillation loss in plain PyTorch.

    Arguments, result and errors are those of `r2kd_ext.correlation_kd`, except that there is no
    backend to choose. Differentiable any number of times (once with a group). Keeps O(B * C) for
    backward.
    """
    options = arguments.check_options(
        temperature, correlation, inter_weight, intra_weight,
        rank_weight, rank, rank_strength, temperature_scaling, eps,
    )  # fmt: skip
    arguments.check_group(group)
    arguments.check_logits(student_logits, teacher_logits)
    arguments.check_mask(mask, student_logits)
    arguments.check_sample_weight(sample_weight, student_logits)
    rows = arguments.flatten_rows(student_logits, teacher_logits, mask)
    weight = None if sample_weight is None else sample_weight.reshape(-1)
    loss = correlation_from_options(*rows, options, weight, group)
    if rank_weight != 0:
        rank_options = arguments.RankOptions(rank_weight, rank == "soft", rank_strength, eps)
        loss = loss + rank_loss(*rows, rank_options, weight, group)
    return loss if group is None else scale_gradient(loss, group.size())
