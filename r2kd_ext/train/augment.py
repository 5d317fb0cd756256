"""Random changes of a batch of images on its device, each a function of a seed alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from kornia.augmentation import (
    RandomCrop,
    RandomCutMixV2,
    RandomErasing,
    RandomHorizontalFlip,
    RandomMixUpV2,
    RandomResizedCrop,
)
from kornia.augmentation.auto import AutoAugment
from torch import Tensor, nn
from torch.distributions import Beta

from .config import AugmentConfig
from .randomness import derive


class View(NamedTuple):
    """The augmented view of a batch: normalised images (B, 3, H, W).

    `keep` is how many of them cutmix-pick keeps, which the teacher chooses; None keeps all.
    """

    images: Tensor
    keep: int | None = None


@contextmanager
def _drawn_from(seed: int) -> Iterator[None]:
    """Let torch's global generator of the CPU, from which kornia draws for every device, start
    from `seed`, and put it back afterwards."""
    before = torch.random.default_generator.get_state()
    # Hashed, since torch's generator of the CPU takes no more than the low 32 bits of a seed.
    torch.random.default_generator.manual_seed(derive(seed, "augment"))
    try:
        yield
    finally:
        torch.random.default_generator.set_state(before)


class Augment:
    """The standard augmentation and the augmented view that `config` describes.

    Every draw depends on the seed given to the call alone: not on earlier calls, nor on the state
    of torch's generators, which is left as it was. Numbers are drawn on the CPU, so that a batch
    gets the same changes on every device.

    Args:
        config: what is drawn.
        image_size: S, pixels of a side of the images that come.
        mean, std: per channel, of images in [0, 1].

    Raises ValueError where the crop is larger than the padded images.
    """

    def __init__(
        self,
        config: AugmentConfig,
        image_size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> None:
        self.config = config
        self.crop_size = image_size if config.crop_size == -1 else config.crop_size
        padding = image_size // 8 if config.crop_padding == -1 else config.crop_padding
        if self.crop_size > image_size + (2 * padding if config.crop == "padded" else 0):
            raise ValueError(
                f"augment.crop_size must be at most {image_size}, which is data.image_size (plus "
                f"the padding), got {self.crop_size}"
            )
        self._mean = torch.tensor(mean)[:, None, None]  # [3, 1, 1]
        self._std = torch.tensor(std)[:, None, None]
        size = (self.crop_size, self.crop_size)
        crop: nn.Module
        if config.crop == "padded":
            crop = RandomCrop(size, padding=padding or None)
        else:
            crop = RandomResizedCrop(size, scale=config.crop_scale, ratio=(3 / 4, 4 / 3))
        self._standard = nn.Sequential(crop)
        if config.flip:
            self._standard.append(RandomHorizontalFlip(p=0.5))
        self._view = self._make_view()

    def standard(self, images_u8: Tensor, *, seed: int) -> Tensor:
        """A random crop and flip of each image: uint8 (B, 3, S, S) to normalised float32
        (B, 3, H, H), where H is `crop_size`. What is padded is black."""
        with torch.no_grad(), _drawn_from(seed):
            cropped: Tensor = self._standard(images_u8.float() / 255)
        return self.normalise(cropped)

    def evaluation(self, images_u8: Tensor) -> Tensor:
        """The centre of each image, without randomness: uint8 (B, 3, S, S) to normalised float32
        (B, 3, H, H)."""
        return self.normalise(self.crop(images_u8.float() / 255))

    def crop(self, images: Tensor) -> Tensor:
        """The square of `crop_size` pixels in the centre of images (B, 3, S, S)."""
        if images.shape[-1] <= self.crop_size:
            return images
        start = (images.shape[-1] - self.crop_size) // 2
        stop = start + self.crop_size
        return images[..., start:stop, start:stop]

    def view(self, images: Tensor, *, seed: int) -> View | None:
        """The augmented view of a normalised batch (B, 3, H, H); None where config.view is "none".

        What config.view names, with x the batch and x' a random permutation of it:

        - mixup: lambda x + (1 - lambda) x', one lambda ~ Beta(alpha, alpha) a batch (Zhang et al.,
          ICLR 2018).
        - cutmix: x with a box of x', one box a batch, of the area 1 - lambda of the image with its
          sides rounded down, anywhere inside it; lambda ~ Beta(alpha, alpha) (Yun et al., ICCV
          2019).
        - cutmix_pick: the same; `keep` of it are left (Wang et al., NeurIPS 2022).
        - cutout: squares of zeros, which are the mean colour of normalised images; the centre is
          uniform over each image, so that a part may fall outside (DeVries and Taylor, arXiv
          1708.04552).
        - autoaugment: one of the policy's sub-policies for each image, on values in [0, 1] (Cubuk
          et al., CVPR 2019).
        """
        if self._view is None:
            return None
        with torch.no_grad(), _drawn_from(seed):
            changed = self._view(images)
        keep = self.config.cutmix_pick_keep if self.config.view == "cutmix_pick" else None
        return View(changed, keep)

    def normalise(self, images: Tensor) -> Tensor:
        """(images - mean) / std of images (B, 3, H, H) in [0, 1]."""
        return (images - self._mean.to(images.device)) / self._std.to(images.device)

    def _denormalise(self, images: Tensor) -> Tensor:
        shown = images * self._std.to(images.device) + self._mean.to(images.device)
        return shown.clamp(0, 1)

    def _make_view(self) -> Callable[[Tensor], Tensor] | None:
        config = self.config
        if config.view == "mixup":
            return _Mixup(config.mixup_alpha)
        if config.view in ("cutmix", "cutmix_pick"):
            return RandomCutMixV2(
                beta=config.cutmix_alpha,
                same_on_batch=True,
                data_keys=["input"],
                use_correct_lambda=True,
            )
        if config.view == "cutout":
            size = self.crop_size // 4 if config.cutout_size == -1 else config.cutout_size
            return _Cutout(config.cutout_holes, size)
        if config.view == "autoaugment":
            policy = _AutoAugmentPerImage(config.autoaugment_policy)
            return lambda images: self.normalise(policy(self._denormalise(images)))
        return None


class _Mixup:
    def __init__(self, alpha: float) -> None:
        self._share = Beta(alpha, alpha)

    def __call__(self, images: Tensor) -> Tensor:
        share = float(self._share.sample())
        mixed: Tensor = RandomMixUpV2(lambda_val=(share, share), data_keys=["input"])(images)
        return mixed


class _Cutout:
    """kornia's rectangles lie inside the image, so half a square is put around it first."""

    def __init__(self, holes: int, size: int) -> None:
        self._holes, self._before, self._after = holes, size // 2, size - size // 2
        self._size = size

    def __call__(self, images: Tensor) -> Tensor:
        side = images.shape[-1]
        before, after = self._before, self._after
        padded = nn.functional.pad(images, (before, after, before, after))
        share = self._size**2 / padded.shape[-1] ** 2
        erase = RandomErasing(scale=(share, share), ratio=(1.0, 1.0), value=0.0, p=1.0)
        for _ in range(self._holes):
            padded = erase(padded)
        return padded[..., before : before + side, before : before + side].contiguous()


class _AutoAugmentPerImage:
    """kornia's AutoAugment draws one sub-policy a batch; published is one an image."""

    def __init__(self, policy: str) -> None:
        self._sub_policies = list(AutoAugment(policy).children())

    def __call__(self, images: Tensor) -> Tensor:
        chosen = torch.randint(len(self._sub_policies), (len(images),))
        changed = torch.empty_like(images)
        for number in chosen.unique().tolist():
            rows = (chosen == number).nonzero().flatten().to(images.device)
            changed[rows] = self._sub_policies[number](images[rows])
        return changed
