"""The Triton kernels: any GPU that Triton knows, and the CPU under TRITON_INTERPRET=1.

Importing this package imports no triton, which need not be installed; the first call does.
"""

from __future__ import annotations

import os

import torch
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
    sample_weight: Tensor | None = None,  # [B] float64
) -> tuple[Tensor, Tensor]:
    from .launch import correlation

    return correlation(
        student, teacher, mask, temperature, centered, inter_weight, intra_weight, eps,
        sample_weight,
    )  # fmt: skip


def spearman(
    x: Tensor,  # [B, C]
    y: Tensor,  # [B, C]
    mask: Tensor | None,  # [B] bool
    soft: bool,
    strength: float,
    eps: float,
) -> Tensor:
    from .launch_ranks import spearman

    return spearman(x, y, mask, soft, strength, eps)


def spearman_backward(
    grad_rho: Tensor,  # [B]
    x: Tensor,  # [B, C]
    y: Tensor,  # [B, C]
    mask: Tensor | None,  # [B] bool
    strength: float,
    eps: float,
) -> Tensor:
    from .launch_ranks import spearman_backward

    return spearman_backward(grad_rho, x, y, mask, strength, eps)


def soft_rank(x: Tensor, strength: float) -> tuple[Tensor, Tensor]:  # x: [B, C]
    from .launch_ranks import soft_rank

    return soft_rank(x, strength)


def soft_rank_backward(
    grad_ranks: Tensor,  # [B, C]
    order: Tensor,  # [B, C] int32
    strength: float,
    dtype: torch.dtype,
) -> Tensor:
    from .launch_ranks import soft_rank_backward

    return soft_rank_backward(grad_ranks, order, strength, dtype)


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


def csr_linear(
    x: Tensor,  # [B, K]
    values: Tensor,  # [nnz]
    columns: Tensor,  # [nnz] int32
    row_offsets: Tensor,  # [R + 1] int32
    bias: Tensor | None,  # [R]
) -> Tensor:
    from .launch_sparse import csr_linear

    return csr_linear(x, values, columns, row_offsets, bias)


def csr_conv2d(
    x: Tensor,  # [B, C, H, W]
    values: Tensor,  # [nnz]
    columns: Tensor,  # [nnz] int32
    row_offsets: Tensor,  # [R + 1] int32
    bias: Tensor | None,  # [R]
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    from .launch_sparse import csr_conv2d

    return csr_conv2d(
        x, values, columns, row_offsets, bias, kernel_size, stride, padding, dilation, groups
    )
