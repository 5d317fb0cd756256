"""The cases of the correlation loss: shapes, settings and inputs, each with its reason."""

from __future__ import annotations

import importlib.util
import os
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import r2kd_ext


def _unavailable(backend: str) -> str | None:
    """Why a backend cannot run here, or None."""
    if backend == "native" and importlib.util.find_spec("r2kd_ext._core") is None:
        return "backend 'native' skipped: the compiled core r2kd_ext._core is not built"
    if backend == "triton" and importlib.util.find_spec("triton") is None:
        return "backend 'triton' skipped: the package triton is not installed"
    return None


def _parametrize(*backends: str) -> pytest.MarkDecorator:
    reasons = {backend: _unavailable(backend) for backend in backends}
    return pytest.mark.parametrize(
        "backend",
        [
            pytest.param(name, marks=pytest.mark.skipif(reason is not None, reason=reason or ""))
            for name, reason in reasons.items()
        ],
    )


# One place for a further backend. The kernels are what must be as exact as the reference.
# In Triton's interpreter (test_triton_correlation.py starts such a session) they are Triton's.
if os.environ.get("TRITON_INTERPRET"):
    every_kernel = every_backend = _parametrize("triton")
else:
    every_kernel = _parametrize("native")
    every_backend = _parametrize("reference", "native")


def loss_of(backend: str | None) -> Callable[..., Tensor]:
    """`r2kd_ext.correlation_kd` on one backend."""
    return partial(r2kd_ext.correlation_kd, backend=backend)


class Shape(NamedTuple):
    rows: int
    classes: int
    reason: str


class Setting(NamedTuple):
    name: str
    options: dict[str, Any]
    reason: str


SHAPES = [
    Shape(1, 1, "nothing varies: softmax is 1, every centred moment is 0"),
    Shape(1, 2, "one row: every centred column is 0"),
    Shape(2, 1, "one class: every centred row is 0"),
    Shape(1, 10, "the last batch of an epoch may hold one sample"),
    Shape(7, 13, "both odd and below one vector of any width"),
    Shape(3, 15, "one less than a 16-lane vector"),
    Shape(5, 16, "exactly one 16-lane vector, two of 8 lanes"),
    Shape(4, 17, "one more than a 16-lane vector"),
    Shape(33, 10, "few classes, rows not a multiple of a block"),
    Shape(6, 63, "one less than four 16-lane vectors: unrolled loop and tail"),
    Shape(64, 65, "one more than four 16-lane vectors"),
    Shape(64, 100, "CIFAR-100 at the published batch size"),
    Shape(64, 200, "Tiny-ImageNet at the published batch size"),
    Shape(129, 257, "one row and one class past a power of two: uneven split over threads"),
    Shape(100, 1000, "ImageNet"),
    Shape(3000, 5, "tall: column sums run over many rows"),
    Shape(2, 32001, "a vocabulary, odd: row sums run over many classes"),
]
# Where the full grid would only cost time: an awkward, a square, a tall and a wide shape.
FEW_SHAPES = [shape for shape in SHAPES if shape[:2] in ((7, 13), (64, 65), (3000, 5), (2, 32001))]

SETTINGS = [
    Setting("r2kd", {}, "the defaults: R2KD as published, T = 4"),
    Setting(
        "dist",
        {
            "temperature": 1.0,
            "correlation": "pearson",
            "inter_weight": 1.0,
            "intra_weight": 1.0,
            "temperature_scaling": False,
        },
        "DIST as published",
    ),
    Setting("pearson", {"correlation": "pearson"}, "centring where p is nearer to uniform"),
    Setting("rows", {"intra_weight": 0.0}, "the column path is off"),
    Setting("columns", {"inter_weight": 0.0}, "the row path is off"),
    Setting(
        "pearson-rows",
        {"correlation": "pearson", "intra_weight": 0.0},
        "the column path is off, with centring",
    ),
    Setting(
        "pearson-columns",
        {"correlation": "pearson", "inter_weight": 0.0},
        "the row path is off, with centring",
    ),
    Setting(
        "uneven",
        {"temperature": 2.5, "inter_weight": 0.3, "intra_weight": 1.7},
        "no two numbers alike, so that no two can be confused",
    ),
    Setting("unscaled", {"temperature_scaling": False}, "no factor T^2"),
    Setting("large-eps", {"eps": 0.05, "correlation": "pearson"}, "eps of the size of the norms"),
]

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]

each_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s.rows}x{s.classes}")
each_of_few_shapes = pytest.mark.parametrize(
    "shape", FEW_SHAPES, ids=lambda s: f"{s.rows}x{s.classes}"
)
each_setting = pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: s.name)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))


def generator(*key: object) -> torch.Generator:
    """A generator seeded from the values that name a case."""
    return torch.Generator().manual_seed(zlib.crc32(repr(key).encode()))


def make_logits(
    rows: int,
    classes: int,
    *,
    spread: float = 3.0,
    dtype: torch.dtype = torch.float32,
    teacher_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Student and teacher logits (B, C) of the given spread that agree in part."""
    source = generator(rows, classes, spread)
    teacher = torch.randn(rows, classes, generator=source, dtype=torch.float64)  # [B, C]
    own = torch.randn(rows, classes, generator=source, dtype=torch.float64)  # [B, C]
    student = (0.5 * teacher + own) * spread
    return student.to(dtype), (teacher * spread).to(teacher_dtype or dtype)


def make_mask(rows: int) -> Tensor:
    """A mask (B,) that keeps about two thirds of the rows, in no regular pattern."""
    return torch.rand(rows, generator=generator("mask", rows)) < 0.67
