"""Where a run's figures go: metrics.csv and metrics.jsonl, TensorBoard, Weights & Biases."""

from __future__ import annotations

import csv
import importlib
import importlib.util
import io
import json
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from .files import FileProblem, write


def check(names: Sequence[str]) -> None:
    """Raise FileProblem where a tracker that is asked for is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise FileProblem(
                f"run.trackers names {name}, which is not installed: pip install 'r2kd_ext[{name}]'"
            )


def write_course(folder: Path, course: Sequence[Mapping[str, Any]]) -> None:
    """Write metrics.csv and metrics.jsonl: one row for each epoch so far.

    Raises FileProblem where they cannot be written.
    """
    names = list(dict.fromkeys(name for row in course for name in row))
    text = io.StringIO()
    table = csv.DictWriter(text, names, lineterminator="\n")
    table.writeheader()
    table.writerows(course)
    write(folder / "metrics.csv", text.getvalue())
    lines = (json.dumps(row, allow_nan=False) + "\n" for row in course)
    write(folder / "metrics.jsonl", "".join(lines))


def _start_wandb(folder: Path, config: Mapping[str, Any]) -> Any:
    """A run of W&B; the same one each time that the run in `folder` goes on."""
    wandb = importlib.import_module("wandb")
    known = folder / "wandb-id"
    if not known.exists():
        write(known, secrets.token_hex(8))
    try:
        return wandb.init(
            project="r2kd_ext",
            name=folder.name,
            dir=str(folder),
            config=dict(config),
            id=known.read_text(encoding="utf-8"),
            resume="allow",
        )
    except Exception as error:  # of the network, the account or its own kinds
        reason = (str(error).strip().splitlines() or [""])[0].rstrip(".")
        raise FileProblem(
            f"wandb, which run.trackers names, cannot start: {type(error).__name__}: {reason}. "
            "Log in by `wandb login`, set WANDB_MODE=offline, or leave it out"
        ) from error


class Trackers:
    """TensorBoard in FOLDER/tensorboard, and what else is named in `names`.

    Args:
        folder: of the run.
        names: see `RunConfig.trackers`.
        config: shown beside the run where the tracker has a place for it.
        step: what was logged after it is dropped, since it comes again.

    Raises FileProblem where a tracker is missing or cannot start.
    """

    def __init__(
        self, folder: Path, names: Sequence[str], config: Mapping[str, Any], step: int
    ) -> None:
        check(names)
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        self._wandb: Any = None
        if "wandb" in names:
            self._wandb = _start_wandb(folder, config)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Add scalars at a step."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(dict(values), step=step)

    def close(self) -> None:
        self._writer.close()
        if self._wandb is not None:
            self._wandb.finish()
