"""Seeds of a run, each from the run's seed and a purpose, and the state of the global generators.

What the trainer draws itself (weights, order of the images, augmentations) comes from `derive`, so
no state of it has to be kept: a step draws the same numbers whatever came before it. Processes that
load images draw nothing. The global generators are left to the networks (dropout).
"""

from __future__ import annotations

import hashlib
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor


def derive(seed: int, purpose: str, *numbers: int) -> int:
    """A seed in [0, 2**62) for one draw, e.g. derive(seed, "standard", step, rank).

    The first 62 bits of the SHA-256 of the arguments, so that the seeds of neighbouring steps have
    nothing in common.
    """
    text = " ".join([str(seed), purpose, *map(str, numbers)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 2


def seed_globally(seed: int) -> None:
    """Seed the global generators of Python, numpy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def global_state() -> dict[str, Tensor]:
    """The state of the global generators of Python, numpy and torch (CPU and current GPU)."""
    version, words, gauss = random.getstate()
    legacy = np.random.get_state(legacy=False)
    assert isinstance(legacy, dict)
    spare = legacy["has_gauss"], legacy["gauss"]
    state = {
        "python": torch.tensor([version, *words], dtype=torch.int64),
        "python_gauss": _floats(gauss is not None, gauss or 0.0),
        "numpy": torch.tensor([*legacy["state"]["key"].tolist(), legacy["state"]["pos"]]),
        "numpy_gauss": _floats(*spare),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _floats(*values: Any) -> Tensor:
    return torch.tensor([float(value) for value in values], dtype=torch.float64)


def set_global_state(state: dict[str, Tensor]) -> None:
    """Restore what `global_state` gave. A GPU's state is left out where there is no GPU."""
    version, *words = state["python"].tolist()
    has_gauss, gauss = state["python_gauss"].tolist()
    random.setstate((version, tuple(words), gauss if has_gauss else None))
    *key, position = state["numpy"].tolist()
    has_gauss, gauss = state["numpy_gauss"].tolist()
    np.random.set_state(
        {
            "bit_generator": "MT19937",
            "state": {"key": np.array(key, dtype=np.uint32), "pos": position},
            "has_gauss": int(has_gauss),
            "gauss": gauss,
        }
    )
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
