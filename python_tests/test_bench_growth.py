"""The fit of how cost grows, on costs that are known."""

from __future__ import annotations

import csv
import importlib
import itertools
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from r2kd_ext.bench import results

SIZES = [2**k for k in range(6, 16)]


@pytest.fixture
def growth(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    return importlib.import_module("growth")


@pytest.mark.parametrize(("constant", "exponent"), [(0.0, 1.0), (40.0, 1.0), (40.0, 1.3)])
def test_what_was_planted(growth: ModuleType, constant: float, exponent: float) -> None:
    noise = np.random.default_rng(0).lognormal(0, 0.03, len(SIZES))
    times = (constant + 0.05 * np.asarray(SIZES) ** exponent) * noise
    found = growth.fit(SIZES, list(times))
    assert found.exponent == pytest.approx(exponent, abs=0.06)
    assert found.constant == pytest.approx(constant, abs=4)
    assert found.jump < 1.2


def test_a_jump_is_found_where_it_is(growth: ModuleType) -> None:
    times = [40 + 0.05 * n * (2.5 if n >= 4096 else 1) for n in SIZES]
    found = growth.fit(SIZES, times)
    assert found.at == 4096
    assert found.jump > growth.JUMP


def test_too_few_sizes(growth: ModuleType) -> None:
    with pytest.raises(ValueError, match="at least 4, got 3"):
        growth.fit([1, 2, 4], [1.0, 2.0, 4.0])


def test_the_jump_of_an_earlier_run_was_the_machine() -> None:
    """What docs/benchmarks.md says of `spearman` over B, from the files that it names."""
    folder = Path(__file__).parent.parent / "benchmarks" / "results"
    with (folder / "growth_busy.csv").open() as file:
        rows = list(csv.DictReader(file))
    per_row = {
        beside: {int(r["rows"]): float(r["us_per_row"]) for r in rows if r["beside"] == beside}
        for beside in ("nothing", "a process that spins")
    }
    alone = [us for rows, us in per_row["nothing"].items() if rows >= 64]
    assert max(alone) < 1.07 * min(alone)
    for count, us in per_row["a process that spins"].items():
        assert 1.9 < us / per_row["nothing"][count] < 2.4
    turns = {
        int(row["shape"].split(" x ")[0]): results.turns_of(row)
        for row in results.load(folder / "growth_before.csv")
        if (row["op"], row["variant"], row["role"]) == ("spearman", "B", "ours")
    }
    slow = [us / 256 for us in turns[256]] + [us / 512 for us in turns[512][:-1]]
    fast = [us / 1024 for us in turns[1024][1:]] + [us / 2048 for us in turns[2048]]
    assert 1.35 < min(slow) / max(fast) < max(slow) / min(fast) < 1.65
    # Within a size, too.
    assert turns[512][-1] < min(turns[512][:-1]) / 1.4
    assert turns[1024][0] > 1.5 * max(turns[1024][1:])


def test_inputs_rotate_and_do_not_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    bench = importlib.import_module("bench_growth")
    for rows, classes in ((16, 1000), (64, 32768)):
        data = bench.pairs(rows, classes, grad=True)
        assert len(data) >= 7
        starts = sorted(x.data_ptr() for pair in data for x in pair)
        steps = [b - a for a, b in itertools.pairwise(starts)]
        assert min(steps) >= 4 * rows * classes
        for x, y in data:
            assert x.shape == y.shape == (rows, classes)
            assert x.is_leaf
            assert x.requires_grad
            assert not y.requires_grad
            assert abs(x.detach().std() - 1) < 0.05
