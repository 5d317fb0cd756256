"""Magnitude pruning of the weights of convolutions and linear layers."""

from __future__ import annotations

import copy
import math
import numbers
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import L1Unstructured

_Model = TypeVar("_Model", bound=nn.Module)

METHODS = ("l1_unstructured", "global_l1", "2:4")


class _Published(float):
    """The default amount, told apart from the same amount asked for."""


PUBLISHED_AMOUNT = _Published(0.1)


def _check_amount(amount: Any, argument: str = "amount") -> float:
    if isinstance(amount, bool) or not isinstance(amount, numbers.Real):
        raise TypeError(
            f"{argument} must be a number in [0, 1), got {amount!r} of type {type(amount).__name__}"
        )
    fraction = float(amount)
    if not 0 <= fraction < 1:  # also refuses NaN
        raise ValueError(f"{argument} must be a number in [0, 1), got {amount!r}")
    return fraction


def _check_schedule(amount: Mapping[Any, Any]) -> dict[str, float]:
    if not amount:
        raise ValueError(f"amount must have at least one pattern, got {amount!r}")
    for pattern in amount:
        if not isinstance(pattern, str):
            raise TypeError(
                "amount must have patterns of layer names (str) as keys, "
                f"got {pattern!r} of type {type(pattern).__name__}"
            )
    return {pattern: _check_amount(x, f"amount[{pattern!r}]") for pattern, x in amount.items()}


def _check_method(method: Any, amount: Any) -> None:
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(map(repr, METHODS))}, got {method!r}")
    if method == "global_l1" and isinstance(amount, Mapping):
        raise ValueError(
            "amount must be a number with method 'global_l1', which ranks the layers together, "
            f"got {amount!r}"
        )
    if method == "2:4" and not isinstance(amount, _Published) and amount != 0.5:
        raise ValueError(f"amount must be 0.5 (or left out) with method '2:4', got {amount!r}")


