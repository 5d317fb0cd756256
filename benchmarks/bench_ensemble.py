"""The teacher's forward passes of one training step on the CPU, against four plain ones.

    python benchmarks/bench_ensemble.py [--turns 15] [--output FILE.csv]

A step of R2KD needs the blended logits of a clean and of an augmented batch. Published: the teacher
and its pruned copy run on each, four forward passes. `TeacherEnsemble.both` folds batch norms,
computes in channels-last order, and takes as many images at a time as were measured to be fastest.
64 images of 64 x 64 to a batch, 200 classes, random weights; at most 5 turns, since a call takes
seconds. bfloat16 is timed where the processor has instructions for it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from harness import machine, parse_options, time_in_turns, write_rows
from rich.console import Console
from rich.table import Table
from torch import Tensor

from r2kd_ext import TeacherEnsemble, models, prune

RESULTS = Path(__file__).parent / "results" / "ensemble_cpu.csv"
NETWORKS = ("resnet56", "wrn_40_2")
BATCH, SIZE, CLASSES = 64, 64, 200


def four_passes(name: str, images: list[Tensor]) -> Callable[[int], object]:
    """The published forward passes, with both networks in eval mode."""
    teacher = models.create(name, CLASSES).eval()
    pruned = prune(teacher, 0.1)

    @torch.no_grad()
    def run(call: int) -> list[Tensor]:
        return [0.7 * teacher(x) + 0.3 * pruned(x) for x in images]

    return run


def measure(name: str, turns: int) -> list[dict[str, object]]:
    """One row for each dtype that the processor computes in."""
    images = [torch.randn(BATCH, 3, SIZE, SIZE) for _ in range(2)]
    teacher = models.create(name, CLASSES).eval()
    ensembles = {"float32": TeacherEnsemble(teacher)}
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        ensembles["bfloat16"] = TeacherEnsemble(teacher, dtype=torch.bfloat16)
    contenders = {"four": four_passes(name, images)}
    for dtype, ensemble in ensembles.items():
        contenders[dtype] = lambda call, ensemble=ensemble: ensemble.both(*images)  # type: ignore[misc]
    timings = time_in_turns(contenders, turns=min(turns, 5), warm_up=1)
    four = timings["four"]
    return [
        {
            "network": name,
            "images": BATCH,
            "size": SIZE,
            "dtype": dtype,
            "chunk": next(iter(ensemble._chunks.values())),
            "ensemble_ms": f"{timings[dtype].median * 1e3:.1f}",
            "ensemble_p20_ms": f"{timings[dtype].p20 * 1e3:.1f}",
            "ensemble_p80_ms": f"{timings[dtype].p80 * 1e3:.1f}",
            "four_ms": f"{four.median * 1e3:.1f}",
            "of_four": f"{four.times_faster_than(timings[dtype]):.3f}",
        }
        for dtype, ensemble in ensembles.items()
    ]


def main() -> None:
    options = parse_options(__doc__ or "", RESULTS)
    rows: list[dict[str, object]] = []
    for name in NETWORKS:
        print(f"{name} ...", file=sys.stderr, flush=True)
        rows += [row | machine() for row in measure(name, options.turns)]
    write_rows(options.output, rows)
    table = Table(title="64 images of 64 x 64, twice; medians")
    for column in ("network", "dtype", "four passes", "ensemble", "of four", "images at a time"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            str(row["network"]), str(row["dtype"]), f"{row['four_ms']} ms",
            f"{row['ensemble_ms']} ms", f"{row['of_four']}", str(row["chunk"]),
        )  # fmt: skip
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()
