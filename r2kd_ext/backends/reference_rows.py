"""The row term in plain PyTorch: where no kernel runs, and in the reference.

Inside of an op autograd does not record, so the gradient is written out (docs/mathematics.md).
Outside, the loss is differentiable any number of times.
"""

from __future__ import annotations

import torch
from torch import Tensor


def row_term(
    student: Tensor,  # [B, C]
    teacher: Tensor,  # [B, C]
    mask: Tensor | None,  # [B] bool
    temperature: float,
    centered: bool,
    weight: float,
    eps: float,
    share: Tensor | None = None,  # [], the gradient of the loss; None: no gradient is asked for
) -> tuple[Tensor, Tensor | None]:
    """weight (1 - mean of r over the kept rows), and `share` times its gradient [B, C]."""
    dtype = torch.promote_types(student.dtype, teacher.dtype)
    if mask is not None:
        student, teacher = (x.where(mask.unsqueeze(1), 0.0) for x in (student, teacher))
    p = torch.softmax(student.to(dtype) / temperature, dim=1)  # [B, C]
    a = p - p.mean(1, True) if centered else p  # [B, C]
    b = torch.softmax(teacher.to(dtype) / temperature, dim=1)  # [B, C]
    if centered:
        b -= b.mean(1, True)
    norm_a = torch.linalg.vector_norm(a, dim=1, keepdim=True)  # [B, 1]
    norm_b = torch.linalg.vector_norm(b, dim=1, keepdim=True)  # [B, 1]
    dot = torch.linalg.vecdot(a, b, dim=1).unsqueeze(1)  # [B, 1]
    norms = norm_a * norm_b + eps
    r = dot / norms
    kept = r.new_ones(r.shape) if mask is None else mask.unsqueeze(1).to(dtype)  # [B, 1]
    count = kept.sum()  # []
    mean = r.where(kept > 0, 0.0).sum() / count.clamp(min=1)
    loss = (weight * (1 - mean)).where(count > 0, 0.0)
    if share is None:
        return loss, None
    alpha = (1 / norms).where(kept > 0, 0.0)  # [B, 1]
    beta = (dot * norm_b / (norms * norms * norm_a)).where((norm_a > 0) & (kept > 0), 0.0)
    grad = b.mul_(alpha).sub_(a.mul_(beta) if centered else a * beta)  # [B, C]
    # Not from the moments: where p is nearly one-hot, what is left of grad - along is as small as
    # the rounding of grad, and the same rounding has to be in both.
    along = torch.linalg.vecdot(p, grad, dim=1).unsqueeze(1)  # [B, 1]
    row = kept * (-weight / temperature) * share / count.clamp(min=1)  # [B, 1]
    return loss, grad.sub_(along).mul_(p).mul_(row).to(student.dtype)
