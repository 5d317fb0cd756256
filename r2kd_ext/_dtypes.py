"""Which dtype results have, and what the processor computes in, in one place."""

from __future__ import annotations

import torch


def accumulator(*dtypes: torch.dtype) -> torch.dtype:
    """What sums over inputs of these dtypes are taken and given in: float64 where one is, else
    float32."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


def processor_has_bfloat16() -> bool:
    """Whether torch has this processor's instructions for bfloat16 (AVX-512 BF16, AMX, ...).

    Without them its convolutions take many times longer in bfloat16 than in float32.
    """
    mkldnn = torch.backends.mkldnn.is_available()
    return mkldnn and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
