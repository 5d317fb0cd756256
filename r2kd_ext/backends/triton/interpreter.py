"""The one place that knows the quirks of Triton's interpreter (TRITON_INTERPRET=1).

The interpreter runs kernels in numpy on CPU tensors. It decides so when `triton.jit` sees a kernel,
so the variable must be set before the first call of a Triton kernel in the process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor


def readable(x: Tensor) -> Tensor:
    """x as the interpreter can load it.

    It has no bfloat16, whose denormals it mistakes. And no dispatcher has come before to write out
    a lazy negation.
    """
    x = x.resolve_neg()
    return x.float() if x.dtype is torch.bfloat16 else x


def writable(x: Tensor) -> Tensor:
    """Memory for x in a dtype that the interpreter stores: it truncates to bfloat16, and a GPU
    rounds to nearest."""
    return torch.empty_like(x, dtype=torch.float32) if x.dtype is torch.bfloat16 else x


@contextmanager
def quiet() -> Iterator[None]:
    """Without numpy's warnings of overflow and NaN, which a GPU does not give either."""
    with np.errstate(all="ignore"):
        yield
