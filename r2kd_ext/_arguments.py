"""Checks of the public arguments, shared by the fused functions and the reference.

Every message names the argument, what was given and what is accepted.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

CORRELATIONS = ("cosine", "pearson")
RANKS = ("hard", "soft")
SPEARMAN_EPS = 1e-8  # of `spearman`, as published
MAX_RANK_CLASSES = 2**30 - 1  # a place in the order of a row is kept in 30 bits
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


class RankOptions(NamedTuple):
    """Checked scalar options of the rank term."""

    weight: float
    soft: bool
    strength: float
    eps: float


def _number(name: str, value: Any, accepted: str, *, positive: bool) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be {accepted}, got {_describe(value)}")
    number = float(value)
    # A comparison, since torch.compile traces no math.isfinite of a symbolic number.
    if not 0 <= number < math.inf or (positive and number == 0):
        raise ValueError(f"{name} must be {accepted}, got {value!r}")
    return number


def check_count(name: str, value: Any) -> None:
    """An integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer >= 1, got {_describe(value)}")
    if value < 1:
        raise ValueError(f"{name} must be an integer >= 1, got {value}")


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
    check_rank_options(rank, rank_strength)
    if not isinstance(temperature_scaling, bool):
        raise TypeError(
            f"temperature_scaling must be True or False, got {_describe(temperature_scaling)}"
        )
    eps = _number("eps", eps, "a finite number >= 0", positive=False)
    scale = temperature * temperature if temperature_scaling else 1.0
    return CorrelationOptions(
        temperature, correlation == "pearson", inter_weight * scale, intra_weight * scale, eps
    )


_remembered_options = lru_cache(maxsize=256, typed=True)(check_options)


def cached_options(*options: Any) -> CorrelationOptions:
    """`check_options`, remembered: 0.4 us instead of 2.5 of the 50 that a small call takes."""
    try:
        return _remembered_options(*options)
    except TypeError:  # one is unhashable: the check says which and what it should be
        return check_options(*options)


def check_rank_options(rank: str, rank_strength: float) -> tuple[bool, float]:
    """Check the options of `spearman`; returns whether ranks are soft, and the strength."""
    soft = _choice("rank", rank, RANKS) == "soft"
    return soft, check_strength("rank_strength", rank_strength)


def check_strength(name: str, strength: float) -> float:
    """Raise unless the regularisation of a soft rank is a finite number > 0."""
    return _number(name, strength, "a finite number > 0", positive=True)


_remembered_strength = lru_cache(maxsize=256, typed=True)(check_strength)


def cached_strength(name: str, strength: float) -> float:
    """`check_strength`, remembered."""
    try:
        return _remembered_strength(name, strength)
    except TypeError:  # unhashable: the check says what it should be
        return check_strength(name, strength)


def flatten_rows(
    student: Tensor, teacher: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Logits (..., C) and a mask of one element per row as (B, C) and (B,)."""
    classes = student.shape[-1]
    return (
        student.reshape(-1, classes),
        teacher.reshape(-1, classes),
        None if mask is None else mask.reshape(-1),
    )


def check_rows(name: str, value: Tensor, dimensions: int = 1) -> None:
    """Raise unless value is a dense floating-point tensor (..., C) of enough dimensions."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a Tensor, got {_describe(value)}")
    if value.dtype not in LOGIT_DTYPES:
        accepted = ", ".join(str(dtype).removeprefix("torch.") for dtype in LOGIT_DTYPES)
        raise TypeError(f"{name} must have a dtype of {accepted}, got {value.dtype}")
    if value.layout != torch.strided:
        raise TypeError(f"{name} must be a dense (strided) tensor, got layout {value.layout}")
    if value.dim() < dimensions:
        least = ("one dimension", "two dimensions")[dimensions - 1]
        raise ValueError(
            f"{name} must have shape (..., C) with at least {least}, got {tuple(value.shape)}"
        )


