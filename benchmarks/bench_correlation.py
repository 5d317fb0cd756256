"""Forward + backward of the default correlation loss on the CPU, against eager and compiled.

    python benchmarks/bench_correlation.py [--turns 15] [--seconds S] [--output FILE.csv]

Contenders, all on the same inputs:

- ours: `r2kd_ext.correlation_kd`;
- eager: the same formula in plain PyTorch operations;
- compiled: `torch.compile` of it;
- nothing: an autograd.Function of the same inputs and outputs that computes nothing;
- ours in float32, beside the 16-bit dtypes.

float32 and bfloat16, and one case in float16. Logits that fit the caches are measured twice:
"resident", as a training loop has them right after its last layer, and "rotating" past the caches,
as all larger ones are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import limits
import torch
from harness import (
    ROTATED_BYTES,
    Call,
    Case,
    Job,
    Row,
    dtype_text,
    host_times,
    measure,
    parse_options,
    rotated,
    run_jobs,
)
from torch import Tensor

from r2kd_ext import correlation_kd
from r2kd_ext.bench.short import drop_gradients, logits, training_call

SHAPES = [(64, 100), (64, 200), (256, 1000), (128, 32000), (512, 32000)]
DTYPES = [torch.float32, torch.bfloat16]
FLOAT16 = ((256, 1000), "rotating")
RESIDENT_BYTES = 8 << 20  # of logits and gradients that stay in the caches
ROLES = {
    "ours": "ours", "eager": "reference", "compiled": "peer", "nothing": "unit",
    "ours in float32": "unit",
}  # fmt: skip
RESULTS = Path(__file__).parent / "results" / "correlation_cpu.csv"


def eager(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    """The formula of the docstring of `correlation_kd`, defaults, as one would write it."""
    p = torch.softmax(student / temperature, dim=1)
    q = torch.softmax(teacher / temperature, dim=1)

    def distance(dim: int) -> Tensor:
        norms = p.norm(dim=dim) * q.norm(dim=dim)
        return 1 - ((p * q).sum(dim) / (norms + 1e-8)).mean()

    return 2 * temperature**2 * (distance(1) + distance(0))


@lru_cache(maxsize=1)
def compiled_for(shape: tuple[int, int]) -> Callable[..., Tensor]:
    """`torch.compile` of eager; more shapes than it keeps would run uncompiled."""
    torch.compiler.reset()
    return torch.compile(eager, dynamic=False)


class Nothing(torch.autograd.Function):
    """What any loss in an autograd.Function costs: two inputs saved, a scalar, a gradient."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:
        ctx.save_for_backward(student, teacher)
        return student.new_empty(())

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, None]:
        student, _ = ctx.saved_tensors
        return torch.empty_like(student), None


def calls(
    rows: int, classes: int, dtype: torch.dtype, placed: str
) -> tuple[dict[str, Call], list[tuple[Tensor, Tensor]]]:
    """The contenders by name, and the pairs of logits that they go through."""
    size = 2 * rows * classes * dtype.itemsize
    data = rotated(
        lambda: logits(rows, classes, dtype), size, ROTATED_BYTES if placed == "rotating" else 0
    )
    losses: dict[str, Callable[..., Tensor]] = {
        "ours": correlation_kd, "eager": eager, "compiled": compiled_for((rows, classes)),
        "nothing": Nothing.apply,
    }  # fmt: skip
    return {name: training_call(loss, data) for name, loss in losses.items()}, data


def empty_calls(dtype: torch.dtype) -> dict[str, float]:
    """Seconds of the calls themselves, on one number."""
    contenders, _ = calls(1, 1, dtype, "resident")
    del contenders["compiled"]  # another shape would compile anew
    return host_times(contenders)


def measure_case(
    shape: tuple[int, int],
    placed: str,
    dtype: torch.dtype,
    host: Mapping[str, float],
    turns: int,
    seconds: float,
) -> list[Row]:
    """The rows of a case; those of a 16-bit dtype have float32 beside them."""
    contenders, data = calls(*shape, dtype, placed)
    if dtype != torch.float32:
        contenders["ours in float32"] = calls(*shape, torch.float32, placed)[0]["ours"]
    return measure(
        Case(
            "correlation",
            shape,
            dtype_text(dtype),
            limits.correlation(*shape, dtype),
            ROLES,
            inputs=placed,
        ),
        contenders,
        turns=turns,
        seconds=seconds,
        copied=shape[0] * shape[1],
        dtype=dtype,
        warm_up=len(data),
        prepare=partial(drop_gradients, data),
        host=host,
    )


def main() -> None:
    options = parse_options(__doc__ or "", RESULTS)
    host = {dtype: empty_calls(dtype) for dtype in (*DTYPES, torch.float16)}
    jobs = [
        Job(
            f"{shape[0]} x {shape[1]}, {placed}, {dtype}",
            partial(measure_case, shape, placed, dtype, host[dtype]),
            weight=1 + shape[0] * shape[1] / 4e6,
        )
        for shape in SHAPES
        for placed in ("resident", "rotating")
        if placed == "rotating" or 2 * 3 * shape[0] * shape[1] * 4 <= RESIDENT_BYTES
        for dtype in (*DTYPES, *([torch.float16] if (shape, placed) == FLOAT16 else []))
    ]
    title = "correlation loss, forward + backward, medians; ratios of paired turns"
    run_jobs(jobs, options, title)


if __name__ == "__main__":
    main()
