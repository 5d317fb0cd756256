"""Times of contenders that are run in turn, and the peak of the memory that a call takes.

All contenders are timed in turn, every other turn backwards (A B C C B A A B C ...), so that a
drift of the machine meets each alike; a figure is the median over the turns, a ratio the median of
the turns' own ratios.
"""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

from .intervals import Interval, median_interval

ROTATED_BYTES = 128 << 20  # of inputs that are to come from memory; more than the caches hold
LEAST_TURNS = 6  # from which on a median has an interval at 95%
WARMS_ITSELF = 0.1  # seconds of a call that has its own caches for most of its time
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_T = TypeVar("_T")
Name = TypeVar("Name", bound=Hashable)


class Timing(NamedTuple):
    """Seconds per call: median and the 20th and 80th percentile over the turns."""

    median: float
    p20: float
    p80: float
    turns: list[float]

    @property
    def fastest(self) -> float:
        """The shortest turn: what a rate that is to be a bound comes from."""
        return min(self.turns)

    def times_faster_than(self, other: Timing) -> float:
        """Median over the turns of how many times the other one's time is this one's."""
        return self.ratio_of(other).estimate

    def ratio_of(self, other: Timing) -> Interval:
        """`times_faster_than` with its interval."""
        return median_interval([b / a for a, b in zip(self.turns, other.turns, strict=True)])


def timing_of(seconds: list[float]) -> Timing:
    """The statistics of one contender's turns."""
    fifths = statistics.quantiles(seconds, n=5)
    return Timing(statistics.median(seconds), fifths[0], fifths[-1], seconds)


def rotated(make: Callable[[], _T], size: int, past: int = ROTATED_BYTES) -> list[_T]:
    """2 to 16 fresh inputs of `size` bytes each, where possible more than `past` bytes together."""
    return [make() for _ in range(max(2, min(16, past // max(size, 1))))]


def time_in_turns(
    contenders: Mapping[Name, Callable[[int], object]],
    *,
    turns: int,
    warm_up: int = 2,
    seconds_per_turn: float = 0.1,
    seconds: float | None = None,
) -> dict[Name, Timing]:
    """Time every contender `turns` times, in turn, every other turn in reverse order.

    A contender is called with the number of the call, by which it may choose among inputs that do
    not fit the caches together. One turn repeats it for about `seconds_per_turn`, after `warm_up`
    calls that do not count: caches, predictors and freed memory are then its own and not those of
    the contender before. With as many as there are inputs, each gradient has been replaced once.
    A call of a tenth of a second or more needs none, but for those that say how often to repeat.
    Where all would take more than `seconds`, with the calls that say how often to repeat, there are
    fewer turns, but not less than 6.
    """
    calls, before, whole, start = {}, {}, 0.0, time.perf_counter()
    for name, run in contenders.items():
        once = _seconds(run, 1)  # compiles, allocates, wakes threads
        if once < 10 * seconds_per_turn or warm_up:
            once = _seconds(run, 1, first=1)
            if once < WARMS_ITSELF:
                once = min(once, _seconds(run, 1, first=2))
        least = 1 if once > seconds_per_turn else warm_up
        calls[name] = max(least, min(2000, round(seconds_per_turn / once)))
        before[name] = warm_up if once < WARMS_ITSELF else 0
        whole += once * (calls[name] + before[name])
    if seconds is not None:
        left = seconds - (time.perf_counter() - start)
        turns = int(min(turns, max(LEAST_TURNS, left / whole)))
    samples: dict[Name, list[float]] = {name: [] for name in contenders}
    gc.disable()
    try:
        for turn in range(turns):
            for name, run in list(contenders.items())[:: -1 if turn % 2 else 1]:
                _seconds(run, before[name])
                samples[name].append(_seconds(run, calls[name], first=before[name]) / calls[name])
    finally:
        gc.enable()
    return {name: timing_of(values) for name, values in samples.items()}


def _seconds(run: Callable[[int], object], calls: int, first: int = 0) -> float:
    start = time.perf_counter()
    for call in range(first, first + calls):
        run(call)
    return time.perf_counter() - start


def peak_memory(
    run: Callable[[int], object],
    calls: int = 3,
    prepare: Callable[[], object] = lambda: None,
) -> int | None:
    """By how many bytes a call raises the process's resident memory; None where not on Linux.

    The largest of a few calls, each in a thread of its own, which has no buffer that an earlier
    call kept. `prepare` frees, before each, what an earlier call left, such as gradients. Exact to
    about 1 MiB: the kernel's count lags, and small blocks come from memory that malloc has kept.
    With a malloc other than glibc's, larger ones may, too.
    """
    if not _CLEAR.exists():
        return None

    def measure(call: int) -> int:
        prepare()
        _CLEAR.write_text("5")  # the peak starts anew
        before = _status("VmRSS")
        run(call)
        return max(0, _status("VmHWM") - before)

    def measure_in_a_thread(call: int) -> int:
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(measure, call).result()

    _keep_freed_blocks(below=128 << 10)
    gc.collect(1)  # what is older is not the calls', and takes long to go through
    try:
        return max(measure_in_a_thread(call) for call in range(calls))
    finally:
        _keep_freed_blocks(below=32 << 20)


def _keep_freed_blocks(below: int) -> None:
    """Have glibc's malloc keep freed blocks up to this size, and give larger ones back at once.

    32 MiB is the most, which a process reaches by freeing a block of that size, as training does.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        m_trim_threshold, m_mmap_threshold = -1, -3  # of malloc.h
        mallopt(m_mmap_threshold, below)
        mallopt(m_trim_threshold, 2 * below)


def _status(key: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) << 10
    raise RuntimeError(f"{_STATUS} has no {key}")
