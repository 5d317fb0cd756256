"""Sparse layers on the CPU, against the dense ones of torch and against torch.sparse.

    python benchmarks/bench_sparse.py [--turns 15] [--output FILE.csv]

Linear 256 x 2048 -> 2048, Conv2d 3 x 3 of 128 channels on 64 x 16 x 16 and of 256 channels on
64 x 8 x 8 in float32, the linear layer in bfloat16 too, a random share of the weights at zero. The
contenders of a layer are timed in turn: the dense layer, `SparseLinear` or `SparseConv2d` at every
sparsity, and for the linear layer `torch.nn.functional.linear` with a torch.sparse CSR weight, from
half on. Then whole models: `sparsify` of a pruned ResNet and a multilayer perceptron, against the
pruned model. The break-even curves go to docs/sparse.png.
"""

from __future__ import annotations

import csv
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from harness import Timing, machine, parse_options, time_in_turns, write_rows
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from r2kd_ext import SparseConv2d, SparseLinear, models, prune, sparsify

RESULTS = Path(__file__).parent / "results" / "sparse_cpu.csv"
PLOT = Path(__file__).parents[1] / "docs" / "sparse.png"
SPARSITIES = (0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
VENDOR_FROM = 0.5
MODEL_SPARSITIES = (0.1, 0.5, 0.9, 0.95)
Call = Callable[[int], object]


def layers() -> dict[str, tuple[nn.Module, Tensor]]:
    """Each layer of the benchmark with its input."""
    return {
        "Linear 256x2048x2048": (nn.Linear(2048, 2048), torch.randn(256, 2048)),
        "Conv2d 64x128x16x16": (nn.Conv2d(128, 128, 3, padding=1), torch.randn(64, 128, 16, 16)),
        "Conv2d 64x256x8x8": (nn.Conv2d(256, 256, 3, padding=1), torch.randn(64, 256, 8, 8)),
    }


def call(function: Callable[..., object], *inputs: object) -> Call:
    return lambda _: function(*inputs)


def zeroed(layer: nn.Module, sparsity: float) -> Any:
    """A copy of a layer with a random share of its weights at zero."""
    torch.manual_seed(1)
    made: Any = prune(layer, 0.0)
    with torch.no_grad():
        made.weight.mul_(torch.rand_like(made.weight, dtype=torch.float32) >= sparsity)
    return made


def row(
    op: str, dtype: str, sparsity: float, ours: Timing, dense: Timing, vendor: Timing | None
) -> dict[str, object]:
    return {
        "op": op,
        "dtype": dtype,
        "sparsity": sparsity,
        "sparse_ms": f"{ours.median * 1e3:.3f}",
        "sparse_p20_ms": f"{ours.p20 * 1e3:.3f}",
        "sparse_p80_ms": f"{ours.p80 * 1e3:.3f}",
        "dense_ms": f"{dense.median * 1e3:.3f}",
        "vendor_ms": "" if vendor is None else f"{vendor.median * 1e3:.3f}",
        "times_dense": f"{ours.times_faster_than(dense):.2f}",
        "times_vendor": "" if vendor is None else f"{ours.times_faster_than(vendor):.2f}",
    }


def layer_rows(name: str, dtype: torch.dtype, turns: int) -> list[dict[str, object]]:
    torch.manual_seed(0)
    layer, x = layers()[name]
    layer, x = layer.to(dtype), x.to(dtype)
    contenders = {"dense": call(layer, x)}
    for sparsity in SPARSITIES:
        masked = zeroed(layer, sparsity)
        kind: Any = SparseLinear if isinstance(layer, nn.Linear) else SparseConv2d
        contenders[f"ours {sparsity}"] = call(kind.from_dense(masked), x)
        if kind is SparseLinear and sparsity >= VENDOR_FROM and dtype == torch.float32:
            weight = masked.weight.detach().to_sparse_csr()
            bias = masked.bias
            contenders[f"vendor {sparsity}"] = call(F.linear, x, weight, bias)
    timings = time_in_turns(contenders, turns=turns, warm_up=1, seconds_per_turn=0.02)
    return [
        row(
            name, str(dtype).removeprefix("torch."), sparsity,
            timings[f"ours {sparsity}"], timings["dense"], timings.get(f"vendor {sparsity}"),
        )
        for sparsity in SPARSITIES
    ]  # fmt: skip


def networks() -> dict[str, tuple[nn.Module, Tensor]]:
    """Whole models with their inputs."""
    perceptron = nn.Sequential(
        nn.Linear(1024, 2048), nn.ReLU(), nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, 100)
    )
    return {
        "resnet8x4 64x3x32x32": (models.create("resnet8x4", 100), torch.randn(64, 3, 32, 32)),
        "perceptron 256x1024": (perceptron, torch.randn(256, 1024)),
    }


