"""Time and memory of the loss from hidden states on the CPU, against eager and compiled.

    python benchmarks/bench_fused_linear.py [--turns 15] [--seconds S] [--output FILE.csv]

Pearson at T = 1, forward + backward to the student's hidden states [N, H] and weight [V, H];
student and teacher have the same width. The shape of a case is N x V x H. V grows by doubling, in
float32; one case has bfloat16 inputs. Contenders:

- ours: `r2kd_ext.fused_linear_correlation_kd`;
- eager: the formula on float32 logits as a careful user would write it: the logits are not kept,
  the teacher's are computed without a graph;
- compiled: `torch.compile` of eager, but at the least V.

Peak memory includes the gradients that a call returns. Inputs stay in place, since one call reads
more than the caches hold.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import limits
import torch
from harness import (
    Budget,
    Call,
    Case,
    Job,
    Row,
    dtype_text,
    host_times,
    measure,
    parse_options,
    run_jobs,
)
from torch import Tensor
from torch.nn.functional import linear

from r2kd_ext import fused_linear_correlation_kd

RESULTS = Path(__file__).parent / "results" / "fused_linear_cpu.csv"
ROWS, HIDDEN = 512, 128
CLASSES = (32768, 16384, 8192, 4096)  # what takes longest first, in case the time is short
SHAPES = [(ROWS, classes, HIDDEN, torch.float32) for classes in CLASSES]
SHAPES.append((ROWS, 8192, HIDDEN, torch.bfloat16))
ROLES = {"ours": "ours", "eager": "reference", "compiled": "peer"}
Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def eager(student: Tensor, weight: Tensor, teacher: Tensor, teacher_weight: Tensor) -> Tensor:
    """1 - mean of Pearson's correlation, with float32 logits."""
    with torch.no_grad():
        q = torch.softmax(linear(teacher.float(), teacher_weight.float()), dim=1)  # [N, V]
        q = q - q.mean(1, True)
    p = torch.softmax(linear(student.float(), weight.float()), dim=1)  # [N, V]
    p = p - p.mean(1, True)
    return 1 - ((p * q).sum(1) / (p.norm(dim=1) * q.norm(dim=1) + 1e-8)).mean()


LOSSES: dict[str, Loss] = {
    "ours": fused_linear_correlation_kd, "eager": eager,
    "compiled": torch.compile(eager, dynamic=False),
}  # fmt: skip


def head(rows: int, classes: int, hidden: int, dtype: torch.dtype) -> list[Tensor]:
    """Hidden states [N, H] and the weight [V, H] of logits with a variance of 1."""
    weight = torch.empty(classes, hidden, dtype=dtype).normal_(std=hidden**-0.5)
    return [torch.randn(rows, hidden).to(dtype), weight]


def contenders_of(
    rows: int, classes: int, hidden: int, dtype: torch.dtype
) -> tuple[dict[str, Call], Callable[[], None]]:
    """Forward + backward of each loss on the same inputs, and what drops the gradients."""
    student = [x.requires_grad_() for x in head(rows, classes, hidden, dtype)]
    teacher = head(rows, classes, hidden, dtype)

    def drop() -> None:
        for x in student:
            x.grad = None

    def call_of(loss: Loss) -> Call:
        def run(call: int) -> Tensor:
            drop()
            value = loss(*student, *teacher)
            value.backward()
            return value.detach()

        return run

    return {name: call_of(loss) for name, loss in LOSSES.items()}, drop


@cache
def empty_calls(dtype: torch.dtype) -> dict[str, float]:
    """Seconds of the calls themselves, on one number."""
    contenders, _ = contenders_of(1, 1, 1, dtype)
    del contenders["compiled"]  # another shape would compile anew
    return host_times(contenders)


def measure_shape(
    rows: int, classes: int, hidden: int, dtype: torch.dtype, turns: int, seconds: float
) -> list[Row]:
    """The rows of a case, whose contenders are first seen to compute the same."""
    budget = Budget(seconds, 1)
    contenders, drop = contenders_of(rows, classes, hidden, dtype)
    if classes == min(CLASSES):
        del contenders["compiled"]
    values = [run(0) for run in contenders.values()]
    for value in values[1:]:
        torch.testing.assert_close(values[0], value, rtol=0, atol=1e-5)
    host = empty_calls(dtype)
    return measure(
        Case(
            "fused_linear_correlation",
            (rows, classes, hidden),
            dtype_text(dtype),
            limits.fused_linear(rows, classes, hidden, hidden, dtype),
            ROLES,
            inputs="resident",
        ),
        contenders,
        turns=turns,
        seconds=budget.left(),
        copied=rows * classes,
        dtype=dtype,
        warm_up=0,
        host=host,
        prepare=drop,
    )


def main() -> None:
    options = parse_options(__doc__ or "", RESULTS)
    jobs = [
        Job(f"{rows} x {classes} x {hidden}, {dtype}",
            partial(measure_shape, rows, classes, hidden, dtype), weight=1 + classes / 8192)
        for rows, classes, hidden, dtype in SHAPES
    ]  # fmt: skip
    run_jobs(jobs, options, "loss from hidden states, medians; ratios of paired turns")


if __name__ == "__main__":
    main()
