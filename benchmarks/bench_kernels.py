"""The CPU kernels of the correlation loss alone: forward and backward, one thread and all.

    python benchmarks/bench_kernels.py [--turns 15] [--seconds S] [--output FILE.csv]

Calls the kernels behind the ops on tensors that stay where they are; what the autograd layer and
the checks of arguments cost is left out, the allocation of the gradient is in. The unit is a copy
of as many elements, which says what share of the limit the kernel reaches.
"""

from __future__ import annotations

from functools import cache, lru_cache, partial
from pathlib import Path

import limits
import torch
from harness import Call, Case, Job, Row, host_times, measure, parse_options, run_jobs

from r2kd_ext.backends import native

SHAPES = [(64, 100), (64, 200), (256, 1000), (128, 32000), (512, 32000)]
TERMS = {"rows+columns": 32.0, "rows": 0.0}  # the weight of the columns' term
VARIANTS = [("cosine", "rows+columns"), ("pearson", "rows+columns"), ("pearson", "rows")]
RESULTS = Path(__file__).parent / "results" / "correlation_kernels_cpu.csv"


@lru_cache(maxsize=2)  # of the cases that follow each other on the same inputs, and of one number
def kernels(rows: int, classes: int, correlation: str, columns: float) -> dict[str, Call]:
    student, teacher = torch.randn(rows, classes), torch.randn(rows, classes)  # [B, C] each
    options = (4.0, correlation == "pearson", 32.0, columns)
    loss, stats = native.correlation(student, teacher, None, *options, 1e-8)
    one = torch.ones_like(loss)
    return {
        "forward": lambda _: native.correlation(student, teacher, None, *options, 1e-8),
        "backward": lambda _: native.correlation_backward(
            one, student, teacher, None, stats, *options
        ),
    }


@cache
def empty_calls(correlation: str, columns: float) -> dict[str, float]:
    """Seconds of the calls themselves, on one number."""
    return host_times(kernels(1, 1, correlation, columns))


def thread_counts() -> list[int]:
    return sorted({1, torch.get_num_threads()})


def measure_kernel(
    shape: tuple[int, int],
    correlation: str,
    terms: str,
    passes: str,
    threads: int,
    turns: int,
    seconds: float,
) -> list[Row]:
    """The rows of a kernel with a number of threads."""
    work = limits.correlation(*shape, torch.float32, passes=passes, columns=terms != "rows")
    case = Case(
        "correlation kernel", shape, "float32", work, {"ours": "ours"},
        passes, f"{correlation}, {terms}", "resident",
    )  # fmt: skip
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return measure(
            case,
            {"ours": kernels(*shape, correlation, TERMS[terms])[passes]},
            turns=turns,
            seconds=seconds,
            copied=shape[0] * shape[1],
            host={"ours": empty_calls(correlation, TERMS[terms])[passes]},
        )
    finally:
        torch.set_num_threads(before)


def main() -> None:
    options = parse_options(__doc__ or "", RESULTS)
    jobs = [
        Job(
            f"{passes}, {shape[0]} x {shape[1]}, {correlation}, {terms}, {threads} threads",
            partial(measure_kernel, shape, correlation, terms, passes, threads),
            weight=1 + shape[0] * shape[1] / 2e6,
        )
        for shape in SHAPES
        for correlation, terms in VARIANTS
        for passes in ("forward", "backward")
        for threads in thread_counts()
    ]
    run_jobs(jobs, options, "kernels of the correlation loss, medians")


if __name__ == "__main__":
    main()
