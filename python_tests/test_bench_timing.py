"""The harness on a clock of its own, where the truth is known, and real memory."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from r2kd_ext.bench import timing


class Clock:
    """A clock that only work moves on, on a machine that becomes slower, with noise."""

    def __init__(self, noise: float, drift: float) -> None:
        self.now, self._generator = 0.0, np.random.default_rng(1)
        self._noise, self._drift = noise, drift

    def work(self, seconds: float) -> Callable[[int], None]:
        def run(call: int) -> None:
            noise = self._generator.lognormal(0, self._noise)
            self.now += seconds * noise * (1 + self._drift * self.now)

        return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """With noise of 5% a call, on a machine that takes twice as long after 20 seconds."""
    clock = Clock(0.05, 0.05)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock.now)
    return clock


def clock_without_noise(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock(0.0, 0.0)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock.now)
    return clock


def test_a_planted_slowdown_is_found_through_drift(clock: Clock) -> None:
    timings = timing.time_in_turns(
        {"ours": clock.work(1e-3), "slower": clock.work(1.05e-3), "same": clock.work(1e-3)},
        turns=15,
    )
    ours = timings["ours"]
    assert ours.turns[-1] > 1.15 * ours.turns[0]  # the machine did drift
    slower = ours.ratio_of(timings["slower"])
    assert slower.excludes(1.0)
    assert slower.estimate == pytest.approx(1.05, abs=0.02)
    same = ours.ratio_of(timings["same"])
    assert not same.excludes(1.0)
    assert same.high - same.low < 0.05
    assert ours.p20 < ours.median < ours.p80


def test_fewer_turns_when_time_is_short(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    run = {"ours": clock.work(0.5)}
    assert len(timing.time_in_turns(run, turns=15)["ours"].turns) == 15
    assert len(timing.time_in_turns(run, turns=8, seconds=float("inf"))["ours"].turns) == 8
    clock = clock_without_noise(monkeypatch)
    run = {"ours": clock.work(0.5)}
    timing.time_in_turns(run, turns=30, warm_up=0, seconds=10.0)
    assert 9 < clock.now <= 10
    begin = clock.now
    assert len(timing.time_in_turns(run, turns=15, seconds=1.0)["ours"].turns) == 6
    assert clock.now - begin < 100


def test_long_calls_have_no_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """They have their own caches for most of their time; shorter ones and those that compile in
    their first call are warmed up."""
    clock = clock_without_noise(monkeypatch)
    seen: dict[str, list[int]] = {"short": [], "long": [], "compiled": []}

    def noted(name: str, seconds: float, first: float = 0.0) -> Callable[[int], None]:
        def run(call: int) -> None:
            clock.work(seconds if seen[name] else seconds + first)(call)
            seen[name].append(call)

        return run

    timings = timing.time_in_turns(
        {
            "short": noted("short", 0.08),
            "long": noted("long", 0.12),
            "compiled": noted("compiled", 0.08, first=5.0),
        },
        turns=6,
        seconds_per_turn=0.01,
    )
    for name in ("short", "compiled"):  # 3 calls that say how often to repeat, then the turns
        assert seen[name] == [0, 1, 2] + 6 * [0, 1, 2]
        assert timings[name].turns == pytest.approx(6 * [0.08])
    assert seen["long"] == [0, 1] + 6 * [0]
    assert timings["long"].turns == pytest.approx(6 * [0.12])


def test_the_time_of_long_calls_has_no_warm_up_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = clock_without_noise(monkeypatch)
    run = {"ours": clock.work(0.5)}
    timings = timing.time_in_turns(run, turns=30, warm_up=2, seconds=10.1)
    assert len(timings["ours"].turns) == 18  # 2 calls before them
    assert clock.now == pytest.approx(10)


def test_calls_are_numbered_so_that_inputs_rotate() -> None:
    seen: list[int] = []
    timing.time_in_turns({"ours": seen.append}, turns=6, warm_up=4, seconds_per_turn=1e-5)
    turns = [i for i, call in enumerate(seen) if call == 0][1:]
    assert len(turns) == 6
    first = seen[turns[0] : turns[1]]
    assert first == list(range(len(first)))
    assert len(first) >= 8


def test_rotated_inputs_are_fresh_and_pass_the_caches() -> None:
    data = timing.rotated(lambda: torch.randn(1 << 20), 4 << 20)
    assert sum(x.nbytes for x in data) >= 64 << 20
    assert len({x.data_ptr() for x in data}) == len(data)
    assert not torch.equal(data[0], data[1])
    assert len(timing.rotated(lambda: None, 1 << 40)) == 2


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_peak_memory() -> None:
    def two_at_once(call: int) -> None:
        a = torch.full((8 << 18,), 1.0)  # 8 MiB
        a + 1
        del a
        torch.full((4 << 18,), 1.0)

    def freed_between(call: int) -> None:
        for _ in range(2):
            torch.full((8 << 18,), 1.0)

    for _ in range(2):  # also where an earlier call has freed memory
        assert timing.peak_memory(two_at_once) == pytest.approx(16 << 20, abs=2 << 20)
        assert timing.peak_memory(freed_between) == pytest.approx(8 << 20, abs=2 << 20)
    assert timing.peak_memory(lambda _: None) == pytest.approx(0, abs=2 << 20)
    with pytest.raises(ZeroDivisionError):
        timing.peak_memory(lambda _: 1 / 0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--turns", "1"], "--turns must be at least 2, got 1"),
        (["--seconds", "0"], "--seconds must be > 0, got 0.0"),
    ],
)
def test_bad_usage_of_a_benchmark(
    arguments: list[str],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    monkeypatch.setattr(sys, "argv", ["bench", *arguments])
    harness = importlib.import_module("harness")
    with pytest.raises(SystemExit) as stop:
        harness.parse_options("A benchmark.", Path("a.csv"))
    assert stop.value.code == 2
    assert words in capsys.readouterr().err
