"""Networks in safetensors files, with what is needed to build them again."""

from __future__ import annotations

from pathlib import Path

import safetensors
import safetensors.torch
from safetensors import SafetensorError
from torch import nn

from .. import models
from .files import FileProblem, write


def save_network(path: Path, network: nn.Module, name: str, num_classes: int) -> None:
    """Write the state of a network as safetensors; `name` and `num_classes` are what
    `models.create` takes, kept as metadata for `load_network`."""
    state = {key: tensor.contiguous() for key, tensor in network.state_dict().items()}
    metadata = {"model": name, "num_classes": str(num_classes)}
    write(path, safetensors.torch.save(state, metadata))


def load_network(path: Path) -> nn.Module:
    """The network that `save_network` wrote, in eval mode.

    Raises FileProblem where the file is missing, damaged or not of this kind.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        network = models.create(metadata["model"], int(metadata["num_classes"]))
        network.load_state_dict(state)
    except FileNotFoundError as error:
        raise FileProblem(f"{path} is missing") from error
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise FileProblem(f"{path} does not hold a network of this package: {error}") from error
    return network.eval()
