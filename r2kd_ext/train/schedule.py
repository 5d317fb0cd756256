"""The learning rate over a run."""

from __future__ import annotations

from collections.abc import Callable

from .config import OptimizerConfig


def rate_factor(config: OptimizerConfig, batches: int) -> Callable[[int], float]:
    """What the learning rate is multiplied by in a step, counted from 0.

    `decay` to the power of how many milestones lie at or before the step's epoch; before the end of
    the warm-up also the part of it that is done after the step.

    Args:
        config: its milestones and warm-up count epochs.
        batches: of an epoch.
    """

    def factor(step: int) -> float:
        epoch = step // batches
        passed = sum(epoch >= milestone for milestone in config.milestones)
        warmup = config.warmup_epochs * batches
        return float(config.decay**passed) * min(1.0, (step + 1) / max(1, warmup))

    return factor
