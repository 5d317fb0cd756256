"""The ensemble's benchmark: its contenders compute the same; who takes part in a given time."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from r2kd_ext import models
from r2kd_ext.bench import results


@pytest.fixture
def bench(
    monkeypatch: pytest.MonkeyPatch, uncompiled_benchmark: Callable[[str], ModuleType]
) -> ModuleType:
    """With small networks and images, and with what is compiled run as it is."""
    module = uncompiled_benchmark("bench_ensemble")
    for name, value in (
        ("NETWORKS", ("resnet8", "resnet14")),
        ("LIMITED_BATCH", 2),
        ("PUBLISHED_BATCH", 4),
        ("SIZE", 8),
        ("CLASSES", 10),
    ):
        monkeypatch.setattr(module, name, value)
    return module


def test_contenders_compute_the_same(bench: ModuleType) -> None:
    contenders = bench.contenders_of(models.create("resnet8", 10), 2, 8, unlimited=True)
    ours = contenders["ours"](0)
    for name in ("four passes", "compiled"):
        torch.testing.assert_close(tuple(contenders[name](0)), tuple(ours), rtol=1e-4, atol=1e-5)
    rounded = contenders["ours in bfloat16"](0)
    torch.testing.assert_close(tuple(rounded), tuple(ours), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("seconds", ["0.1", "inf"])
def test_networks_and_images_in_a_given_time_and_without_one(
    bench: ModuleType, seconds: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.csv"
    arguments = ["bench_ensemble.py", "--turns", "2", "--seconds", seconds, "--output", str(path)]
    monkeypatch.setattr(sys, "argv", arguments)
    bench.main()
    rows = [row for row in results.load(path) if row["role"] != "unit"]
    found = {(row["variant"], row["shape"].split(" x ")[0]) for row in rows}
    limited = seconds == "0.1"
    # With so little time the second network is left out, as any job is.
    whole = {("resnet8", "8"), ("resnet14", "8")}
    assert found == ({("resnet8", "4")} if limited else whole)
    contenders = {row["contender"] for row in rows}
    others = {"compiled", "ours in bfloat16"}
    assert contenders - others == {"ours", "four passes"}
    assert limited or contenders >= others
    for row in rows:
        assert row["peak_mib"]
        assert bool(row["host_us"]) == (row["contender"] != "compiled")
