"""`prune` by method "2:4", and with a schedule of amounts by name pattern."""

from __future__ import annotations

import re
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import r2kd_ext
from r2kd_ext import TeacherEnsemble
from r2kd_ext.pruning import sparsity


class Net(nn.Module):
    """Layers whose inputs come in fours, and layers whose do not."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, bias=False)  # 27 inputs
        self.deep = nn.Sequential(nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 1))
        self.grouped = nn.Conv2d(8, 8, 2, groups=4)  # 2 * 2 * 2 inputs
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)  # 9 inputs
        self.fc = nn.Linear(12, 5)
        self.odd = nn.Linear(6, 5)


FITTING = ("deep.0.weight", "deep.2.weight", "grouped.weight", "fc.weight")


def make(dtype: torch.dtype = torch.float32) -> Net:
    torch.manual_seed(2)
    return Net().to(dtype)


def best_of_four(weight: Tensor) -> Tensor:
    """By trying all pairs: the one of largest sum of magnitudes."""
    rows = weight.detach().flatten(1)
    kept = torch.zeros_like(rows)
    for row in range(rows.shape[0]):
        for start in range(0, rows.shape[1], 4):
            four = rows[row, start : start + 4]
            pair = max(
                combinations(range(4), 2), key=lambda p: float(four[list(p)].double().abs().sum())
            )
            for at in pair:
                kept[row, start + at] = four[at]
    return kept.view(weight.shape)


@pytest.mark.parametrize("amount", [{}, {"amount": 0.5}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_two_of_four(amount: dict[str, Any], dtype: torch.dtype) -> None:
    model = make(dtype)
    pruned = r2kd_ext.prune(model, method="2:4", **amount)
    for name, before in model.named_parameters():
        after = pruned.get_parameter(name)
        want = best_of_four(before) if name in FITTING else before
        assert torch.equal(after, want), name
    total = sum(p.numel() for name, p in model.named_parameters() if p.dim() > 1)
    fitting = sum(model.get_parameter(name).numel() for name in FITTING)
    assert sparsity(pruned) == 0.5 * fitting / total


def test_two_of_four_by_hand() -> None:
    layer = nn.Linear(8, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.1, -4.0, 0.2, -0.3, 1.0, -1.0, 1.0, 1.0]]))
    want = torch.tensor([[0.0, -4.0, 0.0, -0.3, 1.0, -1.0, 0.0, 0.0]])  # of equals the first
    assert torch.equal(r2kd_ext.prune(layer, method="2:4").weight, want)


def test_two_of_four_along_the_inputs_of_a_convolution() -> None:
    """Channels first, then the kernel, in whatever order the memory is."""
    conv = nn.Conv2d(2, 1, 2, bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([[[[1.0, 2], [3, 4]], [[8, 7], [6, 5]]]]))
    want = torch.tensor([[[[0.0, 0], [3, 4]], [[8, 7], [0, 0]]]])
    assert torch.equal(r2kd_ext.prune(conv, method="2:4").weight, want)
    conv.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert torch.equal(r2kd_ext.prune(conv, method="2:4", inplace=True).weight, want)


def test_ensemble_of_two_of_four() -> None:
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(8, 4))
    ensemble = TeacherEnsemble(teacher, method="2:4")
    want = best_of_four(teacher.get_parameter("1.weight"))
    assert torch.equal(ensemble.pruned.get_parameter("1.weight"), want)


@pytest.mark.parametrize(
    ("schedule", "amounts"),
    [
        (
            {"deep.*": 0.5, "fc": 0.0, "*": 0.25},
            {"stem": 0.25, "deep.0": 0.5, "deep.2": 0.5, "fc": 0.0, "odd": 0.25},
        ),
        ({"*": 0.25, "fc": 0.5}, {"stem": 0.25, "fc": 0.25}),  # the first that matches
        ({"[fo]*": 0.4}, {"stem": 0.0, "deep.0": 0.0, "fc": 0.4, "odd": 0.4}),  # others stay
        ({"deep.?": 0.75}, {"deep.0": 0.75, "deep.2": 0.75, "fc": 0.0}),
    ],
)
def test_schedule(schedule: dict[str, float], amounts: dict[str, float]) -> None:
    model = make()
    pruned = r2kd_ext.prune(model, schedule)
    for name, amount in amounts.items():
        layer = r2kd_ext.prune(model.get_submodule(name), amount)
        assert torch.equal(pruned.get_parameter(f"{name}.weight"), layer.get_parameter("weight"))
    assert sparsity(model) == 0


def test_ensemble_takes_a_schedule() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(8, 8), nn.Linear(8, 4))
    ensemble = TeacherEnsemble(model, {"1": 0.5})
    assert sparsity(ensemble.pruned.get_submodule("1")) == 0.5
    assert sparsity(ensemble.pruned.get_submodule("2")) == 0


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"method": "2:4", "amount": 0.1},
            ValueError,
            "amount must be 0.5 (or left out) with method '2:4', got 0.1",
        ),
        ({"method": "2:4", "amount": {"*": 0.5}}, ValueError, "amount must be 0.5 .* got {'*'"),
        ({"method": "2:4", "amount": "half"}, TypeError, "amount must be a number .* 'half'"),
        (
            {"method": "global_l1", "amount": {"*": 0.5}},
            ValueError,
            "amount must be a number with method 'global_l1', .* got {'*': 0.5}",
        ),
        (
            {"amount": {"*": 0.1, "layer3.*": 0.5}},
            ValueError,
            "'layer3.*' matches none of 'stem', 'deep.0', .* and 2 more",
        ),
        ({"amount": {"bn": 0.1, "*": 0.5}}, ValueError, "'bn' matches none of"),
        ({"amount": {"deep.1": 0.1}}, ValueError, "'deep.1' matches none of"),
        ({"amount": {"fc": 1.0}}, ValueError, "amount['fc'] must be a number in [0, 1), got 1.0"),
        ({"amount": {"fc": "0.1"}}, TypeError, "amount['fc'] must be a number .* of type str"),
        ({"amount": {3: 0.1}}, TypeError, "amount must have patterns .* got 3 of type int"),
        ({"amount": {}}, ValueError, "amount must have at least one pattern, got {}"),
    ],
)
@pytest.mark.parametrize("inplace", [False, True])
def test_refused(
    options: dict[str, Any], error: type[Exception], message: str, inplace: bool
) -> None:
    model = make()
    pattern = re.escape(message).replace(r"\ \.\*\ ", " .* ")
    with pytest.raises(error, match=pattern):
        r2kd_ext.prune(model, **options, inplace=inplace)
    assert sparsity(model) == 0


def test_two_of_four_without_a_layer_that_fits() -> None:
    with pytest.raises(ValueError, match="inputs is divisible by 4 for method '2:4', Linear has"):
        r2kd_ext.prune(nn.Linear(6, 2), method="2:4")
