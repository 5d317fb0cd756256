"""Magnitude pruning of the weights of convolutions and linear layers."""

from __future__ import annotations

import copy
import math
import numbers
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import L1Unstructured

_Model = TypeVar("_Model", bound=nn.Module)

METHODS = ("l1_unstructured", "global_l1", "2:4")


def _check_amount(amount: Any) -> float:
    if isinstance(amount, bool) or not isinstance(amount, numbers.Real):
        raise TypeError(
            f"amount must be a number in [0, 1), got {amount!r} of type {type(amount).__name__}"
        )
    fraction = float(amount)
    if not 0 <= fraction < 1:  # also refuses NaN
        raise ValueError(f"amount must be a number in [0, 1), got {amount!r}")
    return fraction


def _check_method(method: Any) -> None:
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(map(repr, METHODS))}, got {method!r}")
    if method == "2:4":
        raise NotImplementedError("method '2:4' is not implemented yet")


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


def prune(
    model: _Model,
    amount: float = 0.1,
    method: str = "l1_unstructured",
    inplace: bool = False,
) -> _Model:
    """Set the smallest weights of the Conv2d and Linear layers of a model to zero.

    "l1_unstructured" zeroes round(amount * size) entries of smallest magnitude in each weight;
    "global_l1" zeroes round(amount * total size) entries, ranked over all these weights together.
    Biases, norms and every other parameter stay as they are. The result equals that of
    `torch.nn.utils.prune` (`l1_unstructured`, `global_unstructured`) followed by `remove`; unlike
    there, a weight that several layers share is counted once and stays shared. Nothing is left
    behind in the model: no hook, buffer or parametrization.

    This is the pruning of R2KD's second teacher (amount 0.1 per layer, no fine-tuning). Source:
    Kim et al., IEEE TKDE 36(12), 2024, doi 10.1109/TKDE.2024.3438074.

    Args:
        model: any module with at least one Conv2d or Linear layer, on any device.
        amount: the fraction of entries to zero, in [0, 1).
        method: "l1_unstructured" or "global_l1".
        inplace: prune `model` itself; otherwise a deep copy is pruned and `model` is untouched.

    Returns:
        The pruned model: `model` itself if `inplace`, else the copy.

    Raises:
        TypeError: `model` is not a module or `amount` is not a number.
        ValueError: `amount` or `method` is out of range, or the model has no weight to prune or
            one that is not a plain parameter.
        NotImplementedError: `method` is "2:4", which is to come.
    """
    fraction = _check_amount(amount)
    _check_method(method)
    prunable_weights(model)  # refuse before copying
    pruned = model if inplace else copy.deepcopy(model)
    weights = list(prunable_weights(pruned).values())
    with torch.no_grad():
        if method == "global_l1":
            mask = _smallest_zeroed(torch.cat([w.reshape(-1) for w in weights]), fraction)
            sizes = [w.numel() for w in weights]
            masks = [m.view_as(w) for m, w in zip(mask.split(sizes), weights, strict=True)]
        else:
            masks = [_smallest_zeroed(w, fraction) for w in weights]
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
