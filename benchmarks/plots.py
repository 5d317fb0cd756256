"""The plots of docs/benchmarks.md, from the result files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import matplotlib
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter

from r2kd_ext.bench import results

matplotlib.use("Agg")
# The same data give the same file.
matplotlib.rcParams.update({"svg.hashsalt": "r2kd_ext", "svg.fonttype": "none", "font.size": 9})
Row = dict[str, str]


def _plain_log(axes: Axes) -> None:
    """A logarithmic y axis with 1, 2, 5, 10, ... written out."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


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
    _plain_log(axes)
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


def memory_over_vocabulary(rows: list[Row], axes: Axes) -> None:
    """Peak memory of the loss from hidden states over V, and the gradients' own size."""
    chosen = [row for row in rows if row["dtype"] == "float32" and row["peak_mib"]]
    for contender in ("ours", "eager"):
        points = sorted((r for r in chosen if r["contender"] == contender), key=_sizes)
        axes.plot(
            [_sizes(row)[1] for row in points],
            [float(row["peak_mib"]) for row in points],
            marker="o",
            label=contender,
        )
    ours = sorted(_sizes(row) for row in chosen if row["contender"] == "ours")
    gradients = [(n + v) * h * 4 / 2**20 for n, v, h in ours]
    axes.plot([v for _, v, _ in ours], gradients, "k:", label="the gradients alone")
    axes.set_xscale("log", base=2)
    _plain_log(axes)
    axes.set_xlabel(f"V, with {ours[0][0]} rows and H = {ours[0][2]}, float32")
    axes.set_ylabel("MiB above the start")
    axes.legend()


def break_even(rows: list[Row], axes: Axes) -> None:
    """How many times faster than dense the float32 layers are, over the share of zeros."""
    layers = [row for row in rows if row["op"] != "sparsify" and row["dtype"] == "float32"]
    chosen = [row for row in layers if row["contender"] == "dense"]
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in chosen:
        zeros = float(row["variant"].removesuffix("% zeros"))
        name = f"{row['op']} {row['shape']}"
        lines.setdefault(name, []).append((zeros, float(row["times_ours"])))
    for name, points in lines.items():
        axes.plot(*zip(*points, strict=True), marker="o", label=name)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("percent of the weights that are zero")
    axes.set_ylabel("times faster than dense")
    axes.legend(fontsize=7)


def step_parts(rows: list[Row], axes: Axes) -> None:
    """The medians of the parts of a training step, stacked."""
    parts = [row for row in rows if row["op"].startswith("step: ") and row["role"] != "unit"]
    contenders = list(dict.fromkeys(row["contender"] for row in parts))
    left = dict.fromkeys(contenders, 0.0)
    for op in dict.fromkeys(row["op"] for row in parts):
        widths = {r["contender"]: float(r["us"]) / 1e3 for r in parts if r["op"] == op}
        names = [name for name in contenders if name in widths]
        axes.barh(
            names,
            [widths[name] for name in names],
            left=[left[name] for name in names],
            label=op.removeprefix("step: "),
        )
        for name in names:
            left[name] += widths[name]
    axes.invert_yaxis()
    axes.set_xlabel(f"ms, {parts[0]['variant']}, {parts[0]['shape']}")
    axes.legend(ncols=6, loc="lower center", bbox_to_anchor=(0.5, 1.0))


def _sizes(row: Row) -> list[int]:
    return [int(size) for size in row["shape"].split(" x ")]


def _classes(row: Row) -> int:
    return _sizes(row)[-1]


_OTHERS = ("reference", "peer")
PLOTS = {
    "speedup": ("correlation_cpu.csv", speedup),
    "limit": ("growth_cpu.csv", limit),
    "memory": ("growth_cpu.csv", memory),
    "memory_over_vocabulary": ("fused_linear_cpu.csv", memory_over_vocabulary),
    "break_even": ("sparse_cpu.csv", break_even),
    "step_parts": ("step_cpu_64.csv", step_parts),
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
