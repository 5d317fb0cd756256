"""Networks by name, and networks in safetensors files with what is needed to build them again."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

from .. import models
from ..models.checkpoint import load_into
from .config import ModelConfig
from .files import FileProblem, write

_TIMM = "timm:"


def find(config: ModelConfig) -> Callable[[int], Any]:
    """What makes the network that `config` describes from the number of classes.

    Raises:
        ValueError: no such name (the error has the nearest), no such module or function, or timm is
            missing.
        FileProblem: there is no such checkpoint.
    """
    name = config.name
    if config.checkpoint is not None and not Path(config.checkpoint).is_file():
        raise FileProblem(f"there is no checkpoint {config.checkpoint} for {name}")
    if name.startswith(_TIMM):
        return _of_timm(name.removeprefix(_TIMM), config.pretrained)
    if ":" in name:
        return _imported(name)
    if name in models.names():
        return partial(models.create, name)
    near = _nearest(name, models.names())
    raise ValueError(
        f"there is no network {name!r}{near}; known are {', '.join(models.names())}, "
        '"package.module:function" and "timm:NAME"'
    )


def create(config: ModelConfig, num_classes: int) -> nn.Module:
    """The network that `config` describes: freshly initialised from torch's global random
    generator, or with the weights of its checkpoint.

    Raises:
        ValueError: what `find` raises, a function that fails or returns no module, or a checkpoint
            that does not fit.
        FileProblem: the checkpoint cannot be read, or timm cannot get its weights.
    """
    name = config.name
    network = find(config)(num_classes)
    if not isinstance(network, nn.Module):
        raise ValueError(
            f"{name} must return a torch.nn.Module for {num_classes} classes, "
            f"got {type(network).__name__}"
        )
    if config.checkpoint is not None:
        try:
            load_into(network, config.checkpoint, f"{name} with {num_classes} classes")
        except OSError as error:
            raise FileProblem(
                f"cannot read the checkpoint {config.checkpoint}: {error.strerror or error}"
            ) from error
    return network


def _nearest(name: str, known: list[str]) -> str:
    by_lower = {other.lower(): other for other in known}
    near = difflib.get_close_matches(name.lower(), by_lower, 3, 0.5)
    return f"; did you mean {' or '.join(by_lower[key] for key in near)}?" if near else ""


def _of_timm(name: str, pretrained: bool) -> Callable[[int], Any]:
    try:
        timm = importlib.import_module("timm")
    except ImportError as error:
        raise ValueError(f"{_TIMM}{name} needs the package timm: pip install timm") from error
    known = timm.list_models()
    # "name.tag" chooses among the weights of one architecture.
    if name.partition(".")[0] not in known:
        raise ValueError(f"timm has no model {name!r}{_nearest(name, known)}")

    def make(num_classes: int) -> Any:
        try:
            return timm.create_model(name, pretrained=pretrained, num_classes=num_classes)
        except Exception as error:  # of the network, the hub, or an architecture
            reason = (str(error).strip().splitlines() or [""])[0]
            raise FileProblem(
                f"timm cannot make {name}{' with its own weights' if pretrained else ''}: "
                f"{type(error).__name__}: {reason}"
            ) from error

    return make


@contextmanager
def _current_folder_importable() -> Iterator[None]:
    """As it is for `python -m`, but not for an installed command such as r2kd."""
    folder = os.getcwd()
    if folder in sys.path or "" in sys.path:
        yield
        return
    sys.path.append(folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


@_current_folder_importable()
def _imported(name: str) -> Callable[[int], Any]:
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise ValueError(f'a network must be named "package.module:function", got {name!r}')
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # what a module raises while it is imported can be anything
        raise ValueError(
            f"cannot import {module_name}, named in {name!r}: {type(error).__name__}: {error}"
        ) from error
    function: Callable[[int], Any] | None = getattr(module, attribute, None)
    if not callable(function):
        public = [key for key, value in vars(module).items() if callable(value)]
        raise ValueError(
            f"{module_name} has no function {attribute!r}{_nearest(attribute, public)}"
        )
    return partial(_called, function, name)


@_current_folder_importable()
def _called(function: Callable[[int], Any], name: str, num_classes: int) -> Any:
    try:
        return function(num_classes)
    except Exception as error:
        raise ValueError(
            f"{name} failed when called with {num_classes}, the number of classes: "
            f"{type(error).__name__}: {error}"
        ) from error


def save_network(path: Path, network: nn.Module, name: str, num_classes: int) -> None:
    """Write the state of a network as safetensors; `name` and `num_classes` are what `create`
    takes, kept as metadata for `load_network`."""
    save_state(path, network.state_dict(), name, num_classes)


def save_state(path: Path, state: Mapping[str, Tensor], name: str, num_classes: int) -> None:
    """`save_network` of a network that is there as a state dict alone."""
    # Copies, since safetensors refuses tensors that share memory, as tied weights do.
    copies = {key: tensor.detach().clone().contiguous() for key, tensor in state.items()}
    metadata = {"model": name, "num_classes": str(num_classes)}
    write(path, safetensors.torch.save(copies, metadata))


def load_network(path: Path, name: str | None = None) -> nn.Module:
    """The network that `save_network` wrote, in eval mode.

    Args:
        path: the file.
        name: what `create` takes as a name. None takes the one in the file, if it is a name of
            `r2kd_ext.models`: a file does not say which code of others is run.

    Raises FileProblem where the file is missing, damaged or not of this kind.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        stored, num_classes = metadata["model"], int(metadata["num_classes"])
        if name is None:
            network = models.create(stored, num_classes)
        else:
            network = create(ModelConfig(name), num_classes)
        network.load_state_dict(state)
    except FileNotFoundError as error:
        raise FileProblem(f"{path} is missing") from error
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise FileProblem(f"{path} does not hold a network of this package: {error}") from error
    return network.eval()
