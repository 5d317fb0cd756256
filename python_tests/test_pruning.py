"""`prune` against torch.nn.utils.prune on a copy of the same model."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as torch_prune

import r2kd_ext
from r2kd_ext.pruning import sparsity


class Branches(nn.Module):
    """Layers at several depths, in a list and a dict, and kinds that are not to be pruned."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 5, 3)
        self.grouped = nn.Conv2d(6, 6, 3, groups=3, bias=False)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(7, 5), nn.ReLU()) for _ in range(2)])
        self.heads = nn.ModuleDict({"a": nn.Linear(5, 1), "b": nn.Linear(5, 3, bias=False)})
        self.untouched = nn.ModuleList(
            [
                nn.BatchNorm2d(5),
                nn.LayerNorm(7),
                nn.GroupNorm(2, 6),
                nn.Embedding(4, 5),
                nn.Conv1d(3, 5, 3),
                nn.ConvTranspose2d(3, 5, 3),
            ]
        )


MODELS: dict[str, Callable[[], nn.Module]] = {
    "teacher": lambda: r2kd_ext.models.create("digits_teacher", 10),
    "student": lambda: r2kd_ext.models.create("digits_student", 10),
    "branches": Branches,
    "transformer": lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
    "layer": lambda: nn.Linear(5, 5),  # the model is itself the layer
}
# round() takes halves to the even number: of 25 entries 0.1 is 2, 0.3 is 8 and 0.02 is 0.
AMOUNTS = [0, 0.0, 0.02, 0.1, 0.3, 1 / 3, 0.5, 0.999]
METHODS = ["l1_unstructured", "global_l1"]

each_model = pytest.mark.parametrize("name", MODELS)
each_method = pytest.mark.parametrize("method", METHODS)


def make(name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(1)
    model = MODELS[name]().to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms too: none is 0 by itself
            parameter.copy_(torch.randn(parameter.shape))
    return model


def layers(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]


def expected(model: nn.Module, amount: float, method: str) -> nn.Module:
    """The model pruned by torch."""
    model = copy.deepcopy(model)
    pairs = [(layer, "weight") for layer in layers(model)]
    # torch reads the integer 0 as a number of entries, which is the same here.
    if method == "global_l1":
        torch_prune.global_unstructured(
            pairs, pruning_method=torch_prune.L1Unstructured, amount=amount
        )
    else:
        for layer, name in pairs:
            torch_prune.l1_unstructured(layer, name, amount=amount)
    for layer, name in pairs:
        torch_prune.remove(layer, name)
    return model


def bits(model: nn.Module) -> dict[str, tuple[torch.dtype, bytes]]:
    """Every parameter and buffer, so that -0.0 differs from 0.0."""
    return {
        name: (value.dtype, value.contiguous().view(torch.uint8).numpy().tobytes())
        for name, value in model.state_dict().items()
        if value.numel() and value.dim()  # a number of batches, which nothing here changes
    }


@each_model
@each_method
@pytest.mark.parametrize("amount", AMOUNTS)
def test_as_torch(name: str, method: str, amount: float) -> None:
    model = make(name)
    got = r2kd_ext.prune(model, amount, method)
    assert bits(got) == bits(expected(model, amount, method))


@each_method
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_as_torch_in_each_dtype(method: str, dtype: torch.dtype) -> None:
    model = make("branches", dtype)
    got = r2kd_ext.prune(model, 0.3, method)
    assert bits(got) == bits(expected(model, 0.3, method))


def test_defaults_are_the_published_ones() -> None:
    model = make("teacher")
    assert bits(r2kd_ext.prune(model)) == bits(expected(model, 0.1, "l1_unstructured"))


@pytest.mark.parametrize(("size", "amount", "zeros"), [(25, 0.1, 2), (5, 0.3, 2), (5, 0.1, 0)])
def test_count(size: int, amount: float, zeros: int) -> None:
    layer = nn.Linear(size, 1)
    nn.init.uniform_(layer.weight, 1, 2)
    assert r2kd_ext.prune(layer, amount).weight.count_nonzero() == size - zeros


def test_by_hand() -> None:
    model = nn.Sequential(nn.Linear(4, 1), nn.Linear(4, 1))
    with torch.no_grad():
        model.get_parameter("0.weight").copy_(torch.tensor([[0.1, -4.0, 0.2, -0.3]]))
        model.get_parameter("1.weight").copy_(torch.tensor([[5.0, -6.0, 1.0, 7.0]]))
    each = r2kd_ext.prune(model, 0.5)
    assert torch.equal(each.get_parameter("0.weight"), torch.tensor([[0.0, -4.0, 0.0, -0.3]]))
    assert torch.equal(each.get_parameter("1.weight"), torch.tensor([[0.0, -6.0, 0.0, 7.0]]))
    together = r2kd_ext.prune(model, 0.5, "global_l1")
    assert torch.equal(together.get_parameter("0.weight"), torch.tensor([[0.0, -4.0, 0.0, 0.0]]))
    assert torch.equal(together.get_parameter("1.weight"), torch.tensor([[5.0, -6.0, 0.0, 7.0]]))


@each_model
@each_method
def test_only_weights_change(name: str, method: str) -> None:
    model = make(name)
    before = bits(model)
    pruned = r2kd_ext.prune(model, 0.5, method)
    weights = {f"{path}.weight" if path else "weight" for path, _ in _named_layers(model)}
    after = bits(pruned)
    assert bits(model) == before  # the original
    assert after.keys() == before.keys()
    changed = {key for key in before if before[key] != after[key]}
    assert changed <= weights
    assert changed if method == "global_l1" else changed == weights


def _named_layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(n, m) for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]


