"""The benchmark of the Winograd convolution: its contenders compute the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from r2kd_ext import fusion
from r2kd_ext.bench import results

pytestmark = pytest.mark.skipif(not fusion._AVAILABLE, reason="this torch has no oneDNN")


@pytest.fixture
def bench(uncompiled_benchmark: Callable[[str], ModuleType]) -> ModuleType:
    """With what is compiled run as it is."""
    return uncompiled_benchmark("bench_winograd_conv2d")


def test_contenders_agree(bench: ModuleType) -> None:
    contenders = bench.contenders_of(3, 32, 9, 14)
    assert set(contenders) == set(bench.ROLES)
    want = contenders["torch"](0)
    assert want.amin() == 0
    for run in contenders.values():
        found = run(0)
        assert not found.requires_grad
        torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5)


def test_rows(bench: ModuleType, tmp_path: Path) -> None:
    rows = bench.measure_shape((2, 16, 8, 8), 6, 1.0)
    results.save(tmp_path / "a.csv", rows)
    found = {row["contender"]: row for row in results.load(tmp_path / "a.csv")}
    assert set(found) == {"copy", *bench.ROLES}
    assert found["compiled"]["host_us"] == ""
    for name in ("ours", "torch", "oneDNN"):
        assert float(found[name]["host_us"]) > 0
        assert found[name]["peak_mib"]
    direct = 2 * 9 * 2 * 16 * 16 * 8 * 8
    assert int(found["ours"]["flops"]) == direct // 4
