"""Accuracy of a network that trains, over all processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from .interrupt import ignore_signals
from .sampler import shares

_LEFT_OUT = -1


class _Padded(Dataset[tuple[Tensor, int]]):
    """Index -1 gives the first image with a label that no metric counts."""

    def __init__(self, images: Dataset[tuple[Tensor, int]]) -> None:
        self.images = images

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index == _LEFT_OUT:
            return self.images[0][0], _LEFT_OUT
        return self.images[index]


class Validation:
    """Top-1 and top-5 accuracy on a data set, shared out over the processes.

    Args:
        images: index -> (uint8 [3, S, S], label).
        count: how many.
        classes: how many; top-5 is left out below 6.
        batch_size: of one process.
        workers: processes that load.
        device: where the networks are.
        rank, world: this process and how many there are.
    """

    def __init__(
        self,
        images: Dataset[tuple[Tensor, int]],
        count: int,
        classes: int,
        batch_size: int,
        workers: int,
        device: torch.device,
        rank: int,
        world: int,
    ) -> None:
        self._loader: DataLoader[Any] = DataLoader(
            _Padded(images),
            batch_sampler=shares(count, batch_size, rank, world),
            num_workers=workers,
            worker_init_fn=ignore_signals,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # else it would draw from the global one
        )
        self._device = device
        tops = {f"top{k}": k for k in (1, 5) if k == 1 or classes > 5}
        self._metrics = MetricCollection(
            {
                name: MulticlassAccuracy(classes, k, average="micro", ignore_index=_LEFT_OUT)
                for name, k in tops.items()
            }
        ).to(device)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Images (uint8) and labels on the device."""
        for images, labels in self._loader:
            yield (
                images.to(self._device, non_blocking=True),
                labels.to(self._device, non_blocking=True),
            )

    @torch.no_grad()
    def accuracy(
        self, logits: Callable[[Tensor], Tensor], between: Callable[[], None]
    ) -> dict[str, float]:
        """Fractions in [0, 1] of the images of all processes.

        Args:
            logits: of a batch of images (uint8), in eval mode.
            between: called before each batch; may raise.
        """
        self._metrics.reset()
        for images, labels in self.batches():
            between()
            self._metrics.update(logits(images).float(), labels)
        return {name: float(value) for name, value in self._metrics.compute().items()}
