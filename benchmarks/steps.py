"""Training steps as contenders: the published one and that of `r2kd train`, whole and by part."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import limits
import numpy as np
import published
import torch
from accelerate import Accelerator
from harness import (
    LEAST_TURNS,
    Budget,
    Call,
    Case,
    Row,
    peaks_of,
    time_in_turns,
    time_with_rates,
)
from PIL import Image
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from r2kd_ext import models
from r2kd_ext._dtypes import processor_has_bfloat16
from r2kd_ext.bench.machine import machine
from r2kd_ext.bench.results import Work, rows_of
from r2kd_ext.bench.timing import timing_of
from r2kd_ext.train.config import (
    AugmentConfig,
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
)
from r2kd_ext.train.engine import Engine
from r2kd_ext.train.run import processes
from r2kd_ext.train.screen import Screen
from r2kd_ext.train.timing import PARTS, Parts

ROLES = {
    "ours": "ours", "published": "reference", "ours, teacher in bfloat16": "peer",
    "ours in bfloat16": "peer",
}  # fmt: skip


class Pair(NamedTuple):
    """Networks by name, and the images of their step."""

    teacher: str
    student: str
    classes: int
    batch: int
    size: int


def write_images(folder: Path, pair: Pair) -> None:
    """Noise as a folder of PNG files: one image a class for training, one for validation."""
    rng = np.random.default_rng(1)
    for split in ("train", "test"):
        for label in range(pair.classes):
            place = folder / split / f"class-{label:03d}"
            place.mkdir(parents=True)
            pixels = rng.integers(0, 256, (pair.size, pair.size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place / "image.png")


def trainer(
    folder: Path, pair: Pair, precision: Any, teacher_dtype: Any, parts: Parts
) -> Callable[[int], object]:
    """The step of `r2kd train`, with what reads the images left out."""
    config = Config(
        data=DataConfig(name="folder", path=str(folder), image_size=pair.size, workers=0),
        teacher=ModelConfig(pair.teacher),
        student=ModelConfig(pair.student),
        augment=AugmentConfig(view="cutmix", crop_padding=pair.size // 8),
        optimizer=OptimizerConfig(batch_size=pair.batch),
        run=RunConfig(precision=precision, teacher_dtype=teacher_dtype),
    )
    with processes(config) as accelerator:
        engine = Engine(config, accelerator, Screen(Console(), shown=False), parts)
    batches = list(engine._batches())[:2]
    engine._module.train()

    def step(call: int) -> None:
        if engine._sampler.batch == engine._sampler.batches:
            engine._sampler.next_epoch()
        engine._train_step(batches[call % len(batches)])

    return step


@contextmanager
def contenders_of(
    pair: Pair, *, unlimited: bool = False
) -> Iterator[tuple[dict[str, Call], dict[str, Parts]]]:
    """The steps by name, and where each counts its parts.

    A teacher in bfloat16 takes part where the processor has instructions for it, and in an
    `unlimited` time on others, where it computes in float32; a student in bfloat16 on the first
    alone.
    """
    torch.manual_seed(1)
    np.random.seed(1)
    parts: dict[str, Parts] = {}

    def counted(name: str) -> Parts:
        return parts.setdefault(name, Parts(torch.device("cpu")))

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder, pair)
        ours = partial(trainer, folder, pair)
        found: dict[str, Call] = {
            "ours": ours("fp32", "fp32", counted("ours")),
            "published": published.step(*pair, counted("published")),
        }
        has_bfloat16 = processor_has_bfloat16()
        for name, precision, takes_part in (
            ("ours, teacher in bfloat16", "fp32", has_bfloat16 or unlimited),
            ("ours in bfloat16", "bf16", has_bfloat16),
        ):
            if takes_part:
                found[name] = ours(precision, "bf16", counted(name))
        for counting in parts.values():
            counting.steps.clear()
            counting._now.clear()
        Accelerator(cpu=True)  # its state, which all of them share, ended with the last one
        yield found, parts


@cache
def network_work(name: str, classes: int, size: int, *, trained: bool) -> limits.Network:
    """What a network multiplies and adds for an image, backwards, too, if it is trained."""
    with torch.device("meta"):  # the shapes alone matter
        network = models.create(name, classes)
        images = torch.zeros(2, 3, size, size)
    weights = sum(weight.numel() for weight in network.parameters())
    if not trained:
        return limits.Network(weights, limits.multiplications(network, images))
    with FlopCounterMode(display=False) as counter:
        logits = network(images)
        forward = counter.get_total_flops()
        logits.sum().backward()
    backward = counter.get_total_flops() - forward
    # Two operations each, of two images: a batch norm cannot train on one.
    return limits.Network(weights, forward // 4, backward // 4)


def works(pair: Pair) -> dict[str, Work]:
    """The least work of each part of the step."""
    networks = (
        network_work(name, pair.classes, pair.size, trained=name == pair.student)
        for name in (pair.teacher, pair.student)
    )
    return limits.step(pair.batch, 3 * pair.size**2, pair.classes, *networks)


def _turns_by_part(parts: Mapping[str, Parts], count: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of the last steps by part and contender; parts that a contender has in no step are
    left out."""
    found: dict[str, dict[str, list[float]]] = {}
    for name, counting in parts.items():
        steps = counting.steps[-count:]
        for part in PARTS:
            if all(part in step for step in steps):
                found.setdefault(part, {})[name] = [step[part] for step in steps]
    return found


