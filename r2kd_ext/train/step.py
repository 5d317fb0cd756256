"""One training step as a module, so that DDP and FSDP see one forward however often the student
runs in it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from .augment import View
from .losses import Method, Targets
from .timing import Parts


class StepInput(NamedTuple):
    """What the loss of a step is computed from."""

    clean: Tensor  # [B, 3, S, S]
    labels: Tensor  # [B] int64
    view: View | None
    targets: Targets
    epoch: int  # from 1


class Step(nn.Module):
    """The student, and the loss that it gets.

    Args:
        student: the only part whose parameters and buffers are this module's.
        method: the loss; its teacher stays outside of what is replicated, sharded or averaged.
        parts: where the time of the student's forward is counted.
    """

    def __init__(self, student: nn.Module, method: Method, parts: Parts) -> None:
        super().__init__()
        self.student = student
        self._loss, self.parts = method.loss, parts

    def forward(
        self, images: Tensor | None, step: StepInput | None = None
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """The loss of a step and its detached parts; or the student's logits of `images`."""
        if step is None:
            logits: Tensor = self.student(images)
            return logits
        total, parts = self._loss(
            self._student, step.clean, step.labels, step.view, step.targets, epoch=step.epoch
        )
        return total, parts

    def _student(self, images: Tensor) -> Tensor:
        with self.parts.part("student forward"):
            logits: Tensor = self.student(images)
        return logits
