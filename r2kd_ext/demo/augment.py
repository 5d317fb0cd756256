"""Random changes of a batch of images, on its device, drawn from a seed."""

from __future__ import annotations

import torch
from kornia.augmentation import RandomAffine, RandomMixUpV2
from torch import Tensor, nn


class Seeded(nn.Module):
    """Applies `augmentation` to a batch (B, C, H, W) with its own random numbers.

    The same seed gives the same result, whatever was drawn before; torch's global generator, from
    which kornia draws, is left as it was.
    """

    def __init__(self, augmentation: nn.Module) -> None:
        super().__init__()
        self.augmentation = augmentation

    @torch.no_grad()
    def forward(self, images: Tensor, seed: int) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            augmented: Tensor = self.augmentation(images)
        return augmented


def standard() -> Seeded:
    """Shifts every image by up to 2 pixels of 28 in both directions."""
    return Seeded(RandomAffine(degrees=0, translate=(2 / 28, 2 / 28), p=1.0))


def strong_view() -> Seeded:
    """Rotates, shifts, scales and shears every image, then blends it with another of the batch.

    The blend is mixup, where the other image has a weight drawn from [0, 0.5].
    """
    return Seeded(
        nn.Sequential(
            RandomAffine(degrees=20, translate=(0.1, 0.1), scale=(0.8, 1.2), shear=10, p=1.0),
            RandomMixUpV2(lambda_val=(0.0, 0.5), data_keys=["input"]),
        )
    )
