"""Running statistics of batch norms, estimated again for changed weights."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ._arguments import check_count


@torch.no_grad()
def recalibrate_batchnorm(model: nn.Module, loader: Iterable[Any], batches: int) -> None:
    """Replace the running statistics of all batch norms by those of the first `batches` batches.

    The statistics are reset, then each becomes the mean over the batches of the batch's own (as
    with `momentum=None`: every batch weighs the same). Pruning changes what a batch norm receives;
    its old statistics no longer normalise that, and this repairs it without training. In place.

    While the batches run, the batch norms are in training mode and everything else in eval mode
    (no dropout). Modes, `momentum`, weights and all other buffers are then as they were before;
    if a batch raises an error, so are the statistics. No gradient is recorded.

    Args:
        model: has batch norms with running statistics; takes a batch of the loader.
        loader: gives batches: a tensor, or a tuple or list whose first entry is the tensor.
            Tensors are moved to the device of the model's first batch norm.
        batches: how many to run, an integer >= 1.

    Raises:
        TypeError: `model` is no module, `batches` no integer, or a batch not of that kind.
        ValueError: `batches` is below 1, the loader has fewer, or no batch norm of the model has
            running statistics.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    check_count("batches", batches)
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and _statistics(m)]
    if not norms:
        raise ValueError(
            f"model must have a batch norm with running statistics, {type(model).__name__} has none"
        )
    modes = [(module, module.training) for module in model.modules()]
    momenta = [norm.momentum for norm in norms]
    before = [[(x, x.clone()) for x in _statistics(norm)] for norm in norms]
    device = _statistics(norms[0])[0].device
    done = False
    try:
        model.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.training = True  # train() may be another module's own
        count = 0
        for batch in islice(loader, batches):
            model(_input_of(batch).to(device))
            count += 1
        if count < batches:
            noun = "batch" if batches == 1 else "batches"
            raise ValueError(f"loader must have at least {batches} {noun}, got {count}")
        done = True
    finally:
        for norm, momentum, statistics in zip(norms, momenta, before, strict=True):
            norm.momentum = momentum
            if not done:
                for current, old in statistics:
                    current.copy_(old)
        for module, mode in modes:
            module.training = mode


def _statistics(norm: _BatchNorm) -> list[Tensor]:
    """The running mean and variance and the number of batches; none where it keeps none."""
    kept = (norm.running_mean, norm.running_var, norm.num_batches_tracked)
    return [x for x in kept if x is not None]


def _input_of(batch: Any) -> Tensor:
    first = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if not isinstance(first, Tensor):
        raise TypeError(
            "loader must give tensors, or tuples or lists that begin with one, "
            f"got {type(batch).__name__}"
        )
    return first
