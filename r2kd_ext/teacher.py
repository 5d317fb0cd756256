"""The teacher of R2KD: a network blended with its pruned copy."""

from __future__ import annotations

import copy
import itertools
import math
import numbers
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from ._arguments import check_count
from ._dtypes import processor_has_bfloat16
from .cuda_graphs import CapturedForward
from .folding import fold_batchnorm
from .fusion import fuse_activations
from .pruning import PUBLISHED_AMOUNT, prunable_weights, prune

BATCHNORM_MODES = ("eval", "train")
# Below this, layers are too small to keep the threads of a processor busy.
_SMALLEST_CHUNK = 4


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
    """A network ready to run, the dtype of its inputs, None for that of the images, and the state
    that it was made from."""

    state: list[tuple[Any, ...]]
    network: nn.Module
    dtype: torch.dtype | None


def _state_of(network: nn.Module) -> list[tuple[Any, ...]]:
    """Differs after any change of a parameter or buffer: in place, moved or replaced."""
    tensors = itertools.chain(network.parameters(), network.buffers())
    return [
        (x.data_ptr(), 0 if x.is_inference() else x._version, x.dtype, x.device, x.shape)
        for x in tensors
    ]


def _dtype_to_compute_in(dtype: torch.dtype | None, network: nn.Module) -> torch.dtype | None:
    """`dtype`, or float32 where that is bfloat16 and a processor would have to emulate it."""
    on_cpu = any(x.device.type == "cpu" for x in network.parameters())
    if dtype != torch.bfloat16 or not on_cpu or processor_has_bfloat16():
        return dtype
    warnings.warn(
        "dtype=torch.bfloat16: this processor has no instructions for bfloat16, so the teacher "
        "computes in float32, which is many times faster here",
        stacklevel=2,
    )
    return torch.float32


def _seconds(run: Callable[[Tensor], object], x: Tensor) -> float:
    """Of one call: the least of three, after a call that does not count."""

    def once() -> float:
        start = time.perf_counter()
        run(x)
        if x.device.type == "cuda":
            torch.cuda.synchronize(x.device)
        return time.perf_counter() - start

    once()
    return min(once() for _ in range(3))


