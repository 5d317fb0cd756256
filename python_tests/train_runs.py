"""Small runs of the trainer within the process of a test."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from r2kd_ext.cli import main
from r2kd_ext.train.config import DataConfig
from r2kd_ext.train.data import load
from r2kd_ext.train.engine import Engine

CONFIG = """
data: {name: digits, image_size: 8, workers: 0}
teacher: {name: "train_networks:small"}
student: {name: "train_networks:small"}
augment: {view: cutmix}
method: {name: r2kd, rank: soft}
optimizer: {epochs: 2, batch_size: 128, learning_rate: 0.02, milestones: [1]}
"""


@cache
def digits() -> Any:
    """The `ImageData` of CONFIG."""
    return load(DataConfig(name="digits", image_size=8, workers=0), seed=0)


def train(*words: object) -> int:
    return main(["train", *map(str, words)])


def losses_of(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    clocks = ("seconds", "images_per_second")
    return [{k: v for k, v in row.items() if k not in clocks} for row in rows]


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[], None]) -> None:
    """Call `act` within the step after `step` others of this process."""
    real, count = Engine._train_step, [0]

    def patched(self: Engine, *arguments: Any) -> Any:
        if count[0] == step:
            act()
        count[0] += 1
        return real(self, *arguments)

    monkeypatch.setattr(Engine, "_train_step", patched)
