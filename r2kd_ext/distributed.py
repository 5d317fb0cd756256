"""The correlation loss over the rows of all ranks of a process group.

Columns are compared over the global batch and rows are averaged by global counts. Every rank sends
its partial moments, O(C) numbers in float64, and all get the same loss:

- cosine: one all-reduce of 6 + 3 C numbers;
- Pearson: one of 6 + 2 C numbers (the sums that the means come from), then one of 3 C (the moments
  about the global means). No difference of large sums is taken, and no rank holds the moments of
  another, which an all-gather would do in one round at (world size - 1) 5 C numbers received;
- without a column term: one of 6 numbers.

Backward communicates nothing. docs/scaling.md counts bytes, memory and time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from . import ops, reference
from ._arguments import CorrelationOptions, RankOptions, flatten_rows
from ._dtypes import accumulator
from .backends import is_interpreted, native, triton
from .collectives import disagreement, refuse_second_derivative, signature, sums_agree
from .moments import SoftmaxChunk, column_moments, only_kept, row_chunks

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

# Numbers at the head of the exchange: the signature and its square, kept rows, their weight, the
# weighted sums of r and of rho.
HEAD = 6


class PartialMoments(NamedTuple):
    """What the rows of one rank contribute, float64 but for the statistics."""

    rows: Tensor  # [], kept rows
    weight: Tensor  # [], the sum of their weights; `rows` where there are none
    r: Tensor  # [], the weighted sum of the rows' r
    columns: Tensor | None  # [3, C] pp, qq, pq; Pearson [5, C] with mean_p, mean_q; sums over rows
    stats: Tensor  # as `ops.correlation` leaves them; coefficients of the rows for weights of 1


def _softmaxes(
    student: Tensor,  # [B, C]
    teacher: Tensor,  # [B, C]
    mask: Tensor | None,  # [B] bool
    temperature: float,
) -> Iterator[SoftmaxChunk]:
    dtype = accumulator(student.dtype, teacher.dtype)
    for chunk in row_chunks(*student.shape):
        keep = None if mask is None else mask[chunk].unsqueeze(1)  # [b, 1]
        p, q = (
            only_kept(torch.softmax(only_kept(x[chunk].to(dtype), keep) / temperature, dim=1), keep)
            for x in (student, teacher)
        )
        yield p, q, keep


def partial_moments(
    student: Tensor,  # [B, C]
    teacher: Tensor,  # [B, C]
    mask: Tensor | None,  # [B] bool
    options: CorrelationOptions,
    sample_weight: Tensor | None,  # [B] float64
    backend: str,
) -> PartialMoments:
    """The local part: on the CPU by its kernels."""
    if backend == "native" and student.device.type == "cpu":
        sums, moments, stats = native.correlation_moments(
            student, teacher, mask, options.temperature, options.centered,
            float(options.inter_weight != 0), float(options.intra_weight != 0),
            options.eps, sample_weight,
        )  # fmt: skip
        columns = moments if options.intra_weight != 0 else None
        return PartialMoments(sums[0], sums[1], sums[2], columns, stats)
    return moments_by_forward(student, teacher, mask, options, sample_weight, backend)


def moments_by_forward(
    student: Tensor,  # [B, C]
    teacher: Tensor,  # [B, C]
    mask: Tensor | None,  # [B] bool
    options: CorrelationOptions,
    sample_weight: Tensor | None,  # [B] float64
    backend: str,
) -> PartialMoments:
    """The local part by kernels that end in coefficients, not in moments, as those of GPUs do.

    They serve for the rows; the columns are computed by torch, in chunks of rows.
    """
    wants_rows = float(options.inter_weight != 0)
    kept = None if mask is None else mask.double()
    rows = student.new_tensor(len(student), dtype=torch.float64) if kept is None else kept.sum()
    weight = rows
    if sample_weight is not None:
        weight = (sample_weight if mask is None else sample_weight.where(mask, 0.0)).sum()
    arguments: Any = (
        student, teacher, mask, options.temperature, options.centered,
        wants_rows, 0.0, options.eps, sample_weight,
    )  # fmt: skip
    if is_interpreted(backend, student.device):
        loss, stats = triton.correlation(*arguments)
    else:
        loss, stats = ops.correlation(*arguments, triton=backend == "triton")
    # loss = 1 - sum(weight r) / weight, and the coefficients carry 1 / weight.
    counts = weight != 0
    row_stats(stats, student).mul_(weight.where(counts, 1.0))
    r = ((1 - loss.double()) * weight).where(counts, 0.0) * wants_rows
    columns = None
    if options.intra_weight != 0:
        softmaxes = _softmaxes(student, teacher, mask, options.temperature)
        columns = column_moments(softmaxes, rows.new_zeros(student.shape[1]), options.centered)
    return PartialMoments(rows, weight, r, columns, stats)


def row_stats(stats: Tensor, student: Tensor) -> Tensor:
    """The rows' coefficients [B, 2] within the statistics."""
    rows = student.shape[0]
    return stats[: native.ROW_STATS * rows].view(rows, native.ROW_STATS)[:, native.ROW_COEFS]


class _Totals(NamedTuple):
    """What all ranks have together."""

    rows: Tensor  # []
    weight: Tensor  # []
    r: Tensor  # []
    rho: Tensor  # []
    columns: Tensor | None  # [3, C] or [5, C]
    agree: Tensor  # [] bool


