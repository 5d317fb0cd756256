"""A training step of R2KD in plain PyTorch, as its authors' code computes it.

Four forwards of teachers (the pruned one in training mode), two of the student, the loss in eager
PyTorch. The view is cutmix. Images come cropped and flipped, as from their loader.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from r2kd_ext import models, prune
from r2kd_ext.train.timing import Parts

TEMPERATURE, EPS = 4.0, 1e-8


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + EPS)


def ranks(logits: Tensor) -> Tensor:
    classes = logits.shape[1]
    return (logits.argsort(1).argsort(1).float() + 1) / (classes * (classes + 1) / 2)


def kd(student: Tensor, teacher: Tensor) -> Tensor:
    """Value and rank terms of logits [B, C] as published."""
    p, q = (F.softmax(logits / TEMPERATURE, 1) for logits in (student, teacher))
    value = (1 - cosine(p, q).abs().mean()) + (1 - cosine(p.T, q.T).abs().mean())
    a, b = (ranks(logits) for logits in (student, teacher))
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return 2 * TEMPERATURE**2 * value + 2 * (1 - cosine(a, b).mean())


def cutmix(images: Tensor) -> Tensor:
    """Images [B, 3, S, S], each with a box from another one."""
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


def step(
    teacher: str, student: str, classes: int, batch: int, size: int, parts: Parts
) -> Callable[[int], object]:
    """The step of networks of these names; `parts` counts where its time goes."""
    dense: nn.Module = models.create(teacher, classes).eval()
    pruned = prune(dense).train()
    network = models.create(student, classes).train()
    optimizer = torch.optim.SGD(network.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)
    batches = [torch.randn(batch, 3, size, size) for _ in range(2)]
    labels = torch.randint(classes, (batch,))

    def run(call: int) -> None:
        clean = batches[call % len(batches)]
        with parts.part("augment"):
            view = cutmix(clean)
        with parts.part("student forward"):
            on_clean, on_view = network(clean), network(view)
        with parts.part("teacher"), torch.no_grad():
            targets = [0.7 * dense(x) + 0.3 * pruned(x) for x in (clean, view)]
        with parts.part("loss"):
            loss = F.cross_entropy(on_clean, labels)
            loss = loss + kd(on_clean, targets[0]) + kd(on_view, targets[1])
        optimizer.zero_grad()
        with parts.part("backward"):
            loss.backward()
        with parts.part("optimiser"):
            optimizer.step()
        parts.end_step()

    return run
