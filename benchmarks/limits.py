"""What the hardware allows: bytes that an operation must move, and the copy rate of this machine.

The unit of every share of the limit is the three-stream rate: `torch.add(a, b, out=c)` on vectors
as large as the logits, which reads two and writes one, as forward + backward must at the least
twice over. It is measured in the run that uses it.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Passes over B x C elements: forward reads the logits of student and teacher; backward reads them
# again and writes the gradient.
CORRELATION_PASSES = 5
COPY_PASSES = 3


def correlation_bytes(rows: int, classes: int, dtype: torch.dtype) -> int:
    """The fewest bytes that forward + backward of the correlation loss can move."""
    return CORRELATION_PASSES * rows * classes * dtype.itemsize


def copy_bytes(elements: int, dtype: torch.dtype) -> int:
    """The bytes that the three-stream copy of `elements` moves."""
    return COPY_PASSES * elements * dtype.itemsize


def three_streams(
    elements: int, dtype: torch.dtype, device: str = "cpu"
) -> tuple[Tensor, Tensor, Tensor]:
    """Two sources and a target for the three-stream copy, each [elements], already written."""
    a, b, c = (torch.randn(elements, device=device).to(dtype) for _ in range(3))
    return a, b, c
