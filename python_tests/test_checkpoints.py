"""`models.load` of files that others have written."""

from __future__ import annotations

import argparse
import os
import pickle
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from r2kd_ext import models

pytestmark = pytest.mark.usefixtures("one_thread")

NAME, CLASSES = "resnet8", 7


def make() -> nn.Module:
    torch.manual_seed(5)
    network = models.create(NAME, CLASSES)
    network(torch.randn(4, 3, 32, 32))  # moves the running statistics
    return network


def _training_state(network: nn.Module) -> dict[str, Any]:
    """As training scripts keep it: options, optimiser, and accuracies of several kinds."""
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    network(torch.randn(4, 3, 32, 32)).sum().backward()
    optimizer.step()
    return {
        "opt": argparse.Namespace(model=NAME, lr_decay_epochs=[150, 180], lr=0.05),
        "epoch": 240,
        "model": network.state_dict(),
        "best_acc": np.float64(72.5),
        "best_epoch": np.int64(238),
        "accuracy": [np.float32(70.0), torch.tensor(72.5)],
        "optimizer": optimizer.state_dict(),
    }


WRITERS: dict[str, Callable[[nn.Module, Path], object]] = {
    "bare.pth": lambda network, path: torch.save(network.state_dict(), path),
    "plain.pth": lambda network, path: torch.save(dict(network.state_dict()), path),
    "training.pth": lambda network, path: torch.save(_training_state(network), path),
    "legacy.pth": lambda network, path: torch.save(
        {"model": network.state_dict()}, path, _use_new_zipfile_serialization=False
    ),
    "weights.safetensors": lambda network, path: safetensors.torch.save_file(
        network.state_dict(), path
    ),
}


@pytest.mark.parametrize("file", WRITERS)
@pytest.mark.parametrize("as_text", [False, True])
def test_loads(file: str, as_text: bool, tmp_path: Path) -> None:
    network, path = make(), tmp_path / file
    WRITERS[file](network, path)
    loaded = models.load(NAME, str(path) if as_text else path, CLASSES)
    want = network.state_dict()
    assert list(loaded.state_dict()) == list(want)
    assert all(torch.equal(value, want[key]) for key, value in loaded.state_dict().items())
    assert not any(module.training for module in loaded.modules())
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded(x), network.eval()(x))


def test_half_precision_is_widened(tmp_path: Path) -> None:
    network, path = make().half(), tmp_path / "half.pth"
    torch.save(network.state_dict(), path)
    loaded = models.load(NAME, path, CLASSES)
    assert all(p.dtype == torch.float32 for p in loaded.parameters())
    assert torch.equal(loaded.get_parameter("fc.weight"), network.get_parameter("fc.weight"))


def _without(*keys: str) -> Callable[[dict[str, Any]], None]:
    def change(state: dict[str, Any]) -> None:
        for key in keys:
            del state[key]

    return change


def _with(**entries: Any) -> Callable[[dict[str, Any]], None]:
    return lambda state: state.update(entries)


def _renamed(state: dict[str, Any]) -> None:
    for key in list(state):
        state[f"module.{key}"] = state.pop(key)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (_without("fc.bias"), ["missing: fc.bias"]),
        (_with(extra=torch.ones(1)), ["unexpected: extra"]),
        (
            _with(**{"fc.weight": torch.ones(100, 64)}),
            ["of the wrong shape or kind: fc.weight ((100, 64) in place of (7, 64))"],
        ),
        (_with(**{"fc.bias": [0.0] * 7}), ["fc.bias (a list in place of a tensor)"]),
        (
            lambda state: (_without("bn1.bias")(state), _with(a=torch.ones(1))(state)),
            ["missing: bn1.bias; unexpected: a"],
        ),
        (_renamed, ["missing: conv1.weight, ", " and 51 more; unexpected: module.conv1.weight, "]),
    ],
)
def test_what_does_not_fit_is_named(
    change: Callable[[dict[str, Any]], object], parts: list[str], tmp_path: Path
) -> None:
    state, path = dict(make().state_dict()), tmp_path / "weights.pth"
    change(state)
    torch.save({"model": state}, path)
    with pytest.raises(ValueError, match="does not fit resnet8 with 7 classes; ") as caught:
        models.load(NAME, path, CLASSES)
    assert str(path) in str(caught.value)
    assert all(part in str(caught.value) for part in parts)


class _Runs:
    """Unpickling this makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.folder),))


@pytest.mark.parametrize("legacy", [False, True])
def test_no_code_of_the_file_runs(legacy: bool, tmp_path: Path) -> None:
    path, made = tmp_path / "weights.pth", tmp_path / "made"
    content = {"model": make().state_dict(), "payload": _Runs(made)}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match="cannot be read as a checkpoint of tensors") as caught:
        models.load(NAME, path, CLASSES)
    assert "\n" not in str(caught.value)
    plain = tmp_path / "plain.pickle"
    plain.write_bytes(pickle.dumps(content["payload"], protocol=2))
    with pytest.raises(ValueError, match="cannot be read"):
        models.load(NAME, plain, CLASSES)
    assert not made.exists()
    pickle.loads(plain.read_bytes())
    assert made.exists()  # so the file was one that runs code


@pytest.mark.parametrize("content", [torch.ones(3), [1, 2], {}, {"model": {}}])
def test_no_state_dict(content: Any, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    with pytest.raises(ValueError, match="must hold a state dict, or a dict whose entry"):
        models.load(NAME, path, CLASSES)


@pytest.mark.parametrize("file", ["weights.pth", "weights.safetensors"])
@pytest.mark.parametrize("content", [b"", b"no weights", b"\x80\x02}", bytes(range(256)) * 9])
def test_damaged_file(file: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / file
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        models.load(NAME, path, CLASSES)


@pytest.mark.parametrize("file", WRITERS)
def test_truncated_file(file: str, tmp_path: Path) -> None:
    path = tmp_path / file
    WRITERS[file](make(), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=re.escape(str(path))):
        models.load(NAME, path, CLASSES)


@pytest.mark.parametrize("file", ["bare.pth", "legacy.pth", "weights.safetensors"])
def test_changed_bytes(file: str, tmp_path: Path) -> None:
    """Whatever they break, the error names the file. Most seeds change names, sizes or opcodes."""
    path = tmp_path / file
    WRITERS[file](make(), path)
    whole, refused = path.read_bytes(), 0
    for seed in range(60):
        draw, changed = random.Random(seed), bytearray(whole)
        for _ in range(3):
            changed[draw.randrange(5000)] = draw.randrange(256)
        path.write_bytes(changed)
        try:
            models.load(NAME, path, CLASSES)
        except ValueError as error:
            refused += str(path) in str(error)
    assert refused > 30


@pytest.mark.parametrize("file", ["weights.pth", "weights.safetensors"])
def test_no_such_file(file: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="weights"):
        models.load(NAME, tmp_path / file, CLASSES)


def test_a_weight_of_the_network_is_its_own(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(make().state_dict(), path)
    first, second = (models.load(NAME, path, CLASSES) for _ in range(2))
    weights: list[Tensor] = [net.get_parameter("fc.weight") for net in (first, second)]
    assert weights[0].data_ptr() != weights[1].data_ptr()
