"""docs/scaling.md says what its result files say, and these agree with the formulas."""

from __future__ import annotations

import csv
import importlib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "scaling.md").read_text()


@pytest.fixture
def scaling(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("scaling")


@pytest.fixture
def measured() -> list[dict[str, str]]:
    with (ROOT / "benchmarks" / "results" / "group_cpu.csv").open() as file:
        return list(csv.DictReader(file))


def test_predictions(scaling: Any) -> None:
    with scaling.RESULTS.open() as file:
        assert list(csv.DictReader(file)) == scaling.predictions()
    assert scaling.table() in TEXT


def test_measured_table(scaling: Any, measured: list[dict[str, str]]) -> None:
    assert {row["world"] for row in measured} == {"2", "4"}
    assert scaling.measured_table() in TEXT


def test_bytes_are_those_of_the_formulas(scaling: Any, measured: list[dict[str, str]]) -> None:
    for row in measured:
        shape = row["form"], int(row["rows"]), int(row["classes"])
        world = int(row["world"])
        payload = scaling.payload_bytes(*shape, row["correlation"])
        assert int(row["payload_bytes"]) == payload
        assert int(row["kept_bytes"]) == scaling.kept_bytes(*shape, world)
        sent, formula = int(row["wire_bytes"]), scaling.wire_bytes(world, payload)
        assert sent >= formula
        if payload > 500_000:  # beside which headers and barriers are small
            assert sent == pytest.approx(formula, rel=0.03)
