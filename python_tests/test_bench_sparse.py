"""The sparse benchmark: its contenders compute the same, its limit counts the nonzero weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from r2kd_ext.bench import results


@pytest.fixture
def bench(uncompiled_benchmark: Callable[[str], ModuleType]) -> Iterator[ModuleType]:
    """With what is compiled run as it is, but for the slow test."""
    module = uncompiled_benchmark("bench_sparse")
    yield module
    module.empty_calls.cache_clear()


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_linear(bench: ModuleType, dtype: torch.dtype) -> None:
    case, contenders, copied, _ = bench.linear_case((70, 96, 50), dtype, 0.8)
    ours, dense = contenders["ours"](0), contenders["dense"](0)
    torch.testing.assert_close(contenders["compiled"](0), dense)
    torch.testing.assert_close(ours, dense, rtol=2e-2, atol=2e-2)
    if dtype == torch.float32:
        torch.testing.assert_close(contenders["torch.sparse"](0), dense, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ours, dense, rtol=1e-4, atol=1e-4)
    share = case.work.flops / (2 * 70 * 96 * 50)
    assert share == pytest.approx(0.2, abs=0.03)
    assert (case.variant, copied) == ("80% zeros", 70 * 96)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
def test_convolution(bench: ModuleType) -> None:
    case, contenders, _, _ = bench.conv_case((3, 8, 10, 6), torch.float32, 0.9, vendor=True)
    assert set(contenders) == {"ours", "dense", "compiled", "torch.sparse"}
    dense = contenders["dense"](0)
    for run in contenders.values():
        torch.testing.assert_close(run(0), dense, rtol=1e-4, atol=1e-4)
    kept = case.work.flops / (2 * 3 * 10 * 6)
    assert kept == int(kept)
    assert 0 < kept < 0.15 * 8 * 8 * 9
    assert "torch.sparse" not in bench.conv_case((3, 8, 10, 6), torch.float32, 0.9).contenders


def test_convolution_in_bfloat16(bench: ModuleType) -> None:
    case, contenders, _, _ = bench.conv_case((3, 8, 10, 6), torch.bfloat16, 0.9)
    dense = contenders["dense"](0)
    assert (case.dtype, dense.dtype) == ("bfloat16", torch.bfloat16)
    assert set(contenders) == {"ours", "dense", "compiled"}
    for run in contenders.values():
        torch.testing.assert_close(run(0), dense, rtol=2e-2, atol=2e-2)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_time_of_the_calls_themselves(bench: ModuleType, dtype: torch.dtype) -> None:
    """Of all contenders but the compiled one, which would compile for the least shape, too."""
    linear = bench.linear_case((70, 96, 50), dtype, 0.9)
    convolution = bench.conv_case((3, 8, 10, 6), dtype, 0.9, vendor=dtype == torch.float32)
    for made in (linear, convolution):
        host = made.host()
        assert set(host) == set(made.contenders) - {"compiled"}
        assert all(0 < seconds < 0.1 for seconds in host.values())
    assert linear.host() is bench.linear_case((7, 9, 5), dtype, 0.5).host()  # measured once


def test_the_least_network_has_the_layers_that_were_chosen(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = []
    monkeypatch.setattr(bench, "host_times", lambda contenders: dict.fromkeys(contenders, 1.0))
    sparsify = bench.sparsify

    def noted(model: torch.nn.Module, x: torch.Tensor, format: str) -> torch.nn.Module:
        chosen.append((format, tuple(x.shape)))
        return sparsify(model, x[:1], "csr" if format == "auto" else format)

    monkeypatch.setattr(bench, "sparsify", noted)
    for name, shape in (("resnet8x4", (16, 3, 32, 32)), ("perceptron", (256, 1024))):
        assert set(bench.model_case(name, 0.5).host()) == {"ours", "dense"}
        least = (1, 1) if name == "perceptron" else (1, 3, 1, 1)
        assert chosen == [("auto", shape), ("csr", least)]
        chosen.clear()


@pytest.mark.slow
def test_compiled_layers_are_compiled_once_for_all_weights(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    bench.compiled.cache_clear()
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    for sparsity in (0.1, 0.3):
        for case in (
            bench.linear_case((70, 96, 50), torch.float32, sparsity),
            bench.conv_case((3, 8, 10, 6), torch.float32, sparsity),
        ):
            run, dense = (case.contenders[name](0) for name in ("compiled", "dense"))
            torch.testing.assert_close(run, dense, rtol=1e-4, atol=1e-4)
    assert counters["stats"]["unique_graphs"] == 2


def test_network(bench: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    layers = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    monkeypatch.setitem(bench.NETWORKS, "small", lambda least: (layers, torch.randn(9, 64)))
    made = bench.model_case("small", 0.5)
    case, contenders, _, _ = made
    torch.testing.assert_close(contenders["ours"](0), contenders["dense"](0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(contenders["compiled"](0), contenders["dense"](0))
    assert case.work.flops == 9 * (64 * 64 + 64 * 10)  # half of the multiplications and additions
    rows = bench.measure_case(lambda: made, 6, 1.0)
    results.save(tmp_path / "a.csv", rows)
    found = {row["contender"]: row for row in results.load(tmp_path / "a.csv")}
    assert found["ours"]["variant"] == "small, 50% zeros"
    for name in ("ours", "dense"):
        assert float(found[name]["host_us"]) > 0
    assert found["compiled"]["role"] == "peer"
    assert found["compiled"]["host_us"] == ""
    assert all(found[name]["peak_mib"] for name in contenders)
