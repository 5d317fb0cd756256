"""The GPU benchmark with the CPU in the GPU's place: its cases, contenders and rows, not its times.

Where the reference of a case computes the same as ours, the results are compared.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from r2kd_ext.bench import results

F32, BF16 = torch.float32, torch.bfloat16


class Cpu:
    """gpu_harness.Device of this processor; what is called twice in a graph is replayed as such."""

    name = "cpu"

    def origin(self) -> dict[str, str]:
        return dict.fromkeys((*results.MACHINE, "threads"), "")

    def matrix_rate(self, dtype: torch.dtype) -> float:
        return 1e12 if dtype == F32 else 4e12

    def wait(self) -> None:
        pass

    def seconds(self, run: Callable[[], object]) -> float:
        begin = time.perf_counter()
        run()
        return time.perf_counter() - begin

    def captured(self, run: Callable[[int], object], count: int) -> Callable[[], object] | None:
        return lambda: [run(call) for call in range(count)]

    def peak_of(self, run: Callable[[int], object]) -> int:
        run(0)
        return 3 << 20


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    harness = importlib.import_module("harness")
    monkeypatch.setattr(harness, "_matrix_rates", {})
    for name in ("gpu_harness", "gpu_cases"):
        module = importlib.import_module(name)
        monkeypatch.setattr(module, "ROTATED_BYTES", 1 << 16)
    monkeypatch.setattr(importlib.import_module("gpu_harness"), "SECONDS_PER_TURN", 1e-4)
    # Compilation takes minutes for all, and what it is given is the eager function.
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: function)
    return importlib.import_module


CASES = {
    "correlation": (16, 50, F32, True),
    "hard_spearman": (16, 50, F32),
    "ranks": (8, 30, 0.1),
    "fused_linear": (16, 100, 32, F32),
    "csr_linear": (8, 64, 32, 0.9, F32),
    "csr_conv2d": ((2, 8, 6, 6), 0.9),
    "semi_structured": (8, 64, 64),
    "ensemble": ("resnet8", 2, 16, 10),
}
SAME = {"correlation": "eager", "hard_spearman": "eager", "fused_linear": "eager",
        "csr_linear": "dense", "csr_conv2d": "dense", "semi_structured": "dense",
        "ensemble": "four passes"}  # fmt: skip


def test_every_op_of_the_benchmark_is_tested_here(load: Any) -> None:
    cases = load("gpu_cases").CASES
    functions = {make.func.__name__ for of_op in cases.values() for make in of_op.values()}
    assert functions == set(CASES)
    for of_op in cases.values():
        assert len(of_op) >= 2


@pytest.mark.parametrize("name", CASES)
def test_rows(name: str, load: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases: ModuleType = load("gpu_cases")
    made = getattr(cases, name)(*CASES[name], "cpu")
    if name in SAME:
        ours, other = (made.contenders[which](0) for which in ("ours", SAME[name]))
        if made.dtype == BF16:
            torch.testing.assert_close(ours, other, rtol=2e-2, atol=2e-2)
        elif isinstance(ours, torch.Tensor | tuple | list):
            torch.testing.assert_close(tuple(ours), tuple(other), rtol=1e-3, atol=1e-4)
    rows = load("gpu_harness").measure(
        made.case, made.contenders, Cpu(), turns=6, copied=made.copied, dtype=made.dtype
    )
    results.save(tmp_path / "a.csv", rows)
    rows = results.load(tmp_path / "a.csv")
    inputs = {row["inputs"] for row in rows}
    assert inputs == {made.case.inputs, f"{made.case.inputs}, graph"}
    called = {row["contender"]: row for row in rows if row["inputs"] == made.case.inputs}
    assert set(called) == {"copy", *made.contenders}
    assert called["ours"]["role"] == "ours"
    assert called["ours"]["peak_mib"] == "3.0"
    assert float(called["ours"]["host_us"]) > 0
    assert float(called["ours"]["share_of_limit"]) > 0
    assert called["ours"]["matrix_gflop_s"] == ("4000.0" if made.dtype == BF16 else "1000.0")
    rates = load("harness")._matrix_rates
    # The limits of the rates that the run has noted are those that the rows have already.
    for row, again in zip(rows, results.at_matrix_rates(rows, rates), strict=True):
        assert again["matrix_gflop_s"] == row["matrix_gflop_s"]
        if row["limit_us"]:
            assert float(again["limit_us"]) == pytest.approx(float(row["limit_us"]), rel=0.1)
    assert "left out: ValueError" not in capsys.readouterr().err.replace("triton left out", "")


def test_liger_is_a_peer_where_it_is_installed(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its modules stand in, with the signatures that the benchmark calls."""

    class Divergence(torch.nn.Module):
        def __init__(self, reduction: str = "batchmean") -> None:
            super().__init__()

        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return ((a - b) ** 2).mean()

    class Fused(torch.nn.Module):
        def __init__(self, weight_hard_loss: float, weight_soft_loss: float) -> None:
            super().__init__()
            assert (weight_hard_loss, weight_soft_loss) == (0.0, 1.0)

        def forward(
            self, student: Any, weight: Any, teacher: Any, teacher_weight: Any, labels: Any,
            student_bias: None, teacher_bias: None,
        ) -> torch.Tensor:  # fmt: skip
            assert labels.shape == (len(student),)
            return ((student @ weight.T - teacher @ teacher_weight.T) ** 2).mean()

    transformers, chunked = ModuleType("liger.transformers"), ModuleType("liger.chunked_loss")
    transformers.__dict__.update(LigerJSD=Divergence, LigerKLDIVLoss=Divergence)
    chunked.__dict__.update(
        LigerFusedLinearJSDLoss=Fused, LigerFusedLinearCosineSimilarityLoss=Fused
    )
    monkeypatch.setitem(sys.modules, "liger_kernel", ModuleType("liger_kernel"))
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", transformers)
    monkeypatch.setitem(sys.modules, "liger_kernel.chunked_loss", chunked)
    cases = load("gpu_cases")
    find_spec = cases.find_spec
    monkeypatch.setattr(cases, "find_spec", lambda name: name == "liger_kernel" or find_spec(name))
    logits = cases.correlation(16, 50, F32, True, "cpu").contenders
    states = cases.fused_linear(16, 100, 32, F32, "cpu").contenders
    assert {"liger kl_div", "liger jsd"} <= set(logits)
    assert {"liger jsd", "liger cosine"} <= set(states)
    for contenders in (logits, states):
        for name, run in contenders.items():
            if name.startswith("liger"):
                run(0)
    assert set(logits) | set(states) <= set(cases.ROLES)


