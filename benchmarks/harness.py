"""What all benchmarks share: their command line, their time, and the rows of a case.

Timing, memory, limits and the schema of the result files are `r2kd_ext.bench`, since `r2kd bench`
uses them too.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from r2kd_ext.bench.limits import copy_bytes, copy_call, matrix_rate
from r2kd_ext.bench.machine import OtherWork, machine
from r2kd_ext.bench.results import Case, Rates, Work, at_matrix_rates, dtype_text, rows_of
from r2kd_ext.bench.results import save as write_rows
from r2kd_ext.bench.timing import (
    LEAST_TURNS,
    ROTATED_BYTES,
    Timing,
    peak_memory,
    rotated,
    time_in_turns,
)

__all__ = [
    "LEAST_TURNS", "ROTATED_BYTES", "Budget", "Call", "Case", "Job", "Row", "Timing", "Work",
    "compiled", "dtype_text", "forward_call", "host_times", "machine", "measure",
    "parse_options", "peak_memory", "peaks_of", "record_matrix_rate", "rotated", "run_jobs", "show",
    "time_in_turns", "time_with_matrix_rate", "time_with_rates", "write_rows",
]  # fmt: skip

Call = Callable[[int], object]
Row = dict[str, str]
Name = TypeVar("Name", bound=Hashable)
DISTURBED = 0.1  # of a processor that other processes take
SAMPLED_EVERY = 1.0  # seconds, the matrix rate
SLOW = 0.02  # seconds of a call whose peak memory is taken once


def parse_options(doc: str, results: Path) -> argparse.Namespace:
    """The command line of a benchmark with this docstring: `turns`, `seconds` and `output`."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument(
        "--turns",
        type=int,
        default=15,
        help=f"how often each is timed (default 15; below {LEAST_TURNS} a ratio has no interval)",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=float("inf"),
        help=f"take fewer turns, down to {LEAST_TURNS}, to end in about this time",
    )
    parser.add_argument("--output", type=Path, default=results, help="the result file (CSV)")
    options = parser.parse_args()
    if options.turns < 2:
        parser.error(f"--turns must be at least 2, got {options.turns}")
    if not options.seconds > 0:
        parser.error(f"--seconds must be > 0, got {options.seconds}")
    return options


class Budget:
    """Seconds that the measurements still to come share by their weights."""

    def __init__(self, seconds: float, weight: float) -> None:
        self._end = time.monotonic() + seconds
        self._weight = weight

    def left(self) -> float:
        """The seconds of all that is to come."""
        return max(self._end - time.monotonic(), 0.0)

    def share(self, weight: float) -> float:
        """The seconds of the next part."""
        share = self.left() * weight / self._weight
        self._weight -= weight
        return share


