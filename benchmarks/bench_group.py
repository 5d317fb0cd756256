"""Bytes, memory and time of the losses over a process group, against docs/scaling.md's formulas.

Local processes over gloo, one thread each. A row's time is forward + backward of the loss on all
ranks at once; beside it are its two parts, measured by themselves: the same call over a group of
one rank, and all-reduces of the same sizes. `latency_us` and `link_mb_s` are what all-reduces of 8
bytes and of 8 MB come to.

    python benchmarks/bench_group.py
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from harness import machine, parse_options, write_rows
from scaling import kept_bytes, payload_bytes, payloads, wire_bytes
from torch import Tensor

from r2kd_ext import correlation_kd, vocab_parallel_correlation_kd

RESULTS = Path(__file__).parent / "results" / "group_cpu.csv"
SIZES = (2, 4)
PROBE = 10**6  # float64 numbers


class Case(NamedTuple):
    form: str  # "rows": each rank has `rows` of its own; "classes": each has its part of `classes`
    rows: int
    classes: int
    correlation: str

    def local_classes(self, world: int) -> int:
        return self.classes if self.form == "rows" else self.classes // world


CASES = (
    Case("rows", 64, 1000, "cosine"),
    Case("rows", 64, 1000, "pearson"),
    Case("rows", 256, 32000, "cosine"),
    Case("rows", 256, 32000, "pearson"),
    Case("classes", 256, 32000, "cosine"),
    Case("classes", 256, 32000, "pearson"),
)


def _step(case: Case, world: int, group: Any, rank: int) -> Callable[[], None]:
    source = torch.Generator().manual_seed(1 + rank)
    shape = (case.rows, case.local_classes(world))
    teacher = 3 * torch.randn(shape, generator=source)
    student = (teacher + 3 * torch.randn(shape, generator=source)).requires_grad_()
    loss = correlation_kd if case.form == "rows" else vocab_parallel_correlation_kd

    def step() -> None:
        student.grad = None
        loss(student, teacher, correlation=case.correlation, group=group).backward()

    return step


def _measured_bytes(step: Callable[[], None]) -> tuple[int, int]:
    """Bytes handed to all-reduces and bytes kept for backward in one step."""
    handed = 0
    kept: dict[int, int] = {}
    original = dist.all_reduce

    def all_reduce(tensor: Tensor, *rest: Any, **options: Any) -> Any:
        nonlocal handed
        handed += tensor.numel() * tensor.element_size()
        return original(tensor, *rest, **options)

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return x

    dist.all_reduce = all_reduce
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            step()
    finally:
        dist.all_reduce = original
    logits = sorted(kept.values())[-2:]  # student and teacher
    return handed, sum(kept.values()) - sum(logits)


def _loopback() -> int:
    """Bytes that the loopback interface has sent; 0 where the system does not say."""
    counters = Path("/proc/net/dev")
    if not counters.exists():
        return 0
    for line in counters.read_text().splitlines():
        if line.strip().startswith("lo:"):
            return int(line.split(":")[1].split()[8])
    return 0


def _time(call: Callable[[], object], turns: int, calls: int) -> float:
    """Median seconds per call over the turns, which the ranks start together."""
    samples = []
    for turn in range(turns + 1):
        dist.barrier()
        begin = time.perf_counter()
        for _ in range(calls):
            call()
        if turn > 0:
            samples.append((time.perf_counter() - begin) / calls)
    return statistics.median(samples)


def _rank(rank: int, world: int, store: str, turns: int, connection: Any) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    alone = [dist.new_group([other]) for other in range(world)][rank]
    small, large = torch.zeros(1, dtype=torch.float64), torch.zeros(PROBE, dtype=torch.float64)
    latency = _time(lambda: dist.all_reduce(small), turns, 50)
    bulk = _time(lambda: dist.all_reduce(large), turns, 2)
    link = wire_bytes(world, 8 * PROBE) / (bulk - latency)
    rows = []
    for case in CASES:
        together = _step(case, world, dist.group.WORLD, rank)
        handed, kept = _measured_bytes(together)
        sizes = payloads(*case)
        payload = payload_bytes(*case)
        buffers = [
            torch.zeros(count, dtype=torch.float64 if size == 8 else torch.float32)
            for count, size in sizes
        ]
        calls = 20 if case.classes <= 1000 else 1
        local = _time(_step(case, world, alone, rank), turns, calls)

        def exchange(buffers: list[Tensor] = buffers) -> None:
            for buffer in buffers:
                dist.all_reduce(buffer)

        reduce = _time(exchange, turns, calls)
        dist.barrier()
        before = _loopback()
        measured = _time(together, turns, calls)
        dist.barrier()
        sent = (_loopback() - before) / ((turns + 1) * calls * world)
        by_formula = len(buffers) * latency + wire_bytes(world, payload) / link
        if rank == 0:
            print(f"{world} ranks: {case}", flush=True)
        rows.append(
            {
                **case._asdict(), "world": world, "dtype": "float32",
                "all_reduces": len(buffers), "payload_bytes": handed,
                "payload_formula": payload, "wire_bytes": round(sent),
                "wire_formula": round(wire_bytes(world, payload)),
                "kept_bytes": kept, "kept_formula": kept_bytes(*case[:3], world),
                "step_ms": f"{1e3 * measured:.3f}", "local_ms": f"{1e3 * local:.3f}",
                "all_reduce_ms": f"{1e3 * reduce:.3f}",
                "all_reduce_formula_ms": f"{1e3 * by_formula:.3f}",
                "step_over_sum": f"{measured / (local + reduce):.2f}",
                "latency_us": f"{1e6 * latency:.0f}", "link_mb_s": f"{link / 1e6:.0f}",
            }
        )  # fmt: skip
    if rank == 0:
        connection.send(rows)
    dist.barrier()
    dist.destroy_process_group()


def measure(world: int, turns: int) -> list[dict[str, object]]:
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory() as folder:
        arguments = (world, str(Path(folder, "store")), turns, theirs)
        processes = [
            context.Process(target=_rank, args=(rank, *arguments)) for rank in range(world)
        ]
        for process in processes:
            process.start()
        theirs.close()
        rows: list[dict[str, object]] = mine.recv()  # EOFError where the ranks have failed
        for process in processes:
            process.join()
    return rows


def main() -> None:
    options = parse_options(__doc__ or "", RESULTS)
    torch.set_num_threads(1)  # as the ranks
    rows = [row | machine() for world in SIZES for row in measure(world, options.turns)]
    for row in rows:
        print({name: row[name] for name in list(row)[:19]})
    write_rows(options.output, rows)


if __name__ == "__main__":
    main()
