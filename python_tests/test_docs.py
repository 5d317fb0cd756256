"""What README and docs claim is what the committed result files say."""

from __future__ import annotations

import csv
import importlib
import re
from pathlib import Path
from types import ModuleType

import pytest

from r2kd_ext.bench import results

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture
def docs(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """benchmarks/docs.py."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("docs")


DOCUMENTS = (
    "README.md",
    *(f"docs/{name}.md" for name in (
        "rank", "sparse", "fused_linear", "teacher", "engine", "benchmarks",
    )),
)  # fmt: skip


@pytest.mark.parametrize("name", DOCUMENTS)
def test_tables_are_those_of_the_result_files(name: str, docs: ModuleType) -> None:
    assert sorted(docs.TABLES) == sorted(DOCUMENTS)
    text = (ROOT / name).read_text()
    assert docs.document(name, text) == text, "make bench-docs makes them anew"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_another_figure_is_noticed(name: str, docs: ModuleType, tmp_path: Path) -> None:
    for path in (docs.RESULTS / file for file in docs.FILES):
        rows = results.load(path)
        for row in rows:
            row["us"] = f"{2 * float(row['us']):.1f}"
        results.save(tmp_path / path.name, rows)
    text = (ROOT / name).read_text()
    assert docs.document(name, text, tmp_path) != text


def test_the_readme_has_a_row_for_each_case_and_names_the_processor(docs: ModuleType) -> None:
    """Read by itself, not by what wrote it."""
    text = README.read_text()
    rows = re.findall(r"^\| (\d+ x \d+) \| (\w+) \| ([\d,]+) \|", text, flags=re.MULTILINE)
    with (docs.RESULTS / "correlation_cpu.csv").open() as file:
        ours = [
            row
            for row in csv.DictReader(file)
            if row["contender"] == "ours" and row["dtype"] == "float32"
        ]
    assert len(ours) >= 5
    assert rows == [(r["shape"], r["inputs"], f"{float(r['us']):,.0f}") for r in ours]
    for column in ("device", "simd", "torch", "commit"):
        assert ours[0][column] in text


def test_result_files_have_the_schema_and_stay_below_the_limit(docs: ModuleType) -> None:
    rows = [row for file in docs.FILES for row in results.load(docs.RESULTS / file)]
    for row in rows:
        assert row["device"]
        assert row["commit"]
        if row["role"] == "unit":
            continue
        assert float(row["share_of_limit"]) > 0, row
        # Resident inputs and noise of the copy may bring a kernel close to it.
        assert float(row["share_of_limit"]) < 1.3, row


def test_memory_and_host_time_are_there_but_where_the_docs_say(docs: ModuleType) -> None:
    """`What has no contender or no figure` in docs/benchmarks.md."""
    for name in docs.FILES:
        if name == "growth_cpu.csv":
            continue
        for row in results.load(docs.RESULTS / name):
            if row["role"] == "unit":
                continue
            where = (name, row["op"], row["shape"], row["contender"])
            assert bool(row["peak_mib"]) == (not row["op"].startswith("step:")), where
            has_host = row["contender"] != "compiled" and name != "zoo_cpu.csv"
            assert bool(row["host_us"]) == has_host, where


def test_the_correlation_has_its_peak_memory_and_the_vocabulary_doubles(docs: ModuleType) -> None:
    rows = results.load(docs.RESULTS / "correlation_cpu.csv")
    assert all(row["peak_mib"] for row in rows if row["role"] in ("ours", "reference", "peer"))
    fused = results.load(docs.RESULTS / "fused_linear_cpu.csv")
    float32 = [row for row in fused if row["dtype"] == "float32"]
    for name in ("ours", "eager"):
        points = [row for row in float32 if row["contender"] == name]
        classes = {int(row["shape"].split(" x ")[1]) for row in points}
        assert classes == {4096, 8192, 16384, 32768}
        assert all(float(row["peak_mib"]) > 0 for row in points)


def test_the_plots_are_there(docs: ModuleType) -> None:
    shown = set(re.findall(r"\]\(benchmarks/(\w+)\.svg\)", docs.PAGE.read_text()))
    assert shown == set(docs.plots.PLOTS)
    assert shown == {path.stem for path in (ROOT / "docs" / "benchmarks").glob("*.svg")}


def test_the_ablation_is_the_one_of_the_result_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table in docs/rank.md is what the script makes of its committed results."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    ablation = importlib.import_module("ablation_rank")
    table = ablation.table(ablation.RESULTS)
    assert len(table.splitlines()) == 2 + len(ablation.VARIANTS)
    assert table in (ROOT / "docs" / "rank.md").read_text()


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
