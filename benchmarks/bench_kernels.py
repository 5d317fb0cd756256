"""The CPU kernels of the correlation loss alone: forward and backward, one thread and all.

    python benchmarks/bench_kernels.py [--turns 15] [--output FILE.csv]

Calls the kernels behind the ops on tensors that stay where they are; what the autograd layer and
the checks of arguments cost is left out, the allocation of the gradient is in.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from harness import machine, parse_options, time_in_turns, write_rows

from r2kd_ext.backends import native

SHAPES = [(64, 100), (64, 200), (256, 1000), (128, 32000), (512, 32000)]
RESULTS = Path(__file__).parent / "results" / "correlation_kernels_cpu.csv"


def kernels(rows: int, classes: int, correlation: str) -> dict[str, Callable[[int], object]]:
    student, teacher = torch.randn(rows, classes), torch.randn(rows, classes)  # [B, C] each
    options = (4.0, correlation == "pearson", 32.0, 32.0)
    loss, stats = native.correlation(student, teacher, None, *options, 1e-8)
    one = torch.ones_like(loss)
    return {
        "forward": lambda _: native.correlation(student, teacher, None, *options, 1e-8),
        "backward": lambda _: native.correlation_backward(
            one, student, teacher, None, stats, *options
        ),
    }


def main() -> None:
    options = parse_options(__doc__ or "", RESULTS)
    found: list[dict[str, object]] = []
    for rows, classes in SHAPES:
        for correlation in ("cosine", "pearson"):
            for threads in sorted({1, torch.get_num_threads()}):
                before = torch.get_num_threads()
                torch.set_num_threads(threads)
                timings = time_in_turns(kernels(rows, classes, correlation), turns=options.turns)
                row: dict[str, object] = {
                    "op": "correlation",
                    "rows": rows,
                    "classes": classes,
                    "correlation": correlation,
                    "dtype": "float32",
                    **{f"{name}_us": f"{t.median * 1e6:.1f}" for name, t in timings.items()},
                    **machine(),
                }
                torch.set_num_threads(before)
                found.append(row)
                print(", ".join(f"{key} {row[key]}" for key in list(row)[1:-4]), flush=True)
    write_rows(options.output, found)
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()
