"""The teacher of R2KD: a network blended with its pruned copy."""

from __future__ import annotations

import copy
import numbers
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .pruning import PUBLISHED_AMOUNT, prunable_weights, prune

BATCHNORM_MODES = ("eval", "train")


def _check_dense_weight(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(
            f"dense_weight must be a number in [0, 1], got {value!r} of type {type(value).__name__}"
        )
    weight = float(value)
    if not 0 <= weight <= 1:  # also refuses NaN
        raise ValueError(f"dense_weight must be a number in [0, 1], got {value!r}")
    return weight


class TeacherEnsemble(nn.Module):
    """Blended logits of a frozen teacher and its pruned copy.

    forward(x) = dense_weight * teacher(x) + (1 - dense_weight) * pruned(x)

    Both networks are deep copies, so the module passed in is not changed: not its mode, not
    `requires_grad`, not its weights; changing it later does not change the ensemble. No gradient
    is recorded, not even for x. Both networks stay in eval mode, also after `train()` on the
    ensemble or on a module that contains it. A network of weight 0 is not run.

    In the published code the pruned network stays in training mode: its batch norms normalise with
    the statistics of the batch at hand, and their running statistics drift.
    `pruned_batchnorm="train"` gives that, for the batch norms only (dropout stays off). The logits
    of a sample then depend on the rest of its batch.

    Source: Kim et al., *Robustness-Reinforced Knowledge Distillation With Correlation Distance and
    Network Pruning*, IEEE TKDE 36(12), 2024, doi 10.1109/TKDE.2024.3438074; there the amount is
    0.1 per layer and the weights are 0.7 and 0.3.

    Args:
        teacher: a module that maps a batch to one tensor of logits (B, C).
        amount: the fraction of weights to prune, in [0, 1), or a schedule; see `r2kd_ext.prune`.
        dense_weight: the weight of the unpruned teacher, in [0, 1].
        method: how to prune; see `r2kd_ext.prune`.
        pruned_batchnorm: "eval", or "train" for the batch norms of the pruned copy.

    Attributes:
        teacher, pruned: the two frozen networks.

    Raises:
        What `r2kd_ext.prune` raises for the teacher, amount and method; TypeError or ValueError
        for a `dense_weight` that is no number in [0, 1]; ValueError for another
        `pruned_batchnorm`; in `forward`, TypeError if the teacher's output is not a tensor.
    """

    def __init__(
        self,
        teacher: nn.Module,
        amount: float | Mapping[str, float] = PUBLISHED_AMOUNT,
        dense_weight: float = 0.7,
        *,
        method: str = "l1_unstructured",
        pruned_batchnorm: str = "eval",
    ) -> None:
        super().__init__()
        self.dense_weight = _check_dense_weight(dense_weight)
        if pruned_batchnorm not in BATCHNORM_MODES:
            raise ValueError(
                f"pruned_batchnorm must be one of {', '.join(map(repr, BATCHNORM_MODES))}, "
                f"got {pruned_batchnorm!r}"
            )
        self.pruned_batchnorm = pruned_batchnorm
        prunable_weights(teacher, "teacher")
        self.pruned = prune(teacher, amount, method)
        self.teacher = copy.deepcopy(teacher)
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> TeacherEnsemble:
        """Keep eval mode, whatever `mode` says; batch norms as `pruned_batchnorm` says."""
        super().train(False)
        if self.pruned_batchnorm == "train":
            for module in self.pruned.modules():
                if isinstance(module, _BatchNorm):
                    module.train(True)
        return self

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Blended logits (B, C) of a batch, without gradient."""
        if self.dense_weight == 1:
            return self._logits(self.teacher, x)
        if self.dense_weight == 0:
            return self._logits(self.pruned, x)
        dense, pruned = self._logits(self.teacher, x), self._logits(self.pruned, x)  # [B, C] each
        return self.dense_weight * dense + (1 - self.dense_weight) * pruned

    @staticmethod
    def _logits(network: nn.Module, x: Tensor) -> Tensor:
        logits = network(x)
        if not isinstance(logits, Tensor):
            raise TypeError(
                f"teacher must return one tensor of logits, got {type(logits).__name__}"
            )
        return logits

    def extra_repr(self) -> str:
        return f"dense_weight={self.dense_weight}, pruned_batchnorm={self.pruned_batchnorm!r}"