def model_rows(name: str, turns: int) -> list[dict[str, object]]:
    torch.manual_seed(0)
    model, x = networks()[name]
    rows = []
    for sparsity in MODEL_SPARSITIES:
        dense = prune(model, sparsity).eval()
        sparse = sparsify(dense, x)
        timings = time_in_turns(
            {"dense": call(dense, x), "ours": call(sparse, x)},
            turns=turns, warm_up=1, seconds_per_turn=0.02,
        )  # fmt: skip
        chosen = sum(layer.choice != "dense" for layer in sparse.report.layers)  # type: ignore
        op = f"sparsify {name} ({chosen} layers sparse)"
        rows.append(row(op, "float32", sparsity, timings["ours"], timings["dense"], None))
    return rows


def plot(rows: list[dict[str, object]], path: Path) -> None:
    """How many times faster than dense each layer is, by sparsity."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for op in dict.fromkeys(str(r["op"]) for r in rows):
        if op.startswith("sparsify"):
            continue
        for dtype, line in (("float32", "-"), ("bfloat16", ":")):
            mine = [r for r in rows if r["op"] == op and r["dtype"] == dtype]
            if not mine:
                continue
            axes.plot(
                [float(str(r["sparsity"])) for r in mine],
                [float(str(r["times_dense"])) for r in mine],
                line, marker="o", markersize=3, label=f"{op}, {dtype}",
            )  # fmt: skip
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("share of the weights that is zero")
    axes.set_ylabel("times faster than dense (csr)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    axes.set_title(f"{rows[0]['device']}, {rows[0]['threads']} threads", fontsize=8)
    figure.savefig(path, dpi=130, metadata={"Software": None})


def table(path: Path) -> str:
    """The table of docs/sparse.md, from a result file."""
    with path.open() as file:
        rows = list(csv.DictReader(file))
    lines = [
        "| operation | dtype | zero | ours, ms | dense, ms | times dense | times torch.sparse |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for r in rows:
        cells = (
            r["op"], r["dtype"], r["sparsity"], r["sparse_ms"], r["dense_ms"],
            r["times_dense"], r["times_vendor"] or "-",
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def show(rows: list[dict[str, object]]) -> None:
    table = Table(title="medians; ratios are medians of paired turns")
    for column in (
        "operation", "dtype", "sparsity", "ours, ms", "dense, ms", "torch.sparse, ms",
        "faster than dense", "than torch.sparse",
    ):  # fmt: skip
        table.add_column(column, justify="right")
    for r in rows:
        table.add_row(
            *(str(r[key]) for key in ("op", "dtype", "sparsity", "sparse_ms", "dense_ms")),
            *(str(r[key]) or "-" for key in ("vendor_ms", "times_dense", "times_vendor")),
        )
    Console(width=None if sys.stdout.isatty() else 150).print(table)


@torch.no_grad()
def main() -> None:
    options = parse_options(__doc__ or "", RESULTS)
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support")
    measurements: dict[str, Callable[[], list[dict[str, object]]]] = {
        **{name: partial(layer_rows, name, torch.float32, options.turns) for name in layers()},
        "bfloat16": partial(layer_rows, next(iter(layers())), torch.bfloat16, options.turns),
        **{name: partial(model_rows, name, options.turns) for name in networks()},
    }
    facts = machine()
    rows: list[dict[str, object]] = []
    for name, measure in measurements.items():
        print(f"{name} ...", file=sys.stderr, flush=True)
        rows += [r | facts for r in measure()]
        write_rows(options.output, rows)  # what is measured is kept if the rest is interrupted
    plot(rows, options.output.with_suffix(".png") if options.output != RESULTS else PLOT)
    show(rows)
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()
