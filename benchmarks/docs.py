"""The tables of README and docs and the plots of docs/benchmarks.md, from the result files alone.

    python benchmarks/docs.py

A table lies between two comments that name it; what is between them is replaced. Plots go to
docs/benchmarks/.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import growth
import plots
import run

from r2kd_ext.bench import results
from r2kd_ext.train.files import write

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
OF_64 = ["ensemble_cpu_64.csv", "step_cpu_64.csv"]  # images to a batch, as published
FILES = [*(group.results for group in run.GROUPS.values()), *OF_64]
PAGE = ROOT / "docs" / "benchmarks.md"
_LOSSES = ("ours", "eager", "compiled")
_DENSE = ("dense", "compiled", "torch.sparse")
_CONVOLUTIONS = ("torch", "oneDNN", "compiled")
_PASSES = ("four passes", "compiled", "ours in bfloat16")
Row = dict[str, str]


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A table in Markdown; the first `left` columns are text."""
    lines = [heads, ["---"] * left + ["---:"] * (len(heads) - left), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def microseconds(row: Row | None) -> str:
    return "-" if row is None else f"{float(row['us']):,.0f}"


def milliseconds(row: Row | None, digits: int = 1) -> str:
    return "-" if row is None else f"{float(row['us']) / 1e3:,.{digits}f}"


def memory(row: Row | None) -> str:
    return "-" if row is None or not row["peak_mib"] else f"{float(row['peak_mib']):,.0f}"


def times(row: Row | None) -> str:
    """How many times faster ours is than this contender."""
    return "-" if row is None else _factor(row["times_ours"])


def times_with_interval(row: Row | None) -> str:
    if row is None:
        return "-"
    low, high = _factor(row["times_ours_low"]), _factor(row["times_ours_high"])
    interval = "no interval" if high == "inf" else f"{low} to {high}"
    return f"{times(row)} ({interval})"


def _factor(text: str) -> str:
    """Two digits after the point where one would hide that the factor is not 1."""
    return f"{float(text):.1f}" if float(text) >= 3 else f"{float(text):.2f}"


def by_case(rows: Sequence[Row]) -> list[dict[str, Row]]:
    """Contender -> row of each case, in the order of the file."""
    found: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in rows:
        case = tuple(row[column] for column in results.CASE)
        found.setdefault(case, {})[row["contender"]] = row
    return list(found.values())


def machine(rows: Sequence[Row]) -> str:
    """Where a file's rows come from, in words."""
    (where,) = {(row["device"], row["simd"], row["torch"], row["commit"]) for row in rows}
    threads = " or ".join(sorted({row["threads"] for row in rows}))
    device, simd, torch, commit = where
    thread = "thread" if threads == "1" else "threads"
    return f"{threads} {thread} of {device}, {simd}, torch {torch}, commit {commit[:12]}"


def readme_table(folder: Path = RESULTS) -> str:
    rows = results.load(folder / "correlation_cpu.csv")
    cells = [
        [
            case["ours"]["shape"], case["ours"]["inputs"],
            *(microseconds(case[name]) for name in ("ours", "eager", "compiled")),
            *(times(case[name]) for name in ("eager", "compiled")),
        ]
        for case in by_case(rows)
        if case["ours"]["dtype"] == "float32"
    ]  # fmt: skip
    heads = ("logits", "inputs", "fused", "eager", "compiled", "times eager", "times compiled")
    return f"Measured on {machine(rows)}.\n\n{table(heads, cells, 2)}"


def spearman_table(folder: Path = RESULTS) -> str:
    cells = [
        [
            case["ours"]["shape"], case["ours"]["dtype"],
            *(microseconds(case.get(name)) for name in _LOSSES),
            *(times(case.get(name)) for name in ("eager", "compiled", "2 torch.sort")),
        ]
        for case in by_case(results.load(folder / "rank_cpu.csv"))
        if case["ours"]["op"] == "spearman"
    ]  # fmt: skip
    heads = ("hard `spearman`", "dtype", *_LOSSES, "times eager", "times compiled",
             "times 2 `torch.sort`")  # fmt: skip
    return table(heads, cells, 2)


def soft_rank_table(folder: Path = RESULTS) -> str:
    cells = [
        [
            case["ours"]["shape"], case["ours"]["dtype"],
            case["ours"]["variant"].removeprefix("strength "),
            *(microseconds(case.get(name)) for name in (*_LOSSES, "torchsort")),
            *(times(case.get(name)) for name in ("eager", "compiled", "torchsort", "3 torch.sort")),
        ]
        for case in by_case(results.load(folder / "rank_cpu.csv"))
        if case["ours"]["op"] == "soft_rank"
    ]  # fmt: skip
    heads = (
        "`soft_rank`, forward + backward", "dtype", "strength", *_LOSSES, "torchsort",
        "times eager", "times compiled", "times torchsort", "times 3 `torch.sort`",
    )  # fmt: skip
    return table(heads, cells, 2)


def ranked_loss_table(folder: Path = RESULTS) -> str:
    cells = []
    for case in by_case(results.load(folder / "rank_cpu.csv")):
        ours, plain = case["ours"], case.get("ours without ranks")
        if ours["op"] == "correlation" and plain is not None:
            cells.append(
                [
                    ours["shape"], ours["dtype"], ours["variant"], microseconds(plain),
                    f"{1 / float(plain['times_ours']):.1f}",
                    *(microseconds(case.get(name)) for name in _LOSSES),
                    *(times(case.get(name)) for name in ("eager", "compiled")),
                ]
            )  # fmt: skip
    heads = (
        "`correlation_kd`, forward + backward", "dtype", "rank term", "without", "ours takes of it",
        *_LOSSES, "times eager", "times compiled",
    )  # fmt: skip
    return table(heads, cells, 3)


def rank_machine(folder: Path = RESULTS) -> str:
    return f"Measured on {machine(results.load(folder / 'rank_cpu.csv'))}."


def all_contenders(name: str, folder: Path) -> str:
    """Every case of a file with its contenders, but the units."""
    rows = results.load(folder / name)
    several_counts = len({row["threads"] for row in rows}) > 1
    cells = []
    for case in by_case(rows):
        for row in case.values():
            if row["role"] == "unit":
                continue
            keys = ("op", "passes", "shape", "variant", "dtype", "inputs")
            parts = [row[key] for key in keys if row[key]]
            if several_counts:
                parts.append("1 thread" if row["threads"] == "1" else f"{row['threads']} threads")
            cells.append(
                [
                    ", ".join(parts), row["contender"],
                    f"{float(row['us']):,.1f}",
                    f"{float(row['p20_us']):,.1f} to {float(row['p80_us']):,.1f}",
                    "" if row["role"] == "ours" else times_with_interval(row),
                    row["peak_mib"] or "-", f"{100 * float(row['share_of_limit']):.2g}%",
                ]
            )  # fmt: skip
    heads = ("case", "contender", "us", "p20 to p80", "ours is faster (95%)", "peak MiB",
             "of the limit")  # fmt: skip
    return f"{machine(rows)}.\n\n{table(heads, cells, 2)}"


def growth_table(folder: Path = RESULTS) -> str:
    """The fits of growth_cpu.csv."""
    rows = [row for row in results.load(folder / "growth_cpu.csv") if row["role"] == "ours"]
    cells = []
    for op, axis in dict.fromkeys((row["op"], row["variant"]) for row in rows):
        chosen = [row for row in rows if (row["op"], row["variant"]) == (op, axis)]
        shapes = [tuple(map(int, row["shape"].split(" x "))) for row in chosen]
        sizes = [shape["BC".index(axis)] for shape in shapes]
        if len(sizes) < growth.LEAST_SIZES:
            continue  # the time of the run did not last for more
        found = growth.fit(sizes, [float(row["us"]) for row in chosen])
        fixed = f"C = {shapes[0][1]}" if axis == "B" else f"B = {shapes[0][0]}"
        above = "yes" if found.jump > growth.JUMP else ""
        cells.append(
            [
                op, f"{axis} {sizes[0]} to {sizes[-1]}, {fixed}", f"{found.constant:,.1f}",
                f"{found.exponent:.2f}", f"{found.jump:.2f} at {axis} = {found.at}", above,
            ]
        )  # fmt: skip
    heads = ("op", "size", "constant us", "exponent", "largest jump", f"above {growth.JUMP}")
    return f"{machine(rows)}.\n\n{table(heads, cells, 2)}"


def sparse_table(folder: Path = RESULTS) -> str:
    rows = results.load(folder / "sparse_cpu.csv")
    cells = []
    for case in by_case(rows):
        ours, others = case["ours"], [case.get(name) for name in _DENSE]
        network, _, zeros = ours["variant"].rpartition(", ")
        cells.append(
            [
                ours["op"], ours["shape"] + (f" ({network})" if network else ""), ours["dtype"],
                zeros.removesuffix(" zeros"), milliseconds(ours, 2),
                *(milliseconds(other, 2) for other in others),
                *(times_with_interval(other) for other in others),
            ]
        )  # fmt: skip
    heads = (
        "op", "input, and outputs of a linear layer", "dtype", "zeros", "ours, ms",
        *(f"{name}, ms" for name in _DENSE), *(f"times {name}" for name in _DENSE),
    )  # fmt: skip
    return f"{machine(rows)}.\n\n{table(heads, cells, 3)}"


def fused_linear_table(folder: Path = RESULTS) -> str:
    rows = results.load(folder / "fused_linear_cpu.csv")
    cells = [
        [
            case["ours"]["shape"], case["ours"]["dtype"],
            *(milliseconds(case.get(name), 0) for name in _LOSSES),
            *(times_with_interval(case.get(name)) for name in ("eager", "compiled")),
            *(memory(case.get(name)) for name in _LOSSES),
        ]
        for case in by_case(rows)
    ]  # fmt: skip
    heads = (
        "N x V x H", "dtype", *(f"{name}, ms" for name in _LOSSES), "times eager", "times compiled",
        *(f"{name}, MiB" for name in _LOSSES),
    )  # fmt: skip
    return f"{machine(rows)}.\n\n{table(heads, cells, 2)}"


def winograd_table(folder: Path = RESULTS) -> str:
    rows = results.load(folder / "winograd_conv2d_cpu.csv")
    cells = [
        [
            case["ours"]["shape"],
            *(milliseconds(case.get(name), 2) for name in ("ours", *_CONVOLUTIONS)),
            *(times_with_interval(case.get(name)) for name in _CONVOLUTIONS),
        ]
        for case in by_case(rows)
    ]
    heads = (
        "images", "ours, ms", *(f"{name}, ms" for name in _CONVOLUTIONS),
        *(f"times {name}" for name in _CONVOLUTIONS),
    )  # fmt: skip
    return f"{machine(rows)}.\n\n{table(heads, cells)}"


def ensemble_table(name: str, folder: Path = RESULTS) -> str:
    rows = results.load(folder / name)
    cells = [
        [
            case["ours"]["variant"], case["ours"]["shape"],
            *(milliseconds(case.get(name), 0) for name in ("ours", *_PASSES)),
            *(times_with_interval(case.get(name)) for name in _PASSES),
        ]
        for case in by_case(rows)
    ]  # fmt: skip
    heads = (
        "teacher", "images of both batches", "ours, ms", *(f"{name}, ms" for name in _PASSES),
        *(f"times {name}" for name in _PASSES),
    )  # fmt: skip
    return f"{machine(rows)}.\n\n{table(heads, cells, 2)}"


def steps_table(name: str, folder: Path = RESULTS) -> str:
    """Whole steps, and parts of steps."""
    rows = results.load(folder / name)
    cells = [
        [
            case["ours"]["variant"], case["ours"]["op"].removeprefix("step: "),
            case["ours"]["shape"], milliseconds(case["ours"]), milliseconds(case.get("published")),
            times_with_interval(case.get("published")),
        ]
        for case in by_case(rows)
    ]  # fmt: skip
    heads = ("teacher to student", "part", "images", "ours, ms", "published, ms", "times")
    return f"{machine(rows)}.\n\n{table(heads, cells, 3)}"


def replaced(text: str, name: str, content: str) -> str:
    """`text` with what is between the comments of the table `name` replaced."""
    begin, end = f"<!-- table {name}: made by make bench-docs -->", f"<!-- end of {name} -->"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if len(pattern.findall(text)) != 1:
        raise ValueError(f"{begin} ... {end} must be there once")
    return pattern.sub(lambda _: f"{begin}\n{content}\n{end}", text)


TABLES: dict[str, dict[str, Callable[[Path], str]]] = {
    "README.md": {"correlation": readme_table},
    "docs/rank.md": {
        "machine": rank_machine,
        "spearman": spearman_table,
        "soft_rank": soft_rank_table,
        "ranked loss": ranked_loss_table,
    },
    "docs/sparse.md": {"sparse": sparse_table},
    "docs/fused_linear.md": {"fused_linear": fused_linear_table},
    "docs/teacher.md": {
        "winograd_conv2d": winograd_table,
        "ensemble": partial(ensemble_table, "ensemble_cpu.csv"),
        "ensemble of 64": partial(ensemble_table, "ensemble_cpu_64.csv"),
    },
    "docs/engine.md": {"step": partial(steps_table, "step_cpu_64.csv")},
    "docs/benchmarks.md": {
        "correlation": partial(all_contenders, "correlation_cpu.csv"),
        "kernels": partial(all_contenders, "correlation_kernels_cpu.csv"),
        "rank": partial(all_contenders, "rank_cpu.csv"),
        "fused_linear": partial(all_contenders, "fused_linear_cpu.csv"),
        "winograd_conv2d": partial(all_contenders, "winograd_conv2d_cpu.csv"),
        "ensemble": partial(all_contenders, "ensemble_cpu.csv"),
        "step": partial(all_contenders, "step_cpu.csv"),
        "zoo": partial(steps_table, "zoo_cpu.csv"),
        "growth": growth_table,
    },
}


def document(name: str, text: str, folder: Path = RESULTS) -> str:
    """The document with all its tables made anew."""
    for part, make in TABLES[name].items():
        text = replaced(text, part, make(folder))
    return text


def main() -> None:
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    for name in TABLES:
        path = ROOT / name
        write(path, document(name, path.read_text()))
        print(f"written to {path.relative_to(ROOT)}")
    for path in plots.draw_all(RESULTS, PAGE.with_suffix("")):
        print(f"written to {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
