"""examples/language_model: runs under torchrun with two processes, and learns."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "language_model"
RESULTS = ROOT / "benchmarks" / "results" / "language_model.csv"

Curves = dict[str, list[dict[str, str]]]


def read(path: Path) -> Curves:
    curves: Curves = {}
    with path.open() as file:
        for row in csv.DictReader(file):
            curves.setdefault(row["run"], []).append(row)
    return curves


def check(curves: Curves) -> None:
    assert list(curves) == ["teacher", "labels", "distilled"]
    for rows in curves.values():
        assert float(rows[-1]["validation_ce"]) < float(rows[0]["validation_ce"]) - 0.5
    first, *_, last = (float(row["train_correlation_loss"]) for row in curves["distilled"])
    assert last < 0.5 * first
    assert all(row["train_correlation_loss"] == "0.0000" for row in curves["labels"])


@pytest.mark.slow
def test_quick_run_learns(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         str(EXAMPLE / "train.py"), "--quick", "--out", str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-4000:]
    check(read(tmp_path / "curves.csv"))


def test_committed_curves_and_what_the_readme_says_of_them() -> None:
    curves = read(RESULTS)
    check(curves)
    text = (EXAMPLE / "README.md").read_text()
    for rows in curves.values():
        assert f"| {float(rows[-1]['validation_ce']):.3f} |" in text
