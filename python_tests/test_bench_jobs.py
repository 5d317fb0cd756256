"""benchmarks/harness.py: jobs in a given time, and the limit by the best matrix rate of a run."""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch

from r2kd_ext.bench import results
from r2kd_ext.bench.results import Case, Work
from r2kd_ext.bench.timing import timing_of

Rows = list[dict[str, str]]


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    module = importlib.import_module("harness")
    monkeypatch.setattr(module, "_matrix_rates", {})
    monkeypatch.setattr(module, "_sampled", {})
    monkeypatch.setattr(module, "SAMPLED_EVERY", 0.0)
    return module


def options(folder: Path, seconds: float) -> argparse.Namespace:
    return argparse.Namespace(turns=6, seconds=seconds, output=folder / "a.csv")


def job(harness: ModuleType, size: int, turns: int, seconds: float) -> Rows:
    case = Case("op", (size, 1), "float32", Work(4 * size, 10**6), {"ours": "ours"})
    x = torch.randn(size)
    return harness.measure(
        case, {"ours": lambda _: x + 1}, turns=turns, seconds=seconds, copied=size,
        with_memory=False, seconds_per_turn=1e-4,
    )  # fmt: skip


def test_all_rows_have_the_best_rate_of_their_threads(
    harness: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The first case met a busy machine, and would have a share of its limit above 1."""
    rates: Iterator[float] = iter([1e6, 2e6, 5e12, 4e12, 7e11, 6e11])
    monkeypatch.setattr(harness, "matrix_rate", lambda turns: next(rates))
    before = torch.get_num_threads()
    try:
        jobs = []
        for name, size, threads in (("a", 100, 2), ("b", 200, 2), ("c", 300, 1)):

            def measured(turns: int, seconds: float, size: int, threads: int) -> Rows:
                torch.set_num_threads(threads)
                return job(harness, size, turns, seconds)

            jobs.append(harness.Job(name, partial(measured, size=size, threads=threads)))
        harness.run_jobs(jobs, options(tmp_path, 60), "title")
    finally:
        torch.set_num_threads(before)
    rows = results.load(tmp_path / "a.csv")
    ours = {row["shape"]: row for row in rows if row["role"] == "ours"}
    rate = {shape: row["matrix_gflop_s"] for shape, row in ours.items()}
    assert rate == {"100 x 1": "5000.0", "200 x 1": "5000.0", "300 x 1": "700.0"}
    for row in ours.values():
        limit = max(
            int(row["bytes"]) / (float(row["copy_gb_s"]) * 1e3),
            int(row["flops"]) / (float(row["matrix_gflop_s"]) * 1e3),
        )
        assert float(row["limit_us"]) == pytest.approx(limit, rel=1e-3)
        assert float(row["share_of_limit"]) == pytest.approx(limit / float(row["us"]), rel=0.1)
        assert float(row["share_of_limit"]) < 1.3


def test_the_copy_rate_is_that_of_the_fastest_turn(
    harness: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy that waited in most of its turns would let the op be faster than its limit."""
    monkeypatch.setattr(harness, "matrix_rate", lambda turns: 1e15)
    turns = {"ours": [3e-6] * 6, "copy": [1e-3, 2e-6, 1e-3, 1e-3, 1e-3, 1e-3]}

    def in_turns(contenders: object, **options: object) -> dict[str, object]:
        return {name: timing_of(seconds) for name, seconds in turns.items()}

    monkeypatch.setattr(harness, "time_in_turns", in_turns)
    ours = next(row for row in job(harness, 1000, 6, 1.0) if row["role"] == "ours")
    assert ours["copy_gb_s"] == f"{3 * 4 * 1000 / 2e-6 / 1e9:.2f}"
    assert float(ours["share_of_limit"]) == pytest.approx(4 * 1000 / 6e9 / 3e-6, rel=1e-3)


def test_what_does_not_fit_the_time_is_left_out_and_named(
    harness: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    now = 0.0
    monkeypatch.setattr(harness.time, "monotonic", lambda: now)
    monkeypatch.setattr(harness, "matrix_rate", lambda turns: 1e12)
    shares = []

    def takes(needed: float, size: int) -> object:
        def measured(turns: int, seconds: float) -> Rows:
            nonlocal now
            shares.append(seconds)
            now += needed
            return job(harness, size, turns, seconds)

        return measured

    jobs = [
        harness.Job(name, takes(seconds, size), weight)
        for name, seconds, size, weight in (
            ("a", 10, 10, 1), ("b", 70, 20, 2), ("c", 25, 30, 1), ("d", 5, 40, 1),
        )
    ]  # fmt: skip
    harness.run_jobs(jobs, options(tmp_path, 100), "title")
    # What a job does not need is for those to come: 100 / 5, 90 2 / 4, 20 / 2; c took the rest.
    assert shares == [20, 45, 10]
    shapes = {row["shape"] for row in results.load(tmp_path / "a.csv")}
    assert shapes == {"10 x 1", "20 x 1", "30 x 1"}
    out = capsys.readouterr().out
    assert "left out, since the time was spent: d\n" in out


def test_the_first_job_is_measured_in_any_time(harness: ModuleType, tmp_path: Path) -> None:
    jobs = [harness.Job(name, partial(job, harness, size)) for name, size in (("a", 9), ("b", 8))]
    harness.run_jobs(jobs, options(tmp_path, 1e-9), "title")
    rows = results.load(tmp_path / "a.csv")
    assert {row["shape"] for row in rows} == {"9 x 1"}
    assert {len(results.turns_of(row)) for row in rows} == {6}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_other_work_is_noticed(harness: ModuleType) -> None:
    """A process that spins is other work; what this process does is not."""
    program = "import time\nend = time.monotonic() + 60\nwhile time.monotonic() < end: pass"
    with subprocess.Popen([sys.executable, "-c", program]) as spinning:
        others, begin, used = harness.OtherWork(), time.monotonic(), time.process_time()
        while time.monotonic() < begin + 1:
            pass
        share, own = others.share(), time.process_time() - used
        spinning.kill()
    assert share > 0.4
    # Were our own time counted, the share would be larger by it.
    assert share < (os.cpu_count() or 1) - 0.5 * own


def test_jobs_beside_other_work_are_named(
    harness: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    shares = iter([0.02, 0.61])

    class Others:
        def share(self) -> float:
            return next(shares)

    monkeypatch.setattr(harness, "OtherWork", Others)
    jobs = [harness.Job(name, partial(job, harness, size)) for name, size in (("a", 9), ("b", 8))]
    harness.run_jobs(jobs, options(tmp_path, 60), "title")
    said = [line for line in capsys.readouterr().out.splitlines() if "busy" in line]
    assert said == ["other processes were busy beside b (61% of a processor)"]
