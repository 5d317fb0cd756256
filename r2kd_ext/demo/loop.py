"""Training of one network on images that fit in memory, and its accuracy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from ..train.finite import TrainingFailed
from ..train.interrupt import stop_if_asked
from .augment import Seeded
from .data import Images
from .methods import Batch

_EVALUATION_BATCH = 250  # activations of one pass stay in the cache; 1000 takes twice as long


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: SGD with Nesterov momentum, cosine learning rate down to 0.

    `evaluate_every` counts epochs; the last epoch is always evaluated.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    momentum: float = 0.9
    weight_decay: float = 5e-4
    evaluate_every: int = 1


class Epoch(NamedTuple):
    """What is known after an epoch."""

    epoch: int  # from 1
    loss: float  # mean over the epoch's batches
    accuracy: float | None  # on the validation split; None where it was not evaluated


_Network = TypeVar("_Network", bound=nn.Module)


def channels_last(network: _Network) -> _Network:
    """Put the weights of `network` into channels-last order, in place.

    Convolutions then compute in it. Measured on the CPU: the digits teacher's forward takes two
    thirds of the time.
    """
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


@torch.no_grad()
def predict(network: nn.Module, images: Tensor) -> Tensor:
    """Logits (N, C) of images (N, 1, H, W) in eval mode; the network's mode is left as it was."""
    was_training = network.training
    network.eval()
    logits = torch.cat([network(part) for part in images.split(_EVALUATION_BATCH)])
    network.train(was_training)
    return logits


def accuracy_of(logits: Tensor, labels: Tensor) -> float:
    """Fraction of the rows (N, C) whose largest logit is at `labels` (N,)."""
    return float((logits.argmax(1) == labels).double().mean())


def batches(count: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Indices of one shuffled epoch over `count` images; an incomplete last batch is left out,
    unless it is the only one."""
    order = torch.randperm(count, generator=generator)
    for part in order.split(batch_size):
        if len(part) == batch_size or count < batch_size:
            yield part


def fit(
    network: nn.Module,
    loss: Callable[[nn.Module, Batch], Tensor],
    train: Images,
    validation: Images,
    recipe: Recipe,
    seed: int,
    *,
    augmentation: Seeded,
    view: Seeded | None = None,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
) -> list[Epoch]:
    """Train `network` in place and return its course.

    Args:
        network: maps images (B, 1, H, W) to logits (B, C).
        loss: of the network and a batch; a scalar.
        train: what is trained on; `augmentation` is applied to every batch.
        validation: only looked at.
        recipe: the optimiser's settings.
        seed: of the order of the images and of both augmentations. What is drawn in a step depends
            on the seed and the number of the step, not on the network or the loss.
        augmentation, view: the batch that the network trains on, and the second view of the same
            images for losses that use one.
        on_epoch: called after each epoch.

    Raises:
        TrainingFailed: a loss is NaN or infinite.
        KeyboardInterrupt: between two steps, after Ctrl-C (see `interrupt`).
    """
    generator = torch.Generator().manual_seed(seed)
    steps = max(1, len(train.labels) // recipe.batch_size)
    optimizer = torch.optim.SGD(
        network.parameters(),
        recipe.learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=True,
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.epochs * steps)
    course: list[Epoch] = []
    network.train()
    for number in range(1, recipe.epochs + 1):
        total = 0.0
        for indices in batches(len(train.labels), recipe.batch_size, generator):
            stop_if_asked()
            images, labels = train.take(indices)
            drawn = torch.randint(2**62, (2,), generator=generator).tolist()
            second = None if view is None else view(images, drawn[1])
            value = loss(network, Batch(augmentation(images, drawn[0]), labels, second))
            step_loss = value.item()
            if not math.isfinite(step_loss):
                raise TrainingFailed(
                    f"the loss is {step_loss} in epoch {number} of {recipe.epochs}, at a learning "
                    f"rate of {schedule.get_last_lr()[0]:.3g}"
                )
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            schedule.step()
            total += step_loss
        evaluate = number % recipe.evaluate_every == 0 or number == recipe.epochs
        accuracy = None
        if evaluate:
            accuracy = accuracy_of(predict(network, validation.images), validation.labels)
        course.append(Epoch(number, total / steps, accuracy))
        on_epoch(course[-1])
    return course
