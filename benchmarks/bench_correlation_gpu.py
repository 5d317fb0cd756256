"""Forward + backward of the correlation loss on a GPU: native, Triton, eager and compiled.

    python benchmarks/bench_correlation_gpu.py [--turns 15] [--output FILE.csv]

Two cases per shape, each with all contenders in turn:

- inputs "rotating": as a training loop calls it, between CUDA events; the host's time, where it is
  longer. `host_us` is until the call returns, with an idle GPU;
- inputs "rotating, graph": replayed from a CUDA graph, so the GPU's time alone, of the contenders
  that can be captured.

Contenders: ours (of the backends native and triton the first that runs; the other one is a peer),
eager (the formula in plain PyTorch), compiled (`torch.compile` of it), kl_div (`F.kl_div` of
log_softmax and softmax, the common loss), copy (the three-stream copy). Inputs rotate past the
caches. `peak_mib` is torch's allocator's.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import limits
import torch
import torch.nn.functional as F
from harness import Call, Case, parse_options, rotated, write_rows
from torch import Tensor

from r2kd_ext import correlation_kd
from r2kd_ext.backends import choose
from r2kd_ext.bench.machine import gpu
from r2kd_ext.bench.results import Rates, rows_of
from r2kd_ext.bench.timing import Timing, timing_of

RESULTS = Path(__file__).parent / "results" / "correlation_gpu.csv"
DEVICE = "cuda"
ROTATED_BYTES = 256 << 20  # of logits; more than the caches of any GPU hold
SECONDS_PER_TURN = 0.02
TEMPERATURE = 4.0
Loss = Callable[[Tensor, Tensor], Tensor]
ROLES = {
    "copy": "unit", "ours": "ours", "eager": "reference", "compiled": "peer", "kl_div": "peer",
}  # fmt: skip


class Shape(NamedTuple):
    rows: int
    classes: int
    dtype: torch.dtype
    columns: bool  # both terms, else the rows' alone


SHAPES = [
    Shape(64, 100, torch.float32, True),
    Shape(64, 200, torch.float32, True),
    Shape(1024, 1000, torch.float32, True),
    Shape(256, 21_841, torch.float32, True),
    Shape(4096, 32_768, torch.bfloat16, False),
    Shape(4096, 131_072, torch.bfloat16, False),
    Shape(1024, 262_144, torch.bfloat16, False),
]


def eager(student: Tensor, teacher: Tensor, columns: bool) -> Tensor:
    """The formula of the docstring of `correlation_kd` as one would write it."""
    p = torch.softmax(student.float() / TEMPERATURE, dim=1)
    q = torch.softmax(teacher.float() / TEMPERATURE, dim=1)

    def distance(dim: int) -> Tensor:
        norms = p.norm(dim=dim) * q.norm(dim=dim)
        return 1 - ((p * q).sum(dim) / (norms + 1e-8)).mean()

    return 2 * TEMPERATURE**2 * (distance(1) + distance(0) if columns else distance(1))


def kl_div(student: Tensor, teacher: Tensor) -> Tensor:
    log_p = F.log_softmax(student / TEMPERATURE, dim=1)
    return F.kl_div(log_p, F.softmax(teacher / TEMPERATURE, dim=1), reduction="batchmean")


def losses(shape: Shape) -> dict[str, Loss]:
    """The losses to compare; "ours (triton)" beside "ours" where both backends run."""
    found: dict[str, Loss] = {}
    for backend in ("native", "triton"):
        try:
            choose(backend, torch.device(DEVICE))
        except ValueError as error:
            print(f"{backend} left out: {error}", file=sys.stderr)
            continue
        found[f"ours ({backend})" if found else "ours"] = partial(
            correlation_kd,
            temperature=TEMPERATURE,
            intra_weight=2.0 if shape.columns else 0.0,
            backend=backend,
        )
    compiled = torch.compile(eager, dynamic=False)
    found["eager"] = lambda z, y: eager(z, y, shape.columns)
    found["compiled"] = lambda z, y: compiled(z, y, shape.columns)
    found["kl_div"] = kl_div
    return found


def pair(shape: Shape) -> tuple[Tensor, Tensor]:
    """Logits [B, C] of student and teacher; the student's want a gradient."""
    student, teacher = (
        torch.randn(shape.rows, shape.classes, device=DEVICE, dtype=shape.dtype) for _ in range(2)
    )
    return student.requires_grad_(), teacher


