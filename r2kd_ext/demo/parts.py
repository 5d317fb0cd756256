"""Finished parts of a run, kept in its folder so that an interrupted run can go on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from torch import nn

from ..train.files import FileProblem, read_json, write_json
from ..train.networks import load_network, save_network
from .loop import Epoch


class Part(NamedTuple):
    """One trained network, in eval mode."""

    network: nn.Module
    course: list[Epoch]
    seconds: float  # of training


def obtain(
    folder: Path, name: str, model: str, num_classes: int, train: Callable[[], Part]
) -> tuple[Part, bool]:
    """The part called `name`, and whether it was there: restored from `folder` or trained now.

    A part is two files: `name`.safetensors, and `name`.json, which is written last, so a part
    without it counts as not finished. What is used further is always what was read back from the
    files; so a run that is interrupted and goes on computes with the same numbers.

    Raises FileProblem where the files are damaged or cannot be written.
    """
    weights, record = folder / f"{name}.safetensors", folder / f"{name}.json"
    found = record.exists()
    if not found:
        part = train()
        save_network(weights, part.network, model, num_classes)
        write_json(
            record,
            {
                "seconds": part.seconds,
                "sha256": _sha256(weights),
                "course": [epoch._asdict() for epoch in part.course],
            },
        )
    content = read_json(record)
    try:
        if content["sha256"] != _sha256(weights):
            raise FileProblem(
                f"{weights} is not the file that {record.name} was written for: "
                f"delete both, and --resume trains this part again"
            )
        course = [Epoch(**epoch) for epoch in content["course"]]
        return Part(load_network(weights), course, float(content["seconds"])), found
    except (KeyError, TypeError, ValueError) as error:
        raise FileProblem(
            f"{record} is damaged ({error!r}): delete it, and --resume trains this part again"
        ) from error


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise FileProblem(f"cannot read {path}: {error.strerror}") from error