def host_times(pair: Pair, *, unlimited: bool) -> dict[str, dict[str, float]]:
    """Seconds of the calls themselves: of the step ("step") and of its parts, by contender, on 2
    images of 4 x 4."""
    least = pair._replace(batch=2, size=4)
    with contenders_of(least, unlimited=unlimited) as (contenders, parts):
        timings = time_in_turns(contenders, turns=LEAST_TURNS, warm_up=0, seconds_per_turn=1e-9)
        turns = _turns_by_part(parts, LEAST_TURNS)
    found = {"step": {name: timing.median for name, timing in timings.items()}}
    for part, of_part in turns.items():
        found[part] = {name: median(seconds) for name, seconds in of_part.items()}
    return found


def measure_pair(
    pair: Pair, turns: int, seconds: float, *, by_part: bool = False, with_host: bool = False
) -> list[Row]:
    """The rows of a pair's step, and of its parts and with the calls' own time, if asked for."""
    budget = Budget(seconds, 1)
    unlimited = math.isinf(seconds)
    host = host_times(pair, unlimited=unlimited) if with_host else {}
    roles = {"copy": "unit", **ROLES}
    work = works(pair)
    shape = (pair.batch, 3, pair.size, pair.size)
    variant = f"{pair.teacher} to {pair.student}"
    case = Case("step", shape, "float32", work["step"], roles, variant=variant, inputs="resident")
    with contenders_of(pair, unlimited=unlimited) as (contenders, parts):
        copied = 2 * pair.batch * 3 * pair.size**2
        # So short that each turn is one call: that of the parts.
        timings, rates = time_with_rates(
            contenders, turns=min(turns, LEAST_TURNS), seconds=budget.left(),
            copied=copied, warm_up=0, seconds_per_turn=1e-9, resident=True,
        )  # fmt: skip
        by_parts = _turns_by_part(parts, len(timings["ours"].turns))
        peaks = peaks_of(contenders, timings)
    origin = machine()
    rows = rows_of(case, timings, rates, origin, host.get("step"), peaks)
    for part in PARTS if by_part else ():
        if part in by_parts:
            of_part = {name: timing_of(found) for name, found in by_parts[part].items()}
            case_of_part = case._replace(op=f"step: {part}", work=work[part])
            rows += rows_of(case_of_part, of_part, rates, origin, host.get(part))
    return rows
