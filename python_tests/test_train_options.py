"""What a run can be asked for beside its recipe: precision, compiling, loss scaling, trackers."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("accelerate", reason="of the extra train")

import torch
import torch._dynamo.utils
import train_networks
from accelerate import Accelerator
from train_runs import at_step, losses_of, train

from r2kd_ext._dtypes import processor_has_bfloat16
from r2kd_ext.cli import main
from r2kd_ext.train import checkpoint, trackers
from r2kd_ext.train import run as runs
from r2kd_ext.train.networks import load_network

pytestmark = pytest.mark.usefixtures("one_thread", "digits_once")


@pytest.mark.filterwarnings("ignore:dtype=torch.bfloat16")
def test_half_precision_computes_in_it(
    tmp_path: Path, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = {}
    for precision in ("fp32", "bf16"):
        folders[precision] = tmp_path / precision
        words = ["--run.precision", precision, "--run.teacher_dtype", precision]
        assert train(config, *words, "--run.output", folders[precision]) == 0
        noted = "this processor has no instructions for bfloat16" in capsys.readouterr().out
        assert noted == (precision == "bf16" and not processor_has_bfloat16())
    full, half = (losses_of(folder)[-1]["loss"] for folder in folders.values())
    assert half != full
    assert half == pytest.approx(full, rel=0.05)


@pytest.mark.slow
def test_a_compiled_student_learns_the_same(tmp_path: Path, config: str) -> None:
    """The network is an nn.Sequential, which nn.Module.compile() leaves as it is."""
    counters = torch._dynamo.utils.counters
    counters.clear()
    words = ["--student.name", "train_networks:plain", "--method.augmented_view=false"]
    for name, compiled in (("eager", "false"), ("compiled", "true")):
        assert not counters["stats"]["unique_graphs"]
        folder = tmp_path / name
        assert train(config, *words, "--run.compile", compiled, "--run.output", folder) == 0
    assert counters["stats"]["unique_graphs"] == 2  # of training and of validation
    assert not counters["graph_break"]
    one, two = (losses_of(tmp_path / name) for name in ("eager", "compiled"))
    for expected, found in zip(one, two, strict=True):
        assert found == pytest.approx(expected, rel=1e-4)
    load_network(tmp_path / "compiled" / "student.safetensors", "train_networks:plain")


class Overflowing(torch.nn.Module):
    """Its logits are infinite in the third forward of training, as after an overflow in fp16."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.network, self.forwards = train_networks.plain(num_classes), 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.forwards += self.training
        logits: torch.Tensor = self.network(images)
        return logits * torch.inf if self.forwards == 3 else logits


@pytest.mark.filterwarnings("error:Seems like:UserWarning")
def test_loss_scaling_leaves_a_step_out_and_is_resumed(
    tmp_path: Path, config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in fp16 on a GPU: on the CPU Accelerate makes no scaler, so one is put in its place."""

    def scaling(**settings: Any) -> Accelerator:
        accelerator = Accelerator(**settings)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=10**6)
        return accelerator

    monkeypatch.setattr(runs, "Accelerator", scaling)
    words = ["--student.name", "test_train_options:Overflowing", "--method.name=ce"]
    words += ["--run.checkpoint_every=1", "--run.keep=50"]
    folder = tmp_path / "a"
    with monkeypatch.context() as patch:
        at_step(patch, 6, lambda: signal.raise_signal(signal.SIGTERM))
        assert train(config, *words, "--run.output", folder) == 143
    two, three, four = (
        checkpoint.load(folder / "checkpoints" / f"step-{step:09d}.safetensors")
        for step in (2, 3, 4)
    )
    name = "network/student.network.0.weight"
    assert torch.equal(two.tensors[name], three.tensors[name])
    assert not torch.equal(three.tensors[name], four.tensors[name])
    assert [x.values["scaler"]["scale"] for x in (two, three, four)] == [1024.0, 512.0, 512.0]
    assert [x.values["counted"] for x in (two, three, four)] == [2, 2, 3]
    assert train("--resume", folder) == 0  # where the third forward overflows once more
    last = sorted((folder / "checkpoints").iterdir())[-1]
    assert checkpoint.load(last).values["scaler"]["scale"] == 256.0


def test_an_untrained_teacher_is_asked_for(
    tmp_path: Path, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "a"
    words = ["--teacher.name=resnet8", "--teacher.untrained=true", "--data.image_size=8"]
    assert train(config, *words, "--optimizer.epochs=1", "--run.output", folder) == 0
    assert "the teacher is untrained" in capsys.readouterr().out
    assert main(["eval", str(folder), "--no-corruptions"]) == 0
    results = json.loads((folder / "eval" / "results.json").read_text())
    assert results["teacher"] is None  # another one than the student had


class FakeWandb:
    """Keeps what the trainer gives to W&B."""

    def __init__(self) -> None:
        self.settings: list[dict[str, Any]] = []
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.finished = 0

    def init(self, **settings: Any) -> FakeWandb:
        self.settings.append(settings)
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished += 1


def test_wandb_gets_the_figures_and_the_same_run_again(
    tmp_path: Path, config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: True)
    folder = tmp_path / "a"
    with monkeypatch.context() as patch:
        at_step(patch, 15, lambda: signal.raise_signal(signal.SIGTERM))
        assert train(config, "--run.output", folder, "--run.trackers", "[wandb]") == 143
    assert train("--resume", folder) == 0
    first, second = wandb.settings
    assert first["id"] == second["id"]
    assert (first["resume"], first["dir"], first["name"]) == ("allow", str(folder), "a")
    assert first["config"]["method"]["rank"] == "soft"
    assert wandb.finished == 2
    epochs = [(step, values) for step, values in wandb.logged if "epoch/top1" in values]
    assert [step for step, _ in epochs] == [11, 22]
    assert [values["epoch/loss"] for _, values in epochs] == [
        row["loss"] for row in losses_of(folder)
    ]


def test_wandb_that_cannot_start(
    tmp_path: Path,
    config: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    wandb = FakeWandb()

    def fails(**settings: Any) -> None:
        raise RuntimeError("no API key configured")

    wandb.init = fails  # type: ignore[method-assign,assignment]
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: True)
    assert train(config, "--run.output", tmp_path / "a", "--run.trackers", "[wandb]") == 1
    message = capsys.readouterr().err
    assert "wandb, which run.trackers names, cannot start: RuntimeError: no API key" in message
    assert "WANDB_MODE=offline" in message
    assert train("--resume", tmp_path / "a", "--run.trackers", "[]") == 0
