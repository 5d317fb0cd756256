"""Networks of the trainer: by name, by import path, from timm, with checkpoints."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from r2kd_ext import models
from r2kd_ext.train.config import ModelConfig
from r2kd_ext.train.files import FileProblem
from r2kd_ext.train.networks import create, load_network, save_network

OWN = """
import torch

def student(num_classes):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, num_classes))

def number(num_classes):
    return num_classes

def fails(num_classes):
    raise RuntimeError("no such thing")

constant = 3
"""


@pytest.fixture(autouse=True)
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    package = tmp_path / "own_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "models.py").write_text(OWN)
    (package / "broken.py").write_text("import nothing_of_this_name\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "own_package"]:
        del sys.modules[name]


def test_zoo() -> None:
    torch.manual_seed(3)
    found = create(ModelConfig("resnet8"), 5)
    torch.manual_seed(3)
    expected = models.create("resnet8", 5)
    assert found.state_dict().keys() == expected.state_dict().keys()
    assert all(torch.equal(v, expected.state_dict()[k]) for k, v in found.state_dict().items())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet65", "there is no network 'resnet65'; did you mean resnet56"),
        ("mobilenetv2", "there is no network 'mobilenetv2'; did you mean MobileNetV2"),
        ("qqqqqq", "there is no network 'qqqqqq'; known are"),
        ("own_package.models:studnet", "no function 'studnet'; did you mean student"),
        ("own_package.models:constant", "no function 'constant'"),
        ("own_package.nothing:student", "cannot import own_package.nothing"),
        ("own_package.broken:student", "ModuleNotFoundError: No module named 'nothing_of_this"),
        ("own_package.models:number", "must return a torch.nn.Module for 7 classes, got int"),
        ("own_package.models:fails", "failed when called with 7.*RuntimeError: no such thing"),
        ("own_package.models:", 'must be named "package.module:function", got \'own_package'),
        ("timm:resnet34", "timm:resnet34 needs the package timm: pip install timm"),
    ],
)
def test_names_that_do_not_work(name: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)  # as where it is not installed
    with pytest.raises(ValueError, match=message):
        create(ModelConfig(name), 7)


def test_what_timm_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def create_model(name: str, **settings: Any) -> nn.Module:
        asked.append((name, settings))
        if settings["pretrained"]:
            raise OSError("cannot reach the hub\nand more")
        return nn.Linear(2, settings["num_classes"])

    fake = types.SimpleNamespace(list_models=lambda: ["resnet34", "vit"], create_model=create_model)
    monkeypatch.setitem(sys.modules, "timm", fake)
    network = create(ModelConfig("timm:resnet34.some_tag"), 7)
    assert isinstance(network, nn.Linear)
    assert asked == [("resnet34.some_tag", {"pretrained": False, "num_classes": 7})]
    with pytest.raises(ValueError, match="timm has no model 'resnet43'; did you mean resnet34"):
        create(ModelConfig("timm:resnet43"), 7)
    with pytest.raises(FileProblem) as caught:
        create(ModelConfig("timm:vit", pretrained=True), 7)
    message = "timm cannot make vit with its own weights: OSError: cannot reach the hub"
    assert str(caught.value) == message


def test_own_network() -> None:
    network = create(ModelConfig("own_package.models:student"), 7)
    assert network(torch.ones(2, 3, 2, 2)).shape == (2, 7)


def test_own_network_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "models_of_mine.py").write_text(OWN)
    with pytest.raises(ValueError, match="cannot import models_of_mine"):
        create(ModelConfig("models_of_mine:student"), 7)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != ""])
    before = list(sys.path)
    network = create(ModelConfig("models_of_mine:student"), 7)
    assert network(torch.ones(2, 3, 2, 2)).shape == (2, 7)
    assert sys.path == before
    del sys.modules["models_of_mine"]


def test_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def create_model(name: str, pretrained: bool, num_classes: int) -> nn.Module:
        calls.append((name, pretrained, num_classes))
        return nn.Linear(2, num_classes)

    timm = types.ModuleType("timm")
    timm.list_models = lambda: ["resnet18", "resnet34"]  # type: ignore[attr-defined]
    timm.create_model = create_model  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "timm", timm)
    create(ModelConfig("timm:resnet34"), 7)
    create(ModelConfig("timm:resnet18.a1_in1k", pretrained=True), 1000)
    assert calls == [("resnet34", False, 7), ("resnet18.a1_in1k", True, 1000)]
    with pytest.raises(ValueError, match="timm has no model 'resnet43'; did you mean resnet34"):
        create(ModelConfig("timm:resnet43"), 7)


@pytest.mark.parametrize("ending", ["safetensors", "pth"])
@pytest.mark.parametrize("name", ["resnet8", "own_package.models:student"])
def test_checkpoint(tmp_path: Path, ending: str, name: str) -> None:
    source = create(ModelConfig(name), 7)
    path = tmp_path / f"weights.{ending}"
    if ending == "pth":
        torch.save({"model": source.state_dict(), "epoch": 3}, path)
    else:
        safetensors.torch.save_file(source.state_dict(), path)
    found = create(ModelConfig(name, str(path)), 7)
    assert all(torch.equal(v, source.state_dict()[k]) for k, v in found.state_dict().items())
    with pytest.raises(ValueError, match=f"does not fit {name} with 8 classes; of the wrong shape"):
        create(ModelConfig(name, str(path)), 8)


def test_checkpoints_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FileProblem, match=r"there is no checkpoint .*nothing\.pth for"):
        create(ModelConfig("resnet8", str(tmp_path / "nothing.pth")), 7)
    path = tmp_path / "evil.pth"
    torch.save({"model": {"a": Path("x")}}, path)  # a pickle that would have to run code
    with pytest.raises(ValueError, match="cannot be read as a checkpoint of tensors"):
        create(ModelConfig("resnet8", str(path)), 7)


def test_saved_networks(tmp_path: Path) -> None:
    path = tmp_path / "student.safetensors"
    network = create(ModelConfig("resnet8"), 7)
    save_network(path, network, "resnet8", 7)
    found = load_network(path)
    assert not found.training
    assert all(torch.equal(v, network.state_dict()[k]) for k, v in found.state_dict().items())

    name = "own_package.models:student"
    own = create(ModelConfig(name), 7)
    save_network(path, own, name, 7)
    images = torch.rand(2, 3, 2, 2)
    assert torch.equal(load_network(path, name)(images), own(images))
    # A file alone does not make code of others run.
    with pytest.raises(FileProblem, match="does not hold a network of this package"):
        load_network(path)


def test_saving_tied_weights(tmp_path: Path) -> None:
    network = models.create("resnet8", 7)
    network.register_parameter("copy", network.get_parameter("fc.bias"))
    save_network(tmp_path / "tied.safetensors", network, "resnet8", 7)
    stored = safetensors.torch.load_file(tmp_path / "tied.safetensors")
    assert torch.equal(stored["copy"], stored["fc.bias"])
