"""The correlation loss of logits whose classes are spread over the ranks of a process group.

Columns are whole on one rank, and rows are not. Three all-reduces carry what a row needs:

1. the largest logits, 2 B numbers (MAX);
2. the sums of exponentials, 2 B numbers and the number of classes;
3. the moments of the rows, 3 B numbers, B for what the columns' gradient takes from the softmax's
   Jacobian, and the sum of the columns' r.

Backward communicates nothing. docs/scaling.md counts bytes, memory and time.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from . import _arguments as arguments
from ._arguments import CorrelationOptions, flatten_rows
from ._dtypes import accumulator
from .collectives import SIGNATURE_BITS, disagreement, refuse_second_derivative, signature
from .moments import column_moments, only_kept, row_chunks
from .reference import row_weights

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class _Rows(NamedTuple):
    """What is kept of each row: p = exp(z / T - origin / T) * inv_sum; -row_a, -row_b: dL/dr's."""

    origin: Tensor  # [2, B], largest logits of student and teacher
    inv_sum: Tensor  # [2, B]
    row: Tensor  # [2, B], coefficients a and b of the row term
    mean_g: Tensor  # [B], sum over all classes of p g
    columns: Tensor  # [4, C_local], coefficients A and B of the columns, means of p and of q


class _Softmax:
    """p and q of the kept rows, chunk by chunk, in the accumulator's dtype; masked rows are 0."""

    def __init__(
        self, student: Tensor, teacher: Tensor, mask: Tensor | None, temperature: float
    ) -> None:
        self.student, self.teacher, self.mask = student, teacher, mask
        self.temperature = temperature
        self.dtype = accumulator(student.dtype, teacher.dtype)
        self.chunks = row_chunks(*student.shape)

    def logits(self, chunk: slice) -> tuple[Tensor, Tensor]:
        z, y = (x[chunk].to(self.dtype) for x in (self.student, self.teacher))
        return self.kept(z, chunk), self.kept(y, chunk)

    def keep(self, chunk: slice) -> Tensor | None:
        return None if self.mask is None else self.mask[chunk].unsqueeze(1)  # [b, 1]

    def kept(self, x: Tensor, chunk: slice) -> Tensor:
        return only_kept(x, self.keep(chunk))

    def exponentials(self, origin: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        for chunk in self.chunks:
            z, y = self.logits(chunk)  # [b, C_local]
            e, h = (
                torch.exp((x - first[chunk].unsqueeze(1)) / self.temperature)
                for x, first in ((z, origin[0]), (y, origin[1]))
            )
            yield chunk, self.kept(e, chunk), self.kept(h, chunk)

    def __call__(self, origin: Tensor, inv_sum: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        for chunk, e, h in self.exponentials(origin):
            yield (
                chunk,
                e * inv_sum[0, chunk].unsqueeze(1),
                h * inv_sum[1, chunk].unsqueeze(1),
            )


def _slopes(moments: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """r, alpha, beta of dr/da = alpha b - beta a from saa, sbb, sab (docs/mathematics.md)."""
    saa, sbb, sab = moments.unbind()
    norm_a, norm_b = saa.sqrt(), sbb.sqrt()
    alpha = 1 / (norm_a * norm_b + eps)
    r = sab * alpha
    return r, alpha, (r * alpha * norm_b / norm_a).where(saa > 0, 0.0)


def _largest(
    softmax: _Softmax, facts: dict[str, Any], group: ProcessGroup
) -> tuple[Tensor, Tensor]:
    """Origins [2, B] over the classes of all ranks, and whether the ranks agree in `facts`."""
    rows = softmax.student.shape[0]
    code = signature(*facts.values())
    # float32 holds integers up to 2**24.
    assert SIGNATURE_BITS <= 24
    buffer = softmax.student.new_empty(2 + 2 * rows, dtype=softmax.dtype)
    buffer[0], buffer[1] = code, -code
    largest = buffer[2:].view(2, rows)
    for chunk in softmax.chunks:
        z, y = softmax.logits(chunk)
        largest[0, chunk], largest[1, chunk] = z.amax(1), y.amax(1)
    dist.all_reduce(buffer, op=dist.ReduceOp.MAX, group=group)
    agree = buffer[0] == -buffer[1]
    if buffer.device.type == "cpu" and not agree:
        raise disagreement(facts)
    return largest, agree


class _VocabParallelFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,  # [..., C_local]
        teacher: Tensor,  # [..., C_local]
        mask: Tensor | None,  # one bool per row
        options: CorrelationOptions,
        sample_weight: Tensor | None,  # [B] float64
        group: ProcessGroup,
    ) -> Tensor:
        rows = flatten_rows(student, teacher, mask)
        softmax = _Softmax(*rows, options.temperature)
        count, classes = rows[0].shape
        facts = {"rows": count, "dtype of the loss": softmax.dtype, "options": options}
        origin, agree = _largest(softmax, facts, group)

        total = origin.new_empty(1 + 2 * count, dtype=torch.float64)
        total[0] = classes
        sums = total[1:].view(2, count)
        for chunk, e, h in softmax.exponentials(origin):
            sums[0, chunk], sums[1, chunk] = e.double().sum(1), h.double().sum(1)
        dist.all_reduce(total, group=group)
        all_classes = total[0]
        kept = torch.ones_like(sums[0], dtype=torch.bool) if rows[2] is None else rows[2]
        inv_sum = (1 / sums.where(kept, 1.0)).to(softmax.dtype)  # [2, B]
        mean = 1 / all_classes if options.centered else all_classes.new_zeros(())  # of p and q

        kept_rows = kept.sum().double()
        coefs = origin.new_zeros((4, classes), dtype=torch.float64)
        last = origin.new_zeros(1 + 4 * count, dtype=torch.float64)
        if options.intra_weight != 0:
            parts = ((p, q, softmax.keep(chunk)) for chunk, p, q in softmax(origin, inv_sum))
            moments = column_moments(parts, coefs[0], options.centered)
            r, alpha, beta = _slopes(moments[:3], options.eps)
            factor = -options.intra_weight / all_classes
            coefs[0], coefs[1] = factor * alpha, factor * beta
            if options.centered:
                coefs[2:] = moments[3:]
            last[0] = r.sum()
        a, b, mean_p, mean_q = coefs.to(softmax.dtype).unbind()
        per_row = last[1:].view(4, count)  # pp, qq, pq, and sum of p g of the columns
        for chunk, p, q in softmax(origin, inv_sum):
            if options.intra_weight != 0:
                along = p * (a * (q - mean_q) - b * (p - mean_p))
                per_row[3, chunk] = along.double().sum(1)
            p, q = p.double() - mean, q.double() - mean
            per_row[0, chunk] = (p * p).sum(1)
            per_row[1, chunk] = (q * q).sum(1)
            per_row[2, chunk] = (p * q).sum(1)
        dist.all_reduce(last, group=group)

        loss = last.new_zeros(())
        mean_g = per_row[3]
        row = last.new_zeros((2, count))
        if options.inter_weight != 0:
            weight = row_weights(rows[2], sample_weight, rows[0])  # [B]
            total_weight = weight.sum()
            counts = total_weight != 0
            weight = weight * counts / total_weight.where(counts, 1.0)
            r, alpha, beta = _slopes(per_row[:3].where(kept, 0.0), options.eps)
            mean_r = (weight * r.where(kept, 0.0)).sum()
            loss = loss + options.inter_weight * (1 - mean_r) * counts
            row = -options.inter_weight * weight * torch.stack([alpha, beta])
            mean_g = mean_g + row[0] * per_row[2] - row[1] * per_row[0]
        if options.intra_weight != 0:
            loss = loss + options.intra_weight * (1 - last[0] / all_classes)
        loss = loss.where(kept_rows > 0, 0.0).where(agree, torch.nan)

        to = softmax.dtype
        inferred = teacher.is_inference()  # cannot be saved; see CorrelationFunction
        ctx.inferred = teacher if inferred else None
        ctx.save_for_backward(
            student, None if inferred else teacher, mask,
            origin, inv_sum, row.to(to), mean_g.to(to), coefs.to(to), mean.to(to),
        )  # fmt: skip
        ctx.options = options
        return loss.to(to)

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        student, teacher, mask, origin, inv_sum, row, mean_g, coefs, mean = ctx.saved_tensors
        teacher = teacher if ctx.inferred is None else ctx.inferred
        rows = flatten_rows(student, teacher, mask)
        softmax = _Softmax(*rows, ctx.options.temperature)
        scale = grad_loss / ctx.options.temperature
        a, b, mean_p, mean_q = coefs.unbind()
        grad = torch.empty(rows[0].shape, dtype=student.dtype, device=student.device)
        for chunk, p, q in softmax(origin, inv_sum):
            row_a, row_b = row[:, chunk].unsqueeze(2)  # [b, 1]
            g = row_a * (q - mean) - row_b * (p - mean)
            if ctx.options.intra_weight != 0:
                g += a * (q - mean_q) - b * (p - mean_p)
            grad[chunk] = softmax.kept(p * (g - mean_g[chunk].unsqueeze(1)) * scale, chunk)
        return grad.reshape(student.shape), *[None] * 5


def _local_shards(
    student: Tensor, teacher: Tensor, group: ProcessGroup | None
) -> tuple[Tensor, Tensor, ProcessGroup | None]:
    """The local tensors and the group of two DTensors; other tensors as they are."""
    module = sys.modules.get("torch.distributed.tensor")  # without it there is no DTensor
    if module is None or not isinstance(student, module.DTensor):
        return student, teacher, group
    if not isinstance(teacher, module.DTensor):
        raise TypeError(
            f"teacher_logits must be a DTensor as student_logits is, got {type(teacher).__name__}"
        )
    mesh: Any = student.device_mesh
    for name, value in (("student_logits", student), ("teacher_logits", teacher)):
        last = value.dim() - 1
        placements = tuple(value.placements)
        if value.device_mesh != mesh or placements != (module.Shard(last),):
            raise ValueError(
                f"{name} must be sharded on its last dimension over one mesh of one dimension, "
                f"Shard({last}), got {placements} on {value.device_mesh}"
            )
    if group is not None and group != mesh.get_group():
        raise ValueError("group must be None or that of the logits' device mesh, got another one")
    return student.to_local(), teacher.to_local(), mesh.get_group()


def vocab_parallel_correlation_kd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 4.0,
    *,
    group: ProcessGroup | None = None,
    correlation: str = "cosine",
    inter_weight: float = 2.0,
    intra_weight: float = 2.0,
    temperature_scaling: bool = True,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
    eps: float = 1e-8,
) -> Tensor:
    """`correlation_kd` of logits whose classes are spread over the ranks of a group.

    Every rank holds all B rows and its own C_local of the C classes, as a head that is split along
    the vocabulary leaves them. The result is that of `correlation_kd` on the gathered logits, to
    rounding; there is no rank term, since ranks need whole rows. Formula and source: there.

    Args:
        student_logits: (..., C_local), C_local >= 1, float16, bfloat16, float32 or float64; the
            leading shape is that of every rank, C_local need not be. Or a DTensor (..., C), sharded
            on its last dimension over a device mesh of one dimension.
        teacher_logits: the same classes of the teacher. Never gets a gradient.
        temperature: T > 0, dimensionless.
        group: process group of torch.distributed that the classes are spread over; None for
            DTensors, which have it.
        correlation: "cosine" (uncentred) or "pearson" (centred).
        inter_weight: weight >= 0 of the row term.
        intra_weight: weight >= 0 of the column term.
        temperature_scaling: whether the loss is multiplied by T**2.
        mask: bool, one per row, the same on every rank; see `correlation_kd`.
        sample_weight: floating point, one per row, the same on every rank; see `correlation_kd`.
        eps: >= 0, added to the product of the norms.

    Returns:
        Scalar of dtype float32, or float64 where either input is float64, the same on every rank.
        Its gradient with respect to the local logits is their part of the gradient of the whole:
        no factor, unlike `correlation_kd` with a group. Kept for backward besides the logits:
        O(B + C_local).

    Raises:
        TypeError, ValueError: an argument does not fit; on the CPU also where the ranks disagree in
            an option or dtype (on a GPU the loss is then NaN).
        RuntimeError: a second derivative is asked for (``create_graph=True``), or, from
            torch.distributed, a rank did not call within the time-out of the group.

    Note:
        Forward makes three all-reduces, of 2 + 2 B numbers of the loss's dtype and of 1 + 2 B and
        1 + 4 B float64 numbers; backward none. It is computed in plain PyTorch, in chunks of rows
        of about 2**20 elements. Not traced by torch.compile: the graph breaks there.
    """
    options = arguments.check_options(
        temperature, correlation, inter_weight, intra_weight,
        0.0, "hard", 1.0, temperature_scaling, eps,
    )  # fmt: skip
    student, teacher, group = _local_shards(student_logits, teacher_logits, group)
    if group is None:
        raise ValueError("group must be a ProcessGroup where the logits are no DTensors, got None")
    arguments.check_group(group)
    arguments.check_logits(student, teacher)
    arguments.check_mask(mask, student)
    arguments.check_sample_weight(sample_weight, student)
    weight = None if sample_weight is None else sample_weight.detach().double().reshape(-1)
    loss: Tensor = _VocabParallelFunction.apply(
        student, teacher.detach(), mask, options, weight, group
    )
    return loss