@each_method
def test_nothing_is_left_behind(method: str) -> None:
    model = make("branches")
    pruned = r2kd_ext.prune(model, 0.5, method)
    assert type(pruned) is Branches
    assert [n for n, _ in pruned.named_parameters()] == [n for n, _ in model.named_parameters()]
    assert [n for n, _ in pruned.named_buffers()] == [n for n, _ in model.named_buffers()]
    assert all(p.is_leaf and p.requires_grad for p in pruned.parameters())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in pruned.modules())
    assert not torch_prune.is_pruned(pruned)


@each_method
def test_copy_shares_nothing(method: str) -> None:
    model = make("branches")
    pruned = r2kd_ext.prune(model, 0.5, method)
    own = {p.data_ptr() for p in model.state_dict().values()}
    assert own.isdisjoint(p.data_ptr() for p in pruned.state_dict().values())


@each_method
def test_inplace(method: str) -> None:
    model = make("branches")
    want = bits(r2kd_ext.prune(model, 0.5, method))
    parameters = list(model.parameters())
    assert r2kd_ext.prune(model, 0.5, method, inplace=True) is model
    assert bits(model) == want
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))


@each_method
def test_mode_and_frozen_weights_stay(method: str) -> None:
    model = make("teacher").eval().requires_grad_(False)
    pruned = r2kd_ext.prune(model, 0.5, method)
    assert not any(m.training for m in pruned.modules())
    assert not any(p.requires_grad for p in pruned.parameters())


@each_method
def test_shared_weight_counts_once_and_stays_shared(method: str) -> None:
    torch.manual_seed(0)
    first, second, last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
    second.weight = first.weight
    model = nn.Sequential(first, nn.ReLU(), second, last)
    alone = nn.Sequential(first, last)  # each weight once
    pruned = r2kd_ext.prune(model, 0.25, method)
    assert pruned[2].weight is pruned.get_parameter("0.weight")
    want = expected(alone, 0.25, method)
    assert torch.equal(pruned.get_parameter("0.weight"), want.get_parameter("0.weight"))
    assert torch.equal(pruned.get_parameter("3.weight"), want.get_parameter("1.weight"))
    assert sparsity(pruned) == 6 / 24


