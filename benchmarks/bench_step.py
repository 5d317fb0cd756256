"""One training step of R2KD: the published one in plain PyTorch, and that of `r2kd train`.

ResNet56 teaches ResNet20 on 64 images of 64 x 64 and 200 classes, with cutmix as the augmented
view. The published step is written here as its authors' code computes it: four forwards of
teachers (the pruned one in training mode), two of the student, the loss in eager PyTorch. Its
images come cropped and flipped, as from their loader; `r2kd train` does that within its step.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from harness import machine, parse_options, time_in_turns, write_rows
from PIL import Image
from rich.console import Console
from torch import Tensor, nn

from r2kd_ext import models, prune
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

RESULTS = Path(__file__).parent / "results" / "step_cpu.csv"
TEACHER, STUDENT = "resnet56", "resnet20"
CLASSES, BATCH, SIZE = 200, 64, 64
TEMPERATURE, EPS = 4.0, 1e-8


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + EPS)


def ranks(logits: Tensor) -> Tensor:
    classes = logits.shape[1]
    return (logits.argsort(1).argsort(1).float() + 1) / (classes * (classes + 1) / 2)


def published_kd(student: Tensor, teacher: Tensor) -> Tensor:
    """Value and rank terms of logits [B, C] as published."""
    p, q = (F.softmax(logits / TEMPERATURE, 1) for logits in (student, teacher))
    value = (1 - cosine(p, q).abs().mean()) + (1 - cosine(p.T, q.T).abs().mean())
    a, b = (ranks(logits) for logits in (student, teacher))
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return 2 * TEMPERATURE**2 * value + 2 * (1 - cosine(a, b).mean())


def published_cutmix(images: Tensor) -> Tensor:
    share = float(np.random.beta(1.0, 1.0))
    height, width = images.shape[-2:]
    cut_h, cut_w = int(height * (1 - share) ** 0.5), int(width * (1 - share) ** 0.5)
    y, x = np.random.randint(height), np.random.randint(width)
    top, bottom = max(0, y - cut_h // 2), min(height, y + cut_h // 2)
    left, right = max(0, x - cut_w // 2), min(width, x + cut_w // 2)
    mixed = images.clone()
    other = images[torch.randperm(len(images))]
    mixed[:, :, top:bottom, left:right] = other[:, :, top:bottom, left:right]
    return mixed


def published() -> Callable[[int], object]:
    """The published step."""
    teacher: nn.Module = models.create(TEACHER, CLASSES).eval()
    pruned = prune(teacher).train()
    student = models.create(STUDENT, CLASSES).train()
    optimizer = torch.optim.SGD(student.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)
    batches = [torch.randn(BATCH, 3, SIZE, SIZE) for _ in range(2)]
    labels = torch.randint(CLASSES, (BATCH,))

    def step(call: int) -> None:
        clean = batches[call % len(batches)]
        view = published_cutmix(clean)
        on_clean, on_view = student(clean), student(view)
        with torch.no_grad():
            targets = [0.7 * teacher(x) + 0.3 * pruned(x) for x in (clean, view)]
        loss = F.cross_entropy(on_clean, labels)
        loss = loss + published_kd(on_clean, targets[0]) + published_kd(on_view, targets[1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def write_images(folder: Path) -> None:
    """Noise as a folder of PNG files: one image a class for training, one for validation."""
    rng = np.random.default_rng(1)
    for split in ("train", "test"):
        for label in range(CLASSES):
            place = folder / split / f"class-{label:03d}"
            place.mkdir(parents=True)
            pixels = rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place / "image.png")


def trainer(folder: Path, precision: Any, teacher_dtype: Any) -> Callable[[int], object]:
    """The step of `r2kd train`, with what reads the images left out, as above."""
    config = Config(
        data=DataConfig(name="folder", path=str(folder), image_size=SIZE, workers=0),
        teacher=ModelConfig(TEACHER),
        student=ModelConfig(STUDENT),
        augment=AugmentConfig(view="cutmix"),
        optimizer=OptimizerConfig(batch_size=BATCH),
        run=RunConfig(precision=precision, teacher_dtype=teacher_dtype),
    )
    with processes(config) as accelerator:
        engine = Engine(config, accelerator, Screen(Console(), shown=False))
    batches = list(engine._batches())[:2]
    engine._module.train()

    def step(call: int) -> None:
        if engine._sampler.batch == engine._sampler.batches:
            engine._sampler.next_epoch()
        engine._train_step(batches[call % len(batches)])

    return step


def main() -> None:
    options = parse_options(__doc__ or "", RESULTS)
    torch.manual_seed(1)
    np.random.seed(1)
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder))
        contenders = {
            "published": published(),
            "r2kd train": trainer(Path(folder), "fp32", "fp32"),
        }
        if torch.ops.mkldnn._is_mkldnn_bf16_supported():
            both = "r2kd train, precision and teacher_dtype bf16"
            contenders["r2kd train, teacher_dtype bf16"] = trainer(Path(folder), "fp32", "bf16")
            contenders[both] = trainer(Path(folder), "bf16", "bf16")
        else:
            print("bf16 is left out: this CPU has no instructions for it")
    Accelerator(cpu=True)  # its state, which all of them share, ended with the last one
    timings = time_in_turns(contenders, turns=options.turns, warm_up=0)
    rows: list[dict[str, object]] = []
    for name, timing in timings.items():
        times = timing.times_faster_than(timings["published"])
        rows.append(
            {
                "step": name,
                "teacher": TEACHER,
                "student": STUDENT,
                "batch": BATCH,
                "size": SIZE,
                "classes": CLASSES,
                "ms": f"{timing.median * 1e3:.0f}",
                "p20_ms": f"{timing.p20 * 1e3:.0f}",
                "p80_ms": f"{timing.p80 * 1e3:.0f}",
                "times_published": f"{times:.2f}",
                "turns": options.turns,
                **machine(),
            }
        )
        print(f"{name:<46} {timing.median * 1e3:6.0f} ms   {times:.2f} times the published step")
    write_rows(options.output, rows)


if __name__ == "__main__":
    main()
