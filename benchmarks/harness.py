"""Timing that can be compared, and result files that say where they come from.

All contenders of a row are timed in turn (A B C A B C ...), so that a drift of the machine meets
each alike; a figure is the median over the turns, a ratio the median of the turns' ratios.
"""

from __future__ import annotations

import argparse
import csv
import gc
import io
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch

import r2kd_ext
from r2kd_ext.train.files import write


def parse_options(doc: str, results: Path) -> argparse.Namespace:
    """The command line of a benchmark with this docstring: `turns` and `output`."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument(
        "--turns", type=int, default=15, help="how often each is timed (default 15)"
    )
    parser.add_argument("--output", type=Path, default=results, help="the result file (CSV)")
    options = parser.parse_args()
    if options.turns < 2:
        parser.error(f"--turns must be at least 2, got {options.turns}")
    return options


class Timing(NamedTuple):
    """Seconds per call: median and the 20th and 80th percentile over the turns."""

    median: float
    p20: float
    p80: float
    turns: list[float]

    def times_faster_than(self, other: Timing) -> float:
        """Median over the turns of how many times the other one's time is this one's."""
        return statistics.median(b / a for a, b in zip(self.turns, other.turns, strict=True))


def time_in_turns(
    contenders: Mapping[str, Callable[[int], object]],
    *,
    turns: int,
    warm_up: int = 2,
    seconds_per_turn: float = 0.1,
) -> dict[str, Timing]:
    """Time every contender `turns` times, in turn.

    A contender is called with the number of the call, by which it may choose among inputs that do
    not fit the caches together. One turn repeats it for about `seconds_per_turn`, after `warm_up`
    calls that do not count: caches, predictors and freed memory are then its own and not those of
    the contender before. With as many as there are inputs, each gradient has been replaced once.
    """
    calls = {}
    for name, run in contenders.items():
        run(0)  # compile, allocate, wake threads
        start = time.perf_counter()
        run(1)
        once = time.perf_counter() - start
        calls[name] = max(1, warm_up, min(2000, round(seconds_per_turn / once)))
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    gc.disable()
    try:
        for _ in range(turns):
            for name, run in contenders.items():
                for call in range(warm_up):
                    run(call)
                start = time.perf_counter()
                for call in range(calls[name]):
                    run(call)
                samples[name].append((time.perf_counter() - start) / calls[name])
    finally:
        gc.enable()
    return {name: _timing(values) for name, values in samples.items()}


def _timing(values: list[float]) -> Timing:
    fifths = statistics.quantiles(values, n=5)
    return Timing(statistics.median(values), fifths[0], fifths[-1], values)


def machine() -> dict[str, str]:
    """The columns that say where a row comes from."""
    info = r2kd_ext.build_info()
    return {
        "device": _processor(),
        "threads": str(torch.get_num_threads()),
        "simd": info["simd"],
        "torch": torch.__version__,
        "commit": info["commit"] or "unknown",
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        facts: dict[str, str] = {}
        for line in cpuinfo.read_text().split("\n\n")[0].splitlines():
            name, _, value = line.partition(":")
            facts[name.strip()] = value.strip()
        family = f"family {facts.get('cpu family')} model {facts.get('model')}"
        return f"{facts.get('model name', platform.machine())} ({family})"
    return platform.processor() or platform.machine()


def write_rows(path: Path, rows: list[dict[str, object]]) -> None:
    """Write a result file, whole or not at all."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, text.getvalue())
