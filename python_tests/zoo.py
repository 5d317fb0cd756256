"""The published networks: names, shapes and logits, and the weights that gave the logits."""

from __future__ import annotations

import gzip
import json
import math
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from r2kd_ext import models

_FACTS = Path(__file__).parent / "data" / "zoo.json.gz"


@cache
def facts() -> dict[str, dict[str, Any]]:
    """By network and by variant "32x32_100" or "64x64_200" (image size and classes)."""
    return json.loads(gzip.decompress(_FACTS.read_bytes()))


VARIANTS = [(name, variant) for name, variants in facts().items() for variant in variants]


def size_and_classes(variant: str) -> tuple[int, int]:
    size, classes = variant.split("_")
    return int(size.split("x")[0]), int(classes)


def _fill(name: str, shape: torch.Size) -> np.ndarray:
    x = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(tuple(shape))
    if name.endswith("num_batches_tracked"):
        return np.zeros_like(x)
    if name.endswith("running_var"):
        return 1 + 0.2 * abs(x)
    if name.endswith("running_mean"):
        return 0.1 * x
    if len(shape) >= 2:
        return x * math.sqrt(2 / math.prod(shape[1:]))
    return 0.1 * x if name.endswith("bias") else 1 + 0.1 * x


def filled(name: str, variant: str) -> nn.Module:
    """The network with weights that depend on their names alone; float32, in eval mode."""
    network = models.create(name, size_and_classes(variant)[1])
    state = network.state_dict()
    for key, value in state.items():
        value.copy_(torch.from_numpy(np.asarray(_fill(key, value.shape), np.float32)))
    return network.eval()


def golden_input(variant: str) -> Tensor:
    """(2, 3, H, W) float64"""
    size, _ = size_and_classes(variant)
    return torch.from_numpy(np.random.default_rng(7).standard_normal((2, 3, size, size)))
