"""The fit of how cost grows, on costs that are known."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

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
