"""The Triton kernels: any GPU that Triton knows, and the CPU under TRITON_INTERPRET=1.

Importing this package imports no triton, which need not be installed; the first call does.
"""

from __future__ import annotations

import os

from torch import Tensor


def interpreted() -> bool:
    """Whether the environment asks for Triton's interpreter, by the values that Triton accepts."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")


def correlation(
    student: Tensor,  # [B, C]
    teacher: Tensor,  # [B, C]
    mask: Tensor | None,  # [B] bool
    temperature: float,
    centered: bool,
    inter_weight: float,
    intra_weight: float,
    eps: float,
    sample_weight: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    if sample_weight is not None:
        raise NotImplementedError(
            "sample_weight must be None with the Triton kernels in this version; "
            "use backend='reference'"
        )
    from .launch import correlation

    return correlation(
        student, teacher, mask, temperature, centered, inter_weight, intra_weight, eps
    )


def correlation_backward(
    grad_loss: Tensor,  # []
    student: Tensor,  # [B, C]
    teacher: Tensor,  # [B, C]
    mask: Tensor | None,  # [B] bool
    stats: Tensor,
    temperature: float,
    centered: bool,
    inter_weight: float,
    intra_weight: float,
) -> Tensor:
    from .launch import correlation_backward

    return correlation_backward(
        grad_loss, student, teacher, mask, stats, temperature, centered, inter_weight, intra_weight
    )
