"""Inputs of the fused linear loss, and its truth from the mathematics in float64.

The truth shares no code with the package: products by numpy, the row term by `formula.py`. Next to
it stands what rounding costs: that of the row term (`formula.Value.grad_rounding`) and one rounding
of every product, each summed as independent errors are.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from cases import generator
from formula import Array, value_term
from torch import Tensor

UNIT = 2.0**-24


class Heads(NamedTuple):
    """Hidden states and heads of a student and of a wider teacher that agree in part."""

    student_hidden: Tensor  # [N, H]
    student_weight: Tensor  # [V, H]
    student_bias: Tensor  # [V]
    teacher_hidden: Tensor  # [N, H_t]
    teacher_weight: Tensor  # [V, H_t]
    teacher_bias: Tensor  # [V]

    @property
    def student(self) -> tuple[Tensor, Tensor, Tensor]:
        return self[:3]

    def keywords(self) -> dict[str, Any]:
        return self._asdict()


def make_heads(
    rows: int = 23,
    classes: int = 61,
    width: int = 12,
    teacher_width: int = 20,
    *,
    teacher_classes: int | None = None,
    dtype: torch.dtype = torch.float32,
    spread: float = 3.0,
    requires_grad: bool = True,
) -> Heads:
    source = generator(rows, classes, width, teacher_width, spread)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source, dtype=torch.float64)

    th, tw = normal(rows, teacher_width), normal(teacher_classes or classes, teacher_width)
    mix = normal(teacher_width, width) / teacher_width**0.5
    student = (
        th @ mix + normal(rows, width),
        (tw[:classes] @ mix if teacher_classes is None else normal(classes, width)) / 2,
        normal(classes),
    )
    scale = spread / width**0.5
    student = (student[0], student[1] * scale, student[2])
    teacher = (th, tw * (spread / teacher_width**0.5), normal(len(tw)))
    heads = Heads(*(x.to(dtype) for x in (*student, *teacher)))
    for x in heads.student:
        x.requires_grad_(requires_grad)
    return heads


class Truth(NamedTuple):
    loss: float
    grads: tuple[Array, Array, Array]  # [N, H], [V, H], [V]
    roundings: tuple[Array, Array, Array]  # what rounding in float32 costs each
    logit_grad: Array  # [N, V], before scale and cap


def _double(x: Tensor) -> Array:
    return np.asarray(x.detach().double().numpy())


def truth_of(
    heads: Heads,
    temperature: float = 1.0,
    *,
    correlation: str = "pearson",
    weight: float = 1.0,
    temperature_scaling: bool = True,
    mask: Tensor | None = None,
    scales: tuple[float, float] = (1.0, 1.0),
    caps: tuple[float | None, float | None] = (None, None),
    teacher_logits: Array | None = None,
    eps: float = 1e-8,
) -> Truth:
    """Loss and gradients for these very (already rounded) inputs. `teacher_logits` replace those
    of the teacher's head."""
    h, w, b, th, tw, tb = (_double(x.reshape(-1, x.shape[-1]) if x.dim() > 1 else x) for x in heads)

    def logits(h: Array, w: Array, b: Array, scale: float, cap: float | None) -> Array:
        raw = scale * (h @ w.T + b)
        return raw if cap is None else cap * np.tanh(raw / cap)

    z = logits(h, w, b, scales[0], caps[0])
    y = logits(th, tw, tb, scales[1], caps[1]) if teacher_logits is None else teacher_logits
    value = value_term(
        z, y, temperature, correlation=correlation, inter_weight=weight, intra_weight=0.0,
        temperature_scaling=temperature_scaling, eps=eps,
        mask=None if mask is None else mask.reshape(-1).numpy(),
    )  # fmt: skip
    dz = value.grad.astype(np.float64) * scales[0]
    if caps[0] is not None:
        dz = dz * (1 - (z / caps[0]) ** 2)
    grads = (dz @ w, dz.T @ h, dz.sum(0))
    error = value.grad_rounding.astype(np.float64) * scales[0] + UNIT * abs(dz)
    square = error**2
    roundings = (square @ w**2, square.T @ h**2, square.sum(0))
    return Truth(float(value.loss), grads, tuple(np.sqrt(x) for x in roundings), dz)


def distances(found: tuple[Tensor, ...], truth: Truth) -> list[float]:
    """|found - truth| of each gradient, in the norm over all elements."""
    return [
        float(np.linalg.norm(_double(x).reshape(t.shape) - t))
        for x, t in zip(found, truth.grads, strict=True)
    ]
