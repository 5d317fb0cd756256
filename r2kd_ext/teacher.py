"""The teacher of R2KD: a network blended with its pruned copy."""

from __future__ import annotations

import copy
import itertools
import numbers
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from .folding import fold_batchnorm
from .pruning import PUBLISHED_AMOUNT, prunable_weights, prune

BATCHNORM_MODES = ("eval", "train")


def _check_dense_weight(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(
            f"dense_weight must be a number in [0, 1], got {value!r} of type {type(value).__name__}"
        )
    weight = float(value)
    if not 0 <= weight <= 1:  # also refuses NaN
        raise ValueError(f"dense_weight must be a number in [0, 1], got {value!r}")
    return weight


class _Prepared(NamedTuple):
    """A network ready to run, and the state that it was made from."""

    state: list[tuple[Any, ...]]
    network: nn.Module


def _state_of(network: nn.Module) -> list[tuple[Any, ...]]:
    """Differs after any change of a parameter or buffer: in place, moved or replaced."""
    tensors = itertools.chain(network.parameters(), network.buffers())
    return [
        (x.data_ptr(), 0 if x.is_inference() else x._version, x.dtype, x.device, x.shape)
        for x in tensors
    ]


def _times(ways: list[Callable[[Tensor, Tensor], object]], *batches: Tensor) -> list[float]:
    """Seconds of each way: the least of three, in turn, after a run that does not count."""
    device = batches[0].device

    def seconds(way: Callable[[Tensor, Tensor], object]) -> float:
        start = time.perf_counter()
        way(*batches)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    for way in ways:
        seconds(way)
    turns = [[seconds(way) for way in ways] for _ in range(3)]
    return [min(turn[i] for turn in turns) for i in range(len(ways))]


class TeacherEnsemble(nn.Module):
    """Blended logits of a frozen teacher and its pruned copy.

    forward(x) = dense_weight * teacher(x) + (1 - dense_weight) * pruned(x)

    Both networks are deep copies, so the module passed in is not changed: not its mode, not
    `requires_grad`, not its weights; changing it later does not change the ensemble. No gradient
    is recorded, not even for x. Both networks stay in eval mode, also after `train()` on the
    ensemble or on a module that contains it. A network of weight 0 is not run.

    In the published code the pruned network stays in training mode: its batch norms normalise with
    the statistics of the batch at hand, and their running statistics drift.
    `pruned_batchnorm="train"` gives that, for the batch norms only (dropout stays off). The logits
    of a sample then depend on the rest of its batch.

    What runs are copies of the two networks, made anew when a weight or statistic has changed:
    batch norms are folded into the convolutions before them (`folding.fold_batchnorm`), which
    changes the logits by rounding only, convolutions compute in channels-last order, and in
    bfloat16 where asked. So forward hooks on `teacher` and `pruned` do not fire after
    construction. A pruned copy whose batch norms train runs as it is.

    Source: Kim et al., *Robustness-Reinforced Knowledge Distillation With Correlation Distance and
    Network Pruning*, IEEE TKDE 36(12), 2024, doi 10.1109/TKDE.2024.3438074; there the amount is
    0.1 per layer and the weights are 0.7 and 0.3.

    Args:
        teacher: a module that maps a batch to one tensor of logits (B, C).
        amount: the fraction of weights to prune, in [0, 1), or a schedule; see `r2kd_ext.prune`.
        dense_weight: the weight of the unpruned teacher, in [0, 1].
        method: how to prune; see `r2kd_ext.prune`.
        pruned_batchnorm: "eval", or "train" for the batch norms of the pruned copy.
        dtype: what the networks compute in: None for their own, or torch.bfloat16. The logits have
            the dtype of x either way.
        merge: whether `both` takes its two batches in one pass. None measures both ways at the
            first call of each shape and keeps the faster; since the two round differently, give
            True or False where runs must agree to the bit. Not True with batch norms that train.

    Attributes:
        teacher, pruned: the two frozen networks.

    Raises:
        What `r2kd_ext.prune` raises for the teacher, amount and method; TypeError or ValueError
        for a `dense_weight` that is no number in [0, 1]; ValueError for another
        `pruned_batchnorm`, `dtype` or `merge`; in `forward`, TypeError if the teacher's output is
        not a tensor.
    """

    def __init__(
        self,
        teacher: nn.Module,
        amount: float | Mapping[str, float] = PUBLISHED_AMOUNT,
        dense_weight: float = 0.7,
        *,
        method: str = "l1_unstructured",
        pruned_batchnorm: str = "eval",
        dtype: torch.dtype | None = None,
        merge: bool | None = None,
    ) -> None:
        super().__init__()
        self.dense_weight = _check_dense_weight(dense_weight)
        if pruned_batchnorm not in BATCHNORM_MODES:
            raise ValueError(
                f"pruned_batchnorm must be one of {', '.join(map(repr, BATCHNORM_MODES))}, "
                f"got {pruned_batchnorm!r}"
            )
        if dtype not in (None, torch.bfloat16):
            raise ValueError(f"dtype must be None or torch.bfloat16, got {dtype!r}")
        if merge not in (None, True, False):
            raise ValueError(f"merge must be None, True or False, got {merge!r}")
        if merge and pruned_batchnorm == "train":
            raise ValueError(
                "merge must be None or False with pruned_batchnorm='train', where the statistics "
                f"of each batch are its own, got {merge!r}"
            )
        self.pruned_batchnorm = pruned_batchnorm
        self.dtype, self.merge = dtype, merge
        self._prepared: dict[str, _Prepared] = {}
        self._merge_is_faster: dict[tuple[Any, ...], bool] = {}
        prunable_weights(teacher, "teacher")
        self.pruned = prune(teacher, amount, method)
        self.teacher = copy.deepcopy(teacher)
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> TeacherEnsemble:
        """Keep eval mode, whatever `mode` says; batch norms as `pruned_batchnorm` says."""
        super().train(False)
        if self.pruned_batchnorm == "train":
            for module in self.pruned.modules():
                if isinstance(module, _BatchNorm):
                    module.train(True)
        return self

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Blended logits (B, C) of a batch, without gradient."""
        if self.dense_weight == 1:
            return self._logits("teacher", x)
        if self.dense_weight == 0:
            return self._logits("pruned", x)
        dense, pruned = self._logits("teacher", x), self._logits("pruned", x)  # [B, C] each
        return self.dense_weight * dense + (1 - self.dense_weight) * pruned

    @torch.no_grad()
    def both(self, clean: Tensor, view: Tensor) -> tuple[Tensor, Tensor]:
        """Blended logits (B, C) and (B2, C) of two batches, as `forward` gives them by rounding.

        In one pass or in two, as `merge` says.

        Raises ValueError where the batches differ in more than the number of samples.
        """
        kinds = [(x.shape[1:], x.dtype, x.device) for x in (clean, view)]
        if kinds[0] != kinds[1]:
            raise ValueError(
                "clean and view must have the same sample shape, dtype and device, got "
                + " and ".join(f"{tuple(x.shape)} {x.dtype} {x.device}" for x in (clean, view))
            )
        merge = self.merge
        if self.pruned_batchnorm == "train":
            merge = False
        if merge is None:
            key = (clean.shape, view.shape, clean.dtype, clean.device)
            if key not in self._merge_is_faster:
                one, two = _times([self._in_one, self._in_two], clean, view)
                self._merge_is_faster[key] = one < two
            merge = self._merge_is_faster[key]
        return self._in_one(clean, view) if merge else self._in_two(clean, view)

    def _in_one(self, clean: Tensor, view: Tensor) -> tuple[Tensor, Tensor]:
        logits = self(torch.cat([clean, view]))
        return logits[: len(clean)], logits[len(clean) :]

    def _in_two(self, clean: Tensor, view: Tensor) -> tuple[Tensor, Tensor]:
        return self(clean), self(view)

    def _logits(self, name: str, x: Tensor) -> Tensor:
        network, own = self._network(name), x.dtype
        if network is not getattr(self, name):
            if self.dtype is not None and x.is_floating_point():
                x = x.to(self.dtype)
            if x.dim() == 4:
                x = x.contiguous(memory_format=torch.channels_last)
        logits = network(x)
        if not isinstance(logits, Tensor):
            raise TypeError(
                f"teacher must return one tensor of logits, got {type(logits).__name__}"
            )
        if self.dtype is not None and own.is_floating_point:
            return logits.to(own)
        return logits

    def _network(self, name: str) -> nn.Module:
        """What runs for the network called `name`: a prepared copy, or itself."""
        source = getattr(self, name)
        if name == "pruned" and self.pruned_batchnorm == "train":
            return source
        state = _state_of(source)
        prepared = self._prepared.get(name)
        if prepared is None or prepared.state != state:
            prepared = _Prepared(state, self._prepare(source))
            self._prepared[name] = prepared
        return prepared.network

    def _prepare(self, source: nn.Module) -> nn.Module:
        if self.dtype is None and not any(isinstance(m, _ConvNd) for m in source.modules()):
            return source  # nothing would change
        network = copy.deepcopy(source)
        fold_batchnorm(network)
        network.to(dtype=self.dtype)
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return network

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles prepare their own networks."""
        return {**self.__dict__, "_prepared": {}, "_merge_is_faster": {}}

    def extra_repr(self) -> str:
        return (
            f"dense_weight={self.dense_weight}, pruned_batchnorm={self.pruned_batchnorm!r}, "
            f"dtype={self.dtype}, merge={self.merge}"
        )
