"""How the cost of an op grows: B and C by doubling, each op of the package on the CPU.

    python benchmarks/bench_growth.py [--turns 7] [--seconds S] [--output FILE.csv]

`growth.py` fits an exponent to each row of sizes and looks for jumps. All sizes of a row are timed
in turn, since one after another a busier minute of the machine would look like a jump between two
sizes. Inputs are standard normal float32 and rotate past the caches, so that no size profits from
what the one before left there. The correlation loss over C has the eager formula beside it, for the
plot of memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import limits
import torch
from bench_correlation import eager
from harness import (
    ROTATED_BYTES,
    Call,
    Case,
    Job,
    Row,
    Work,
    machine,
    parse_options,
    peaks_of,
    rotated,
    run_jobs,
    time_with_matrix_rate,
)
from torch import Tensor

from r2kd_ext import correlation_kd, soft_rank, spearman
from r2kd_ext.bench.results import Rates, rows_of
from r2kd_ext.bench.short import drop_gradients, training_call

SIZES = {
    "B": [(rows, 1000) for rows in (16, 32, 64, 128, 256, 512, 1024, 2048)],
    "C": [(64, 2**k) for k in range(6, 16)],
}
ROLES = {"copy": "unit", "ours": "ours", "eager": "reference"}
DTYPE = torch.float32
Drop = Callable[[], object]  # frees the gradients
RESULTS = Path(__file__).parent / "results" / "growth_cpu.csv"


@cache
def pool() -> Tensor:
    """Standard normal numbers for the inputs of all sizes, which together would take gigabytes."""
    return torch.randn(ROTATED_BYTES // DTYPE.itemsize)


def pairs(rows: int, classes: int, *, grad: bool) -> list[tuple[Tensor, Tensor]]:
    """Inputs [B, C] that rotate past the caches, the first of each pair with a gradient or not."""
    size = rows * classes
    starts = itertools.count(0, size)

    def part() -> Tensor:
        start = next(starts)
        return pool()[start : start + size].view(rows, classes)

    return rotated(lambda: (part().requires_grad_(grad), part()), 2 * size * DTYPE.itemsize)


def correlation(rows: int, classes: int) -> tuple[dict[str, Call], Work, Drop]:
    data = pairs(rows, classes, grad=True)
    contenders = {"ours": training_call(correlation_kd, data)}
    if (rows, classes) in SIZES["C"]:
        contenders["eager"] = training_call(eager, data)
    return contenders, limits.correlation(rows, classes, DTYPE), partial(drop_gradients, data)


def hard(rows: int, classes: int) -> tuple[dict[str, Call], Work, Drop]:
    data = pairs(rows, classes, grad=False)
    contenders: dict[str, Call] = {"ours": lambda call: spearman(*data[call % len(data)])}
    return contenders, limits.hard_spearman(rows, classes, DTYPE), lambda: None


def soft(rows: int, classes: int) -> tuple[dict[str, Call], Work, Drop]:
    data = pairs(rows, classes, grad=True)

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


def measure_row(op: str, axis: str, turns: int, seconds: float) -> list[Row]:
    """The rows of an op at all sizes of an axis, all of which are timed in turn."""
    passes, make = OPS[op]
    shapes = SIZES[axis]
    made = {shape: make(*shape) for shape in shapes}
    calls: dict[tuple[tuple[int, int], str], Call] = {}
    for shape, (contenders, _, _) in made.items():
        calls[shape, "copy"] = limits.copy_call(shape[0] * shape[1], DTYPE)
        calls |= {(shape, name): run for name, run in contenders.items()}
    timings, matrix = time_with_matrix_rate(
        calls, turns=turns, warm_up=2, seconds=seconds, seconds_per_turn=0.02
    )
    rows = []
    for shape, (contenders, work, drop) in made.items():
        own = {name: timing for (other, name), timing in timings.items() if other == shape}
        rate = limits.copy_bytes(shape[0] * shape[1], DTYPE) / own["copy"].fastest
        case = Case(op, shape, "float32", work, ROLES, passes, axis)
        peaks = peaks_of(contenders, own, drop) if "eager" in contenders else None
        rows += rows_of(case, own, Rates(rate, matrix), machine(), peaks=peaks)
    return rows


def main() -> None:
    options = parse_options(__doc__ or "", RESULTS)
    jobs = [
        Job(f"{op} over {axis}", partial(measure_row, op, axis)) for op in OPS for axis in SIZES
    ]
    run_jobs(jobs, options, "how cost grows, medians")


if __name__ == "__main__":
    main()
