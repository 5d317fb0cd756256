"""Two processes train as one does: the same losses and weights, to rounding, replicated or sharded;
and they stop and go on together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

pytest.importorskip("accelerate", reason="of the extra train")

import safetensors.torch
import torch
import train_processes
from accelerate.utils import DistributedType

from r2kd_ext.cli import main
from r2kd_ext.train import run as runs_of_trainer
from r2kd_ext.train.config import DataConfig
from r2kd_ext.train.configure import ConfigProblem
from r2kd_ext.train.data import load
from r2kd_ext.train.networks import load_network

HERE = Path(__file__).parent

# Each process draws the augmentations of its own images, so they are off where one process is
# compared with two. Batch norm takes the statistics of a process's own images, as DDP has it, so
# the networks compared have none.
CONFIG = """
data: {name: digits, image_size: 8, workers: 0}
teacher: {name: "train_networks:small"}
student: {name: "train_networks:forgetful"}
augment: {view: none, crop_padding: 0, flip: false}
method: {name: r2kd, rank: soft, augmented_view: false}
optimizer: {epochs: 2, batch_size: 128, learning_rate: 0.1, milestones: [1]}
"""
PLAIN = ["--teacher.name", "train_networks:plain", "--student.name", "train_networks:plain"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}


class Runs(NamedTuple):
    """Of train_processes.py, and of one process."""

    folder: Path
    codes: dict[str, list[int]]
    errors: str


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("processes")
    config = folder / "config.yaml"
    config.write_text(CONFIG)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert main(["train", str(config), *PLAIN, "--run.output", str(folder / "one")]) == 0
    torch.set_num_threads(threads)
    done = subprocess.run(
        [sys.executable, HERE / "train_processes.py", config, folder],
        capture_output=True,
        text=True,
        check=False,
        env=ENVIRONMENT,
    )
    assert done.returncode == 0, done.stderr
    return Runs(folder, json.loads(done.stdout.splitlines()[-1]), done.stderr)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    clocks = ("seconds", "images_per_second")
    return [{k: v for k, v in row.items() if k not in clocks} for row in rows]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / "student.safetensors")


def check_same_course(one: Path, two: Path) -> None:
    """To the rounding of sums of gradients in another order."""
    for expected, found in zip(rows_of(one), rows_of(two), strict=True):
        for name in ("loss", "ce", "correlation", "learning_rate"):
            assert found[name] == pytest.approx(expected[name], rel=1e-5)
        for name in ("top1", "top5"):
            assert found[name] == pytest.approx(expected[name], abs=1e-6)
    weights = [weights_of(folder) for folder in (one, two)]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_two_processes_of_torchrun_train_as_one(runs: Runs) -> None:
    """By the command of the documentation."""
    folder = runs.folder / "ddp-plain"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    words = [str(runs.folder / "config.yaml"), *PLAIN, "--run.output", str(folder)]
    done = subprocess.run(
        [*launch, "-m", "r2kd_ext", "train", *words],
        capture_output=True,
        text=True,
        check=False,
        env=ENVIRONMENT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("epoch 2/2") == 1, done.stdout  # one process prints
    check_same_course(runs.folder / "one", folder)


@pytest.mark.slow
def test_two_processes_with_sharded_weights_train_as_one(runs: Runs) -> None:
    assert runs.codes["fsdp-plain"] == [0, 0], runs.errors
    check_same_course(runs.folder / "one", runs.folder / "fsdp-plain")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_a_signal_to_one_stops_both_and_they_go_on_bit_for_bit(runs: Runs, kind: str) -> None:
    assert runs.codes[f"{kind}-whole"] == [0, 0], runs.errors
    assert runs.codes[f"{kind}-stopped"] == [143, 143], runs.errors
    assert runs.codes[f"{kind}-resumed"] == [0, 0], runs.errors
    whole, stopped = (runs.folder / f"{kind}-{part}" for part in ("whole", "stopped"))
    one, two = weights_of(whole), weights_of(stopped)
    assert one.keys() == two.keys()
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    assert rows_of(whole) == rows_of(stopped)
    names = [path.name for path in (stopped / "checkpoints").iterdir()]
    assert "step-000000022.safetensors" in names


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_what_is_validated_is_what_is_saved(runs: Runs, kind: str) -> None:
    """Batch norm's statistics differ between the processes; those of the first count in both."""
    folder = runs.folder / f"{kind}-whole"
    data = load(DataConfig(name="digits", image_size=8, workers=0), seed=0)
    student = load_network(folder / "student.safetensors", "train_networks:forgetful")
    mean, std = (torch.tensor(x)[:, None, None] for x in (data.mean, data.std))
    count = len(data.validation)  # type: ignore[arg-type]
    images, labels = zip(*(data.validation[i] for i in range(count)), strict=True)
    with torch.no_grad():
        logits = student((torch.stack(images).float() / 255 - mean) / std)
    hits = logits.argmax(1) == torch.tensor(labels)
    assert rows_of(folder)[-1]["top1"] == pytest.approx(hits.double().mean().item(), abs=1e-6)


def test_an_average_of_sharded_weights_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG)
    monkeypatch.setattr(runs_of_trainer, "Accelerator", train_processes.sharding)
    words = ["--run.ema_decay", "0.9", "--run.output", str(tmp_path / "a")]
    assert main(["train", str(config), *words]) == 2
    assert "run.ema_decay must be 0 with FSDP" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


def test_sharding_on_a_cpu_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Accelerate would train on without it, and say nothing."""
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert main(["train", str(config), "--run.output", str(tmp_path / "a")]) == 2
    message = capsys.readouterr().err
    assert "FSDP is asked for" in message
    assert "here it found 1 process(es) on cpu" in message
    assert not (tmp_path / "a").exists()


def test_the_first_version_of_fsdp_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    first: Any = SimpleNamespace(distributed_type=DistributedType.FSDP, is_fsdp2=False)
    with pytest.raises(ConfigProblem, match="must be of version 2, got 1"):
        runs_of_trainer._check_sharding(first)
    first.is_fsdp2 = True
    runs_of_trainer._check_sharding(first)
