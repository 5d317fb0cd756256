"""Sparse layers in place of dense ones, where that is faster."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .semi_structured import check_2_4, obstacle
from .sparse import SparseConv2d, SparseLinear, check_format

FORMATS = ("auto", "dense", "csr", "2:4")
# A sparse layer has to take at most this share of the dense one's time.
CLEARLY_FASTER = 0.95
_SECONDS_PER_LAYER = 0.03
_SECONDS_PER_MODEL = 1.0

_Layer = nn.Linear | nn.Conv2d
_SparseLayer = SparseLinear | SparseConv2d


@dataclass(frozen=True)
class LayerReport:
    """What was measured of one layer, and what was made of it.

    Times are the seconds of one pass over the example input, the least of several turns (other
    work on the machine only adds to them), summed over the layer's calls; None for what was not
    measured.
    """

    name: str
    shape: tuple[int, ...]  # of the weight
    sparsity: float
    dense_seconds: float | None
    sparse_seconds: float | None
    sparse_format: str | None  # what `sparse_seconds` is of
    choice: str
    reason: str


@dataclass(frozen=True)
class SparsifyReport:
    """The layers in the order of the model, and the whole model's seconds on the example input.

    `dense_seconds` is the model with all layers dense, `seconds` as it was returned, each the least
    of several turns. str() is a table.
    """

    layers: tuple[LayerReport, ...]
    dense_seconds: float
    seconds: float

    @property
    def times_faster(self) -> float:
        return self.dense_seconds / self.seconds

    def __str__(self) -> str:
        rows = [("layer", "shape", "sparsity", "dense ms", "sparse ms", "choice", "reason")]
        for layer in self.layers:
            rows.append(
                (
                    layer.name or "(the model)",
                    "x".join(map(str, layer.shape)),
                    f"{layer.sparsity:.3f}",
                    _milliseconds(layer.dense_seconds),
                    _milliseconds(layer.sparse_seconds),
                    layer.choice,
                    layer.reason,
                )
            )
        weights = sum(torch.Size(x.shape).numel() for x in self.layers)
        zeros = sum(x.sparsity * torch.Size(x.shape).numel() for x in self.layers)
        sparse = sum(x.choice != "dense" for x in self.layers)
        rows.append(
            (
                "total",
                f"{weights}",
                f"{zeros / max(weights, 1):.3f}",
                _milliseconds(self.dense_seconds),
                _milliseconds(self.seconds),
                f"{sparse} of {len(self.layers)} sparse",
                f"whole model, {self.times_faster:.2f} times as fast",
            )
        )
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        left = (0, 1, 5, 6)
        return "\n".join(
            "  ".join(
                cell.ljust(width) if i in left else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        )


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.3f}"


# --- timing ------------------------------------------------------------------------------------


def _turns(ways: Sequence[Callable[[], object]], budget: float, cuda: bool) -> list[list[float]]:
    """Seconds of a call of each way, turn by turn: A B A B ... for about `budget` seconds.

    Five turns at the least, of enough calls to be told from the clock's own noise.
    """

    def seconds(way: Callable[[], object], calls: int) -> float:
        if cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            way()
        if cuda:
            torch.cuda.synchronize()
        return (time.perf_counter() - start) / calls

    for way in ways:
        way()
    once = [seconds(way, 1) for way in ways]
    calls = [max(1, min(100, round(2e-4 / max(x, 1e-7)))) for x in once]
    turn = sum(x * n for x, n in zip(once, calls, strict=True))
    count = max(5, min(25, round(budget / max(turn, 1e-7))))
    return [[seconds(way, n) for way, n in zip(ways, calls, strict=True)] for _ in range(count)]


class _Measured:
    """A layer, what it could become, and the seconds of both on the example."""

    def __init__(self, layer: _Layer, candidates: dict[str, _SparseLayer], reason: str) -> None:
        self.layer, self.candidates, self.reason = layer, candidates, reason
        self.calls = 0
        self.seconds: dict[str, float] = dict.fromkeys(["dense", *candidates], 0.0)

    def measure(self, *inputs: Any, **named: Any) -> None:
        forms: list[nn.Module] = [self.layer, *self.candidates.values()]
        # `forward` itself: a call of the layer would come back here.
        ways = [partial(form.forward, *inputs, **named) for form in forms]
        cuda = any(p.is_cuda for p in self.layer.parameters())
        turns = _turns(ways, _SECONDS_PER_LAYER, cuda)
        for i, form in enumerate(self.seconds):
            self.seconds[form] += min(turn[i] for turn in turns)
        self.calls += 1

    def fastest(self) -> str:
        """The format to keep, by time alone."""
        if not self.calls or not self.candidates:
            return "dense"
        best = min(self.candidates, key=self.seconds.__getitem__)
        return best if self.seconds[best] <= CLEARLY_FASTER * self.seconds["dense"] else "dense"


# --- layers ------------------------------------------------------------------------------------


def _is_plain(layer: nn.Module) -> bool:
    """Whether a call of the layer is the forward pass of `torch.nn`, and nothing else."""
    kind: type[Any] = nn.Linear if isinstance(layer, nn.Linear) else nn.Conv2d
    methods = ("forward", "_conv_forward") if kind is nn.Conv2d else ("forward",)
    hooks = (
        layer._forward_hooks, layer._forward_pre_hooks,
        layer._backward_hooks, layer._backward_pre_hooks,
    )  # fmt: skip
    return not any(hooks) and all(
        getattr(type(layer), method) is getattr(kind, method) and method not in layer.__dict__
        for method in methods
    )


def _sparse_form(layer: _Layer, format: str) -> _SparseLayer:
    if isinstance(layer, nn.Conv2d):
        return SparseConv2d.from_dense(layer, format)
    return SparseLinear.from_dense(layer, format)


def _candidates(name: str, layer: _Layer, format: str) -> tuple[dict[str, _SparseLayer], str]:
    """What the layer could become, by format, and if that is nothing, why."""
    if not _is_plain(layer):
        return {}, "its call is not that of torch.nn (a subclass or hooks)"
    if format == "dense":
        return {}, "asked for"
    matrix = layer.weight.detach().flatten(1)
    if format == "2:4":
        if matrix.shape[1] % 4:
            return {}, f"{matrix.shape[1]} inputs are not divisible by 4"
        check_2_4(matrix, f"model: {name or 'weight'}")
        return {"2:4": _sparse_form(layer, "2:4")}, ""
    found = {}
    try:
        found["csr"] = _sparse_form(layer, "csr")
    except TypeError as error:
        if format == "csr":
            raise
        return {}, str(error)
    if format == "auto" and isinstance(layer, nn.Linear) and obstacle(matrix) is None:
        try:
            found["2:4"] = _sparse_form(layer, "2:4")
        except ValueError:  # the weight is not 2:4
            return found, ""
    return found, ""


def _replace(model: nn.Module, forms: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Put forms[layer] in the place of every such layer, wherever it is; returns the model."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is not None and child in forms:
                parent._modules[name] = forms[child]
    return forms.get(model, model)


def _caller(model: nn.Module, example_input: Any) -> Callable[[], object]:
    if isinstance(example_input, Mapping):
        return lambda: model(**example_input)
    if isinstance(example_input, tuple):
        return lambda: model(*example_input)
    return lambda: model(example_input)


def _compare(
    model: nn.Module, forms: dict[nn.Module, nn.Module], example_input: Any
) -> tuple[float, float]:
    """Seconds of the whole model dense and with `forms`."""
    back = {sparse: dense for dense, sparse in forms.items()}
    cuda = any(p.is_cuda for p in model.parameters())
    turns: list[tuple[float, float]] = []
    started = time.perf_counter()
    while len(turns) < 3 or (
        len(turns) < 25 and time.perf_counter() - started < _SECONDS_PER_MODEL
    ):
        # The first call after an exchange does not count: caches and allocator are the other's.
        ((dense,), *_) = _turns([_caller(model, example_input)], 0.0, cuda)
        replaced = _replace(model, forms)
        ((sparse,), *_) = _turns([_caller(replaced, example_input)], 0.0, cuda)
        model = _replace(replaced, back)
        turns.append((dense, sparse))
    return min(turn[0] for turn in turns), min(turn[1] for turn in turns)


def sparsify(model: nn.Module, example_input: Any, format: str = "auto") -> nn.Module:
    """A copy of a model whose Conv2d and Linear layers are sparse where that is faster.

    The model runs on the example input, in eval mode and without gradients, and each layer that
    it calls is timed in turn as it is and as `SparseConv2d` or `SparseLinear`, on what reaches it
    there. "auto" keeps the sparse one where it takes at most 0.95 of the time, and only if the
    whole model is then faster as well: else all stays dense. At low sparsity that is the usual
    outcome. So give an example of the shape, dtype and memory format to come, and the number of
    threads that will be used.

    A layer that is called several times is judged by the sum, and replaced wherever it is. A layer
    stays dense that the example does not reach, or that is no plain layer of torch.nn (a subclass
    with its own forward, hooks). Sparse layers are forward only; see `SparseLinear`.

    Args:
        model: any module; it is not changed.
        example_input: the argument of the model, a tuple of its arguments, or a mapping of its
            named arguments.
        format: "auto"; "csr" or "2:4" for all layers that can be; "dense" for none. "2:4" takes
            the layers whose number of inputs is divisible by 4.

    Returns:
        The copy, its layers in the modes (training or eval) of the originals. Its attribute
        `report` is a `SparsifyReport`: print it for a table of layer, shape, sparsity, both times,
        choice and the total.

    Raises:
        TypeError: `model` is no module; "csr" for a dtype that it does not take.
        ValueError: unknown format; no Conv2d or Linear layer; "2:4" for a weight that is not.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    check_format(format, FORMATS)
    network = copy.deepcopy(model)
    measured: dict[str, _Measured] = {}
    for name, layer in network.named_modules():
        if not isinstance(layer, (nn.Linear, nn.Conv2d)):
            continue
        if isinstance(layer.weight, nn.UninitializedParameter):
            raise ValueError(
                f"model must be initialised, but {name or 'its weight'} has no shape yet: "
                "run the lazy layers on one batch first"
            )
        measured[name] = _Measured(layer, *_candidates(name, layer, format))
    if not measured:
        raise ValueError(
            f"model must have at least one Conv2d or Linear layer, {type(model).__name__} has none"
        )
    modes = {module: module.training for module in network.modules()}
    network.eval()
    with torch.no_grad():
        _measure_layers(network, measured, example_input)
        chosen = {
            name: _forced(x, format) if format != "auto" else x.fastest()
            for name, x in measured.items()
        }
        forms: dict[nn.Module, nn.Module] = {
            measured[name].layer: measured[name].candidates[form]
            for name, form in chosen.items()
            if form != "dense"
        }
        dense_seconds, seconds = _compare(network, forms, example_input)
    reverted = format == "auto" and bool(forms) and seconds >= dense_seconds
    if reverted:
        forms, seconds = {}, dense_seconds
    for module, training in modes.items():
        module.training = training
    for layer, form in forms.items():
        form.training = layer.training
    network = _replace(network, forms)
    layers = [
        _layer_report(name, x, "dense" if reverted else chosen[name], format, reverted)
        for name, x in measured.items()
    ]
    report = SparsifyReport(tuple(layers), dense_seconds, seconds)
    network.report = report  # type: ignore[assignment]
    return network


