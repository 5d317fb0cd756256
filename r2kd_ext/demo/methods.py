"""The ways to train a student, by name: `METHODS`."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn import CorrelationKDLoss
from ..teacher import TeacherEnsemble


class Batch(NamedTuple):
    """One step's input."""

    images: Tensor  # (B, 1, H, W)
    labels: Tensor  # (B,) int64
    view: Tensor | None  # (B, 1, H, W), the augmented view, for methods with `takes_view`


class Method(NamedTuple):
    """A loss of a student on a batch, and the learning rate that suits it.

    `loss(student, teacher, batch)` runs the student and, where it needs them, the frozen networks
    of `teacher`; it returns a scalar with a gradient for the student only.
    """

    title: str
    takes_view: bool
    learning_rate: float
    loss: Callable[[nn.Module, TeacherEnsemble, Batch], Tensor]


def _cross_entropy(student: nn.Module, teacher: TeacherEnsemble, batch: Batch) -> Tensor:
    return F.cross_entropy(student(batch.images), batch.labels)


KL_TEMPERATURE = 4.0
KL_WEIGHT = 0.9  # and 0.1 for cross-entropy: the usual weights since Tian et al., ICLR 2020


def _kl(student: nn.Module, teacher: TeacherEnsemble, batch: Batch) -> Tensor:
    logits = student(batch.images)  # [B, C]
    with torch.no_grad():
        target = F.log_softmax(teacher.teacher(batch.images) / KL_TEMPERATURE, dim=1)  # [B, C]
    divergence = F.kl_div(
        F.log_softmax(logits / KL_TEMPERATURE, dim=1),
        target,
        reduction="batchmean",
        log_target=True,
    )
    entropy = F.cross_entropy(logits, batch.labels)
    return (1 - KL_WEIGHT) * entropy + KL_WEIGHT * KL_TEMPERATURE**2 * divergence


_dist = CorrelationKDLoss.dist()


def _dist_loss(student: nn.Module, teacher: TeacherEnsemble, batch: Batch) -> Tensor:
    logits = student(batch.images)  # [B, C]
    with torch.no_grad():
        target = teacher.teacher(batch.images)  # [B, C]
    return F.cross_entropy(logits, batch.labels) + _dist(logits, target)


def r2kd(criterion: CorrelationKDLoss) -> Method:
    """R2KD with this loss between the logits."""

    def loss(student: nn.Module, teacher: TeacherEnsemble, batch: Batch) -> Tensor:
        assert batch.view is not None
        # The student's batch norm must see the two apart; the teacher is in eval mode, so one pass
        # of both is the same and costs less.
        clean, view = student(batch.images), student(batch.view)  # [B, C] each
        clean_target, view_target = teacher(torch.cat([batch.images, batch.view])).chunk(2)
        return (
            F.cross_entropy(clean, batch.labels)
            + criterion(clean, clean_target)
            + criterion(view, view_target)
        )

    return Method("R2KD", True, 0.02, loss)


# Learning rates: the best of 0.01, 0.02, 0.05 and 0.1 on the validation split of the demo.
METHODS = {
    "ce": Method("cross-entropy alone", False, 0.05, _cross_entropy),
    "kl": Method("KL distillation", False, 0.02, _kl),
    "dist": Method("DIST", False, 0.1, _dist_loss),
    "r2kd": r2kd(CorrelationKDLoss.r2kd()),
}
