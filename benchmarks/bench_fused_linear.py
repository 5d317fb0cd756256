"""Time and memory of the fused linear loss on the CPU, against eager PyTorch.

    python benchmarks/bench_fused_linear.py [--turns 1] [--dtype float32] [--append]
                                            [--output FILE.csv]

Pearson at T = 1, forward + backward to the student's hidden states and weight; student and teacher
have the same width. Eager is the formula on float32 logits as a careful user would write it: the
logits are not kept, the teacher's are computed without a graph.

Each contender runs in a process of its own, once on a few rows to wake threads and libraries, then
once for the figures; in turn, fused and eager. A row is one turn. `*_mib` is the high-water mark of
the process's resident memory above where it stood before the call, less the bytes of the gradients
that the call returns. --append keeps the rows that the file has, for turns that are taken at
different times. Linux only (/proc).
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import machine, write_rows
from torch import Tensor
from torch.nn.functional import linear

from r2kd_ext import fused_linear_correlation_kd

RESULTS = Path(__file__).parent / "results" / "fused_linear_cpu.csv"
SHAPE = (4096, 32768, 1024)  # N, V, H


def eager(student: Tensor, weight: Tensor, teacher: Tensor, teacher_weight: Tensor) -> Tensor:
    """1 - mean of Pearson's correlation, with float32 logits."""
    with torch.no_grad():
        q = torch.softmax(linear(teacher.float(), teacher_weight.float()), dim=1)  # [N, V]
        q = q - q.mean(1, True)
    p = torch.softmax(linear(student.float(), weight.float()), dim=1)  # [N, V]
    p = p - p.mean(1, True)
    return 1 - ((p * q).sum(1) / (p.norm(dim=1) * q.norm(dim=1) + 1e-8)).mean()


CONTENDERS: dict[str, Callable[..., Tensor]] = {
    "fused": fused_linear_correlation_kd,
    "eager": eager,
}


def _memory(field: str) -> int:
    """Bytes of `field` of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def measure(name: str, rows: int, classes: int, width: int, dtype: str) -> dict[str, float]:
    """Seconds and bytes of one forward + backward in this process."""
    torch.manual_seed(0)
    function = CONTENDERS[name]

    def head(rows: int) -> list[Tensor]:
        kind = getattr(torch, dtype)
        weight = torch.empty(classes, width, dtype=kind).normal_(std=width**-0.5)  # [V, H]
        return [torch.randn(rows, width).to(kind), weight]

    student, teacher = head(rows), head(rows)
    few = [x[:64].clone() for x in (*student, *teacher)]
    function(few[0].requires_grad_(), few[1].requires_grad_(), *few[2:]).backward()
    del few
    for x in student:
        x.requires_grad_()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = _memory("VmRSS")
    start = time.perf_counter()
    loss = function(*student, *teacher)
    loss.backward()
    seconds = time.perf_counter() - start
    peak = _memory("VmHWM") - before - sum(x.nbytes for x in student)
    return {"seconds": seconds, "peak": peak, "loss": loss.item()}


def in_a_process(name: str, case: tuple[Any, ...]) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure", json.dumps([name, *case])]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(result.stdout)
    return found


def turn(case: tuple[Any, ...]) -> dict[str, object]:
    """The row of one turn."""
    found = {name: in_a_process(name, case) for name in CONTENDERS}
    ours, other = found["fused"], found["eager"]
    if abs(ours["loss"] - other["loss"]) > 1e-5:
        raise RuntimeError(f"the losses differ: {found}")
    return {
        "op": "fused_linear_correlation",
        **dict(zip(("rows", "classes", "width", "dtype"), case, strict=True)),
        "fused_s": f"{ours['seconds']:.2f}",
        "eager_s": f"{other['seconds']:.2f}",
        "of_eager_time": f"{ours['seconds'] / other['seconds']:.3f}",
        "fused_mib": f"{ours['peak'] / 2**20:.0f}",
        "eager_mib": f"{other['peak'] / 2**20:.0f}",
        "of_eager_memory": f"{ours['peak'] / other['peak']:.3f}",
        **machine(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--turns", type=int, default=1, help="how often each is timed (default 1)")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="of all inputs"
    )
    parser.add_argument("--append", action="store_true", help="keep the rows of the result file")
    parser.add_argument("--output", type=Path, default=RESULTS, help="the result file (CSV)")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(*json.loads(options.measure))))
        return
    if options.turns < 1:
        parser.error(f"--turns must be at least 1, got {options.turns}")
    rows: list[dict[str, object]] = []
    if options.append and options.output.exists():
        with options.output.open(newline="") as file:
            rows = list(csv.DictReader(file))
    for _ in range(options.turns):
        rows.append(turn((*SHAPE, options.dtype)))
        print(*(f"{key} {value}" for key, value in rows[-1].items()), sep="  ", flush=True)
    write_rows(options.output, rows)


if __name__ == "__main__":
    main()
