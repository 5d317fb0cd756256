"""Checks of the arguments of `fused_linear_correlation_kd`, shared by the fused function and the
reference.

Every message names the argument, what was given and what is accepted.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._arguments import _check_per_row, _describe, _number, check_rows
from ._arguments import check_options as check_correlation_options

_INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8)


class LinearOptions(NamedTuple):
    """Checked scalar options of `fused_linear_correlation_kd`, in the form that the op takes.

    `weight` already contains the factor `temperature ** 2` where it applies. A soft-cap of 0 is
    none.
    """

    temperature: float
    centered: bool
    weight: float
    eps: float
    student_scale: float
    teacher_scale: float
    student_softcap: float
    teacher_softcap: float


class LinearInputs(NamedTuple):
    """The tensors of a checked call, rows flattened, in the order in which the op takes them.

    The teacher is a head (the first three, and `vocab_map`) or the last two.
    """

    student_hidden: Tensor  # [N, H]
    student_weight: Tensor  # [V, H]
    student_bias: Tensor | None  # [V]
    teacher_hidden: Tensor | None  # [N, H_t]
    teacher_weight: Tensor | None  # [V_t, H_t]
    teacher_bias: Tensor | None  # [V_t]
    vocab_map: Tensor | None  # [V] integers in [-1, V_t)
    topk_values: Tensor | None  # [N, k] log-probabilities
    topk_indices: Tensor | None  # [N, k] integers in [0, V)
    mask: Tensor | None  # [N] bool


def check_options(
    temperature: float,
    correlation: str,
    weight: float,
    temperature_scaling: bool,
    eps: float,
    logit_scale: float | tuple[float, float],
    logit_softcap: float | tuple[float | None, float | None] | None,
) -> LinearOptions:
    """Check the scalar options; see `fused_linear_correlation_kd` for their meaning."""
    weight = _number("weight", weight, "a finite number >= 0", positive=False)
    checked = check_correlation_options(
        temperature, correlation, weight, 0.0, 0.0, "hard", 1.0, temperature_scaling, eps
    )
    scales = [
        _number(
            "logit_scale", x, "a finite number > 0, or a pair (student, teacher)", positive=True
        )
        for x in _pair("logit_scale", logit_scale)
    ]
    softcaps = [
        0.0
        if x is None
        else _number(
            "logit_softcap", x, "None or a finite number > 0, or a pair of these", positive=True
        )
        for x in _pair("logit_softcap", logit_softcap)
    ]
    return LinearOptions(
        checked.temperature, checked.centered, checked.inter_weight, checked.eps,
        scales[0], scales[1], softcaps[0], softcaps[1],
    )  # fmt: skip


def _pair(name: str, value: Any) -> tuple[Any, Any]:
    if not isinstance(value, tuple):
        return value, value
    if len(value) != 2:
        raise ValueError(f"{name} must be one value or a pair (student, teacher), got {value!r}")
    return value


def check_inputs(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher_hidden: Tensor | None,
    teacher_weight: Tensor | None,
    student_bias: Tensor | None,
    teacher_bias: Tensor | None,
    mask: Tensor | None,
    labels: Tensor | None,
    ignore_index: int,
    vocab_map: Tensor | None,
    teacher_topk: tuple[Tensor, Tensor] | None,
) -> LinearInputs:
    """Check the tensors and flatten their rows. The teacher's are detached."""
    _check_head("student", student_hidden, student_weight, student_bias)
    _check_leading("mask", mask, student_hidden)
    if mask is not None and mask.dtype != torch.bool:
        raise TypeError(f"mask must have dtype torch.bool, got {mask.dtype}")
    _check_leading("labels", labels, student_hidden)
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, int):
        raise TypeError(f"ignore_index must be an integer, got {_describe(ignore_index)}")
    keep = None if mask is None else mask.reshape(-1)  # [N]
    if labels is not None:
        _check_integers("labels", labels)
        counted = labels.reshape(-1) != ignore_index  # [N]
        keep = counted if keep is None else keep & counted

    student = (_rows(student_hidden), student_weight, student_bias)
    if teacher_topk is not None:
        for name, value in (
            ("teacher_hidden", teacher_hidden),
            ("teacher_weight", teacher_weight),
            ("teacher_bias", teacher_bias),
            ("vocab_map", vocab_map),
        ):
            if value is not None:
                raise ValueError(
                    f"{name} must be None with teacher_topk, which takes the place of the "
                    f"teacher's head, got {_describe(value)}"
                )
        values, indices = _check_topk(teacher_topk, student_hidden, student_weight.shape[0])
        return LinearInputs(*student, None, None, None, None, values, indices, keep)
    if teacher_hidden is None or teacher_weight is None:
        missing = "teacher_hidden" if teacher_hidden is None else "teacher_weight"
        raise TypeError(f"{missing} must be a Tensor unless teacher_topk is given, got None")
    _check_head("teacher", teacher_hidden, teacher_weight, teacher_bias)
    if teacher_hidden.shape[:-1] != student_hidden.shape[:-1]:
        raise ValueError(
            "teacher_hidden must have the leading shape of student_hidden, "
            f"{tuple(student_hidden.shape[:-1])}, got {tuple(teacher_hidden.shape[:-1])}"
        )
    _check_device("teacher_hidden", teacher_hidden, student_hidden)
    _check_vocabulary(vocab_map, student_weight, teacher_weight)
    teacher = (
        _rows(teacher_hidden.detach()),
        teacher_weight.detach(),
        None if teacher_bias is None else teacher_bias.detach(),
    )
    return LinearInputs(*student, *teacher, vocab_map, None, None, keep)


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _check_head(owner: str, hidden: Any, weight: Any, bias: Any) -> None:
    for suffix, value, shape in (
        ("hidden", hidden, "(..., H)"),
        ("weight", weight, "(V, H)"),
        ("bias", bias, "(V,)"),
    ):
        if value is None and suffix == "bias":
            continue
        name = f"{owner}_{suffix}"
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a Tensor, got {_describe(value)}")
        _check_local(name, value)
        check_rows(name, value)
        dimensions = value.dim()
        fits = dimensions >= 2 if suffix == "hidden" else dimensions == shape.count(",") + 1
        if suffix == "bias":
            fits = dimensions == 1
        if not fits:
            raise ValueError(f"{name} must have shape {shape}, got {tuple(value.shape)}")
        _check_device(name, value, hidden, f"{owner}_hidden")
    if weight.shape[1] != hidden.shape[-1]:
        raise ValueError(
            f"{owner}_weight must have shape (V, {hidden.shape[-1]}) to fit {owner}_hidden, "
            f"got {tuple(weight.shape)}"
        )
    if weight.shape[0] < 1:
        raise ValueError(
            f"{owner}_weight must have at least one class (first dimension), "
            f"got shape {tuple(weight.shape)}"
        )
    if bias is not None and bias.shape[0] != weight.shape[0]:
        raise ValueError(
            f"{owner}_bias must have shape ({weight.shape[0]},) to fit {owner}_weight, "
            f"got {tuple(bias.shape)}"
        )


