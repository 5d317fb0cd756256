"""The plots of docs/benchmarks.md, from the result files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import matplotlib
from matplotlib import pyplot
from matplotlib.axes import Axes

from r2kd_ext.bench import results

matplotlib.use("Agg")
# The same data give the same file.
matplotlib.rcParams.update({"svg.hashsalt": "r2kd_ext", "svg.fonttype": "none", "font.size": 9})
Row = dict[str, str]


def speedup(rows: list[Row], axes: Axes) -> None:
    """Bars of how many times faster ours is than each other contender, with intervals."""
    chosen = [row for row in rows if row["dtype"] == "float32" and row["inputs"] == "rotating"]
    others = list(dict.fromkeys(r["contender"] for r in chosen if r["role"] in _OTHERS))
    shapes = list(dict.fromkeys(row["shape"] for row in chosen))
    for place, contender in enumerate(others):
        bars = {row["shape"]: row for row in chosen if row["contender"] == contender}
        heights = [float(bars[shape]["times_ours"]) for shape in shapes]
        spread = [
            [h - float(bars[s]["times_ours_low"]) for s, h in zip(shapes, heights, strict=True)],
            [float(bars[s]["times_ours_high"]) - h for s, h in zip(shapes, heights, strict=True)],
        ]
        width = 0.8 / len(others)
        at = [x + (place - (len(others) - 1) / 2) * width for x in range(len(shapes))]
        axes.bar(at, heights, width, yerr=spread, capsize=2, label=f"than {contender}")
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xticks(range(len(shapes)), shapes)
    axes.set_ylabel("times faster")
    axes.legend()


def limit(rows: list[Row], axes: Axes) -> None:
    """The share of the limit that each op reaches over C."""
    ours = [row for row in rows if row["role"] == "ours" and row["variant"] == "C"]
    for op in dict.fromkeys(row["op"] for row in ours):
        chosen = [row for row in ours if row["op"] == op]
        classes = [_classes(row) for row in chosen]
        axes.plot(
            classes, [100 * float(row["share_of_limit"]) for row in chosen], marker="o", label=op
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("C, with 64 rows")
    axes.set_ylabel("percent of the limit")
    axes.legend()


def memory(rows: list[Row], axes: Axes) -> None:
    """Peak memory of the correlation loss over C, ours and eager, and the gradient's own size."""
    chosen = [row for row in rows if (row["op"], row["variant"]) == ("correlation", "C")]
    for contender in ("ours", "eager"):
        points = [row for row in chosen if row["contender"] == contender and row["peak_mib"]]
        axes.plot(
            [_classes(row) for row in points],
            [float(row["peak_mib"]) for row in points],
            marker="o",
            label=contender,
        )
    ours = [row for row in chosen if row["contender"] == "ours"]
    gradient = [64 * _classes(row) * 4 / 2**20 for row in ours]
    axes.plot([_classes(row) for row in ours], gradient, "k:", label="the gradient alone")
    axes.set_xscale("log", base=2)
    axes.set_xlabel("C, with 64 rows of float32")
    axes.set_ylabel("MiB above the start")
    axes.legend()


def _classes(row: Row) -> int:
    return int(row["shape"].rpartition(" ")[2])


_OTHERS = ("reference", "peer")
PLOTS = {
    "speedup": ("correlation_cpu.csv", speedup),
    "limit": ("growth_cpu.csv", limit),
    "memory": ("growth_cpu.csv", memory),
}


def draw_all(source: Path, folder: Path) -> Iterator[Path]:
    """Draw every plot into `folder`; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (file, draw) in PLOTS.items():
        figure, axes = pyplot.subplots(figsize=(7, 3.5), layout="constrained")
        draw(results.load(source / file), axes)
        path = folder / f"{name}.svg"
        figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)
        yield path