def _measure_layers(network: nn.Module, measured: dict[str, _Measured], example_input: Any) -> None:
    handles = [
        x.layer.register_forward_pre_hook(
            lambda module, inputs, named, x=x: x.measure(*inputs, **named), with_kwargs=True
        )
        for x in measured.values()
    ]
    try:
        _caller(network, example_input)()
    finally:
        for handle in handles:
            handle.remove()


def _forced(measured: _Measured, format: str) -> str:
    return format if measured.calls and format in measured.candidates else "dense"


def _layer_report(
    name: str, measured: _Measured, choice: str, format: str, reverted: bool
) -> LayerReport:
    weight: Tensor = measured.layer.weight.detach()
    sparse = min(measured.candidates, key=measured.seconds.__getitem__, default=None)
    timed = measured.calls > 0
    if not timed:
        reason = "the example does not reach it"
    elif measured.reason:
        reason = measured.reason
    elif format != "auto":
        reason = "asked for"
    elif reverted and measured.fastest() != "dense":
        reason = "faster by itself, but not the whole model"
    else:
        reason = "faster" if choice != "dense" else "dense is as fast or faster"
    size = weight.numel()
    return LayerReport(
        name,
        tuple(weight.shape),
        1 - int((weight != 0).sum()) / size if size else 0.0,
        measured.seconds["dense"] if timed else None,
        measured.seconds[sparse] if timed and sparse else None,
        sparse,
        choice,
        reason,
    )
