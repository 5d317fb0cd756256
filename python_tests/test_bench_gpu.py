"""benchmarks/bench_correlation_gpu.py with the CPU in the GPU's place: its rows, not its times."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from r2kd_ext.bench import results


def _seconds(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


class _Graph:
    def replay(self) -> None:
        time.sleep(1e-6)


def test_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    bench = importlib.import_module("bench_correlation_gpu")
    origin = dict.fromkeys((*results.MACHINE, "threads"), "none")
    for name, value in {
        "DEVICE": "cpu", "ROTATED_BYTES": 1 << 16, "SECONDS_PER_TURN": 1e-3,
        "between_events": _seconds, "gpu": lambda: origin,
        "captured": lambda run, count: _Graph(),
    }.items():  # fmt: skip
        monkeypatch.setattr(bench, name, value)
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: function)
    for name, answer in {
        "synchronize": None, "reset_peak_memory_stats": None, "memory_allocated": 10,
        "max_memory_allocated": 10 + (3 << 20),
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, lambda answer=answer: answer)
    shape = bench.Shape(16, 50, torch.float32, True)
    rows = bench.measure(shape, 6, 1e12)
    results.save(tmp_path / "a.csv", rows)
    rows = results.load(tmp_path / "a.csv")
    names = [row["contender"] for row in rows if row["inputs"] == "rotating"]
    assert names == ["copy", "ours", "eager", "compiled", "kl_div"]
    ours = next(row for row in rows if row["contender"] == "ours")
    assert ours["peak_mib"] == "3.0"
    assert int(ours["bytes"]) == 5 * 16 * 50 * 4
    assert float(ours["host_us"]) > 0
    assert {row["inputs"] for row in rows} == {"rotating", "rotating, graph"}
