"""Where the time of a training step goes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

import torch

PARTS = ("data", "augment", "teacher", "student forward", "loss", "backward", "optimiser")


class Parts:
    """Seconds by part, for each step. Parts may be nested: the inner one's time is its own.

    A GPU computes behind the program's back; it is waited for at the borders of the parts, so the
    sum is more than the time of a step that is not measured.
    """

    def __init__(self, device: torch.device) -> None:
        self.steps: list[dict[str, float]] = []
        self._device = device
        self._now: dict[str, float] = defaultdict(float)
        self._inner: list[float] = []  # seconds within the parts that are open

    def _time(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time of the block as `name`."""
        start = self._time()
        self._inner.append(0.0)
        yield
        whole = self._time() - start
        self._now[name] += whole - self._inner.pop()
        if self._inner:
            self._inner[-1] += whole

    def end_step(self) -> None:
        """Close one step."""
        self.steps.append(dict(self._now))
        self._now.clear()

    def medians(self) -> dict[str, float]:
        """The median of each part over the steps, in seconds, in the order of `PARTS`."""
        return {
            name: median(step.get(name, 0.0) for step in self.steps)
            for name in PARTS
            if any(name in step for step in self.steps)
        }


class NoParts(Parts):
    """Measures nothing and waits for nothing."""

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        yield

    def end_step(self) -> None:
        pass
