"""Checkpoints of a run: one safetensors file each, whole or absent, checked when it is read.

Tensors are the file's tensors; everything else is JSON in its header, beside the SHA-256 of both.
Nothing is pickled, so reading a file cannot run code of it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from .files import FileProblem, write

FORMAT = "r2kd checkpoint 1"
_NAME = re.compile(r"step-(\d{9})\.safetensors")


class Checkpoint(NamedTuple):
    """Tensors by name, and values that JSON can hold."""

    tensors: dict[str, Tensor]
    values: dict[str, Any]


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint in one step: after a crash or a full disk the old file is there, or none.

    Raises:
        FileProblem: it cannot be written.
        ValueError: a value is NaN or infinite, or nothing that JSON has.
    """
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in checkpoint.tensors.items():
        own = tensor.detach().cpu().contiguous()
        # Tied weights share memory; safetensors wants each on its own.
        if own.untyped_storage().data_ptr() in seen:
            own = own.clone()
        seen.add(own.untyped_storage().data_ptr())
        tensors[name] = own
    values = json.dumps(checkpoint.values, allow_nan=False)
    header = {"format": FORMAT, "values": values, "sha256": _digest(tensors, values)}
    write(path, safetensors.torch.save(tensors, header))


def load(path: Path) -> Checkpoint:
    """Read what `save` wrote, onto the CPU.

    Raises FileProblem where the file is missing, truncated, changed or of another kind.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise FileProblem(
                    f"{path} is no checkpoint of this version: its format is "
                    f"{header.get('format')!r} in place of {FORMAT!r}"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if _digest(tensors, header["values"]) != header["sha256"]:
            raise FileProblem(f"{path} is damaged: its content does not have its SHA-256")
        return Checkpoint(tensors, json.loads(header["values"]))
    except FileNotFoundError as error:
        raise FileProblem(f"{path} is missing") from error
    except (OSError, safetensors.SafetensorError, KeyError, ValueError) as error:
        raise FileProblem(f"{path} is damaged: {error}") from error


def _digest(tensors: Mapping[str, Tensor], values: str) -> str:
    """SHA-256 of the JSON and of every tensor's name, kind, shape and bytes, in order of name."""
    digest = hashlib.sha256(values.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


class Checkpoints:
    """The checkpoints of a run in their folder, by step; the newest `keep` stay.

    At least 2: the one before is what is left where the newest cannot be read.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        if keep < 2:
            raise ValueError(f"keep must be at least 2, got {keep}")
        self.folder, self.keep = folder, keep

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:09d}.safetensors"

    def paths(self) -> list[Path]:
        """All checkpoints, the newest first."""
        if not self.folder.is_dir():
            return []
        return sorted((p for p in self.folder.iterdir() if _NAME.fullmatch(p.name)), reverse=True)

    def save(self, step: int, checkpoint: Checkpoint) -> Path:
        """Write the checkpoint of `step`; then drop the oldest ones.

        Nothing is dropped before the new one is whole on the disk, which must therefore have room
        for `keep` + 1. Raises FileProblem where it cannot be written; the others stay.
        """
        path = self.path(step)
        try:
            self.folder.mkdir(exist_ok=True)
            save(path, checkpoint)
        except FileProblem as error:
            raise FileProblem(f"{error}. {self._last_good()}") from error
        except OSError as error:
            raise FileProblem(f"cannot create {self.folder}: {error.strerror}") from error
        for old in self.paths()[self.keep :]:
            old.unlink(missing_ok=True)
        return path

    def load_newest(self) -> Checkpoint | None:
        """The newest checkpoint; None where there is none.

        Also removes what writers that were killed left behind. Raises FileProblem where the newest
        is damaged; the message names the newest one that is not, and how to go on from it.
        """
        for left in self.folder.glob(".step-*.tmp"):
            left.unlink(missing_ok=True)
        paths = self.paths()
        if not paths:
            return None
        try:
            return load(paths[0])
        except FileProblem as error:
            raise FileProblem(f"{error}. {self._offer(paths)}") from error

    def _offer(self, paths: list[Path]) -> str:
        damaged = [paths[0]]
        for path in paths[1:]:
            try:
                load(path)
            except FileProblem:
                damaged.append(path)
                continue
            names = " and ".join(str(path) for path in damaged)
            return f"The one before, {path}, is whole: delete {names}, and --resume goes on there"
        return "No other checkpoint of this run is whole: start a new run without --resume"

    def _last_good(self) -> str:
        paths = self.paths()
        if not paths:
            return "There is no checkpoint before it"
        return f"The last good checkpoint is {paths[0]}"