def test_a_peer_that_fails_is_named_and_ours_must_run(
    load: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    harness = load("gpu_harness")

    def fails(call: int) -> None:
        raise TypeError("another version")

    works = torch.zeros(3).add
    running = harness.ready({"ours": works, "peer": fails}, Cpu())
    assert list(running) == ["ours"]
    assert "peer left out: TypeError: another version" in capsys.readouterr().err
    with pytest.raises(TypeError, match="another version"):
        harness.ready({"ours": fails}, Cpu())


def test_the_first_cases_have_every_op_and_each_is_written(
    load: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bench, cases = load("bench_gpu"), load("gpu_cases")
    jobs = bench.jobs(Cpu())
    ops = list(cases.CASES)
    assert len(jobs) == sum(len(of_op) for of_op in cases.CASES.values())
    assert all(job.name.startswith(op) for job, op in zip(jobs, ops, strict=False))

    small = {
        op: {"small": partial(getattr(cases, name), *CASES[name])}
        for op, name in (("spearman", "hard_spearman"), ("csr_linear", "csr_linear"))
    }
    monkeypatch.setattr(cases, "CASES", small)
    output, written = tmp_path / "gpu.csv", []
    jobs = bench.jobs(Cpu())

    def look(turns: int, seconds: float) -> list[dict[str, str]]:
        written.extend(results.load(output))
        return []

    options = argparse.Namespace(turns=6, seconds=60.0, output=output)
    load("harness").run_jobs(
        [jobs[0], jobs[1]._replace(measure=look)], options, "title", write_each=True
    )
    assert {row["op"] for row in written} == {"spearman"}