def calls(shape: Shape) -> dict[str, Call]:
    """The contenders that run, all on the same inputs."""
    size = 2 * shape.rows * shape.classes * shape.dtype.itemsize
    data = rotated(partial(pair, shape), size, ROTATED_BYTES)

    def call_of(loss: Loss) -> Call:
        def run(call: int) -> Tensor:
            student, teacher = data[call % len(data)]
            return torch.autograd.grad(loss(student, teacher), student)[0]

        return run

    found = {"copy": limits.copy_call(shape.rows * shape.classes, shape.dtype, device=DEVICE)}
    for name, loss in losses(shape).items():
        run = call_of(loss)
        try:
            for call in range(3):  # compile, allocate
                run(call)
        except torch.cuda.OutOfMemoryError:
            print(f"{name} left out: out of memory", file=sys.stderr)
            torch.cuda.empty_cache()
            continue
        found[name] = run
    return found


def between_events(run: Callable[[], object]) -> float:
    """Seconds of the device between two events around `run`."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def captured(run: Call, count: int) -> torch.cuda.CUDAGraph | None:
    """`count` calls as a CUDA graph, or None where they cannot be captured."""
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            for call in range(count):
                run(call)
    except RuntimeError:
        torch.cuda.synchronize()
        return None
    return graph


def in_turns(measured: Mapping[str, Callable[[], float]], turns: int) -> dict[str, Timing]:
    """Timings of functions that return their own seconds, every other turn backwards."""
    samples: dict[str, list[float]] = {name: [] for name in measured}
    for turn in range(turns):
        for name, run in list(measured.items())[:: -1 if turn % 2 else 1]:
            samples[name].append(run())
    return {name: timing_of(seconds) for name, seconds in samples.items()}


def timed(run: Call) -> tuple[Callable[[], float], Callable[[], float], int]:
    """Seconds of a call on the device, seconds until a call returns, and calls in one turn."""
    numbers = itertools.count()
    once = between_events(lambda: run(next(numbers)))
    count = max(1, min(200, round(SECONDS_PER_TURN / once)))

    def on_device() -> float:
        run(next(numbers))  # the contender before has left its own data in the caches
        return between_events(lambda: [run(next(numbers)) for _ in range(count)]) / count

    def on_host() -> float:
        torch.cuda.synchronize()
        begin = time.perf_counter()
        run(next(numbers))
        return time.perf_counter() - begin

    return on_device, on_host, count


def replayed(run: Call, count: int) -> Callable[[], float] | None:
    """Seconds of a call replayed from a graph, or None where it cannot be captured."""
    graph = captured(run, count)
    if graph is None:
        return None
    graph.replay()
    return lambda: between_events(graph.replay) / count


def peak_of(run: Call) -> int:
    """By how many bytes a call raises what the allocator has given out."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run(0)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def measure(shape: Shape, turns: int, matrix: float) -> list[dict[str, str]]:
    contenders = calls(shape)
    functions = {name: timed(run) for name, run in contenders.items()}
    device = in_turns({name: found[0] for name, found in functions.items()}, turns)
    host = in_turns({name: found[1] for name, found in functions.items()}, turns)
    peaks: dict[str, int | None] = {
        name: peak_of(run) for name, run in contenders.items() if name != "copy"
    }
    graphs = {
        name: replay
        for name, run in contenders.items()
        if (replay := replayed(run, min(functions[name][2], 16))) is not None
    }
    work = limits.correlation(shape.rows, shape.classes, shape.dtype, columns=shape.columns)
    case = Case(
        "correlation",
        (shape.rows, shape.classes),
        str(shape.dtype).removeprefix("torch."),
        work,
        ROLES | {"ours (triton)": "peer"},
        variant="" if shape.columns else "rows",
    )
    moved = limits.copy_bytes(shape.rows * shape.classes, shape.dtype)

    def rates(timings: Mapping[str, Timing]) -> Rates:
        return Rates(moved / timings["copy"].median, matrix)

    hosts = {name: timing.median for name, timing in host.items()}
    found = rows_of(case, device, rates(device), gpu(), hosts, peaks)
    if "copy" in graphs:
        replays = in_turns(graphs, turns)
        found += rows_of(case._replace(inputs="rotating, graph"), replays, rates(replays), gpu())
    return found


def main() -> None:
    options = parse_options(__doc__ or "", RESULTS)
    if not torch.cuda.is_available():
        sys.exit("error: this benchmark needs an NVIDIA GPU, and torch sees none")
    matrix = limits.matrix_rate(DEVICE, size=8192)
    rows: list[dict[str, str]] = []
    for shape in SHAPES:
        print(f"{shape.rows} x {shape.classes} ...", file=sys.stderr, flush=True)
        rows += measure(shape, options.turns, matrix)
        torch.compiler.reset()
        torch.cuda.empty_cache()
        write_rows(options.output, rows)  # what there is, should the time run out
    shown = ("shape", "dtype", "variant", "inputs", "contender", "us", "host_us", "times_ours")
    for row in rows:
        print(*(f"{row[key]:>12}" for key in (*shown, "share_of_limit")))
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()
