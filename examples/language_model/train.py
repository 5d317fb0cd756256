"""Distils a character-level transformer into a smaller one, data-parallel under torchrun.

    torchrun --standalone --nproc-per-node 2 examples/language_model/train.py --out runs/characters

Three runs on the same text: the teacher, a student from the labels alone, and the same student from
the labels and the teacher by the fused correlation loss, which never makes the logits of a whole
batch. The curves go to OUT/curves.csv.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from grammar import ALPHABET, text
from model import CharacterModel
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from r2kd_ext import fused_linear_correlation_kd
from r2kd_ext.train.files import write

CONTEXT = 64
BATCH = 16  # sequences per process
COLUMNS = ("run", "step", "train_ce", "train_correlation_loss", "validation_ce")


class Setting(NamedTuple):
    """Characters of the texts, steps of the runs, and every how many of them are evaluated."""

    train: int
    validation: int
    teacher_steps: int
    student_steps: int
    every: int


FULL = Setting(400_000, 16_000, 500, 400, 25)
QUICK = Setting(20_000, 1_000, 40, 40, 20)


def teacher_model() -> CharacterModel:
    return CharacterModel(len(ALPHABET), CONTEXT, width=96, layers=3, heads=4)


def student_model() -> CharacterModel:
    return CharacterModel(len(ALPHABET), CONTEXT, width=32, layers=1, heads=2)


class Objective(nn.Module):
    """The loss as a module, so that DDP sees the use of every parameter of the model."""

    def __init__(self, model: CharacterModel, teacher: CharacterModel | None) -> None:
        super().__init__()
        self.model = model
        self.teacher = teacher  # frozen

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:  # [B, L + 1]
        """Cross-entropy and correlation loss (0 without a teacher), means over the tokens."""
        inputs, labels = tokens[:, :-1], tokens[:, 1:]
        hidden = self.model(inputs)
        ce = functional.cross_entropy(self.model.head(hidden).flatten(0, 1), labels.flatten())
        if self.teacher is None:
            return ce, torch.zeros(())
        with torch.no_grad():
            teacher_hidden = self.teacher(inputs)
        correlation = fused_linear_correlation_kd(
            hidden, self.model.head.weight, teacher_hidden, self.teacher.head.weight
        )
        return ce, correlation


def batches(data: Tensor, steps: int, seed: int) -> list[Tensor]:
    """This rank's batches, [BATCH, CONTEXT + 1] each; no two ranks draw the same places."""
    source = torch.Generator().manual_seed(1_000 * seed + dist.get_rank())
    places = torch.randint(len(data) - CONTEXT - 1, (steps, BATCH), generator=source)
    offsets = torch.arange(CONTEXT + 1)
    return [data[row[:, None] + offsets] for row in places]


@torch.no_grad()
def validation_ce(model: CharacterModel, data: Tensor) -> float:
    """Nats per character, on all ranks' shares of the text."""
    model.eval()
    windows = data[: len(data) // (CONTEXT + 1) * (CONTEXT + 1)].view(-1, CONTEXT + 1)
    windows = windows[dist.get_rank() :: dist.get_world_size()]
    logits = model.head(model(windows[:, :-1])).flatten(0, 1)
    total = functional.cross_entropy(logits, windows[:, 1:].flatten(), reduction="sum")
    sums = torch.stack([total.double(), torch.tensor(float(windows[:, 1:].numel())).double()])
    dist.all_reduce(sums)
    model.train()
    return (sums[0] / sums[1]).item()


def train(
    name: str,
    model: CharacterModel,
    teacher: CharacterModel | None,
    texts: tuple[Tensor, Tensor],
    steps: int,
    every: int,
) -> list[str]:
    """Train `model` and return the lines of its curve."""
    objective = DistributedDataParallel(Objective(model, teacher))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1, (step + 1) / 20) * (0.55 + 0.45 * math.cos(math.pi * step / steps)),
    )
    lines = []
    for step, tokens in enumerate(batches(texts[0], steps, seed=1)):
        ce, correlation = objective(tokens)
        if step % every == 0 or step == steps - 1:
            means = torch.stack([ce.detach(), correlation.detach()])
            dist.all_reduce(means)
            means /= dist.get_world_size()
            validation = validation_ce(model, texts[1])
            lines.append(f"{name},{step},{means[0]:.4f},{means[1]:.4f},{validation:.4f}")
            if dist.get_rank() == 0:
                print(lines[-1], flush=True)
        optimizer.zero_grad()
        (ce + correlation).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/characters"), help="folder to write")
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    arguments = parser.parse_args()
    setting = QUICK if arguments.quick else FULL

    dist.init_process_group("gloo")
    texts = text(setting.train, seed=1), text(setting.validation, seed=2)
    torch.manual_seed(1)  # the same weights on every rank
    teacher = teacher_model()
    lines = [",".join(COLUMNS)]
    lines += train("teacher", teacher, None, texts, setting.teacher_steps, setting.every)
    teacher.requires_grad_(False).eval()
    for name, guide in (("labels", None), ("distilled", teacher)):
        torch.manual_seed(2)
        student = student_model()
        lines += train(name, student, guide, texts, setting.student_steps, setting.every)
    if dist.get_rank() == 0:
        arguments.out.mkdir(parents=True, exist_ok=True)
        write(arguments.out / "curves.csv", "\n".join(lines) + "\n")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
