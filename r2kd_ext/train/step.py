"""One training step as a module, so that DDP and FSDP see one forward however often the student
runs in it."""

from __future__ import annotations

from typing import NamedTuple

import torch
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
        compiled: whether the student goes through `torch.compile`.
    """

    def __init__(
        self, student: nn.Module, method: Method, parts: Parts, compiled: bool = False
    ) -> None:
        super().__init__()
        self.student = student
        self._loss, self.parts = method.loss, parts

        # A function: student.compile() leaves modules of torch itself, as nn.Sequential, as they
        # are, and torch.compile(student) is a module, which would add its parameters once more.
        def logits(images: Tensor) -> Tensor:
            found: Tensor = student(images)
            return found

        self._logits = torch.compile(logits) if compiled else logits

    def forward(
        self, images: Tensor | None, step: StepInput | None = None
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """The loss of a step and its detached parts; or the student's logits of `images`."""
        if step is None:
            assert images is not None
            return self._logits(images)
        total, parts = self._loss(
            self._timed, step.clean, step.labels, step.view, step.targets, epoch=step.epoch
        )
        return total, parts

    def _timed(self, images: Tensor) -> Tensor:
        with self.parts.part("student forward"):
            return self._logits(images)
