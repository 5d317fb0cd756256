"""What README and docs claim is what the committed result files say."""

from __future__ import annotations

import csv
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results" / "correlation_cpu.csv"


def readme_rows() -> list[list[str]]:
    """The cells of the table of measurements."""
    lines = re.findall(r"^\| \d+ x \d+ .*$", README.read_text(), flags=re.MULTILINE)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_there_are_rows() -> None:
    assert len(readme_rows()) >= 5


@pytest.mark.parametrize("cells", readme_rows(), ids=lambda cells: f"{cells[0]} {cells[1]}")
def test_measured_rows(cells: list[str]) -> None:
    with RESULTS.open() as file:
        results = list(csv.DictReader(file))
    logits, inputs, fused, eager, compiled, times_eager, times_compiled = cells
    rows, classes = logits.split(" x ")
    (row,) = [
        r
        for r in results
        if (r["rows"], r["classes"], r["inputs"], r["dtype"]) == (rows, classes, inputs, "float32")
    ]
    for cell, key in ((fused, "fused_us"), (eager, "eager_us"), (compiled, "compiled_us")):
        assert float(cell.replace(",", "")) == pytest.approx(float(row[key]), abs=0.51), key
    for cell, key in ((times_eager, "times_eager"), (times_compiled, "times_compiled")):
        assert float(cell) == pytest.approx(float(row[key]), abs=0.051), key


def test_the_ablation_is_the_one_of_the_result_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table in docs/rank.md is what the script makes of its committed results."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    ablation = importlib.import_module("ablation_rank")
    table = ablation.table(ablation.RESULTS)
    assert len(table.splitlines()) == 2 + len(ablation.VARIANTS)
    assert table in (ROOT / "docs" / "rank.md").read_text()


RANKS = ROOT / "benchmarks" / "results" / "rank_cpu.csv"
RANK_TABLES = {
    "spearman": ("fused_us", "eager_us", "times_eager", "times_sorts"),
    "soft_rank": ("strength", "fused_us", "torchsort_us", "times_torchsort", "times_sorts"),
}


@pytest.mark.parametrize("op", RANK_TABLES)
def test_measured_ranks(op: str) -> None:
    """Every row of the result file is in docs/rank.md, rounded."""
    lines = (ROOT / "docs" / "rank.md").read_text().splitlines()
    with RANKS.open() as file:
        results = [row for row in csv.DictReader(file) if row["op"] == op]
    assert len(results) >= 3
    for row in results:
        cells = [f"{row['rows']} x {row['classes']}"]
        for key in RANK_TABLES[op]:
            number = float(row[key])
            formats = {"strength": f"{number:g}", "_us": f"{number:,.0f}", "": f"{number:.1f}"}
            cells.append(next(text for end, text in formats.items() if key.endswith(end)))
        assert f"| {' | '.join(cells)} |" in lines


def test_recalibration_table() -> None:
    text = (ROOT / "docs" / "teacher.md").read_text()
    with (ROOT / "benchmarks" / "results" / "recalibration.csv").open() as file:
        results = list(csv.DictReader(file))
    table = [
        tuple(cell.strip() for cell in line.strip("|").split("|"))
        for line in re.findall(r"^\| \w+_\w+ \| [\d.]+ \|.*$", text, flags=re.MULTILINE)
    ]
    columns = ("method", "amount", "pruned_percent", "recalibrated_percent")
    assert table == [tuple(row[column] for column in columns) for row in results]
    said = re.search(
        r"\(([\d.]+)% dense\).* ([\d,]+) test images, after (\d+) batches of (\d+)", text
    )
    assert said is not None
    columns = ("dense_percent", "test_images", "batches", "batch_size")
    for row in results:
        assert [row[column] for column in columns] == [x.replace(",", "") for x in said.groups()]
