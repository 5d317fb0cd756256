"""What docs/sparse.md claims is what the committed result file says."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_the_table_is_that_of_the_result_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    benchmark = importlib.import_module("bench_sparse")
    table = benchmark.table(benchmark.RESULTS)
    assert len(table.splitlines()) > 10
    assert table in (ROOT / "docs" / "sparse.md").read_text()