def prunable_weights(model: nn.Module, argument: str = "model") -> dict[str, nn.Parameter]:
    """The weights of every Conv2d and Linear of `model`, by name, each parameter once.

    `argument` is what the errors call the model.

    Raises TypeError for anything that is not a module, and ValueError where there is no such
    weight, or one that is computed from other tensors (a parametrization, an unfinished
    torch.nn.utils.prune) or not yet initialised (a lazy layer).
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"{argument} must be a torch.nn.Module, got {type(model).__name__}")
    weights: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    for path, module in model.named_modules():
        if not isinstance(module, (nn.Conv2d, nn.Linear)):
            continue
        name = f"{path}.weight" if path else "weight"
        weight = module._parameters.get("weight")
        if weight is None:
            raise ValueError(
                f"{argument} must hold its weights as plain parameters, but {name} is computed "
                "from other tensors: remove the parametrization (or pruning) of that layer first"
            )
        if isinstance(weight, nn.UninitializedParameter):
            raise ValueError(
                f"{argument} must be initialised, but {name} has no shape yet: "
                "run the lazy layers on one batch first"
            )
        if id(weight) not in seen:
            seen.add(id(weight))
            weights[name] = weight
    if not weights:
        raise ValueError(
            f"{argument} must have at least one Conv2d or Linear layer, "
            f"{type(model).__name__} has none"
        )
    return weights


def _smallest_zeroed(scores: Tensor, fraction: float) -> Tensor:
    """Mask of the shape of `scores`: 0 for the round(fraction * size) smallest |scores|, else 1."""
    scores = scores.contiguous()  # compute_mask cannot take channels-last weights
    pruner = L1Unstructured(fraction)
    mask: Tensor = pruner.compute_mask(scores, default_mask=torch.ones_like(scores))
    return mask


def _layer_amounts(names: Iterable[str], amount: float | dict[str, float]) -> list[float]:
    """The amount of each weight, by the name of its layer."""
    layers = [name.removesuffix("weight").removesuffix(".") for name in names]
    if not isinstance(amount, dict):
        return [amount] * len(layers)
    for pattern in amount:
        if not any(fnmatchcase(layer, pattern) for layer in layers):
            raise ValueError(
                f"amount must have patterns that match a Conv2d or Linear layer, {pattern!r} "
                f"matches none of {', '.join(map(repr, layers[:5]))}"
                + (f" and {len(layers) - 5} more" if len(layers) > 5 else "")
            )
    return [
        next((x for pattern, x in amount.items() if fnmatchcase(layer, pattern)), 0.0)
        for layer in layers
    ]


def _fits_2_4(weight: Tensor) -> bool:
    """Whether the inputs of a layer, (channels of a group * kernel area), come in fours."""
    return weight.dim() > 1 and weight[0].numel() % 4 == 0


def _two_of_four(weight: Tensor) -> Tensor:
    """Mask of the shape of `weight`: 1 for the 2 largest of 4 neighbours in a row, else 0.

    Of equal magnitudes the first stay. All ones where the rows do not come in fours.
    """
    if not _fits_2_4(weight):
        return torch.ones_like(weight)
    fours = weight.reshape(-1, 4).abs()
    order = fours.argsort(dim=1, descending=True, stable=True)
    return torch.zeros_like(fours).scatter_(1, order[:, :2], 1).view(weight.shape)


def prune(
    model: _Model,
    amount: float | Mapping[str, float] = PUBLISHED_AMOUNT,
    method: str = "l1_unstructured",
    inplace: bool = False,
) -> _Model:
    """Set the smallest weights of the Conv2d and Linear layers of a model to zero.

    "l1_unstructured" zeroes round(amount * size) entries of smallest magnitude in each weight;
    "global_l1" zeroes round(amount * total size) entries, ranked over all these weights together.
    The result of both equals that of `torch.nn.utils.prune` (`l1_unstructured`,
    `global_unstructured`) followed by `remove`; unlike there, a weight that several layers share is
    counted once and stays shared.

    "2:4" keeps the 2 entries of largest magnitude in each group of 4 neighbours along the inputs
    of a layer, which for Conv2d are flattened (channels of a group, then kernel height and width).
    A layer whose number of inputs is not divisible by 4 stays dense, since the semi-structured
    kernels cannot take it either; `sparsity` tells what came out.

    Biases, norms and every other parameter stay as they are. Nothing is left behind in the model:
    no hook, buffer or parametrization.

    This is the pruning of R2KD's second teacher (amount 0.1 per layer, no fine-tuning). Source:
    Kim et al., IEEE TKDE 36(12), 2024, doi 10.1109/TKDE.2024.3438074.

    Args:
        model: any module with at least one Conv2d or Linear layer, on any device.
        amount: the fraction of entries to zero, in [0, 1); for "2:4" only 0.5, which is then the
            default. For "l1_unstructured" also a schedule: a mapping from patterns of layer names
            (as in `fnmatch`, "layer3.*") to fractions. The first pattern that matches decides; a
            layer that none matches stays dense. Of a shared weight the first layer's name counts.
        method: "l1_unstructured", "global_l1" or "2:4".
        inplace: prune `model` itself; otherwise a deep copy is pruned and `model` is untouched.

    Returns:
        The pruned model: `model` itself if `inplace`, else the copy.

    Raises:
        TypeError: `model` is not a module or `amount` is not a number or mapping of such.
        ValueError: `amount` or `method` is out of range or they do not go together; a pattern
            matches no layer; the model has no weight to prune or one that is not a plain
            parameter, or none that "2:4" fits.
    """
    checked = _check_schedule(amount) if isinstance(amount, Mapping) else _check_amount(amount)
    _check_method(method, amount)
    original = prunable_weights(model)  # refuse before copying
    fractions = _layer_amounts(original, checked)
    if method == "2:4" and not any(map(_fits_2_4, original.values())):
        raise ValueError(
            "model must have a Conv2d or Linear layer whose number of inputs is divisible by 4 "
            f"for method '2:4', {type(model).__name__} has none"
        )
    pruned = model if inplace else copy.deepcopy(model)
    weights = list(prunable_weights(pruned).values())
    with torch.no_grad():
        if method == "global_l1":
            mask = _smallest_zeroed(torch.cat([w.reshape(-1) for w in weights]), fractions[0])
            sizes = [w.numel() for w in weights]
            masks = [m.view_as(w) for m, w in zip(mask.split(sizes), weights, strict=True)]
        elif method == "2:4":
            masks = [_two_of_four(w) for w in weights]
        else:
            masks = [_smallest_zeroed(w, x) for w, x in zip(weights, fractions, strict=True)]
        for weight, mask in zip(weights, masks, strict=True):
            weight.mul_(mask)
    return pruned


def sparsity(model: nn.Module) -> float:
    """The fraction, in [0, 1], of exactly zero entries in the Conv2d and Linear weights.

    A weight that several layers share counts once. Raises what `prune` raises for its model;
    NaN if these weights have no entries at all.
    """
    weights = prunable_weights(model).values()
    total = sum(weight.numel() for weight in weights)
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    return zeros / total if total else math.nan