@each_method
def test_channels_last(method: str) -> None:
    model = make("student")
    rearranged: nn.Module = copy.deepcopy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    got = r2kd_ext.prune(rearranged, 0.3, method)
    assert bits(got) == bits(expected(model, 0.3, method))
    assert got.get_parameter("3.weight").is_contiguous(memory_format=torch.channels_last)


@each_method
def test_pruned_model_computes_with_the_pruned_weights(method: str) -> None:
    model = make("student").eval()
    x = torch.randn(3, 1, 28, 28)
    got = r2kd_ext.prune(model, 0.6, method)(x)
    assert torch.equal(got, expected(model, 0.6, method)(x))
    assert not torch.equal(got, model(x))


def test_sparsity() -> None:
    model = nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))
    nn.init.ones_(model.get_parameter("0.weight"))
    nn.init.ones_(model.get_parameter("2.weight"))
    with torch.no_grad():
        model.get_parameter("0.weight")[0] = torch.tensor([0.0, 0.0, -0.0, 1.0])
    assert sparsity(model) == 3 / 10  # a zero bias is no weight, -0.0 is zero


class NoWeights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.embedding = nn.Embedding(3, 3)


def _parametrized() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 3), parametrizations.weight_norm(nn.Linear(3, 3)))


def _unfinished() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 3))
    torch_prune.l1_unstructured(model[0], "weight", amount=0.5)
    return model


@pytest.mark.parametrize(
    ("model", "options", "error", "message"),
    [
        (nn.Linear(2, 2), {"amount": 1}, ValueError, "amount must be a number in [0, 1), got 1"),
        (nn.Linear(2, 2), {"amount": -0.1}, ValueError, "amount must be .* [0, 1), got -0.1"),
        (nn.Linear(2, 2), {"amount": 1.5}, ValueError, "amount must be .* [0, 1), got 1.5"),
        (nn.Linear(2, 2), {"amount": float("nan")}, ValueError, "amount must be .* got nan"),
        (nn.Linear(2, 2), {"amount": "0.1"}, TypeError, "amount must be .* got '0.1' of type str"),
        (nn.Linear(2, 2), {"amount": True}, TypeError, "amount must be .* got True of type bool"),
        (nn.Linear(2, 2), {"amount": None}, TypeError, "amount must be .* got None"),
        (
            nn.Linear(2, 2),
            {"method": "l2"},
            ValueError,
            "method must be one of 'l1_unstructured', 'global_l1', '2:4', got 'l2'",
        ),
        (nn.Linear(2, 2), {"method": None}, ValueError, "method must be one of .* got None"),
        (
            NoWeights(),
            {},
            ValueError,
            "model must have at least one Conv2d or Linear layer, NoWeights has none",
        ),
        (torch.ones(2), {}, TypeError, "model must be a torch.nn.Module, got Tensor"),
        (nn.Linear, {}, TypeError, "model must be a torch.nn.Module, got type"),
        (_parametrized(), {}, ValueError, "model must .* 1.weight is computed from other tensors"),
        (_unfinished(), {}, ValueError, "model must .* 0.weight is computed from other tensors"),
        (nn.Sequential(nn.LazyLinear(3)), {}, ValueError, "model must .* 0.weight has no shape"),
    ],
)
@pytest.mark.parametrize("inplace", [False, True])
def test_refused(
    model: Any, options: dict[str, Any], error: type[Exception], message: str, inplace: bool
) -> None:
    before = [p.detach().clone() for p in _parameters(model)]
    pattern = re.escape(message).replace(re.escape(".*"), ".*")
    with pytest.raises(error, match=pattern):
        r2kd_ext.prune(model, **options, inplace=inplace)
    assert all(map(torch.equal, _parameters(model), before))


def _parameters(model: Any) -> list[Tensor]:
    if not isinstance(model, nn.Module):
        return []
    return [p for p in model.parameters() if not isinstance(p, nn.UninitializedParameter)]
