"""Modules over `r2kd_ext.functional`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import _arguments as arguments
from .functional import correlation_kd

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class CorrelationKDLoss(torch.nn.Module):
    """`r2kd_ext.correlation_kd` with its options bound; see there for their meaning.

    The module has no parameters and no state. Options are checked when it is built, so that a
    typing error shows before the first batch. Errors: those of `correlation_kd`.

    Example::

        criterion = CorrelationKDLoss.r2kd()
        loss = cross_entropy(student_logits, labels) + criterion(student_logits, teacher_logits)
    """

    def __init__(
        self,
        temperature: float = 4.0,
        *,
        correlation: str = "cosine",
        inter_weight: float = 2.0,
        intra_weight: float = 2.0,
        rank_weight: float = 0.0,
        rank: str = "hard",
        rank_strength: float = 1.0,
        temperature_scaling: bool = True,
        eps: float = 1e-8,
        group: ProcessGroup | None = None,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        arguments.check_options(
            temperature, correlation, inter_weight, intra_weight,
            rank_weight, rank, rank_strength, temperature_scaling, eps,
        )  # fmt: skip
        arguments.check_group(group)
        self.options: dict[str, Any] = {
            "temperature": temperature,
            "correlation": correlation,
            "inter_weight": inter_weight,
            "intra_weight": intra_weight,
            "rank_weight": rank_weight,
            "rank": rank,
            "rank_strength": rank_strength,
            "temperature_scaling": temperature_scaling,
            "eps": eps,
            "group": group,
            "backend": backend,
        }

    @classmethod
    def r2kd(cls) -> CorrelationKDLoss:
        """R2KD as published: cosine, T = 4, both weights 2, times T**2, and hard ranks, weight 2.

        The rank term has no gradient (ranks are integers): it shifts the loss by a number between
        0 and 4, at the price of sorting every row twice per batch, and teaches nothing. Without it
        (``CorrelationKDLoss()``) the student is the same; ``rank="soft"`` gives it a gradient.
        Source: Kim et al., IEEE TKDE 36(12), 2024, doi 10.1109/TKDE.2024.3438074.
        """
        return cls(
            4.0,
            correlation="cosine",
            inter_weight=2.0,
            intra_weight=2.0,
            rank_weight=2.0,
            rank="hard",
        )

    @classmethod
    def dist(cls) -> CorrelationKDLoss:
        """DIST: Pearson, T = 1, both weights 1.

        Source: Huang et al., *Knowledge Distillation from A Stronger Teacher*, NeurIPS 2022.
        """
        return cls(1.0, correlation="pearson", inter_weight=1.0, intra_weight=1.0)

    def forward(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        mask: Tensor | None = None,
        sample_weight: Tensor | None = None,
    ) -> Tensor:
        """Loss of logits (..., C), with an optional bool mask and weights, one per row. Scalar."""
        return correlation_kd(
            student_logits,
            teacher_logits,
            mask=mask,
            sample_weight=sample_weight,
            **self.options,
        )

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())
