"""The one list of networks."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from . import digits

_BUILDERS: dict[str, Callable[[int], nn.Module]] = {
    "digits_teacher": digits.teacher,
    "digits_student": digits.student,
}


def names() -> list[str]:
    """The names that `create` knows, sorted."""
    return sorted(_BUILDERS)


def create(name: str, num_classes: int) -> nn.Module:
    """A freshly initialised network (torch's global random generator) that returns logits (B, C).

    Args:
        name: one of `names()`. The "digits" networks take grey images (B, 1, 28, 28) in [0, 1].
        num_classes: C, an integer >= 1.

    Raises ValueError for an unknown name or a `num_classes` below 1, TypeError for a
    `num_classes` that is no integer.
    """
    if name not in _BUILDERS:
        raise ValueError(f"name must be one of {', '.join(map(repr, names()))}, got {name!r}")
    if isinstance(num_classes, bool) or not isinstance(num_classes, int):
        raise TypeError(
            f"num_classes must be an integer >= 1, got {num_classes!r} "
            f"of type {type(num_classes).__name__}"
        )
    if num_classes < 1:
        raise ValueError(f"num_classes must be an integer >= 1, got {num_classes}")
    return _BUILDERS[name](num_classes)
