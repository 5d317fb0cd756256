"""Forward + backward of the correlation loss on a GPU: native, Triton, eager and compiled.

    python benchmarks/bench_correlation_gpu.py [--turns 15] [--output FILE.csv]

One row per shape and contender. Times are of one forward + backward:

- call_us: as a training loop calls it, between CUDA events; the host's time, where it is longer;
- graph_us: replayed from a CUDA graph, so the GPU's time alone; empty where it cannot be captured;
- host_us: until the call returns, with an idle GPU.

Contenders: native and triton (`correlation_kd` by backend), eager (the formula in plain PyTorch),
compiled (`torch.compile` of it), kl_div (`F.kl_div` of log_softmax and softmax, the common loss),
copy (the three-stream copy of `limits.py`, which is the unit of share_of_copy_rate). Inputs rotate
past the caches.
"""

from __future__ import annotations

import itertools
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from harness import parse_options, write_rows
from limits import copy_bytes, correlation_bytes, three_streams
from torch import Tensor

import r2kd_ext
from r2kd_ext import correlation_kd
from r2kd_ext.backends import choose

RESULTS = Path(__file__).parent / "results" / "correlation_gpu.csv"
ROTATED_BYTES = 256 << 20  # of logits; more than the caches of any GPU hold
SECONDS_PER_TURN = 0.02
TEMPERATURE = 4.0
Loss = Callable[[Tensor, Tensor], Tensor]
Call = Callable[[int], object]


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


def contenders(shape: Shape) -> dict[str, Loss]:
    found: dict[str, Loss] = {}
    for backend in ("native", "triton"):
        try:
            choose(backend, torch.device("cuda"))
        except ValueError as error:
            print(f"{backend} left out: {error}", file=sys.stderr)
            continue
        found[backend] = partial(
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


def call_of(loss: Loss, shape: Shape) -> Call:
    bytes_of_pair = 2 * shape.rows * shape.classes * shape.dtype.itemsize
    count = max(1, min(16, ROTATED_BYTES // bytes_of_pair))
    data = [
        tuple(
            torch.randn(shape.rows, shape.classes, device="cuda", dtype=shape.dtype)
            for _ in range(2)
        )
        for _ in range(count)
    ]
    for student, _ in data:
        student.requires_grad_()

    def run(call: int) -> Tensor:
        student, teacher = data[call % count]
        return torch.autograd.grad(loss(student, teacher), student)[0]

    return run


def copy_of(shape: Shape) -> Call:
    a, b, c = three_streams(shape.rows * shape.classes, shape.dtype, "cuda")
    return lambda _: torch.add(a, b, out=c)


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


def time_calls(run: Call, turns: int) -> dict[str, str]:
    """The columns of one contender."""
    for call in range(3):  # compile, allocate
        run(call)
    once = between_events(lambda: run(0))
    count = max(1, min(200, round(SECONDS_PER_TURN / once)))
    numbers = itertools.count()

    def calls() -> None:
        for _ in range(count):
            run(next(numbers))

    device = [between_events(calls) / count for _ in range(turns)]
    host = []
    for _ in range(turns):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        run(next(numbers))
        host.append(time.perf_counter() - begin)
    torch.cuda.synchronize()
    replayed = min(count, 16)
    graph = captured(run, replayed)
    on_gpu = []
    if graph is not None:
        graph.replay()
        on_gpu = [between_events(graph.replay) / replayed for _ in range(turns)]
    columns = {}
    for name, seconds in (("call", device), ("graph", on_gpu), ("host", host)):
        fifths = statistics.quantiles(seconds, n=5) if seconds else []
        median = statistics.median(seconds) if seconds else None
        columns[f"{name}_us"] = f"{median * 1e6:.1f}" if median is not None else ""
        columns[f"{name}_p20_us"] = f"{fifths[0] * 1e6:.1f}" if fifths else ""
        columns[f"{name}_p80_us"] = f"{fifths[-1] * 1e6:.1f}" if fifths else ""
    return columns


def gpu() -> dict[str, str]:
    """The columns that say where a row comes from."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    try:
        driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        driver = "unknown"
    info = r2kd_ext.build_info()
    major, minor = torch.cuda.get_device_capability()
    return {
        "device": torch.cuda.get_device_name(),
        "sm": f"{major}{minor}",
        "driver": driver,
        "torch": torch.__version__,
        "triton": info["triton"] or "",
        "cuda_runtime": info["cuda"]["runtime"] or "",
        "commit": info["commit"] or "unknown",
    }


def measure(shape: Shape, turns: int) -> list[dict[str, object]]:
    elements = shape.rows * shape.classes
    copy = time_calls(copy_of(shape), turns)
    rate = copy_bytes(elements, shape.dtype) / float(copy["graph_us"] or copy["call_us"])
    rows: list[dict[str, object]] = []
    times = {"copy": copy}
    for name, loss in contenders(shape).items():
        print(f"{shape.rows} x {shape.classes}, {name} ...", file=sys.stderr, flush=True)
        try:
            times[name] = time_calls(call_of(loss, shape), turns)
        except torch.cuda.OutOfMemoryError:
            print(f"{name} left out: out of memory", file=sys.stderr)
        torch.cuda.empty_cache()
    torch.compiler.reset()
    needed = correlation_bytes(shape.rows, shape.classes, shape.dtype)
    for name, columns in times.items():
        moved = copy_bytes(elements, shape.dtype) if name == "copy" else needed
        best = float(columns["graph_us"] or columns["call_us"])
        rows.append(
            {
                "op": "correlation",
                "rows": shape.rows,
                "classes": shape.classes,
                "dtype": str(shape.dtype).removeprefix("torch."),
                "terms": "rows+columns" if shape.columns else "rows",
                "contender": name,
                **columns,
                "bytes": moved,
                "share_of_copy_rate": f"{moved / best / rate:.3f}",
            }
        )
    return rows


def main() -> None:
    options = parse_options(__doc__ or "", RESULTS)
    if not torch.cuda.is_available():
        sys.exit("error: this benchmark needs an NVIDIA GPU, and torch sees none")
    rows: list[dict[str, object]] = []
    for shape in SHAPES:
        rows += [row | gpu() for row in measure(shape, options.turns)]
        write_rows(options.output, rows)  # what there is, should the time run out
    shown = ("rows", "classes", "dtype", "terms", "contender", "call_us", "graph_us", "host_us")
    for row in rows:
        print(*(f"{row[key]:>12}" for key in (*shown, "share_of_copy_rate")))
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()