@cache
def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`torch.compile` of a function, of fewer shapes than it keeps."""
    return torch.compile(function, dynamic=False)


def forward_call(function: Callable[..., object], *inputs: object) -> Call:
    """A forward call; grad mode belongs to a thread, and memory is measured in another one."""
    forward = torch.no_grad()(function)
    return lambda _: forward(*inputs)


class Job(NamedTuple):
    """A part of a benchmark: its name, what measures it in a number of turns and seconds, and how
    much of the time it needs beside the others."""

    name: str
    measure: Callable[[int, float], list[Row]]
    weight: float = 1.0


def run_jobs(
    jobs: Sequence[Job], options: argparse.Namespace, title: str, *, write_each: bool = False
) -> None:
    """Measure one job after the other, write the rows of all, and show them.

    The seconds of the command line are shared by the jobs' weights. A job may take more than its
    share, since it takes at least 6 turns; jobs that are still to come when all seconds are spent
    are left out, and named. With `write_each` the file is written after each job: what there is,
    should the process be stopped. Jobs beside which other processes were busy are named, too.
    """
    budget = Budget(options.seconds, sum(job.weight for job in jobs))
    rows: list[Row] = []
    left_out, disturbed = [], []
    for job in jobs:
        if rows and not budget.left():
            left_out.append(job.name)
            continue
        print(f"{job.name} ...", file=sys.stderr, flush=True)
        others = OtherWork()
        rows += job.measure(options.turns, budget.share(job.weight))
        share = others.share()
        if share > DISTURBED:
            disturbed.append(f"{job.name} ({share:.0%} of a processor)")
        if write_each:
            write_rows(options.output, at_matrix_rates(rows, _matrix_rates))
    rows = at_matrix_rates(rows, _matrix_rates)
    write_rows(options.output, rows)
    show(rows, title)
    for name in left_out:
        print(f"left out, since the time was spent: {name}")
    for name in disturbed:
        print(f"other processes were busy beside {name}")
    print(f"written to {options.output}")


_matrix_rates: dict[tuple[str, str], float] = {}  # the best so far, by threads and dtype
_sampled: dict[str, float] = {}  # when it was sampled last


def record_matrix_rate(threads: str, rate: float, dtype: str = "float32") -> float:
    """Note a rate that was measured with a number of threads; the best so far of as many."""
    key = (threads, dtype)
    _matrix_rates[key] = max(rate, _matrix_rates.get(key, 0.0))
    return _matrix_rates[key]


def _sample_matrix_rate() -> float:
    """The best matrix rate so far, after a few products more.

    Other work on the machine only makes a product slower, so a run samples it around its cases.
    """
    threads = str(torch.get_num_threads())
    if time.monotonic() - _sampled.get(threads, -math.inf) < SAMPLED_EVERY:
        return _matrix_rates[threads, "float32"]
    rate = record_matrix_rate(threads, matrix_rate(turns=3))
    _sampled[threads] = time.monotonic()
    return rate


def time_with_matrix_rate(
    contenders: Mapping[Name, Call],
    *,
    turns: int,
    seconds: float,
    warm_up: int,
    seconds_per_turn: float,
) -> tuple[dict[Name, Timing], float]:
    """The contenders in turn, and the best matrix rate so far."""
    _sample_matrix_rate()
    timings = time_in_turns(
        contenders,
        turns=turns,
        warm_up=warm_up,
        seconds_per_turn=seconds_per_turn,
        seconds=seconds,
    )
    return timings, _sample_matrix_rate()


def time_with_rates(
    contenders: Mapping[str, Call],
    *,
    turns: int,
    seconds: float,
    copied: int,
    dtype: torch.dtype = torch.float32,
    warm_up: int = 2,
    seconds_per_turn: float = 0.02,
    resident: bool = False,
) -> tuple[dict[str, Timing], Rates]:
    """The contenders in turn with a copy of `copied` elements, and the rates of that while."""
    copy = copy_call(copied, dtype, resident=resident)
    timings, matrix = time_with_matrix_rate(
        {**contenders, "copy": copy},
        turns=turns,
        seconds=seconds,
        warm_up=warm_up,
        seconds_per_turn=seconds_per_turn,
    )
    return timings, Rates(copy_bytes(copied, dtype) / timings["copy"].fastest, matrix)


def peaks_of(
    contenders: Mapping[str, Call],
    timings: Mapping[str, Timing],
    prepare: Callable[[], object] = lambda: None,
) -> dict[str, int | None]:
    """Bytes of each contender's peak memory; `prepare` is that of `peak_memory`."""
    return {
        name: peak_memory(run, 3 if timings[name].median < SLOW else 1, prepare)
        for name, run in contenders.items()
    }


def measure(
    case: Case,
    contenders: Mapping[str, Call],
    *,
    turns: int,
    seconds: float,
    copied: int,
    dtype: torch.dtype = torch.float32,
    warm_up: int = 2,
    host: Mapping[str, float] | None = None,
    with_memory: bool = True,
    prepare: Callable[[], object] = lambda: None,
    seconds_per_turn: float = 0.02,
) -> list[Row]:
    """The rows of a case on the CPU: its contenders in turn with a copy of `copied` elements.

    `host` is the calls' own time in seconds (`host_times`); `prepare` is that of `peak_memory`.
    """
    timings, rates = time_with_rates(
        contenders,
        turns=turns,
        seconds=seconds,
        copied=copied,
        dtype=dtype,
        warm_up=warm_up,
        seconds_per_turn=seconds_per_turn,
        resident=case.inputs == "resident",
    )
    peaks = peaks_of(contenders, timings, prepare) if with_memory else None
    case = case._replace(contenders={"copy": "unit", **case.contenders})
    return rows_of(case, timings, rates, machine(), host, peaks)


def host_times(contenders: Mapping[str, Call]) -> dict[str, float]:
    """Seconds of calls whose inputs are so small that only the call itself takes time."""
    timings = time_in_turns(contenders, turns=LEAST_TURNS, seconds_per_turn=0.01)
    return {name: timing.median for name, timing in timings.items()}


def show(rows: Sequence[Mapping[str, str]], title: str) -> None:
    """Print the rows but the units' as a table."""
    table = Table(title=title)
    columns = ("contender", "us", "times_ours", "interval", "peak_mib", "share_of_limit")
    for column in ("case", *columns):
        table.add_column(column.replace("_", " "), justify="left" if column == "case" else "right")
    for row in rows:
        if row["role"] == "unit":
            continue
        keys = ("op", "passes", "shape", "variant", "dtype", "inputs")
        interval = f"{row['times_ours_low']} to {row['times_ours_high']}"
        cells = [interval if column == "interval" else row[column] for column in columns]
        table.add_row(", ".join(row[key] for key in keys if row[key]), *cells)
    Console(width=None if sys.stdout.isatty() else 180).print(table)
