"""The numbers of the demo: what is read from the test split, once, at the end."""

from __future__ import annotations

import statistics
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..pruning import prune, sparsity
from ..teacher import TeacherEnsemble
from .data import Images, Splits
from .loop import accuracy_of, channels_last, predict


class SweepPoint(NamedTuple):
    """A teacher with the fraction `amount` of each layer pruned, on the validation split."""

    amount: float
    accuracy: float
    agreement: float  # fraction of the images to which it gives the unpruned teacher's class


class Outcome(NamedTuple):
    """Logits (N, C) of every network on the test split, and what more pruning would do."""

    test: Images
    teacher: Tensor
    pruned: Tensor
    blended: Tensor
    students: dict[str, list[Tensor]]  # method -> one per seed
    sparsity: float  # of the pruned teacher, measured
    sweep: list[SweepPoint]


_SWEEP = [tenth / 10 for tenth in range(10)]


def evaluate(
    splits: Splits,
    dense: nn.Module,
    teacher: TeacherEnsemble,
    students: dict[str, list[nn.Module]],
) -> Outcome:
    """Run the teacher, its pruned copy and the students (method -> one per seed).

    `dense` is the network that `teacher` was made from.
    """
    test = splits.test
    return Outcome(
        test,
        predict(teacher.teacher, test.images),
        predict(teacher.pruned, test.images),
        predict(teacher, test.images),
        {
            method: [predict(network, test.images) for network in networks]
            for method, networks in students.items()
        },
        sparsity(teacher.pruned),
        _sweep(dense, splits.validation),
    )


def _sweep(teacher: nn.Module, validation: Images) -> list[SweepPoint]:
    classes = predict(teacher, validation.images).argmax(1)  # [N]
    points = []
    for amount in _SWEEP:
        logits = predict(channels_last(prune(teacher, amount)), validation.images)  # [N, C]
        points.append(
            SweepPoint(amount, accuracy_of(logits, validation.labels), accuracy_of(logits, classes))
        )
    return points


def summarize(outcome: Outcome) -> dict[str, Any]:
    """The results proper. Accuracies are fractions of the test split; std is over the seeds, with
    n - 1 in the denominator. "differences" has R2KD minus each other method, seed by seed."""
    labels = outcome.test.labels
    accuracies = {
        method: [accuracy_of(logits, labels) for logits in per_seed]
        for method, per_seed in outcome.students.items()
    }
    return {
        "teacher": {"accuracy": accuracy_of(outcome.teacher, labels)},
        "pruned_teacher": {
            "accuracy": accuracy_of(outcome.pruned, labels),
            "sparsity": outcome.sparsity,
        },
        "methods": {
            method: {"accuracy": values, **mean_and_std(values)}
            for method, values in accuracies.items()
        },
        "differences": {
            f"r2kd - {method}": _difference(accuracies["r2kd"], values)
            for method, values in accuracies.items()
            if method != "r2kd"
        },
    }


def mean_and_std(values: list[float]) -> dict[str, float]:
    """Mean and sample standard deviation of at least two values."""
    return {"mean": statistics.fmean(values), "std": statistics.stdev(values)}


def _difference(first: list[float], second: list[float]) -> dict[str, Any]:
    per_seed = [a - b for a, b in zip(first, second, strict=True)]
    return {"per_seed": per_seed, **mean_and_std(per_seed)}


def agreement(outcome: Outcome) -> float:
    """Fraction of the test split that teacher and pruned teacher give the same class."""
    return accuracy_of(outcome.pruned, outcome.teacher.argmax(1))


def hardest(outcome: Outcome, count: int) -> Tensor:
    """Indices (count,) of the test images to whose true class the blended teacher gives least."""
    probability = torch.softmax(outcome.blended.double(), dim=1)  # [N, C]
    of_true_class = probability.gather(1, outcome.test.labels[:, None])[:, 0]  # [N]
    return of_true_class.argsort(stable=True)[:count]
