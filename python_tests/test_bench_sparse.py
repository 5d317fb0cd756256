"""The sparse benchmark: its contenders compute the same, its limit counts the nonzero weights."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch

from r2kd_ext.bench import results


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    return importlib.import_module("bench_sparse")


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_linear(bench: ModuleType, dtype: torch.dtype) -> None:
    case, contenders, copied = bench.linear_case((70, 96, 50), dtype, 0.8)
    ours, dense = contenders["ours"](0), contenders["dense"](0)
    torch.testing.assert_close(ours, dense, rtol=2e-2, atol=2e-2)
    if dtype == torch.float32:
        torch.testing.assert_close(contenders["torch.sparse"](0), dense, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ours, dense, rtol=1e-4, atol=1e-4)
    share = case.work.flops / (2 * 70 * 96 * 50)
    assert share == pytest.approx(0.2, abs=0.03)
    assert (case.variant, copied) == ("80% zeros", 70 * 96)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
def test_convolution(bench: ModuleType) -> None:
    case, contenders, _ = bench.conv_case((3, 8, 10, 6), 0.95)
    assert set(contenders) == {"ours", "dense", "torch.sparse"}
    dense = contenders["dense"](0)
    for run in contenders.values():
        torch.testing.assert_close(run(0), dense, rtol=1e-4, atol=1e-4)
    kept = case.work.flops / (2 * 3 * 10 * 6)
    assert kept == int(kept)
    assert 0 < kept < 0.1 * 8 * 8 * 9
    assert "torch.sparse" not in bench.conv_case((3, 8, 10, 6), 0.3)[1]


def test_network(bench: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    layers = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    monkeypatch.setattr(bench, "networks", lambda: {"small": lambda: (layers, torch.randn(9, 64))})
    case, contenders, _ = bench.model_case("small", 0.5)
    torch.testing.assert_close(contenders["ours"](0), contenders["dense"](0), rtol=1e-4, atol=1e-5)
    assert case.work.flops == 9 * (64 * 64 + 64 * 10)  # half of the multiplications and additions
    rows = bench.measure_case(lambda: (case, contenders, 9 * 64), 6, 1.0)
    results.save(tmp_path / "a.csv", rows)
    ours = next(row for row in results.load(tmp_path / "a.csv") if row["role"] == "ours")
    assert ours["variant"] == "small, 50% zeros"
