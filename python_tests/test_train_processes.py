"""Two processes train as one does: the same losses and weights, to rounding."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("accelerate", reason="of the extra train")

import safetensors.torch
import torch

from r2kd_ext.cli import main

# Each process draws the augmentations of its own images, so they are off here. Batch norm takes the
# statistics of a process's own images, as DDP has it, so the networks have none.
CONFIG = """
data: {name: digits, image_size: 8, workers: 0}
teacher: {name: "train_networks:plain"}
student: {name: "train_networks:plain"}
augment: {view: none, crop_padding: 0, flip: false}
method: {name: r2kd, rank: soft, augmented_view: false}
optimizer: {epochs: 2, batch_size: 128, learning_rate: 0.02, milestones: [1]}
"""


def train_in_two(words: list[str]) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launch, "-m", "r2kd_ext", "train", *words],
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "OMP_NUM_THREADS": "1",
        },
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("epoch 2/2") == 1, done.stdout  # one process prints


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG)
    one, two = tmp_path / "one", tmp_path / "two"
    assert main(["train", str(config), "--run.output", str(one)]) == 0
    train_in_two([str(config), "--run.output", str(two)])
    for expected, found in zip(rows_of(one), rows_of(two), strict=True):
        for name in ("loss", "ce", "correlation", "learning_rate"):
            assert found[name] == pytest.approx(expected[name], rel=1e-5)
        for name in ("top1", "top5"):
            assert found[name] == pytest.approx(expected[name], abs=1e-6)
    weights = [safetensors.torch.load_file(x / "student.safetensors") for x in (one, two)]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-4, atol=1e-5)
