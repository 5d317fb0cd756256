"""How the cost of an op grows: B and C by doubling, each op of the package on the CPU.

    python benchmarks/bench_growth.py [--turns 7] [--seconds S] [--output FILE.csv]

`growth.py` fits an exponent to each row of sizes and looks for jumps. Inputs are standard normal
float32 and rotate past the caches, so that no size profits from what the one before left there. The
correlation loss over C has the eager formula beside it, for the plot of memory.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import limits
import torch
from bench_correlation import eager
from harness import Budget, Call, Case, Work, measure, parse_options, rotated, show, write_rows

from r2kd_ext import correlation_kd, soft_rank, spearman
from r2kd_ext.bench.short import drop_gradients, logits, training_call

ROWS = [(rows, 1000) for rows in (16, 32, 64, 128, 256, 512, 1024, 2048)]
CLASSES = [(64, classes) for classes in (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)]
DTYPE = torch.float32
Drop = Callable[[], object]  # frees the gradients
RESULTS = Path(__file__).parent / "results" / "growth_cpu.csv"


def correlation(rows: int, classes: int) -> tuple[dict[str, Call], Work, Drop]:
    data = rotated(lambda: logits(rows, classes, DTYPE), 8 * rows * classes)
    contenders = {"ours": training_call(correlation_kd, data)}
    if (rows, classes) in CLASSES:
        contenders["eager"] = training_call(eager, data)
    return contenders, limits.correlation(rows, classes, DTYPE), partial(drop_gradients, data)


def hard(rows: int, classes: int) -> tuple[dict[str, Call], Work, Drop]:
    data = rotated(
        lambda: (torch.randn(rows, classes), torch.randn(rows, classes)), 8 * rows * classes
    )
    contenders: dict[str, Call] = {"ours": lambda call: spearman(*data[call % len(data)])}
    return contenders, limits.hard_spearman(rows, classes, DTYPE), lambda: None


def soft(rows: int, classes: int) -> tuple[dict[str, Call], Work, Drop]:
    data = rotated(lambda: logits(rows, classes, DTYPE), 8 * rows * classes)

    def run(call: int) -> None:
        x, weight = data[call % len(data)]
        x.grad = None
        soft_rank(x, 3 / classes).backward(weight)

    return {"ours": run}, limits.soft_rank(rows, classes, DTYPE), partial(drop_gradients, data)


OPS: dict[str, tuple[str, Callable[[int, int], tuple[dict[str, Call], Work, Drop]]]] = {
    "correlation": ("forward+backward", correlation),
    "spearman": ("forward", hard),
    "soft_rank": ("forward+backward", soft),
}


def cases() -> Iterator[tuple[Case, dict[str, Call], Drop]]:
    """`variant` says which size grows."""
    for op, (passes, make) in OPS.items():
        for axis, shapes in (("B", ROWS), ("C", CLASSES)):
            for shape in shapes:
                contenders, work, drop = make(*shape)
                roles = {"ours": "ours", "eager": "reference"}
                yield Case(op, shape, "float32", work, roles, passes, axis), contenders, drop


def main() -> None:
    options = parse_options(__doc__ or "", RESULTS)
    budget = Budget(options.seconds, len(OPS) * (len(ROWS) + len(CLASSES)))
    rows: list[dict[str, str]] = []
    for case, contenders, drop in cases():
        print(f"{case.op}, {case.shape} ...", file=sys.stderr, flush=True)
        rows += measure(
            case,
            contenders,
            turns=options.turns,
            seconds=budget.share(),
            copied=case.shape[0] * case.shape[1],
            with_memory="eager" in contenders,
            prepare=drop,
            seconds_per_turn=0.02,
        )
    write_rows(options.output, rows)
    show(rows, "how cost grows, medians")
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()
