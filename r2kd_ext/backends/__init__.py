"""Kernels behind the ops, and the one place that chooses among them."""

from __future__ import annotations

import os
from functools import lru_cache
from importlib.util import find_spec
from typing import NamedTuple

import torch

from .. import _core
from .cuda import is_compiled
from .triton import interpreted

BACKENDS = ("native", "triton", "reference")
_TRITON_DEVICES = ("cuda", "xpu")

# What R2KD_BACKEND asks for where the caller has no wish. Read once: a call reads no environment.
WISH = os.environ.get("R2KD_BACKEND") or None


class Choice(NamedTuple):
    """A backend and why it serves."""

    backend: str
    reason: str


class Won(NamedTuple):
    """Numbers of classes for which a backend is a GPU's choice, from the first to the last."""

    backend: str
    first: int
    last: int


# In order of preference. A line needs the tests passed on a GPU (docs/gpu.md) and a benchmark row
# won there (benchmarks/results/). No GPU has run anything yet.
WON: tuple[Won, ...] = ()
WON_RANKS: tuple[Won, ...] = ()  # likewise, of the rank ops
WON_SPARSE: tuple[Won, ...] = ()  # likewise, of the sparse ops
# Instruction sets of processors with which winograd_conv2d has won (benchmarks/results/).
WON_WINOGRAD = ("avx2",)


@lru_cache(maxsize=1)
def _has_triton() -> bool:
    return find_spec("triton") is not None


def _obstacle(backend: str, device: torch.device) -> str | None:
    """Why the kernels of a backend cannot take tensors on `device`, or None."""
    if backend == "native":
        if device.type == "cpu":
            return None
        if device.type != "cuda":
            return f"takes CPU and CUDA tensors, got a tensor on {device}"
        if is_compiled():
            return None
        return (
            f"has no CUDA kernels in this installation, got a tensor on {device}; install it again "
            "with nvcc on the PATH (R2KD_CUDA=on makes the lack of it an error)"
        )
    if device.type not in _TRITON_DEVICES and not (device.type == "cpu" and interpreted()):
        return (
            f"takes tensors on a GPU ({', '.join(_TRITON_DEVICES)}), and CPU tensors where "
            "TRITON_INTERPRET=1 is set (Triton's interpreter, for tests), got a tensor on "
            f"{device}"
        )
    return None if _has_triton() else "needs the package triton, which is not installed"


def is_interpreted(backend: str, device: torch.device) -> bool:
    """Whether a chosen backend is Triton's interpreter, which takes the place of the ops."""
    return backend == "triton" and device.type == "cpu"


def choose(backend: str | None, device: torch.device, classes: int | None = None) -> Choice:
    """The backend for logits of `classes` classes on `device`, given the user's wish.

    A wish of None leaves it to R2KD_BACKEND, and where that is not set either, to what is known
    about the device and the classes (None: of any number).

    Raises ValueError for an unknown backend, one that cannot take tensors of this device, and one
    that is not installed.
    """
    return _choose(backend, device, classes, WON)


def choose_ranks(backend: str | None, device: torch.device, classes: int | None = None) -> Choice:
    """The same for the rank ops."""
    return _choose(backend, device, classes, WON_RANKS)


def choose_sparse(device: torch.device) -> Choice:
    """The same for the sparse ops, whose layers have no wish of their own."""
    return _choose(None, device, None, WON_SPARSE)


def choose_winograd(device: torch.device) -> Choice:
    """What computes the 3 x 3 convolutions of a frozen network that `winograd.takes`: "native", or
    "reference", which is torch's own convolution."""
    if device.type != "cpu":
        return Choice("reference", "the kernel is for processors, others have torch's convolution")
    if WISH in ("native", "reference"):
        return Choice(WISH, "R2KD_BACKEND asks for it")
    simd = _core.build_info()["simd"]
    if simd in WON_WINOGRAD:
        return Choice("native", f"faster than torch's convolution with {simd}")
    return Choice("reference", f"the kernel was not measured with {simd}; torch's convolution")


def _choose(
    backend: str | None, device: torch.device, classes: int | None, won: tuple[Won, ...]
) -> Choice:
    name, given, asked = "backend", backend, "asked for"
    if backend is None and WISH is not None:
        name, given, asked = "environment variable R2KD_BACKEND", WISH, "R2KD_BACKEND asks for it"
    if given is None:
        return _choose_without_wish(device, classes, won)
    if given == "reference":
        return Choice("reference", asked)
    if given not in BACKENDS:
        none = "None" if given is backend else "unset"
        accepted = ", ".join(map(repr, BACKENDS))
        raise ValueError(f"{name} must be {none} or one of {accepted}, got {given!r}")
    obstacle = _obstacle(given, device)
    if obstacle is not None:
        raise ValueError(f"{name} \"{given}\" {obstacle}; use None or 'reference'")
    return Choice(given, asked)


def _choose_without_wish(device: torch.device, classes: int | None, won: tuple[Won, ...]) -> Choice:
    if device.type == "cpu":
        return Choice("native", "compiled CPU kernels")
    if device.type not in _TRITON_DEVICES:
        return Choice("reference", f"no kernels for device type {device.type!r} in this version")
    usable = [name for name in ("native", "triton") if _obstacle(name, device) is None]
    for backend, first, last in won:
        if backend in usable and (classes is None or first <= classes <= last):
            return Choice(backend, f"verified and fastest from {first} to {last} classes")
    if not usable:
        return Choice("reference", "neither CUDA kernels nor the package triton are installed")
    if won:
        return Choice("reference", "no kernels that are verified and fastest for these classes")
    names = " or ".join(f"backend={name!r}" for name in usable)
    return Choice("reference", f"the kernels have not run on a GPU yet; {names} asks for them")