def _fastest_chunk(run: Callable[[Tensor], object], x: Tensor) -> int:
    """How many samples of x to take at a time: all, or a half, a quarter, ... of them.

    Each is timed on one chunk, until two in a row have been no faster by the sample.
    """
    chunk, best, least, worse = len(x), len(x), math.inf, 0
    while chunk >= _SMALLEST_CHUNK and worse < 2:
        seconds = _seconds(run, x[:chunk]) / chunk
        if seconds < least:
            best, least, worse = chunk, seconds, 0
        else:
            worse += 1
        chunk = (chunk + 1) // 2
    return best


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
    bfloat16 where asked. In float32 on a CPU they also compute the ReLUs and residual additions
    that follow them (`fusion.fuse_activations`), unless the networks are compiled. So forward hooks
    on `teacher` and `pruned` do not fire after construction. A pruned copy whose batch norms train
    runs as it is.

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
            the dtype of x either way. On a processor without instructions for bfloat16, where it
            takes many times longer, they compute in float32 instead, and a UserWarning says so.
        chunk: the most samples that the networks take at a time, >= 1. On a CPU a part of a batch
            whose activations fit the caches goes faster than the whole. None measures all of a
            batch, its half, its quarter, ..., at the first call of each shape, which takes as long
            as about eight calls, and keeps the fastest. Chunks of other sizes round differently:
            give a number where runs must agree to the bit. Must be None with batch norms that
            train, which take each batch as a whole.
        compile: whether the prepared networks go through `torch.compile`, which compiles at the
            first call of a shape. Not with batch norms that train.
        cuda_graphs: whether a forward pass is captured as a CUDA graph at the first call of each
            shape, and again after a change of the weights, and replayed from then on. For networks
            that do not wait for the device and do not branch on what is in a tensor; the memory of
            each shape is kept. Takes CUDA tensors alone. Not with batch norms that train.

    Attributes:
        teacher, pruned: the two frozen networks.

    Raises:
        What `r2kd_ext.prune` raises for the teacher, amount and method; TypeError or ValueError
        for a `dense_weight` that is no number in [0, 1]; ValueError for another
        `pruned_batchnorm`, `dtype`, `chunk`, `compile` or `cuda_graphs`; in `forward`, TypeError
        if the teacher's output is not a tensor, and ValueError with `cuda_graphs` for a tensor
        that is not on a CUDA device.
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
        chunk: int | None = None,
        compile: bool = False,
        cuda_graphs: bool = False,
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
        if chunk is not None:
            check_count("chunk", chunk)
            if pruned_batchnorm == "train":
                raise ValueError(
                    "chunk must be None with pruned_batchnorm='train', where each batch has its "
                    f"own statistics, got {chunk!r}"
                )
        for name, value in (("compile", compile), ("cuda_graphs", cuda_graphs)):
            if not isinstance(value, bool):
                raise ValueError(f"{name} must be True or False, got {value!r}")
            if value and pruned_batchnorm == "train":
                raise ValueError(
                    f"{name} must be False with pruned_batchnorm='train', where a forward pass "
                    "changes the statistics of the pruned copy, got True"
                )
        self.pruned_batchnorm = pruned_batchnorm
        self.dtype, self.chunk, self.compiled, self.cuda_graphs = dtype, chunk, compile, cuda_graphs
        self._prepared: dict[str, _Prepared] = {}
        self._captured = CapturedForward()
        self._chunks: dict[tuple[Any, ...], int] = {}
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
        chunk = self._chunk(x)
        if len(x) <= chunk:
            return self._pass(x)
        return torch.cat([self._pass(part) for part in x.split(chunk)])

    @torch.no_grad()
    def both(self, clean: Tensor, view: Tensor) -> tuple[Tensor, Tensor]:
        """Blended logits (B, C) and (B2, C) of two batches, as `forward` gives them by rounding.

        Takes them as one batch, except where batch norms train.

        Raises ValueError where the batches differ in more than the number of samples.
        """
        kinds = [(x.shape[1:], x.dtype, x.device) for x in (clean, view)]
        if kinds[0] != kinds[1]:
            raise ValueError(
                "clean and view must have the same sample shape, dtype and device, got "
                + " and ".join(f"{tuple(x.shape)} {x.dtype} {x.device}" for x in (clean, view))
            )
        if self.pruned_batchnorm == "train":
            return self(clean), self(view)
        logits = self(torch.cat([clean, view]))
        return logits[: len(clean)], logits[len(clean) :]

    def _chunk(self, x: Tensor) -> int:
        """How many samples of x to take at a time."""
        if self.pruned_batchnorm == "train":
            return max(1, len(x))
        if self.chunk is not None:
            return self.chunk
        key = (x.shape, x.dtype, x.device)
        if key not in self._chunks:
            self._chunks[key] = max(1, _fastest_chunk(self._pass, x))
        return self._chunks[key]

    def _pass(self, x: Tensor) -> Tensor:
        """Blended logits of samples that are taken at once."""
        if not self.cuda_graphs:
            return self._blended(x)
        if not x.is_cuda:
            raise ValueError(
                f"x must be on a CUDA device with cuda_graphs=True, got a tensor on {x.device}; "
                "use cuda_graphs=False there"
            )
        for name in self._running():
            self._network(name)  # prepared outside of the capture
        version = (self.dense_weight, [self._prepared[name].state for name in self._running()])
        return self._captured(self._blended, version, x)

    def _running(self) -> list[str]:
        """The names of the networks that a forward pass runs."""
        weights = {"teacher": self.dense_weight, "pruned": 1 - self.dense_weight}
        return [name for name, weight in weights.items() if weight != 0]

    def _blended(self, x: Tensor) -> Tensor:
        logits = [self._logits(name, x) for name in self._running()]  # [B, C] each
        if len(logits) == 1:
            return logits[0]
        return self.dense_weight * logits[0] + (1 - self.dense_weight) * logits[1]

    def _logits(self, name: str, x: Tensor) -> Tensor:
        prepared, own = self._network(name), x.dtype
        if prepared.network is not getattr(self, name):
            if prepared.dtype is not None and x.is_floating_point():
                x = x.to(prepared.dtype)
            if x.dim() == 4:
                x = x.contiguous(memory_format=torch.channels_last)
        logits = prepared.network(x)
        if not isinstance(logits, Tensor):
            raise TypeError(
                f"teacher must return one tensor of logits, got {type(logits).__name__}"
            )
        if self.dtype is not None and own.is_floating_point:
            return logits.to(own)
        return logits

    def _network(self, name: str) -> _Prepared:
        """What runs for the network called `name`: a prepared copy, or itself."""
        source = getattr(self, name)
        if name == "pruned" and self.pruned_batchnorm == "train":
            return _Prepared([], source, None)
        state = _state_of(source)
        prepared = self._prepared.get(name)
        if prepared is None or prepared.state != state:
            dtype = _dtype_to_compute_in(self.dtype, source)
            prepared = _Prepared(state, self._prepare(source, dtype), dtype)
            self._prepared[name] = prepared
        return prepared

    def _prepare(self, source: nn.Module, dtype: torch.dtype | None) -> nn.Module:
        network = source
        if dtype is not None or any(isinstance(m, _ConvNd) for m in source.modules()):
            network = copy.deepcopy(source)
            fold_batchnorm(network)
            network.to(dtype=dtype)
            for module in network.modules():
                if isinstance(module, nn.Conv2d):
                    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.compiled:
            return cast(nn.Module, torch.compile(network))
        return network if network is source else fuse_activations(network)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles prepare their own networks."""
        fresh = {"_prepared": {}, "_chunks": {}, "_captured": CapturedForward()}
        return {**self.__dict__, **fresh}

    def extra_repr(self) -> str:
        return (
            f"dense_weight={self.dense_weight}, pruned_batchnorm={self.pruned_batchnorm!r}, "
            f"dtype={self.dtype}, chunk={self.chunk}, compile={self.compiled}, "
            f"cuda_graphs={self.cuda_graphs}"
        )
