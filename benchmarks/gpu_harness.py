"""Contenders in turn on a GPU: between events, replayed from graphs, and what the call takes.

A case gives two sets of rows:

- its own inputs ("rotating", "resident"): as a program calls it, between events of the device; the
  host's time, where it is longer. `host_us` is until the call returns, with an idle GPU;
- the same with ", graph": replayed from a CUDA graph, so the GPU's time alone, of the contenders
  that can be captured.

`peak_mib` is torch's allocator's.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import limits
import torch
from harness import Call, Case, Row, record_matrix_rate

from r2kd_ext.bench.machine import gpu
from r2kd_ext.bench.results import Rates, rows_of
from r2kd_ext.bench.timing import Timing, timing_of

ROTATED_BYTES = 256 << 20  # of inputs; more than the caches of any GPU hold
SECONDS_PER_TURN = 0.02
_IN_A_GRAPH = 16  # calls at most


class Device(Protocol):
    """What the measurements need of a device."""

    name: str  # torch's

    def origin(self) -> dict[str, str]:
        """The columns that say where a row comes from."""

    def matrix_rate(self, dtype: torch.dtype) -> float:
        """Operations a second of a matrix product."""

    def wait(self) -> None:
        """Wait for all that it has been given to do."""

    def seconds(self, run: Callable[[], object]) -> float:
        """Its own time between before and after `run`."""

    def captured(self, run: Call, count: int) -> Callable[[], object] | None:
        """What replays `count` calls, or None where they cannot be captured."""

    def peak_of(self, run: Call) -> int:
        """By how many bytes a call raises what is allocated."""


class Cuda:
    """The current CUDA device."""

    name = "cuda"

    def origin(self) -> dict[str, str]:
        return gpu()

    def matrix_rate(self, dtype: torch.dtype) -> float:
        return limits.matrix_rate(self.name, size=8192, dtype=dtype)

    def wait(self) -> None:
        torch.cuda.synchronize()

    def seconds(self, run: Callable[[], object]) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    def captured(self, run: Call, count: int) -> Callable[[], object] | None:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                for call in range(count):
                    run(call)
        except RuntimeError:
            torch.cuda.synchronize()
            return None
        return graph.replay

    def peak_of(self, run: Call) -> int:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(0)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before


def ready(contenders: Mapping[str, Call], device: Device) -> dict[str, Call]:
    """The contenders that run, compiled and allocated; the others are named with their error.

    Those of this package must run.
    """
    found = {}
    for name, run in contenders.items():
        try:
            for call in range(3):
                run(call)
            device.wait()
        except Exception as error:
            if name == "ours":
                raise
            # Such as no memory, no compiler, another version of a peer.
            print(f"{name} left out: {type(error).__name__}: {error}"[:300], file=sys.stderr)
            continue
        found[name] = run
    return found


def in_turns(measured: Mapping[str, Callable[[], float]], turns: int) -> dict[str, Timing]:
    """Timings of functions that return their own seconds, every other turn backwards."""
    samples: dict[str, list[float]] = {name: [] for name in measured}
    for turn in range(turns):
        for name, run in list(measured.items())[:: -1 if turn % 2 else 1]:
            samples[name].append(run())
    return {name: timing_of(seconds) for name, seconds in samples.items()}


def timed(run: Call, device: Device) -> tuple[Callable[[], float], Callable[[], float], int]:
    """Seconds of a call on the device, seconds until a call returns, and calls in one turn."""
    numbers = itertools.count()
    once = device.seconds(lambda: run(next(numbers)))
    count = max(1, min(200, round(SECONDS_PER_TURN / once)))

    def on_device() -> float:
        run(next(numbers))  # the contender before has left its own data in the caches
        return device.seconds(lambda: [run(next(numbers)) for _ in range(count)]) / count

    def on_host() -> float:
        device.wait()
        begin = time.perf_counter()
        run(next(numbers))
        return time.perf_counter() - begin

    return on_device, on_host, count


def replayed(run: Call, count: int, device: Device) -> Callable[[], float] | None:
    """Seconds of a call replayed from a graph, or None where it cannot be captured."""
    replay = device.captured(run, count)
    if replay is None:
        return None
    replay()
    return lambda: device.seconds(replay) / count


def measure(
    case: Case,
    contenders: Mapping[str, Call],
    device: Device,
    *,
    turns: int,
    copied: int,
    dtype: torch.dtype,
) -> list[Row]:
    """The rows of a case, its contenders in turn with a copy of `copied` elements."""
    case = case._replace(contenders={"copy": "unit", **case.contenders})
    copy = limits.copy_call(copied, dtype, resident=case.inputs == "resident", device=device.name)
    running = ready({"copy": copy, **contenders}, device)
    functions = {name: timed(run, device) for name, run in running.items()}
    on_device = in_turns({name: found[0] for name, found in functions.items()}, turns)
    host = in_turns({name: found[1] for name, found in functions.items()}, turns)
    peaks: dict[str, int | None] = {
        name: device.peak_of(run) for name, run in running.items() if name != "copy"
    }
    graphs = {
        name: replay
        for name, run in running.items()
        if (replay := replayed(run, min(functions[name][2], _IN_A_GRAPH), device)) is not None
    }
    origin, moved = device.origin(), limits.copy_bytes(copied, dtype)
    rate = max(device.matrix_rate(kind) for kind in {torch.float32, dtype})
    matrix = record_matrix_rate(origin["threads"], rate, case.dtype)

    def rates(timings: Mapping[str, Timing]) -> Rates:
        return Rates(moved / timings["copy"].fastest, matrix)

    hosts = {name: timing.median for name, timing in host.items()}
    rows = rows_of(case, on_device, rates(on_device), origin, hosts, peaks)
    if "copy" in graphs and "ours" in graphs:
        replays = in_turns(graphs, turns)
        case = case._replace(inputs=f"{case.inputs}, graph")
        rows += rows_of(case, replays, rates(replays), origin)
    return rows
