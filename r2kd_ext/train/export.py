"""A trained student for use elsewhere: safetensors, and ONNX that is checked by running it."""

from __future__ import annotations

import json
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from .augment import Augment
from .config import Config
from .evaluate import find
from .files import new_folder, write
from .networks import load_network, save_network

ONNX, SAFETENSORS = "student.onnx", "student.safetensors"
INPUT, OUTPUT = "images", "logits"
# Of the largest logit. Convolutions of another library round otherwise, and add up.
TOLERANCE = 1e-4
_CHECKED_BATCHES = (1, 2, 5)


class ExportFailed(Exception):
    """The network cannot be exported, or the exported one does not compute what it did."""


class Exported(NamedTuple):
    """The folder with both files, and the largest difference of a logit that the check found,
    relative to the largest logit."""

    folder: Path
    difference: float


def export(place: Path, config: Path | None, output: Path) -> Exported:
    """Write a student as `SAFETENSORS` and `ONNX` into a new folder.

    The ONNX network takes "images" (B, 3, H, H), float32, normalised as in training, of any B, and
    returns "logits" (B, C). Its metadata say what the network is, the image size H and, where the
    configuration has them, mean and standard deviation. It is run in ONNX Runtime on random images
    before it is written.

    Args:
        place, config: as in `evaluate.find`.
        output: the folder; where it exists, the first free of output-2, output-3, ...

    Raises:
        What `find` and `load_network` raise.
        ExportFailed: the network cannot be traced, or differs from the one in torch by more than
            `TOLERANCE`.
    """
    settings, path = find(place, config)
    network = load_network(path, settings.student.name)
    size = Augment(settings.augment, settings.data.image_size, (0.0,) * 3, (1.0,) * 3).crop_size
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(count, 3, size, size, generator=generator) for count in _CHECKED_BATCHES]
    with torch.no_grad():
        try:
            expected = [network(batch) for batch in batches]
        except (RuntimeError, ValueError) as error:
            raise ExportFailed(
                f"{settings.student.name} does not take images (B, 3, {size}, {size}): {error}"
            ) from error
    model = to_onnx(network, size, settings)
    difference = check(model, batches, expected)
    folder = new_folder(output)
    classes = expected[0].shape[1]
    save_network(folder / SAFETENSORS, network, settings.student.name, classes)
    write(folder / ONNX, model)
    return Exported(folder, difference)


def to_onnx(network: nn.Module, size: int, config: Config) -> bytes:
    """The ONNX file of `network` for images of `size` pixels; raises ExportFailed."""
    example = torch.zeros(2, 3, size, size)  # of 2, since torch takes a dimension of 1 as fixed
    with tempfile.TemporaryDirectory() as folder, _quiet():
        path = Path(folder) / ONNX
        try:
            program = torch.onnx.export(
                network,
                (example,),
                dynamo=True,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
            assert program is not None
            program.save(path, external_data=False)
        except Exception as error:  # of torch.export, whose kinds are many
            reason = (str(error).strip().splitlines() or [""])[0]
            raise ExportFailed(
                f"torch cannot export {config.student.name} to ONNX: "
                f"{type(error).__name__}: {reason}"
            ) from error
        model = onnx.load(path)
    facts: dict[str, Any] = {"network": config.student.name, "image_size": size}
    if config.data.mean:
        facts |= {"mean": list(config.data.mean), "std": list(config.data.std)}
    for key, value in facts.items():
        text = value if isinstance(value, str) else json.dumps(value)
        model.metadata_props.add(key=key, value=text)
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString()
    return content


def check(model: bytes, batches: list[Tensor], expected: list[Tensor]) -> float:
    """Run an ONNX file in ONNX Runtime; the largest difference from `expected`, relative to the
    largest logit. Raises ExportFailed where it is above `TOLERANCE`, or is NaN."""
    try:
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        found = [session.run([OUTPUT], {INPUT: batch.numpy()})[0] for batch in batches]
    except Exception as error:  # ONNX Runtime's own kinds are not public
        reason = (str(error).strip().splitlines() or [""])[0]
        raise ExportFailed(f"ONNX Runtime cannot run the exported network: {reason}") from error
    largest = 0.0
    for ours, theirs in zip(expected, found, strict=True):
        if theirs.shape != tuple(ours.shape):
            raise ExportFailed(
                f"the exported network gives logits {theirs.shape} for {tuple(ours.shape)} in torch"
            )
        scale = max(float(ours.abs().max()), 1e-6)
        largest = float(np.maximum(largest, np.abs(theirs - ours.numpy()).max() / scale))
    if not largest <= TOLERANCE:
        raise ExportFailed(
            f"the exported network differs from torch by {largest:.2g} of the largest logit in "
            f"ONNX Runtime; at most {TOLERANCE:g} is accepted"
        )
    return largest


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress and the advice of the exporter; what fails is raised."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
