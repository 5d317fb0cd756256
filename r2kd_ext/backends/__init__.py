"""Kernels behind the ops, and the one place that chooses among them."""

from __future__ import annotations

import os
from functools import lru_cache
from importlib.util import find_spec
from typing import NamedTuple

import torch

from .triton import interpreted

BACKENDS = ("native", "triton", "reference")
_RANK_BACKENDS = ("native", "triton", "reference")
_TRITON_DEVICES = ("cuda", "xpu")

# What R2KD_BACKEND asks for where the caller has no wish. Read once: a call reads no environment.
WISH = os.environ.get("R2KD_BACKEND") or None


class Choice(NamedTuple):
    """A backend and why it serves."""

    backend: str
    reason: str


@lru_cache(maxsize=1)
def _has_triton() -> bool:
    return find_spec("triton") is not None


def choose(backend: str | None, device: torch.device) -> Choice:
    """The backend for tensors on `device`, given the user's wish (None: R2KD_BACKEND, or no wish).

    Raises ValueError for an unknown backend, one that cannot take tensors of this device, and one
    that is not installed.
    """
    name, given, asked = "backend", backend, "asked for"
    if backend is None and WISH is not None:
        name, given, asked = "environment variable R2KD_BACKEND", WISH, "R2KD_BACKEND asks for it"
    if given is None:
        return _choose_without_wish(device)
    if given == "reference":
        return Choice("reference", asked)
    if given == "native":
        if device.type != "cpu":
            raise ValueError(
                f'{name} "native" takes CPU tensors in this version, got a tensor on '
                f"{device}; use None, 'triton' or 'reference'"
            )
        return Choice("native", asked)
    if given == "triton":
        if device.type not in _TRITON_DEVICES and not (device.type == "cpu" and interpreted()):
            raise ValueError(
                f'{name} "triton" takes tensors on a GPU ({", ".join(_TRITON_DEVICES)}), and CPU '
                "tensors where TRITON_INTERPRET=1 is set (Triton's interpreter, for tests), got a "
                f"tensor on {device}; use None or 'reference'"
            )
        if not _has_triton():
            raise ValueError(
                f'{name} "triton" needs the package triton, which is not installed; '
                "use None or 'reference'"
            )
        return Choice("triton", asked)
    none = "None" if given is backend else "unset"
    accepted = ", ".join(map(repr, BACKENDS))
    raise ValueError(f"{name} must be {none} or one of {accepted}, got {given!r}")


def choose_ranks(backend: str | None, device: torch.device) -> Choice:
    """The backend of the rank ops: that of `choose`, or the reference where it has no rank kernels.

    Raises ValueError where `choose` does, and for a `backend` without rank kernels: what a caller
    names is not replaced.
    """
    choice = choose(backend, device)
    if choice.backend in _RANK_BACKENDS:
        return choice
    if backend is None:
        reason = f"no rank kernels in the backend {choice.backend!r} in this version"
        return Choice("reference", reason)
    accepted = " or ".join(map(repr, _RANK_BACKENDS))
    raise ValueError(
        f"backend {backend!r} has no rank kernels in this version: rank_weight must be 0 with it; "
        f"use None, {accepted}"
    )


def _choose_without_wish(device: torch.device) -> Choice:
    if device.type == "cpu":
        return Choice("native", "compiled CPU kernels")
    if device.type in _TRITON_DEVICES:
        # A kernel becomes the default where it has passed its tests and won a benchmark row.
        if _has_triton():
            return Choice(
                "reference", "the Triton kernels have not run on a GPU yet; backend='triton' asks"
            )
        return Choice("reference", "the package triton is not installed")
    return Choice("reference", f"no kernels for device type {device.type!r} in this version")
