"""sparsify: what is measured, chosen and reported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import r2kd_ext
from r2kd_ext import SparseConv2d, SparseLinear, prune
from r2kd_ext import sparsification as under_test

# Any: a type checker does not know the attributes of the modules below.
sparsify: Callable[..., Any] = r2kd_ext.sparsify
pytestmark = pytest.mark.usefixtures("one_thread")


class Shared(nn.Module):
    """A layer called twice and under two names, one that is not called, and a subclass."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.again = self.conv
        self.norm = nn.BatchNorm2d(4)
        self.spare = nn.Linear(4, 4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        h = self.norm(self.again(self.conv(x).relu()))
        h = h.flatten(2).transpose(1, 2)
        h = h + self.attention(h, h, h, need_weights=False)[0]
        return self.head(h.mean(1)) * scale


def pretend(monkeypatch: pytest.MonkeyPatch, seconds: Callable[[Any], float]) -> None:
    """Timings by a function of the thing that is timed, as often as it is timed."""

    def turns(ways: list[Any], budget: float, cuda: bool) -> list[list[float]]:
        for way in ways:
            way()
        return [[seconds(getattr(way, "func", way)) for way in ways]]

    monkeypatch.setattr(under_test, "_turns", turns)


def of_layer(dense: float, sparse: float) -> Callable[[Any], float]:
    """Dense layers take `dense` seconds, sparse ones `sparse`; the model what its layers do."""

    def seconds(way: Any) -> float:
        owner = getattr(way, "__self__", None)
        if owner is not None:
            return sparse if isinstance(owner, (SparseLinear, SparseConv2d)) else dense
        model = way.__closure__[1].cell_contents
        count = sum(isinstance(m, (SparseLinear, SparseConv2d)) for m in model.modules())
        return 10.0 - count * (dense - sparse)

    return seconds


def example() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(2, 4, 6, 6)


def test_faster_layers_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, of_layer(dense=1.0, sparse=0.5))
    torch.manual_seed(1)
    model = prune(Shared(), 0.5)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    made = sparsify(model, example())
    assert isinstance(made.conv, SparseConv2d)
    assert made.again is made.conv
    assert isinstance(made.head, SparseLinear)
    assert type(made.spare) is nn.Linear
    assert isinstance(made.attention.out_proj, nn.Linear)
    # Neither the model nor its copy was trained by the example.
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(made.norm.running_mean, state["norm.running_mean"])
    assert all(m.training for m in made.modules())
    rows = {layer.name: layer for layer in made.report.layers}
    assert rows["conv"].shape == (4, 4, 3, 3)
    assert rows["conv"].sparsity == pytest.approx(0.5)
    assert (rows["conv"].dense_seconds, rows["conv"].sparse_seconds) == (2.0, 1.0)  # two calls
    assert rows["conv"].choice == "csr"
    assert rows["spare"].reason == "the example does not reach it"
    assert rows["spare"].dense_seconds is None
    assert rows["attention.out_proj"].choice == "dense"
    with torch.no_grad():
        torch.testing.assert_close(made.eval()(example()), model.eval()(example()))


def test_slower_layers_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, of_layer(dense=1.0, sparse=0.96))
    made = sparsify(Shared(), example())
    assert type(made.conv) is nn.Conv2d
    assert {layer.choice for layer in made.report.layers} == {"dense"}
    assert made.report.times_faster == 1


def test_whole_model_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Faster by themselves, but the model is not."""

    def seconds(way: Any) -> float:
        if getattr(way, "__self__", None) is not None:
            return of_layer(1.0, 0.5)(way)
        return 20.0 - of_layer(1.0, 0.5)(way)

    pretend(monkeypatch, seconds)
    made = sparsify(Shared(), example())
    assert type(made.conv) is nn.Conv2d
    rows = {layer.name: layer for layer in made.report.layers}
    assert rows["conv"].reason == "faster by itself, but not the whole model"
    assert rows["spare"].reason == "the example does not reach it"
    assert made.report.times_faster == 1


@pytest.mark.parametrize("inputs", [(example(),), (example(), 2.0), {"x": example(), "scale": 2.0}])
def test_example_inputs(inputs: Any) -> None:
    made = sparsify(Shared(), inputs, "csr")
    assert isinstance(made.conv, SparseConv2d)
    table = str(made.report)
    assert "conv" in table
    assert "total" in table
    assert "4x4x3x3" in table
    assert made.report.seconds > 0


def test_dense() -> None:
    made = sparsify(Shared(), example(), "dense")
    assert not any(isinstance(m, (SparseLinear, SparseConv2d)) for m in made.modules())
    assert all(layer.sparse_seconds is None for layer in made.report.layers)


@torch.no_grad()
def test_2_4() -> None:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(32, 4))
    pruned = prune(model, method="2:4")
    x = torch.randn(2, 3, 4, 4)
    made = sparsify(pruned, x, "2:4")
    assert type(made[0]) is nn.Conv2d  # 27 inputs
    assert isinstance(made[2], SparseLinear)
    assert made[2].format == "2:4"
    torch.testing.assert_close(made(x), pruned(x))
    with pytest.raises(ValueError, match=r"model: 2 must have at most 2 nonzero entries"):
        sparsify(model, x, "2:4")


def test_a_layer_by_itself() -> None:
    made: Any = sparsify(nn.Linear(4, 3), torch.randn(2, 4), "csr")
    assert isinstance(made, SparseLinear)
    assert made.report.layers[0].name == ""


def test_dtype_that_csr_does_not_take() -> None:
    model = nn.Linear(4, 3).double()
    x = torch.randn(2, 4).double()
    made = sparsify(model, x)
    assert "float64" in made.report.layers[0].reason
    with pytest.raises(TypeError, match="float64"):
        sparsify(model, x, "csr")


def test_hooks_stay() -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    calls: list[int] = []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    made = sparsify(model, torch.randn(2, 4), "csr")
    assert type(made[0]) is nn.Linear
    assert "hooks" in made.report.layers[0].reason


def test_measured_for_real() -> None:
    """At 99% a linear layer is many times faster, at 10% it is slower: no doubt on any machine."""
    torch.manual_seed(3)
    model = nn.Linear(1024, 1024, bias=False)
    x = torch.randn(64, 1024)
    made = sparsify(prune(model, 0.99), x)
    assert made.report.layers[0].choice == "csr"
    assert type(sparsify(model, x)) is nn.Linear


def test_errors() -> None:
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got int"):
        sparsify(1, example())
    with pytest.raises(ValueError, match=r"format must be one of 'auto', .*, got 'coo'"):
        sparsify(Shared(), example(), "coo")
    with pytest.raises(
        ValueError, match="must have at least one Conv2d or Linear layer, ReLU has none"
    ):
        sparsify(nn.ReLU(), example())
    with pytest.raises(ValueError, match="run the lazy layers on one batch first"):
        sparsify(nn.Sequential(nn.LazyLinear(3)), example())
