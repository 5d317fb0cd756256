"""Small networks for tests of the trainer, named by import path."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def small(num_classes: int, momentum: float = 0.1) -> nn.Module:
    """Convolutions, batch norm and dropout: everything that a checkpoint has to hold."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6, momentum=momentum),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, stride=2),
        nn.BatchNorm2d(8, momentum=momentum),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(32, num_classes),
    )


def forgetful(num_classes: int) -> nn.Module:
    """Its running statistics are those of the last batch, and so differ between processes."""
    return small(num_classes, momentum=1.0)


def plain(num_classes: int) -> nn.Module:
    """Nothing whose result for an image depends on the rest of its batch."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(72, num_classes)
    )


class Failing(nn.Module):
    """Its logits are NaN in the fifth forward of training: for the third step's clean batch."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.network, self.forwards = plain(num_classes), 0

    def forward(self, images: Tensor) -> Tensor:
        self.forwards += self.training
        logits: Tensor = self.network(images)
        return logits * torch.nan if self.forwards == 5 else logits
