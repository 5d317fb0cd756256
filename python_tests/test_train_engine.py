"""`r2kd train`: a run, its files, how it stops and goes on, and what it refuses."""

from __future__ import annotations

import csv
import errno
import json
import math
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("accelerate", reason="of the extra train")

import safetensors
import safetensors.torch
import torch
import train_networks
from torch import distributed
from torch.distributed.fsdp import fully_shard
from train_runs import at_step, digits, losses_of, train

from r2kd_ext.cli import main
from r2kd_ext.train import checkpoint, engine, files, trackers
from r2kd_ext.train.config import OptimizerConfig
from r2kd_ext.train.data import load
from r2kd_ext.train.networks import load_network
from r2kd_ext.train.schedule import rate_factor
from r2kd_ext.train.state import RunState, network_state

pytestmark = pytest.mark.usefixtures("one_thread", "digits_once")


def test_a_run_and_its_files(
    tmp_path: Path, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "a"
    words = ["--method.name", "ce", "--optimizer.epochs=3", "--optimizer.learning_rate", "0.1"]
    assert train(config, *words, "--run.output", folder, "--run.ema_decay", "0.9") == 0
    out = capsys.readouterr().out
    assert out.count("images/s") == 3
    assert "epoch 3/3  loss" in out

    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    with (folder / "metrics.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [{k: str(v) for k, v in row.items()} for row in rows] == table
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert [row["learning_rate"] for row in rows] == pytest.approx([0.1, 0.01, 0.01])
    assert rows[-1]["loss"] < rows[0]["loss"] < 3
    assert rows[-1]["loss"] == pytest.approx(rows[-1]["ce"])
    assert rows[-1]["top1"] > 0.25  # chance is 0.1
    assert rows[-1]["top5"] > rows[-1]["top1"]
    assert rows[-1]["ema_top1"] != rows[-1]["top1"]
    assert len(list((folder / "checkpoints").iterdir())) == 2
    assert any("tfevents" in path.name for path in (folder / "tensorboard").iterdir())
    assert "output: " in (folder / "config.yaml").read_text()

    student = load_network(folder / "student.safetensors", "train_networks:small")
    stored = checkpoint.load(sorted((folder / "checkpoints").iterdir())[-1])
    for name, tensor in student.state_dict().items():
        assert torch.equal(tensor, stored.tensors[f"network/student.{name}"])
    average = safetensors.torch.load_file(folder / "student_ema.safetensors")
    assert not torch.equal(average["0.weight"], student.state_dict()["0.weight"])

    before = (folder / "metrics.csv").read_bytes()
    assert train(config, *words, "--run.output", folder) == 0
    assert (folder / "metrics.csv").read_bytes() == before
    assert (tmp_path / "a-2" / "student.safetensors").exists()
    assert train("--resume", folder) == 0
    assert "finished already" in capsys.readouterr().out


def test_accuracy_is_that_of_the_saved_student(tmp_path: Path, config: str) -> None:
    """Against a loop without torchmetrics, sharing and padding; the last batch is not full."""
    folder = tmp_path / "a"
    assert train(config, "--method.name=ce", "--run.output", folder) == 0
    student = load_network(folder / "student.safetensors", "train_networks:small")
    mean, std = (torch.tensor(x)[:, None, None] for x in (digits().mean, digits().std))
    images, labels = zip(
        *(digits().validation[i] for i in range(len(digits().validation))), strict=True
    )
    with torch.no_grad():
        logits = student((torch.stack(images).float() / 255 - mean) / std)
    ranked = logits.argsort(dim=1, descending=True) == torch.tensor(labels)[:, None]
    found = losses_of(folder)[-1]
    for name, top in (("top1", 1), ("top5", 5)):
        expected = ranked[:, :top].any(1).double().mean().item()
        assert found[name] == pytest.approx(expected, abs=1.5 / len(labels))


SMOOTHED = ["--run.ema_decay=0.9", "--method.label_smoothing=0.1"]


@pytest.mark.parametrize(
    ("number", "code", "whole_words", "stopped_words"),
    [
        (signal.SIGINT, 130, [], []),
        (signal.SIGTERM, 143, [], []),
        # Processes that load images change nothing, wherever they are when they are stopped.
        (signal.SIGTERM, 143, SMOOTHED, [*SMOOTHED, "--data.workers=2"]),
        (signal.SIGTERM, 143, ["--run.precision=bf16"], ["--run.precision=bf16"]),
    ],
)
def test_a_signal_saves_and_the_run_goes_on_bit_for_bit(
    tmp_path: Path,
    config: str,
    number: int,
    code: int,
    whole_words: list[str],
    stopped_words: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert train(config, *whole_words, "--run.output", tmp_path / "whole") == 0
    stopped = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        at_step(patch, 4, lambda: signal.raise_signal(number))
        assert train(config, *stopped_words, "--run.output", stopped) == code
    assert f"To go on: r2kd train --resume {stopped}" in capsys.readouterr().out
    assert [path.name for path in (stopped / "checkpoints").iterdir()] == [
        "step-000000005.safetensors"
    ]
    assert not (stopped / "student.safetensors").exists()
    with monkeypatch.context() as patch:  # during the validation, before its result is there
        real = engine.Validation.accuracy

        def accuracy(self: Any, *rest: Any) -> Any:
            signal.raise_signal(number)
            return real(self, *rest)

        patch.setattr(engine.Validation, "accuracy", accuracy)
        assert train("--resume", stopped) == code
    assert not (stopped / "metrics.csv").exists()
    assert train("--resume", stopped) == 0
    files = [path.name for path in (tmp_path / "whole").glob("student*")]
    assert len(files) == (2 if "--run.ema_decay=0.9" in whole_words else 1)
    for name in files:
        one, two = (safetensors.torch.load_file(tmp_path / x / name) for x in ("whole", "stopped"))
        assert all(torch.equal(tensor, two[key]) for key, tensor in one.items())
    assert losses_of(tmp_path / "whole") == losses_of(stopped)


def test_a_loss_that_is_not_finite(
    tmp_path: Path, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "a"
    words = ["--student.name", "train_networks:Failing", "--run.output", folder]
    assert train(config, *words, "--augment.crop_padding=0", "--augment.flip=false") == 1
    message = capsys.readouterr().err
    path = folder / "not-finite-step-3-process-0.safetensors"
    assert "the loss is nan (ce nan, " in message
    assert "in step 3, epoch 1, at a learning rate of 0.02. The batch, training" in message
    assert str(path) in message
    batch = safetensors.torch.load_file(path)
    assert batch.keys() == {"images", "labels", "indices", "clean", "view"}
    assert batch["images"].shape == batch["clean"].shape == (128, 3, 8, 8)
    for row in (0, 77):
        image, label = digits().train[int(batch["indices"][row])]
        assert torch.equal(batch["images"][row], image)
        assert batch["labels"][row] == label
    assert f"images {', '.join(map(str, batch['indices'][:3].tolist()))}, " in message


def test_when_a_loss_stops_training() -> None:
    assert not engine.must_stop(1.0, None)
    assert engine.must_stop(math.nan, None)
    assert engine.must_stop(-math.inf, None)
    assert not engine.must_stop(math.inf, 2.0**16)  # scaling in fp16 leaves the step out
    assert engine.must_stop(math.nan, 2.0**-1)  # and has nothing left to halve


def test_a_full_disk_keeps_the_last_good_checkpoint(
    tmp_path: Path,
    config: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "a"
    words = ["--run.output", folder, "--run.checkpoint_every", "3"]

    def fill() -> None:
        def full(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(files.os, "fsync", full)

    with monkeypatch.context() as patch:
        at_step(patch, 4, fill)
        assert train(config, *words) == 1
    monkeypatch.undo()
    message = capsys.readouterr().err
    good = folder / "checkpoints" / "step-000000003.safetensors"
    assert "No space left on device" in message
    assert f"The last good checkpoint is {good}" in message
    assert f"r2kd train --resume {folder}" in message
    assert os.listdir(good.parent) == [good.name]
    checkpoint.load(good)


def test_resume_refuses_what_it_cannot_go_on_with(
    tmp_path: Path,
    config: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "a"
    assert train("--resume", folder) == 2
    assert "there is no run in" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        at_step(patch, 5, lambda: signal.raise_signal(signal.SIGINT))
        assert train(config, "--run.output", folder, "--run.checkpoint_every=2") == 130
    assert train("--resume", folder, "--optimizer.learning_rate", "0.5") == 2
    assert "was started with optimizer.learning_rate 0.02, got 0.5" in capsys.readouterr().err
    newest = folder / "checkpoints" / "step-000000006.safetensors"
    newest.write_bytes(newest.read_bytes()[:1000])
    assert train("--resume", folder) == 2
    message = capsys.readouterr().err
    assert f"{newest} is damaged" in message
    assert "step-000000004.safetensors, is whole: delete" in message
    newest.unlink()
    assert train("--resume", folder, "--run.keep=5") == 0


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--run.precision", "fp16"], "run.precision fp16 needs a GPU"),
        (["--run.trackers", "[wandb]"], "which is not installed: pip install 'r2kd_ext[wandb]'"),
        (["--optimizer.batch_size", "5000"], "optimizer.batch_size must be between 1 and"),
        (["--augment.view", "none"], "augment.view must name a view"),
        (["--student.name", "digits_studnt"], "did you mean digits_student"),
        (["--optimizer.batchsize", "5"], "batch_size"),
        (["--epochs", "5"], "epochs"),
        (["--run.keep", "1"], "run.keep must be >= 2, got 1"),
        (["--teacher.name=resnet8"], "teacher.checkpoint must be given, or resnet8 teaches with"),
        (["--teacher.name=timm:x"], "teacher.checkpoint must be given (or teacher.pretrained true"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    tmp_path: Path,
    config: str,
    words: list[str],
    complaint: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    assert train(config, "--run.output", tmp_path / "a", *words) == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--teacher.checkpoint=gone.pth"], "there is no checkpoint gone.pth for train_networks"),
        (["--student.name", "train_networks:smal"], "no function 'smal'; did you mean small"),
        (["--student.name", "resnet21"], "there is no network 'resnet21'; did you mean"),
    ],
)
def test_networks_are_looked_up_before_the_images_are_read(
    tmp_path: Path,
    config: str,
    words: list[str],
    complaint: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delattr(engine, "load")
    assert train(config, "--run.output", tmp_path / "a", *words) == 2
    assert complaint in capsys.readouterr().err


def test_a_package_that_only_the_data_needs(
    tmp_path: Path,
    config: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(engine, "load", load)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)  # as where it is not installed
    assert train(config, "--run.output", tmp_path / "a") == 1
    assert "the trainer needs the package sklearn: pip install" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


def test_profile_prints_the_parts_and_writes_nothing(
    tmp_path: Path, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(config, "--profile", "--run.output", tmp_path / "a") == 0
    out = capsys.readouterr().out
    for part in ("data", "augment", "teacher", "student forward", "loss", "backward", "optimiser"):
        assert f" {part} " in out
    assert not (tmp_path / "a").exists()


def test_rates_are_those_of_torch() -> None:
    settings = OptimizerConfig(epochs=9, milestones=(3, 5), decay=0.1, warmup_epochs=2)
    batches = 7
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    schedules = torch.optim.lr_scheduler
    warmup = schedules.LinearLR(optimizer, 1 / (2 * batches), 1.0, 2 * batches - 1)
    steps = schedules.MultiStepLR(optimizer, [3 * batches, 5 * batches], 0.1)
    factor = rate_factor(settings, batches)
    for step in range(9 * batches):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(factor(step), rel=1e-9)
        optimizer.step()
        warmup.step()
        steps.step()


def test_a_finished_run_is_evaluated_and_exported(tmp_path: Path, config: str) -> None:
    folder = tmp_path / "a"
    assert train(config, "--run.output", folder, "--optimizer.epochs=1") == 0
    assert main(["eval", str(folder), "--no-corruptions"]) == 0
    results = json.loads((folder / "eval" / "results.json").read_text())
    top1 = losses_of(folder)[-1]["top1"]
    assert any(value == pytest.approx(top1, abs=1e-6) for value in numbers_in(results))
    assert main(["export", str(folder)]) == 0
    assert (folder / "export" / "student.onnx").exists()


def numbers_in(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [number for item in value.values() for number in numbers_in(item)]
    return [value] if isinstance(value, float) else []


@pytest.fixture
def one_process_group(tmp_path: Path) -> Iterator[None]:
    distributed.init_process_group(
        "gloo", store=distributed.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1
    )
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process_group")
def test_the_state_of_sharded_weights_is_captured_whole(tmp_path: Path) -> None:
    """FSDP2 keeps parameters and momenta as DTensors; one process is enough to see them."""
    images = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))

    def made(seed: int) -> tuple[torch.nn.Module, torch.optim.Optimizer, RunState]:
        torch.manual_seed(seed)
        network = train_networks.small(10).eval()  # without dropout
        fully_shard(network)
        optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, weight_decay=1e-3)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
        alone: Any = SimpleNamespace(num_processes=1, process_index=0, scaler=None)
        return network, optimizer, RunState(alone, network, optimizer, schedule, None)

    def steps(network: torch.nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
        for _ in range(count):
            network(images).logsumexp(1).mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    network, optimizer, state = made(1)
    steps(network, optimizer, 2)
    captured = state.capture()
    assert {type(tensor) for tensor in captured.tensors.values()} == {torch.Tensor}
    checkpoint.save(tmp_path / "a", captured)
    steps(network, optimizer, 2)
    again, its_optimizer, its_state = made(2)
    its_state.restore(checkpoint.load(tmp_path / "a"))
    steps(again, its_optimizer, 2)
    one, two = network_state(network), network_state(again)
    assert one.keys() == two.keys()
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
