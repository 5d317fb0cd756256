"""Kernels behind the ops, and the one place that chooses among them."""

from __future__ import annotations

from typing import NamedTuple

import torch

BACKENDS = ("native", "triton", "reference")


class Choice(NamedTuple):
    """A backend and why it serves."""

    backend: str
    reason: str


def choose(backend: str | None, device: torch.device) -> Choice:
    """The backend for tensors on `device`, given the user's wish (None: no wish).

    Raises ValueError for an unknown backend or one that cannot take tensors of this device, and
    NotImplementedError for "triton".
    """
    if backend is None:
        if device.type == "cpu":
            return Choice("native", "compiled CPU kernels")
        return Choice("reference", f"no kernels for device type {device.type!r} in this version")
    if backend == "reference":
        return Choice("reference", "asked for")
    if backend == "native":
        if device.type != "cpu":
            raise ValueError(
                'backend "native" takes CPU tensors in this version, got a tensor on '
                f"{device}; use None or 'reference'"
            )
        return Choice("native", "asked for")
    if backend == "triton":
        raise NotImplementedError('backend "triton" is not implemented yet; use None or "native"')
    raise ValueError(
        f"backend must be None or one of {', '.join(map(repr, BACKENDS))}, got {backend!r}"
    )