def _exchange(
    part: PartialMoments, rho: Tensor, centered: bool, facts: dict[str, Any], group: ProcessGroup
) -> _Totals:
    code = signature(*facts.values())
    head = [part.rows.new_tensor(code), part.rows.new_tensor(code**2)]
    head += [part.rows, part.weight, part.r, rho]
    payload = [torch.stack(head)]
    columns = part.columns
    if columns is not None:
        first = columns[3:] * part.rows if centered else columns
        payload.append(first.reshape(-1))
    buffer = torch.cat(payload)  # [HEAD + 3 C], Pearson [HEAD + 2 C]
    dist.all_reduce(buffer, group=group)
    agree = sums_agree(buffer[0], buffer[1], dist.get_world_size(group))
    if buffer.device.type == "cpu" and not agree:
        raise disagreement(facts)
    rows = buffer[2]
    if columns is not None:
        first = buffer[HEAD:].view(-1, columns.shape[1])
        if centered:
            means = first / rows.clamp(min=1)  # [2, C]
            dp, dq = (columns[3:] - means).unbind()
            # Moments about another mean: Steiner's rule, with nothing but sums of squares.
            spread = torch.stack([dp * dp, dq * dq, dp * dq]) * part.rows
            moments = columns[:3] + spread.where(part.rows > 0, 0.0)  # [3, C]
            dist.all_reduce(moments, group=group)
            columns = torch.cat([moments, means])
        else:
            columns = first
    return _Totals(rows, buffer[3], buffer[4], buffer[5], columns, agree)


def write_column_statistics(columns: Tensor, weight: float, eps: float, out: Tensor) -> Tensor:
    """The columns' statistics from their moments, [3 or 5, C] -> out [5, C]; returns the mean r."""
    pp, qq, pq = columns[:3].unbind()
    norm_p, norm_q = pp.sqrt(), qq.sqrt()
    alpha = 1 / (norm_p * norm_q + eps)
    r = pq * alpha  # [C]
    beta = (r * alpha * norm_q / norm_p).where(pp > 0, 0.0)
    factor = -weight / pp.shape[0]
    out[0], out[1] = factor * alpha, factor * beta
    if len(columns) == 5:
        out[2:4] = columns[3:]
        lost_p, lost_q = (columns[3:] - out[2:4].double()).unbind()
        out[4] = out[1].double() * lost_p - out[0].double() * lost_q
    return r.mean()


class GroupCorrelationFunction(torch.autograd.Function):
    """The loss over a group by the kernels; keeps the logits, mask and O(B + C) numbers.

    The gradient is the world size times the derivative of the loss; see `correlation_kd`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,  # [..., C]
        teacher: Tensor,  # [..., C]
        rho: Tensor | None,  # [B]
        mask: Tensor | None,  # one bool per row
        options: CorrelationOptions,
        rank_options: RankOptions | None,
        sample_weight: Tensor | None,  # [B] float64
        backend: str,
        group: ProcessGroup,
    ) -> Tensor:
        rows = flatten_rows(student, teacher, mask)
        part = partial_moments(*rows, options, sample_weight, backend)
        facts = {
            "classes": student.shape[-1],
            "dtype of the loss": accumulator(student.dtype, teacher.dtype),
            "options": options,
            "rank options": rank_options,
            "backend": backend,
        }
        row_weight = reference.row_weights(rows[2], sample_weight, rows[0])  # [B] float64
        rho_sum = part.rows.new_zeros(())
        if rho is not None:
            rho_sum = (rho.double() * row_weight).sum()
        totals = _exchange(part, rho_sum, options.centered, facts, group)

        weighs = totals.weight != 0
        inverse = weighs / totals.weight.where(weighs, 1.0)  # []
        loss = options.inter_weight * (1 - totals.r * inverse) * weighs
        row_stats(part.stats, rows[0]).mul_(options.inter_weight * inverse)
        if totals.columns is not None:
            out = part.stats[native.ROW_STATS * len(rows[0]) :].view(native.COL_STATS, -1)
            mean = write_column_statistics(totals.columns, options.intra_weight, options.eps, out)
            loss = loss + options.intra_weight * (1 - mean)
        if rank_options is not None:
            loss = loss + rank_options.weight * (1 - totals.rho * inverse) * weighs
        loss = loss.where(totals.rows > 0, 0.0).where(totals.agree, torch.nan)

        rho_slope = None
        if rank_options is not None and rank_options.soft:
            rho_slope = (-rank_options.weight * inverse * row_weight).to(part.stats.dtype)  # [B]
        inferred = teacher.is_inference()  # cannot be saved; see CorrelationFunction
        ctx.inferred = teacher if inferred else None
        ctx.save_for_backward(student, None if inferred else teacher, mask, part.stats, rho_slope)
        ctx.options, ctx.backend, ctx.size = options, backend, dist.get_world_size(group)
        return loss.to(part.stats.dtype)

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        student, teacher, mask, stats, rho_slope = ctx.saved_tensors
        teacher = teacher if ctx.inferred is None else ctx.inferred
        grad_loss = grad_loss * ctx.size
        grad = grad_rho = None
        if ctx.needs_input_grad[0]:
            rows = flatten_rows(student, teacher, mask)
            arguments = (grad_loss, *rows, stats, *ctx.options[:4])
            if is_interpreted(ctx.backend, student.device):
                grad = triton.correlation_backward(*arguments)
            else:
                grad = ops.correlation_backward(*arguments, triton=ctx.backend == "triton")
            grad = grad.reshape(student.shape)
        if ctx.needs_input_grad[2]:
            grad_rho = grad_loss * rho_slope
        return grad, None, grad_rho, *[None] * 6