def _check_local(name: str, value: Tensor) -> None:
    """Raise for a DTensor: gathering it is for the wrapper that sharded it."""
    if type(value) in (Tensor, torch.nn.Parameter) or not torch.distributed.is_available():
        return
    from torch.distributed.tensor import DTensor

    if isinstance(value, DTensor):
        raise TypeError(
            f"{name} must be an ordinary Tensor, got a DTensor of shape {tuple(value.shape)}: call "
            "the loss in the forward of the module that fully_shard wraps, where its parameters "
            "are gathered"
        )


def _check_device(
    name: str, value: Tensor, other: Tensor, other_name: str = "student_hidden"
) -> None:
    if value.device != other.device:
        raise ValueError(
            f"{name} must be on the device of {other_name}, {other.device}, got {value.device}"
        )


def _check_leading(name: str, value: Any, hidden: Tensor) -> None:
    if value is None:
        return
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a Tensor or None, got {_describe(value)}")
    _check_per_row(name, value, hidden, "student_hidden")


def _check_integers(name: str, value: Tensor) -> None:
    if value.dtype not in _INTEGERS:
        raise TypeError(f"{name} must have an integer dtype, got {value.dtype}")


def _check_vocabulary(
    vocab_map: Tensor | None, student_weight: Tensor, teacher_weight: Tensor
) -> None:
    classes, teacher_classes = student_weight.shape[0], teacher_weight.shape[0]
    if vocab_map is None:
        if classes != teacher_classes:
            raise ValueError(
                f"teacher_weight must have the {classes} classes of student_weight, got "
                f"{teacher_classes}; with different vocabularies give vocab_map, the teacher's "
                "class for each of the student's"
            )
        return
    if not isinstance(vocab_map, Tensor):
        raise TypeError(f"vocab_map must be a Tensor or None, got {_describe(vocab_map)}")
    _check_integers("vocab_map", vocab_map)
    if tuple(vocab_map.shape) != (classes,):
        raise ValueError(
            f"vocab_map must have one element per class of student_weight, shape {(classes,)}, "
            f"got {tuple(vocab_map.shape)}"
        )
    _check_device("vocab_map", vocab_map, student_weight, "student_weight")


def _check_topk(topk: Any, hidden: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """The pair as (N, k) tensors."""
    if not isinstance(topk, (tuple, list)) or len(topk) != 2:
        raise TypeError(f"teacher_topk must be a pair (values, indices), got {_describe(topk)}")
    values, indices = topk
    leading = tuple(hidden.shape[:-1])
    for part, value in (("values", values), ("indices", indices)):
        name = f"teacher_topk {part}"
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a Tensor, got {_describe(value)}")
        if value.dim() != len(leading) + 1 or tuple(value.shape[:-1]) != leading:
            raise ValueError(f"{name} must have shape {(*leading, 'k')}, got {tuple(value.shape)}")
        _check_device(name, value, hidden)
    check_rows("teacher_topk values", values)
    _check_integers("teacher_topk indices", indices)
    if indices.shape != values.shape:
        raise ValueError(
            f"teacher_topk indices must have the shape of the values, {tuple(values.shape)}, "
            f"got {tuple(indices.shape)}"
        )
    if not 1 <= values.shape[-1] <= classes:
        raise ValueError(
            f"teacher_topk must have between 1 and {classes} classes per row (last dimension), "
            f"got shape {tuple(values.shape)}"
        )
    return _rows(values.detach()), _rows(indices)


def check_places(name: str, places: Tensor, first: int, classes: int) -> None:
    """Raise unless all integers are in [first, classes). Not on a GPU: that would wait for it."""
    if places.device.type != "cpu" or places.numel() == 0:
        return
    least, largest = int(places.min()), int(places.max())
    if least < first or largest >= classes:
        raise ValueError(
            f"{name} must be integers from {first} to {classes - 1}, "
            f"got {least if least < first else largest}"
        )


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The dtype that autocast rounds the operands of a linear layer to, or None outside of it."""
    available = torch.amp.is_autocast_available(device.type)
    if not available or not torch.is_autocast_enabled(device.type):
        return None
    return torch.get_autocast_dtype(device.type)
