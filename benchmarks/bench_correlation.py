"""Forward + backward of the default correlation loss on the CPU, against eager and compiled.

    python benchmarks/bench_correlation.py [--turns 15] [--output FILE.csv]

Contenders, all on the same inputs:

- fused: `r2kd_ext.correlation_kd`;
- eager: the same formula in plain PyTorch operations;
- compiled: `torch.compile` of it;
- nothing: an autograd.Function of the same inputs and outputs that computes nothing;
- copy: the three-stream copy of `limits.py` of as many elements.

Logits that fit the caches are measured twice: "resident", as a training loop has them right after
its last layer, and "rotating" past the caches, as all larger ones are.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import Timing, machine, parse_options, time_in_turns, write_rows
from limits import copy_bytes, correlation_bytes, three_streams
from rich.console import Console
from rich.table import Table
from torch import Tensor

from r2kd_ext import correlation_kd

SHAPES = [(64, 100), (64, 200), (256, 1000), (128, 32000), (512, 32000)]
DTYPES = [torch.float32, torch.bfloat16]
RESIDENT_BYTES = 8 << 20  # of logits and gradients that stay in the caches
ROTATED_BYTES = 128 << 20  # of logits; more than the caches hold
Pair = tuple[Tensor, Tensor]
RESULTS = Path(__file__).parent / "results" / "correlation_cpu.csv"


def eager(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    """The formula of the docstring of `correlation_kd`, defaults, as one would write it."""
    p = torch.softmax(student / temperature, dim=1)
    q = torch.softmax(teacher / temperature, dim=1)

    def distance(dim: int) -> Tensor:
        norms = p.norm(dim=dim) * q.norm(dim=dim)
        return 1 - ((p * q).sum(dim) / (norms + 1e-8)).mean()

    return 2 * temperature**2 * (distance(1) + distance(0))


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


def inputs(rows: int, classes: int, dtype: torch.dtype, placed: str) -> list[Pair]:
    """Two pairs of student and teacher logits, or as many as the caches do not hold."""
    count = 2
    if placed == "rotating":
        count = max(2, min(16, ROTATED_BYTES // (2 * rows * classes * dtype.itemsize)))
    return [
        (
            torch.randn(rows, classes).to(dtype).requires_grad_(),
            torch.randn(rows, classes).to(dtype),
        )
        for _ in range(count)
    ]


def training_call(
    loss: Callable[[Tensor, Tensor], Tensor], data: list[Pair]
) -> Callable[[int], None]:
    def run(call: int) -> None:
        student, teacher = data[call % len(data)]
        student.grad = None
        loss(student, teacher).backward()

    return run


def copy_call(elements: int, dtype: torch.dtype) -> Callable[[int], None]:
    a, b, c = three_streams(elements, dtype)

    def run(call: int) -> None:
        torch.add(a, b, out=c)

    return run


def measure(rows: int, classes: int, placed: str, turns: int) -> list[dict[str, object]]:
    """One row of results per dtype, all of them timed in one set of turns."""
    compiled = torch.compile(eager)
    contenders: dict[str, Callable[[int], None]] = {}
    for dtype in DTYPES:
        data = inputs(rows, classes, dtype, placed)
        key = str(dtype).removeprefix("torch.")
        contenders[f"fused {key}"] = training_call(correlation_kd, data)
        contenders[f"nothing {key}"] = training_call(Nothing.apply, data)
        contenders[f"eager {key}"] = training_call(eager, data)
        contenders[f"compiled {key}"] = training_call(compiled, data)
        contenders[f"copy {key}"] = copy_call(rows * classes, dtype)
    timings = time_in_turns(contenders, turns=turns, warm_up=len(data))
    torch.compiler.reset()

    def of(name: str, dtype: torch.dtype) -> Timing:
        return timings[f"{name} {str(dtype).removeprefix('torch.')}"]

    found: list[dict[str, object]] = []
    for dtype in DTYPES:
        fused, copy = of("fused", dtype), of("copy", dtype)
        rate = copy_bytes(rows * classes, dtype) / copy.median
        found.append(
            {
                "op": "correlation",
                "rows": rows,
                "classes": classes,
                "inputs": placed,
                "dtype": str(dtype).removeprefix("torch."),
                "fused_us": f"{fused.median * 1e6:.1f}",
                "fused_p20_us": f"{fused.p20 * 1e6:.1f}",
                "fused_p80_us": f"{fused.p80 * 1e6:.1f}",
                "eager_us": f"{of('eager', dtype).median * 1e6:.1f}",
                "compiled_us": f"{of('compiled', dtype).median * 1e6:.1f}",
                "nothing_us": f"{of('nothing', dtype).median * 1e6:.1f}",
                "copy_us": f"{copy.median * 1e6:.1f}",
                "times_eager": f"{fused.times_faster_than(of('eager', dtype)):.2f}",
                "times_compiled": f"{fused.times_faster_than(of('compiled', dtype)):.2f}",
                "of_nothing": f"{of('nothing', dtype).times_faster_than(fused):.2f}",
                "of_copy": f"{copy.times_faster_than(fused):.2f}",
                "of_float32": f"{of('fused', torch.float32).times_faster_than(fused):.2f}",
                "bytes": correlation_bytes(rows, classes, dtype),
                "share_of_copy_rate": (
                    f"{correlation_bytes(rows, classes, dtype) / fused.median / rate:.3f}"
                ),
            }
        )
    return found


def show(rows: list[dict[str, object]]) -> None:
    table = Table(title="forward + backward, medians; ratios are medians of paired turns")
    for column in (
        "logits", "fused", "eager", "compiled", "fused is faster than eager", "than compiled",
        "fused takes of nothing", "of copy", "of float32",
    ):  # fmt: skip
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            f"{row['rows']} x {row['classes']} {row['dtype']} {row['inputs']}",
            *(f"{row[key]} us" for key in ("fused_us", "eager_us", "compiled_us")),
            *(
                f"{row[key]}x"
                for key in ("times_eager", "times_compiled", "of_nothing", "of_copy", "of_float32")
            ),
        )
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def main() -> None:
    options = parse_options(__doc__ or "", RESULTS)
    rows: list[dict[str, object]] = []
    for shape in SHAPES:
        fits = 2 * 3 * shape[0] * shape[1] * 4 <= RESIDENT_BYTES
        for placed in ("resident", "rotating") if fits else ("rotating",):
            print(f"{shape[0]} x {shape[1]}, {placed} ...", file=sys.stderr, flush=True)
            rows += [row | machine() for row in measure(*shape, placed, options.turns)]
    write_rows(options.output, rows)
    show(rows)
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()
