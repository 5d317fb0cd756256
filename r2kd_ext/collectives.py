"""Sums over the ranks of a process group, as autograd is to see them.

Every rank of a group computes the same loss L from its own logits and from sums over all ranks.
Seen from one rank, what the others add to a sum is a constant, so the derivative of a sum is the
identity and backward needs no communication.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def refuse_second_derivative() -> None:
    """To be called in a backward whose result is no function of the local logits alone."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "a loss over a process group has no second derivative (create_graph=True): what the "
            "logits of one rank do to the gradients on the others would be missing"
        )


class _GroupSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        refuse_second_derivative()
        return grad, None


def group_sum(x: Tensor, group: ProcessGroup) -> Tensor:
    """The sum of x over the ranks; its derivative with respect to the local x is the identity."""
    total: Tensor = _GroupSum.apply(x, group)
    return total


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.factor, None


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """x, whose gradient is multiplied by `factor`."""
    scaled: Tensor = _ScaledGradient.apply(x, factor)
    return scaled


SIGNATURE_BITS = 20


def signature(*facts: Any) -> int:
    """A number of SIGNATURE_BITS bits for what all ranks must agree on.

    Small enough that the sum of its square over 2**13 ranks is exact in float64.
    """
    return zlib.crc32(repr(facts).encode()) % 2**SIGNATURE_BITS


def disagreement(facts: dict[str, Any]) -> ValueError:
    """The error of a rank that finds that the ranks do not agree."""
    mine = ", ".join(f"{name}={value!r}" for name, value in facts.items())
    return ValueError(
        f"the ranks of group disagree in one of {', '.join(facts)}; this rank has {mine}"
    )


def sums_agree(total: Tensor, total_of_squares: Tensor, size: int) -> Tensor:
    """Whether `size` signatures are all equal, from their sum and the sum of their squares.

    The variance is 0 for equal numbers alone (Cauchy-Schwarz). Both sums are integers; the
    comparison is of integers below 2**63.
    """
    return (total.long() ** 2) == (total_of_squares.long() * size)
