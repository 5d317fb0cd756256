"""The short measurement of `r2kd bench`: the default loss on this machine's CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..functional import correlation_kd
from . import limits
from .machine import machine
from .results import Case, Rates, rows_of
from .timing import peak_memory, rotated, time_in_turns

SHAPES = ((64, 100), (256, 1000), (128, 32_000))
SECONDS_PER_TURN = 0.05
Loss = Callable[..., Tensor]


def training_call(loss: Loss, data: list[tuple[Tensor, Tensor]]) -> Callable[[int], Any]:
    """Forward + backward of `loss` on one pair of student and teacher logits after the other."""

    def run(call: int) -> None:
        student, teacher = data[call % len(data)]
        student.grad = None
        loss(student, teacher).backward()

    return run


def drop_gradients(data: list[tuple[Tensor, Tensor]]) -> None:
    """Free the gradients that `training_call` left."""
    for student, _ in data:
        student.grad = None


def logits(rows: int, classes: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Standard normal logits [B, C] of student and teacher; the student's want a gradient."""
    student, teacher = (torch.randn(rows, classes).to(dtype) for _ in range(2))
    return student.requires_grad_(), teacher


def measure(turns: int = 15) -> Iterator[list[dict[str, str]]]:
    """The rows of one shape after the other: ours against `r2kd_ext.reference`, float32."""
    origin, matrix, dtype = machine(), limits.matrix_rate(), torch.float32
    for shape in SHAPES:
        elements = shape[0] * shape[1]
        data = rotated(partial(logits, shape[0], shape[1], dtype), 8 * elements)
        contenders = {
            "ours": training_call(correlation_kd, data),
            "plain PyTorch": training_call(reference.correlation_kd, data),
            "copy": limits.copy_call(elements, dtype),
        }
        timings = time_in_turns(
            contenders, turns=turns, warm_up=len(data), seconds_per_turn=SECONDS_PER_TURN, seconds=8
        )
        rates = Rates(limits.copy_bytes(elements, dtype) / timings["copy"].fastest, matrix)
        roles = {"ours": "ours", "plain PyTorch": "reference", "copy": "unit"}
        case = Case("correlation", shape, "float32", limits.correlation(*shape, dtype), roles)
        peaks = {
            name: peak_memory(contenders[name], prepare=partial(drop_gradients, data))
            for name in ("ours", "plain PyTorch")
        }
        yield rows_of(case, timings, rates, origin, peaks=peaks)
