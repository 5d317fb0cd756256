"""Eight corruptions of images at three severities, drawn from a seed.

They are the kinds of Hendrycks and Dietterich, *Benchmarking Neural Network Robustness to Common
Corruptions and Perturbations*, ICLR 2019, with definitions and strengths of our own (`STRENGTHS`):
accuracies under them compare networks with each other, not with published figures.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from math import ceil
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from kornia.enhance import adjust_brightness
from kornia.filters import gaussian_blur2d
from PIL import Image
from torch import Tensor

from .randomness import derive

SEVERITIES = 3

# Rising severity; images are in [0, 1].
STRENGTHS: dict[str, tuple[float, float, float]] = {
    "gaussian_noise": (0.04, 0.08, 0.12),  # standard deviation
    "shot_noise": (250, 75, 40),  # photons of a pixel of value 1
    "impulse_noise": (0.02, 0.05, 0.1),  # share of the values that become 0 or 1
    "gaussian_blur": (0.5, 0.8, 1.2),  # standard deviation in 1/32 of the image size
    "brightness": (0.1, 0.2, 0.3),  # added
    "contrast": (0.6, 0.35, 0.2),  # factor of the distance to the mean of image and channel
    "pixelate": (0.8, 0.6, 0.4),  # size that the image is reduced to and enlarged from
    "jpeg": (65, 40, 20),  # quality
}


class Draw(NamedTuple):
    """What a random corruption draws from: one stream for each image and corruption."""

    seed: int
    indices: Sequence[int]  # of the images in their data set
    name: str

    def each(self, draw: Callable[[torch.Generator], Tensor]) -> Tensor:
        """`draw` with the generator of each image, stacked."""
        seeds = [derive(self.seed, self.name, index) for index in self.indices]
        return torch.stack([draw(torch.Generator().manual_seed(seed)) for seed in seeds])


def corrupt(
    images: Tensor, name: str, severity: int, *, seed: int, indices: Sequence[int]
) -> Tensor:
    """Corrupted images.

    Args:
        images: (B, 3, S, S), uint8.
        name: a key of `STRENGTHS`.
        severity: 1 to `SEVERITIES`.
        seed, indices: what is drawn depends on the seed, the name and the index of each image in
            its data set, not on the batch that it is in.

    Returns (B, 3, S, S), uint8, on the device of `images`.
    """
    if name not in STRENGTHS:
        raise ValueError(f"name must be one of {', '.join(STRENGTHS)}, got {name!r}")
    if not 1 <= severity <= SEVERITIES:
        raise ValueError(f"severity must be in 1, ..., {SEVERITIES}, got {severity!r}")
    strength = STRENGTHS[name][severity - 1]
    if name == "jpeg":
        return _jpeg(images, int(strength))
    # In float64, so that a blurred grey stays what it was after rounding on every device.
    changed = _FLOAT[name](images.double() / 255, strength, Draw(seed, indices, name))
    return (changed.clamp(0, 1) * 255).round().to(torch.uint8)


def _gaussian_noise(x: Tensor, deviation: float, draw: Draw) -> Tensor:
    noise = draw.each(lambda g: torch.randn(x.shape[1:], generator=g, dtype=torch.float64))
    return x + deviation * noise.to(x.device)


def _shot_noise(x: Tensor, photons: float, draw: Draw) -> Tensor:
    rates = iter(x.cpu() * photons)
    return (draw.each(lambda g: torch.poisson(next(rates), g)) / photons).to(x.device)


def _impulse_noise(x: Tensor, share: float, draw: Draw) -> Tensor:
    drawn = draw.each(lambda g: torch.rand(x.shape[1:], generator=g, dtype=torch.float64))
    drawn = drawn.to(x.device)
    noisy = torch.where(drawn < share / 2, torch.zeros_like(x), x)
    return torch.where(drawn > 1 - share / 2, torch.ones_like(x), noisy)


def _gaussian_blur(x: Tensor, deviation: float, draw: Draw) -> Tensor:
    sigma = deviation * x.shape[-1] / 32
    # Reflection needs less than the image on each side.
    size = 2 * min(ceil(4 * sigma), x.shape[-1] - 1) + 1
    blurred: Tensor = gaussian_blur2d(x, (size, size), (sigma, sigma), "reflect")
    return blurred


def _brightness(x: Tensor, added: float, draw: Draw) -> Tensor:
    brighter: Tensor = adjust_brightness(x, added)
    return brighter


def _contrast(x: Tensor, factor: float, draw: Draw) -> Tensor:
    mean = x.mean((2, 3), keepdim=True)
    return mean + factor * (x - mean)


def _pixelate(x: Tensor, size: float, draw: Draw) -> Tensor:
    side = x.shape[-1]
    small = F.interpolate(x, size=(max(1, round(size * side)),) * 2, mode="area")
    return F.interpolate(small, size=(side, side), mode="nearest")


def _jpeg(images: Tensor, quality: int) -> Tensor:
    found = []
    for image in images.cpu().permute(0, 2, 3, 1).numpy():
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=quality)
        found.append(np.array(Image.open(buffer)))
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).contiguous().to(images.device)


_FLOAT: dict[str, Callable[[Tensor, float, Draw], Tensor]] = {
    "gaussian_noise": _gaussian_noise,
    "shot_noise": _shot_noise,
    "impulse_noise": _impulse_noise,
    "gaussian_blur": _gaussian_blur,
    "brightness": _brightness,
    "contrast": _contrast,
    "pixelate": _pixelate,
}
