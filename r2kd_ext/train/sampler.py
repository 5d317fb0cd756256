"""The order of the images: seeded, the same for every number of processes, resumable anywhere."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from .randomness import derive


class BatchSampler(Sampler[list[int]]):
    """One process's share of each global batch, from the current position to the epoch's end.

    The order of an epoch is a permutation that depends on (seed, epoch) alone; a global batch is
    `batch_size` neighbours in it, and process `rank` of `world` gets the rank-th part of each. So
    the shares are disjoint, and the same global batches come whatever `world` is. An incomplete
    last batch is left out.

    The position is what was trained on, not what was fetched: iterating does not move it,
    `advance` does. Loaders may therefore fetch ahead.

    Args:
        count: images.
        batch_size: of a global batch; a multiple of `world`, at most `count`.
        seed: of the order.
        rank, world: this process and how many there are.

    Raises:
        ValueError: the arguments do not fit each other.
    """

    def __init__(
        self, count: int, batch_size: int, *, seed: int, rank: int = 0, world: int = 1
    ) -> None:
        if not 1 <= batch_size <= count:
            raise ValueError(
                f"batch_size must be between 1 and the number of training images, {count}, "
                f"got {batch_size}"
            )
        if batch_size % world:
            raise ValueError(
                f"batch_size must be a multiple of the number of processes, {world}, "
                f"got {batch_size}"
            )
        if not 0 <= rank < world:
            raise ValueError(f"rank must be in [0, {world}), got {rank}")
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.rank, self.world = rank, world
        self.epoch, self.batch = 0, 0  # the next batch to train on

    @property
    def batches(self) -> int:
        """Batches of an epoch."""
        return self.count // self.batch_size

    def __len__(self) -> int:
        """Batches left in this epoch."""
        return self.batches - self.batch

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(derive(self.seed, "order", self.epoch))
        order = torch.randperm(self.count, generator=generator)
        part = self.batch_size // self.world
        for batch in range(self.batch, self.batches):
            start = batch * self.batch_size + self.rank * part
            yield order[start : start + part].tolist()

    def advance(self) -> None:
        """Count one batch as trained on."""
        if self.batch == self.batches:
            raise ValueError(f"epoch {self.epoch} has no more than {self.batches} batches")
        self.batch += 1

    def next_epoch(self) -> None:
        """Go to the start of the next epoch."""
        self.epoch, self.batch = self.epoch + 1, 0

    def state_dict(self) -> dict[str, int]:
        """The position, and what the order depends on."""
        names = ("count", "batch_size", "seed", "epoch", "batch")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to the position of `state_dict`.

        Raises ValueError where it is of another order, whose batches would not be these.
        """
        for name in ("count", "batch_size", "seed"):
            if state[name] != getattr(self, name):
                raise ValueError(
                    f"the order of the images was made with {name} {state[name]}, "
                    f"now it is {getattr(self, name)}"
                )
        if state["epoch"] < 0 or not 0 <= state["batch"] <= self.batches:
            raise ValueError(
                f"there is no batch {state['batch']} in epoch {state['epoch']} of "
                f"{self.batches} batches"
            )
        self.epoch, self.batch = state["epoch"], state["batch"]


def shares(count: int, batch_size: int, rank: int, world: int) -> list[list[int]]:
    """Batches of indices for process `rank` that together cover `count` images once, in order.

    Every process gets equally many batches of one size, filled up with -1, so that networks whose
    processes must run together (FSDP) do.
    """
    rows = -(-count // (world * batch_size)) * batch_size
    own = list(range(rank * rows, min((rank + 1) * rows, count)))
    own += [-1] * (rows - len(own))
    return [own[start : start + batch_size] for start in range(0, rows, batch_size)]
