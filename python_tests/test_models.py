"""The networks of the registry."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from r2kd_ext import models

pytestmark = pytest.mark.usefixtures("one_thread")


def _parameters(name: str) -> int:
    return sum(p.numel() for p in models.create(name, 10).parameters())


@pytest.mark.parametrize("name", ["digits_student", "digits_teacher"])
@pytest.mark.parametrize("num_classes", [1, 10, 37])
def test_logits_have_a_column_per_class(name: str, num_classes: int) -> None:
    network = models.create(name, num_classes)
    logits = network(torch.rand(3, 1, 28, 28))
    assert logits.shape == (3, num_classes)
    logits.square().sum().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_the_student_is_much_smaller_than_the_teacher() -> None:
    # By hand: weights, two per batch-norm channel, and the linear layer.
    student = 1 * 4 * 9 + 8 + 4 * 8 * 9 + 16 + 8 * 7 * 7 * 10 + 10
    teacher = 9 * (1 * 16 + 16 * 32 + 32 * 32 + 32 * 64 + 64 * 64)
    teacher += 2 * (16 + 32 + 32 + 64 + 64) + 64 * 10 + 10
    assert _parameters("digits_student") == student
    assert _parameters("digits_teacher") == teacher
    assert teacher > 15 * student


# One network of each file, so one of each way to draw the weights.
@pytest.mark.parametrize(
    "name",
    [
        *("digits_student", "resnet8", "wrn_16_1", "vgg8"),
        *("MobileNetV2", "ShuffleV1", "ShuffleV2", "ResNet18"),
    ],
)
def test_the_global_seed_decides_the_weights(name: str) -> None:
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(models.create(name, 10).state_dict())
    weights = [key for key, value in states[0].items() if value.dim() > 1]
    assert all(states[0][key].equal(states[1][key]) for key in states[0])
    assert not any(states[0][key].equal(states[2][key]) for key in weights)


@pytest.mark.parametrize(
    ("name", "num_classes", "error", "words"),
    [
        ("resnet", 10, ValueError, "name must be one of .*'digits_student'.* got 'resnet'"),
        ("digits_student", 0, ValueError, "num_classes must be an integer >= 1, got 0"),
        ("digits_student", 2.0, TypeError, "num_classes must be an integer >= 1, got 2.0"),
        ("digits_student", True, TypeError, "num_classes must be an integer >= 1, got True"),
    ],
)
def test_refused(name: str, num_classes: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        models.create(name, num_classes)
