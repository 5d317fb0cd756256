"""What all benchmarks share: their command line, their time, and the rows of a case.

Timing, memory, limits and the schema of the result files are `r2kd_ext.bench`, since `r2kd bench`
uses them too.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from r2kd_ext.bench.limits import copy_bytes, copy_call, matrix_rate
from r2kd_ext.bench.machine import machine
from r2kd_ext.bench.results import Case, Rates, Work, rows_of
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
    "LEAST_TURNS", "ROTATED_BYTES", "Budget", "Call", "Case", "Timing", "Work", "host_times",
    "machine", "measure", "parse_options", "peak_memory", "rotated", "show", "time_in_turns",
    "write_rows",
]  # fmt: skip

Call = Callable[[int], object]


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
    """Seconds that the measurements still to come share alike."""

    def __init__(self, seconds: float, parts: int) -> None:
        self._end = time.monotonic() + seconds
        self._parts = parts

    def share(self) -> float:
        """The seconds of the next part."""
        left = max(self._end - time.monotonic(), 0.0) / max(self._parts, 1)
        self._parts -= 1
        return left


@cache
def _matrix_rate(threads: int) -> float:
    return matrix_rate()


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
    seconds_per_turn: float = 0.05,
) -> list[dict[str, str]]:
    """The rows of a case on the CPU: its contenders in turn with a copy of `copied` elements.

    `host` is the calls' own time in seconds (`host_times`); `prepare` is that of `peak_memory`.
    """
    copy = copy_call(copied, dtype, resident=case.inputs == "resident")
    timings = time_in_turns(
        {**contenders, "copy": copy},
        turns=turns, warm_up=warm_up, seconds_per_turn=seconds_per_turn, seconds=seconds,
    )  # fmt: skip
    rate = copy_bytes(copied, dtype) / timings["copy"].median
    rates = Rates(rate, _matrix_rate(torch.get_num_threads()))
    peaks = None
    if with_memory:
        peaks = {name: peak_memory(run, prepare=prepare) for name, run in contenders.items()}
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
