"""Plain PyTorch: the specification of every fused function, under the same signatures.

Nothing here is fast. The tests hold the kernels against it, and it serves where no kernel runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import _arguments as arguments

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def _correlation(p: Tensor, q: Tensor, dim: int, eps: float) -> Tensor:
    """r(p, q) = sum(p * q) / (|p| * |q| + eps) along `dim`."""
    norms = torch.linalg.vector_norm(p, dim=dim) * torch.linalg.vector_norm(q, dim=dim)
    return (p * q).sum(dim) / (norms + eps)


def correlation_from_options(
    student: Tensor, teacher: Tensor, mask: Tensor | None, options: arguments.CorrelationOptions
) -> Tensor:
    """The loss of checked logits (B, C), mask (B,) and options; see `correlation_kd`."""
    double = torch.float64 in (student.dtype, teacher.dtype)
    z = student.to(torch.float64 if double else torch.float32)  # [B, C]
    y = teacher.detach().to(z.dtype)  # [B, C]
    keep = None if mask is None else mask.unsqueeze(1)  # [B, 1]
    if keep is not None:  # before the softmax, so that a masked NaN reaches nothing
        z, y = z.where(keep, 0.0), y.where(keep, 0.0)
    p = torch.softmax(z / options.temperature, dim=1)  # [B, C]
    q = torch.softmax(y / options.temperature, dim=1)  # [B, C]

    rows, classes = p.shape
    count = p.new_tensor(rows) if mask is None else mask.sum().to(p.dtype)  # []
    at_least_one = count.clamp(min=1)

    def only_kept(x: Tensor) -> Tensor:
        return x if keep is None else x.where(keep, 0.0)

    loss = p.new_zeros(())
    if options.inter_weight:
        a, b = (p - p.mean(1, True), q - q.mean(1, True)) if options.centered else (p, q)
        r = only_kept(_correlation(a, b, 1, options.eps).unsqueeze(1))  # [B, 1]
        loss = loss + options.inter_weight * (1 - r.sum() / at_least_one)
    if options.intra_weight:
        a, b = only_kept(p), only_kept(q)
        if options.centered:
            a = only_kept(a - a.sum(0) / at_least_one)
            b = only_kept(b - b.sum(0) / at_least_one)
        r = _correlation(a, b, 0, options.eps)  # [C]
        loss = loss + options.intra_weight * (1 - r.sum() / classes)
    return loss.where(count > 0, 0.0)


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
    eps: float = 1e-8,
    group: ProcessGroup | None = None,
) -> Tensor:
    """Correlation-distance distillation loss in plain PyTorch.

    Arguments, result and errors are those of `r2kd_ext.correlation_kd`, except that there is no
    backend to choose. Differentiable any number of times. Keeps O(B * C) for backward.
    """
    options = arguments.check_options(
        temperature, correlation, inter_weight, intra_weight,
        rank_weight, rank, rank_strength, temperature_scaling, eps,
    )  # fmt: skip
    arguments.check_group(group)
    arguments.check_logits(student_logits, teacher_logits)
    arguments.check_mask(mask, student_logits)
    classes = student_logits.shape[-1]
    return correlation_from_options(
        student_logits.reshape(-1, classes),
        teacher_logits.reshape(-1, classes),
        None if mask is None else mask.reshape(-1),
        options,
    )
