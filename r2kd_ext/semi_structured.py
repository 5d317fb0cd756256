"""Weights of which at most 2 of every 4 neighbours are not zero."""

from __future__ import annotations

import torch
from torch import Tensor

_DTYPES = (torch.bfloat16, torch.float16)
# The shapes that both libraries behind torch.sparse.to_sparse_semi_structured take.
_MULTIPLE = 64


def check_2_4(weight: Tensor, name: str) -> None:
    """Raise ValueError unless a weight [R, K] has at most 2 nonzero entries in every 4 of a row."""
    cols = weight.shape[1]
    if cols % 4:
        raise ValueError(
            f"{name} must have a number of inputs divisible by 4 for format '2:4', got {cols}"
        )
    most = (weight.reshape(-1, 4) != 0).sum(1)
    if bool((most > 2).any()):
        place = int((most > 2).nonzero()[0, 0])
        row, col = place // (cols // 4), place % (cols // 4) * 4
        raise ValueError(
            f"{name} must have at most 2 nonzero entries in every 4 neighbours of a row for format "
            f"'2:4', got {int(most[place])} in row {row} from column {col} on: "
            "r2kd_ext.prune(model, method='2:4') makes such weights"
        )


def obstacle(weight: Tensor) -> str | None:
    """Why torch's semi-structured kernels cannot take a weight [R, K], or None."""
    if weight.device.type != "cuda" or torch.version.hip is not None:
        return f"semi-structured kernels need an NVIDIA GPU, the weight is on {weight.device}"
    capability = torch.cuda.get_device_capability(weight.device)
    if capability < (8, 0):
        return f"semi-structured kernels need compute capability 8.0, {capability} given"
    if weight.dtype not in _DTYPES:
        return f"semi-structured kernels take bfloat16 and float16, not {weight.dtype}"
    if any(size % _MULTIPLE for size in weight.shape):
        return (
            f"semi-structured kernels take shapes divisible by {_MULTIPLE}, "
            f"not {tuple(weight.shape)}"
        )
    return None


def compress(weight: Tensor) -> Tensor:
    """A weight [R, K] without an obstacle as torch's semi-structured tensor."""
    compressed: Tensor = torch.sparse.to_sparse_semi_structured(weight.detach())
    return compressed
