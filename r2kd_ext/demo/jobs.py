"""One network to train, as data: the demo's teacher and its students."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import models
from ..teacher import TeacherEnsemble
from . import augment, data
from .loop import Epoch, Recipe, channels_last, fit
from .methods import Batch, Method
from .parts import Part
from .settings import STUDENT_MODEL, TEACHER_MODEL, Settings

_TEACHER_SEED = 0


class Job(NamedTuple):
    """One network to train."""

    model: str
    loss: Callable[[nn.Module, Batch], Tensor]
    train: data.Images
    recipe: Recipe
    seed: int
    view: augment.Seeded | None


def splits_of(settings: Settings) -> data.Splits:
    """The digits as a run with these settings splits them."""
    return data.split(
        data.load_digits(),
        settings.teacher_images_per_class,
        settings.validation_per_class,
        settings.test_per_class,
    )


def teacher_job(settings: Settings, splits: data.Splits) -> Job:
    """The dense teacher."""
    recipe = Recipe(
        settings.teacher_epochs, settings.teacher_batch_size, settings.teacher_learning_rate
    )

    def loss(network: nn.Module, batch: Batch) -> Tensor:
        return F.cross_entropy(network(batch.images), batch.labels)

    return Job(TEACHER_MODEL, loss, splits.train, recipe, _TEACHER_SEED, None)


def ensemble_of(network: nn.Module, settings: Settings) -> TeacherEnsemble:
    """The trained teacher blended with its pruned copy.

    The chunk is given and not measured, so that a seed gives the same student again: both batches
    of a step at once.
    """
    ensemble = TeacherEnsemble(
        network,
        settings.pruning_amount,
        settings.dense_weight,
        chunk=2 * settings.student_batch_size,
    )
    return channels_last(ensemble)


def student_job(
    method: Method, seed: int, settings: Settings, splits: data.Splits, teacher: TeacherEnsemble
) -> Job:
    """A student of `teacher`, on images drawn by `seed`."""
    recipe = Recipe(
        settings.student_epochs,
        settings.student_batch_size,
        method.learning_rate,
        evaluate_every=max(1, settings.student_epochs // 30),
    )
    generator = torch.Generator().manual_seed(seed)
    drawn = data.draw_per_class(splits.train.labels, settings.images_per_class, generator)

    def loss(network: nn.Module, batch: Batch) -> Tensor:
        return method.loss(network, teacher, batch)

    view = augment.strong_view() if method.takes_view else None
    return Job(STUDENT_MODEL, loss, splits.train.take(drawn), recipe, seed, view)


def train(
    job: Job, validation: data.Images, on_epoch: Callable[[Epoch], None] = lambda epoch: None
) -> Part:
    """Train the network of `job` from its seed.

    Raises TrainingFailed where the loss is NaN or infinite.
    """
    started = time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(job.seed)
        network = models.create(job.model, data.NUM_CLASSES)
    network = channels_last(network)
    course = fit(
        network,
        job.loss,
        job.train,
        validation,
        job.recipe,
        job.seed,
        augmentation=augment.standard(),
        view=job.view,
        on_epoch=on_epoch,
    )
    return Part(network, course, time.perf_counter() - started)
