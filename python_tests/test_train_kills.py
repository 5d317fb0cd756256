"""A run that is killed 20 times ends with the bits of one that is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("accelerate", reason="of the extra train")

import safetensors.torch
import torch
from torch import Tensor

from r2kd_ext.train import checkpoint

HERE = Path(__file__).parent

CONFIG = """
data: {name: digits, image_size: 8, workers: 0}
teacher: {name: "train_networks:small"}
student: {name: "train_networks:small"}
augment: {view: cutmix}
method: {name: r2kd, rank: soft, label_smoothing: 0.1}
optimizer: {epochs: 8, batch_size: 128, learning_rate: 0.02, milestones: [4], warmup_epochs: 1}
run: {checkpoint_every: 2, ema_decay: 0.9}
"""


def _same(one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
    assert one.keys() == two.keys()
    assert all(torch.equal(x, two[name]) for name, x in one.items())


@pytest.mark.slow
def test_twenty_kills_leave_no_trace(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG)
    done = subprocess.run(
        [sys.executable, HERE / "train_kills.py", config, tmp_path],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    story = json.loads(done.stdout.splitlines()[-1])
    assert story["killed"] == 20
    assert story["last"] == 0
    assert story["halves"] >= 5  # kills in the middle of a write left half a file
    assert len(set(story["steps"])) > 5  # they hit all over the run

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for name in ("student.safetensors", "student_ema.safetensors"):
        _same(*(safetensors.torch.load_file(folder / name) for folder in (whole, broken)))
    (newest, *_), (other, *_) = (
        sorted((folder / "checkpoints").glob("step-*"), reverse=True) for folder in (whole, broken)
    )
    assert newest.name == other.name
    one, two = checkpoint.load(newest), checkpoint.load(other)
    _same(one.tensors, two.tensors)
    clocks = ("seconds", "images_per_second")
    rows = [
        [{k: v for k, v in row.items() if k not in clocks} for row in found.values["course"]]
        for found in (one, two)
    ]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 8
