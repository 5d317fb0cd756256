"""A loss that is NaN or infinite: when training stops, and what is left to look at."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from torch import Tensor

from .files import write

_LISTED = 16  # image indices that the message lists
_LEAST_SCALE = 1.0


class TrainingFailed(Exception):
    """Training cannot go on; the message says where it stopped, and why."""


def must_stop(total: float, scale: float | None) -> bool:
    """Whether training has to stop at a step with this loss.

    Args:
        total: the loss.
        scale: of the loss in fp16, None without scaling. With it, a step that is not finite is left
            out and the scale halved; that helps where the gradient overflowed, and shows that it
            does not once the scale has fallen below 1.
    """
    if math.isfinite(total):
        return False
    return scale is None or scale < _LEAST_SCALE


def describe(losses: Mapping[str, float], step: int, epoch: int, rate: float) -> str:
    """One sentence: the loss, its parts, and where it came up (step and epoch from 1)."""
    parts = ", ".join(f"{name} {value:.4g}" for name, value in losses.items() if name != "loss")
    return (
        f"the loss is {losses['loss']} ({parts}) in step {step}, epoch {epoch}, at a learning rate "
        f"of {rate:.3g}"
    )


def save_batch(path: Path, batch: Mapping[str, Tensor], complaint: str) -> str:
    """Write the tensors of a batch as safetensors; the message that names them.

    `batch["indices"]` are the images' places in the training set. Raises FileProblem where the file
    cannot be written.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in batch.items()}
    write(path, safetensors.torch.save(tensors, {"complaint": complaint}))
    indices = batch["indices"].tolist()
    listed = ", ".join(map(str, indices[:_LISTED])) + (", ..." if len(indices) > _LISTED else "")
    return f"{complaint}. The batch, training images {listed}, is in {path}"
