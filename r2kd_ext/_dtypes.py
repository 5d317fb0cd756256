"""Which dtype results have, in one place."""

from __future__ import annotations

import torch


def accumulator(*dtypes: torch.dtype) -> torch.dtype:
    """What sums over inputs of these dtypes are taken and given in: float64 where one is, else
    float32."""
    return torch.float64 if torch.float64 in dtypes else torch.float32
