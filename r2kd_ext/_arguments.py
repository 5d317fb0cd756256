"""Checks of the public arguments, shared by the fused functions and the reference.

Every message names the argument, what was given and what is accepted.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

CORRELATIONS = ("cosine", "pearson")
RANKS = ("hard", "soft")
LOGIT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class CorrelationOptions(NamedTuple):
    """Checked scalar options of `correlation_kd`, in the form that the kernels take.

    The weights already contain the factor `temperature ** 2` where it applies.
    """

    temperature: float
    centered: bool
    inter_weight: float
    intra_weight: float
    eps: float


def _number(name: str, value: Any, accepted: str, *, positive: bool) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be {accepted}, got {_describe(value)}")
    number = float(value)
    if not math.isfinite(number) or number < 0 or (positive and number == 0):
        raise ValueError(f"{name} must be {accepted}, got {value!r}")
    return number


def _choice(name: str, value: Any, accepted: tuple[str, ...]) -> str:
    if value not in accepted:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, accepted))}, got {value!r}")
    return str(value)


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a Tensor of shape {tuple(value.shape)} and dtype {value.dtype}"
    return f"{value!r} of type {type(value).__name__}"


def check_options(
    temperature: float,
    correlation: str,
    inter_weight: float,
    intra_weight: float,
    rank_weight: float,
    rank: str,
    rank_strength: float,
    temperature_scaling: bool,
    eps: float,
) -> CorrelationOptions:
    """Check the scalar options of `correlation_kd`; see there for their meaning."""
    temperature = _number("temperature", temperature, "a finite number > 0", positive=True)
    _choice("correlation", correlation, CORRELATIONS)
    inter_weight = _number("inter_weight", inter_weight, "a finite number >= 0", positive=False)
    intra_weight = _number("intra_weight", intra_weight, "a finite number >= 0", positive=False)
    rank_weight = _number("rank_weight", rank_weight, "a finite number >= 0", positive=False)
    _choice("rank", rank, RANKS)
    _number("rank_strength", rank_strength, "a finite number > 0", positive=True)
    if not isinstance(temperature_scaling, bool):
        raise TypeError(
            f"temperature_scaling must be True or False, got {_describe(temperature_scaling)}"
        )
    eps = _number("eps", eps, "a finite number >= 0", positive=False)
    if rank_weight != 0:
        raise NotImplementedError(
            f"rank_weight must be 0 in this version, got {rank_weight}: "
            "the rank term is not implemented yet"
        )
    scale = temperature * temperature if temperature_scaling else 1.0
    return CorrelationOptions(
        temperature, correlation == "pearson", inter_weight * scale, intra_weight * scale, eps
    )


# The checks cost 2.5 us, the cached answer 0.4 us; a call on 64 x 100 logits takes 30 us in all.
cached_options = lru_cache(maxsize=256, typed=True)(check_options)


def check_logits(student: Tensor, teacher: Tensor) -> None:
    """Raise unless both are floating-point tensors of one shape (..., C), C >= 1, one device."""
    for name, value in (("student_logits", student), ("teacher_logits", teacher)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a Tensor, got {_describe(value)}")
        if value.dtype not in LOGIT_DTYPES:
            accepted = ", ".join(str(dtype).removeprefix("torch.") for dtype in LOGIT_DTYPES)
            raise TypeError(f"{name} must have a dtype of {accepted}, got {value.dtype}")
        if value.layout != torch.strided:
            raise TypeError(f"{name} must be a dense (strided) tensor, got layout {value.layout}")
    if student.dim() < 2:
        raise ValueError(
            "student_logits must have shape (..., C) with at least two dimensions, "
            f"got {tuple(student.shape)}"
        )
    if teacher.shape != student.shape:
        raise ValueError(
            f"teacher_logits must have the shape of student_logits, {tuple(student.shape)}, "
            f"got {tuple(teacher.shape)}"
        )
    if student.shape[-1] < 1:
        raise ValueError(
            f"student_logits must have at least one class (last dimension), "
            f"got shape {tuple(student.shape)}"
        )
    if teacher.device != student.device:
        raise ValueError(
            f"teacher_logits must be on the device of student_logits, {student.device}, "
            f"got {teacher.device}"
        )


def check_mask(mask: Tensor | None, student: Tensor) -> None:
    """Raise unless mask is None or a bool tensor with the leading shape of the logits."""
    if mask is None:
        return
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask must be a bool Tensor or None, got {_describe(mask)}")
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must have dtype torch.bool, got {mask.dtype}")
    leading, rows = tuple(student.shape[:-1]), math.prod(student.shape[:-1])
    if tuple(mask.shape) not in (leading, (rows,)):
        raise ValueError(
            f"mask must have one element per row, shape {leading}"
            + (f" or {(rows,)}" if leading != (rows,) else "")
            + f", got {tuple(mask.shape)}"
        )
    if mask.device != student.device:
        raise ValueError(
            f"mask must be on the device of student_logits, {student.device}, got {mask.device}"
        )


def check_group(group: Any) -> None:
    """Raise NotImplementedError unless group is None."""
    if group is not None:
        raise NotImplementedError(
            f"group must be None in this version, got {_describe(group)}: "
            "the loss over a process group is not implemented yet"
        )
