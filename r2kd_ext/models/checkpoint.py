"""Networks with the weights of a checkpoint file."""

from __future__ import annotations

import argparse
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .registry import create

_LISTED = 5  # names that an error lists of each kind

# What training scripts keep beside the weights: their options, and accuracies as numpy scalars.
# None of them can run code when it is unpickled.
_HARMLESS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *{type(np.dtype(kind)) for kind in ("f4", "f8", "i8")},
    # numpy 1 and 2 pickle the same function by these names
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),
    (np.float64(0).__reduce__()[0], "numpy._core.multiarray.scalar"),
]


def load(name: str, path: str | PathLike[str], num_classes: int) -> nn.Module:
    """The network `create(name, num_classes)` with the weights of a file, float32, in eval mode.

    A file whose name ends in ".safetensors" is read as such (needs the package safetensors); any
    other as `torch.save` wrote it, by the unpickler that runs no code of the file
    (`weights_only=True`). It holds a state dict, or a dict whose entry "model" is one; other
    entries are ignored.

    Args:
        name, num_classes: as in `create`.
        path: the file.

    Raises:
        What `create` raises; OSError where the file cannot be read; ValueError where it holds no
        state dict, or one that does not fit: the error names what is missing, unexpected or of the
        wrong shape.
    """
    network = create(name, num_classes)
    load_into(network, path, f"{name} with {num_classes} classes")
    return network.eval()


def load_into(network: nn.Module, path: str | PathLike[str], title: str) -> None:
    """Give `network` the weights of a file such as `load` takes; `title` names it in errors.

    Raises OSError and ValueError, as `load` does.
    """
    file = Path(path)
    state = _safetensors(file) if file.suffix == ".safetensors" else _pickled(file)
    _check(state, network.state_dict(), f"{file} does not fit {title}")
    network.load_state_dict(state)


def _safetensors(file: Path) -> dict[str, Tensor]:
    import safetensors.torch

    try:
        return safetensors.torch.load(file.read_bytes())
    except safetensors.SafetensorError as error:
        raise ValueError(f"{file} is no safetensors file: {error}") from error


def _pickled(file: Path) -> dict[str, Tensor]:
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            content = torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged pickle can raise any
        # Only the first line: the rest of torch's message advises to run the file's code.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{file} cannot be read as a checkpoint of tensors: {reason}") from error
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        content = content["model"]
    if not isinstance(content, dict) or not content:
        raise ValueError(
            f'{file} must hold a state dict, or a dict whose entry "model" is one, '
            f"got {type(content).__name__}"
        )
    return content


def _check(state: dict[str, Tensor], expected: dict[str, Tensor], complaint: str) -> None:
    """Raise ValueError with all that is wrong, if anything is."""
    wrong = []
    for key in expected:
        if key in state and not isinstance(state[key], Tensor):
            wrong.append(f"{key} (a {type(state[key]).__name__} in place of a tensor)")
        elif key in state and state[key].shape != expected[key].shape:
            wrong.append(
                f"{key} ({tuple(state[key].shape)} in place of {tuple(expected[key].shape)})"
            )
    problems = {
        "missing": [key for key in expected if key not in state],
        "unexpected": [str(key) for key in state if key not in expected],
        "of the wrong shape or kind": wrong,
    }
    if any(problems.values()):
        parts = [f"{kind}: {_listed(found)}" for kind, found in problems.items() if found]
        raise ValueError(f"{complaint}; {'; '.join(parts)}")


def _listed(found: list[str]) -> str:
    more = len(found) - _LISTED
    return ", ".join(found[:_LISTED]) + (f" and {more} more" if more > 0 else "")