def check_pair(names: tuple[str, str], first: Tensor, second: Tensor, dimensions: int) -> None:
    """Raise unless both pass `check_rows` and agree in shape and device."""
    for name, value, least in ((names[0], first, dimensions), (names[1], second, 0)):
        check_rows(name, value, least)
    if second.shape != first.shape:
        raise ValueError(
            f"{names[1]} must have the shape of {names[0]}, {tuple(first.shape)}, "
            f"got {tuple(second.shape)}"
        )
    check_classes(names[0], first)
    if second.device != first.device:
        raise ValueError(
            f"{names[1]} must be on the device of {names[0]}, {first.device}, got {second.device}"
        )


def check_classes(name: str, value: Tensor) -> None:
    """Raise unless the last dimension has at least one element."""
    if value.shape[-1] < 1:
        raise ValueError(
            f"{name} must have at least one class (last dimension), got shape {tuple(value.shape)}"
        )


def check_sortable(name: str, value: Tensor) -> None:
    """Raise if a row is too long for the rank kernels."""
    if value.shape[-1] > MAX_RANK_CLASSES:
        raise ValueError(
            f"{name} must have at most {MAX_RANK_CLASSES} classes to be ranked, "
            f"got shape {tuple(value.shape)}"
        )


def check_logits(student: Tensor, teacher: Tensor) -> None:
    """Raise unless both are floating-point tensors of one shape (..., C), C >= 1, one device."""
    check_pair(("student_logits", "teacher_logits"), student, teacher, 2)


def check_mask(mask: Tensor | None, student: Tensor) -> None:
    """Raise unless mask is None or a bool tensor with the leading shape of the logits."""
    if mask is None:
        return
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask must be a bool Tensor or None, got {_describe(mask)}")
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must have dtype torch.bool, got {mask.dtype}")
    _check_per_row("mask", mask, student)


def check_sample_weight(sample_weight: Tensor | None, student: Tensor) -> None:
    """Raise unless sample_weight is None or a floating-point tensor of one element per row.

    The numbers are not looked at: on a GPU that would wait for it.
    """
    if sample_weight is None:
        return
    if not isinstance(sample_weight, Tensor):
        raise TypeError(
            f"sample_weight must be a floating-point Tensor or None, got {_describe(sample_weight)}"
        )
    if not sample_weight.dtype.is_floating_point:
        raise TypeError(
            f"sample_weight must have a floating-point dtype, got {sample_weight.dtype}"
        )
    _check_per_row("sample_weight", sample_weight, student)


def _check_per_row(
    name: str, value: Tensor, student: Tensor, student_name: str = "student_logits"
) -> None:
    leading, rows = tuple(student.shape[:-1]), math.prod(student.shape[:-1])
    if tuple(value.shape) not in (leading, (rows,)):
        raise ValueError(
            f"{name} must have one element per row, shape {leading}"
            + (f" or {(rows,)}" if leading != (rows,) else "")
            + f", got {tuple(value.shape)}"
        )
    if value.device != student.device:
        raise ValueError(
            f"{name} must be on the device of {student_name}, {student.device}, got {value.device}"
        )


def check_group(group: Any) -> None:
    """Raise unless group is None or a process group of torch.distributed that this rank is in."""
    if group is None:
        return
    if torch.compiler.is_compiling():
        raise NotImplementedError(
            "group must be None inside torch.compile(fullgraph=True) in this version; "
            "call the loss outside of the compiled function"
        )
    accepted = "a ProcessGroup of the initialised torch.distributed, or None"
    if not dist.is_available() or not isinstance(group, dist.ProcessGroup):
        raise TypeError(f"group must be {accepted}, got {_describe(group)}")
    try:
        rank = dist.get_rank(group)
    except ValueError as error:  # destroyed, or torch.distributed is not initialised
        raise ValueError(f"group must be {accepted}: {error}") from error
    if rank < 0:
        raise ValueError(f"group must contain this rank, {dist.get_rank()}, which it does not")
