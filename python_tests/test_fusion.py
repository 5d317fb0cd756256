"""Networks whose convolutions compute what follows them give the logits they gave before."""

from __future__ import annotations

import copy
import operator
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from zoo import facts, filled

from r2kd_ext import TeacherEnsemble, fusion, prune, teacher, winograd
from r2kd_ext.backends import Choice
from r2kd_ext.folding import fold_batchnorm
from r2kd_ext.fusion import fuse_activations

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(not fusion._AVAILABLE, reason="this torch has no oneDNN"),
]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def plain(network: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        out: Tensor = network(x)
    assert getattr(network, "agrees", True)  # else it would have been the plain network's
    return out


def distance(got: Tensor, want: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    assert got.shape == want.shape
    if want.numel() == 0:
        return 0
    return float((got.double() - want.double()).abs().max() / want.double().abs().max())


def convolutions(network: nn.Module) -> list[Any]:
    return [m for m in network.modules() if isinstance(m, fusion._Convolution)]


class Count(NamedTuple):
    layers: int
    relus: int
    sums: int
    in_place: int


def count(network: nn.Module) -> Count:
    assert isinstance(network, fusion._Fused)
    found, fused = convolutions(network), cast(fx.GraphModule, network.fused)
    sums = sum(
        len(node.args) == 2
        for node in fused.graph.nodes
        if str(node.target).startswith("_fused_convolutions")
    )
    return Count(len(found), sum(m.relu for m in found), sums, sum(m.in_place for m in found))


def passes_left(network: nn.Module) -> int:
    """ReLUs and sums that the graph of the fused network still has by themselves."""
    kinds = {F.relu, operator.add, operator.iadd, torch.add}
    fused = cast(Any, network.fused)
    return sum(
        node.target in kinds
        or (node.op == "call_module" and type(fused.get_submodule(node.target)) is nn.ReLU)
        for node in fused.graph.nodes
    )


@pytest.mark.parametrize("name", facts())
def test_zoo(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every network gives its float64 logits to 1e-5, however its convolutions are computed."""
    network, x = filled(name, "32x32_100"), normal(2, 3, 32, 32)
    folded = copy.deepcopy(network)
    fold_batchnorm(folded)
    want = plain(network.double(), x.double())
    monkeypatch.setattr(fusion, "_FEWEST_VALUES", 0)
    for backend in ("reference", "native"):  # of 3 x 3 convolutions
        monkeypatch.setattr(
            winograd, "choose_winograd", lambda _, backend=backend: Choice(backend, "")
        )
        fused = fuse_activations(folded)
        # ShuffleNet v1 has three units that concatenate before their ReLU.
        assert passes_left(fused) == (3 if name == "ShuffleV1" else 0)
        assert distance(plain(fused, x), want) < 1e-5
        if backend == "reference":
            folded.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            x = x.contiguous(memory_format=torch.channels_last)
            assert distance(plain(fused, x), want) < 1e-5


@pytest.mark.parametrize(
    ("name", "want"),
    [
        # 9 blocks with two ReLUs and a sum, after a stem: all sums go where the shortcut was.
        ("resnet20", Count(19, 19, 9, 9)),
        # 6 blocks with two ReLUs and a sum, and a ReLU at the end.
        ("wrn_16_2", Count(19, 13, 6, 6)),
    ],
)
def test_what_is_fused(name: str, want: Count, monkeypatch: pytest.MonkeyPatch) -> None:
    folded, x = filled(name, "32x32_100"), normal(16, 3, 32, 32)
    fold_batchnorm(folded)
    fused = fuse_activations(folded)
    assert count(fused) == want
    for layer in convolutions(fused):
        monkeypatch.setattr(layer, "_plain", None)
    assert distance(plain(fused, x), plain(folded, x)) < 1e-5  # by the operators of oneDNN alone


class Small(nn.Module):
    """Layers, and a forward pass that uses some of them: (B, 4, H, W) -> (B, C, H', W')."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        self.odd = nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 2), (1, 2), groups=2, bias=False)
        self.same = nn.Conv2d(4, 4, 3, padding="same")
        self.reflect = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
        self.bn = nn.BatchNorm2d(4)
        self.bn_of_batch = nn.BatchNorm2d(4, track_running_stats=False)
        for value in (self.bn.weight, self.bn.bias, self.bn.running_mean, self.bn.running_var):
            nn.init.uniform_(value, 0.5, 2)  # type: ignore[arg-type]
        self.relu, self.relu_in_place = nn.ReLU(), nn.ReLU(inplace=True)
        self.identity, self.dropout = nn.Identity(), nn.Dropout()
        self.by_channel = nn.Parameter(torch.randn(4, 1, 1))
        self.run = run
        self.requires_grad_(False).eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def shortcut(n: Any, x: Tensor) -> Tensor:
    y = F.relu(n.a(x))
    return F.relu(n.c(F.relu(n.b(y))) + y)


def shortcut_used_later(n: Any, x: Tensor) -> Tensor:
    y = F.relu(n.a(x))
    return F.relu(n.c(F.relu(n.b(y))) + y) * y


def view_of_the_shortcut_used_later(n: Any, x: Tensor) -> Tensor:
    y = F.relu(n.a(x))
    view = y.transpose(2, 3)
    return F.relu(n.c(F.relu(n.b(y))) + y).transpose(2, 3) * view


def view_as_the_shortcut(n: Any, x: Tensor) -> Tensor:
    y = F.relu(n.a(x))
    view = y.view(y.shape)
    return F.relu(n.c(F.relu(n.b(x))) + view) * y


def dropped_shortcut(n: Any, x: Tensor) -> Tensor:
    """Dropout in eval mode returns what it got."""
    y = F.relu(n.a(x))
    same = n.dropout(y)
    return F.relu(n.c(F.relu(n.b(x))) + y) * same


def own_input(n: Any, x: Tensor) -> Tensor:
    y = n.relu(n.a(x))
    return n.relu(n.b(y) + y)


def other_changes_before_the_sum(n: Any, x: Tensor) -> Tensor:
    other = n.b(x)
    y = n.a(x)
    other.mul_(2)
    return y + other


def input_changes_before_the_relu(n: Any, x: Tensor) -> Tensor:
    x = x * 2
    y = n.a(x)
    x.mul_(2)
    return F.relu(y) * x


def becomes_the_sum(n: Any, x: Tensor) -> Tensor:
    other = n.b(x)
    y = n.a(x)
    y += other
    return n.relu_in_place(y)


def other_becomes_the_sum(n: Any, x: Tensor) -> Tensor:
    other = n.b(x)
    view = other.transpose(2, 3)
    other += n.a(x)
    return view * 2


def read_twice(n: Any, x: Tensor) -> Tensor:
    y = n.a(x)
    return F.relu(y) * y


def doubled(n: Any, x: Tensor) -> Tensor:
    y = n.a(x)
    return y + y


def each_channel(n: Any, x: Tensor) -> Tensor:
    other = n.by_channel * 2
    return F.relu(n.a(x) + other)


def mean_image(n: Any, x: Tensor) -> Tensor:
    other = n.b(x)[:1].sum(0, keepdim=True)
    return F.relu(n.a(x) + other)


def of_another_dtype(n: Any, x: Tensor) -> Tensor:
    other = x.double()
    return F.relu(n.a(x) + other)


def becomes_a_sum_with_another_dtype(n: Any, x: Tensor) -> Tensor:
    other = x.double()
    y = n.a(x)
    y += other
    return y


def changes_a_view(n: Any, x: Tensor) -> Tensor:
    y = F.relu(n.a(x))
    view = y.transpose(2, 3)
    view *= 2
    view -= 1
    return y


def number(n: Any, x: Tensor) -> Tensor:
    width = x.size(3)
    return F.relu(n.a(x) + width)


def without_batch(n: Any, x: Tensor) -> Tensor:
    return F.relu(n.a(F.relu(n.b(x)).sum(0)))


CASES: dict[str, tuple[Callable[[Any, Tensor], Tensor], Count | None]] = {
    "F.relu": (lambda n, x: F.relu(n.a(x)), Count(1, 1, 0, 0)),
    "F.relu in place": (lambda n, x: F.relu(n.a(x), inplace=True), Count(1, 1, 0, 0)),
    "torch.relu": (lambda n, x: torch.relu(n.a(x)), Count(1, 1, 0, 0)),
    "relu": (lambda n, x: n.a(x).relu(), Count(1, 1, 0, 0)),
    "relu_": (lambda n, x: n.a(x).relu_(), Count(1, 1, 0, 0)),
    "nn.ReLU": (lambda n, x: n.relu(n.a(x)), Count(1, 1, 0, 0)),
    "nn.ReLU in place": (lambda n, x: n.relu_in_place(n.a(x)), Count(1, 1, 0, 0)),
    "nothing": (lambda n, x: n.a(x), None),
    "Identity": (lambda n, x: n.relu(n.identity(n.a(x))), Count(1, 1, 0, 0)),
    "called twice": (lambda n, x: F.relu(n.a(F.relu(n.a(x)))), Count(2, 2, 0, 0)),
    "read twice": (read_twice, None),
    "groups, stride, dilation": (lambda n, x: F.relu(n.odd(x)), Count(1, 1, 0, 0)),
    "padding of a name": (lambda n, x: F.relu(n.same(x)), None),
    "reflection": (lambda n, x: F.relu(n.reflect(x)), None),
    "input of the network": (lambda n, x: n.a(x) + x, Count(1, 0, 1, 0)),
    "in the other order": (lambda n, x: F.relu(x + n.a(x)), Count(1, 1, 1, 0)),
    "torch.add": (lambda n, x: F.relu(torch.add(n.a(x), x)), Count(1, 1, 1, 0)),
    "add": (lambda n, x: n.a(x).add(x), Count(1, 0, 1, 0)),
    "add_": (lambda n, x: n.a(x).add_(x), Count(1, 0, 1, 0)),
    "alpha": (lambda n, x: torch.add(n.a(x), x, alpha=2), None),
    "doubled": (doubled, None),
    "two convolutions": (lambda n, x: n.a(x) + n.b(x), Count(1, 0, 1, 1)),
    "other comes later": (lambda n, x: n.a(x) + F.avg_pool2d(x, 3, 1, 1), None),
    "shortcut": (shortcut, Count(3, 3, 1, 1)),
    "shortcut used later": (shortcut_used_later, Count(3, 3, 1, 0)),
    "view of the shortcut": (view_of_the_shortcut_used_later, Count(3, 3, 1, 0)),
    "view as the shortcut": (view_as_the_shortcut, Count(3, 3, 1, 0)),
    "dropped shortcut": (dropped_shortcut, Count(3, 3, 1, 0)),
    "own input": (own_input, Count(2, 2, 1, 0)),
    "other changes": (other_changes_before_the_sum, None),
    "input changes": (input_changes_before_the_relu, Count(1, 1, 0, 0)),
    "becomes the sum": (becomes_the_sum, Count(1, 1, 1, 1)),
    "other becomes the sum": (other_becomes_the_sum, None),
    "each channel": (each_channel, Count(1, 1, 1, 0)),
    "mean image": (mean_image, Count(1, 1, 1, 0)),
    "another dtype": (of_another_dtype, Count(1, 1, 1, 0)),
    "another dtype in place": (becomes_a_sum_with_another_dtype, Count(1, 0, 1, 0)),
    "changes a view": (changes_a_view, Count(1, 1, 0, 0)),
    "number": (number, Count(1, 1, 1, 0)),
    "without batch": (without_batch, Count(2, 2, 0, 0)),
    "batch norm": (lambda n, x: F.relu(n.bn(x)), Count(1, 1, 0, 0)),
    "batch norm alone": (lambda n, x: n.bn(x), None),
    "batch norm and a sum": (lambda n, x: F.relu(n.bn(x) + x), None),
    "batch norm of the batch": (lambda n, x: F.relu(n.bn_of_batch(x)), None),
}


@pytest.mark.parametrize("name", CASES)
def test_small_networks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusion, "_FEWEST_SAMPLES", 0)
    run, want_count = CASES[name]
    network = Small(run)
    fused = fuse_activations(network)
    if want_count is None:
        assert fused is network
        return
    assert count(fused) == want_count
    for x in (
        normal(2, 4, 9, 7),
        normal(2, 4, 9, 7).contiguous(memory_format=torch.channels_last),
        normal(32, 9, 8, 14).transpose(1, 2)[::2, ::2, :, ::2],  # [16, 4, 9, 7]
        normal(1, 4, 9, 7),
        normal(0, 4, 9, 7),
    ):
        before = x.clone()
        got, want = plain(fused, x), plain(network, x)
        assert got.dtype == want.dtype
        assert distance(got, plain(copy.deepcopy(network).double(), x.double())) < 1e-5
        assert torch.equal(x, before)


def _hooked() -> nn.Module:
    network = Small(shortcut)
    network.b.register_forward_hook(lambda module, args, output: output * 2)
    return network


def _patched() -> nn.Module:
    network = Small(shortcut)
    own: Any = network.b
    own.forward = lambda x: F.conv2d(x, own.weight, padding=1) * 2
    return network


def _training() -> nn.Module:
    network = Small(shortcut)
    network.dropout.train()
    return network


def _not_finite() -> nn.Module:
    network = Small(shortcut)
    network.b.weight[0, 0, 0, 0] = float("nan")
    return network


def _derived() -> nn.Module:
    class Double(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 2

    return nn.Sequential(Double(4, 4, 1), nn.ReLU()).eval()


@pytest.mark.parametrize(
    "network",
    [
        _hooked,
        _patched,
        _training,
        _not_finite,
        _derived,
        lambda: Small(shortcut).double(),
        lambda: Small(shortcut).bfloat16(),
        lambda: Small(lambda n, x: F.relu(n.a(x)) if x.mean() > 0 else x),
        lambda: Small(lambda n, x: F.relu(n.a(x)) + torch.rand(1)),
    ],
)
def test_not_fused(network: Callable[[], nn.Module]) -> None:
    made = network()
    assert fuse_activations(made) is made


def test_inputs_that_the_network_takes_as_it_was() -> None:
    network, x = Small(shortcut), normal(2, 4, 9, 7)
    fused = fuse_activations(network)
    for value in (float("nan"), float("inf")):
        broken = x.clone()
        broken[1, 2, 3, 4] = value
        got, want = plain(fused, broken), plain(network, broken)
        assert not got.isfinite().all()
        torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.backends.mkldnn, "enabled", False)
        assert torch.equal(plain(fused, x), plain(network, x))
    with torch.autocast("cpu", torch.bfloat16):
        got = plain(fused, x)
        assert got.dtype == torch.bfloat16
        assert torch.equal(got, plain(network, x))
    assert distance(plain(fused, x[0]), plain(network, x[0])) < 1e-5
    x.requires_grad_()
    gradients = [torch.autograd.grad(run(x).square().sum(), x)[0] for run in (fused, network)]
    torch.testing.assert_close(*gradients)
    with torch.no_grad(), pytest.raises(RuntimeError, match="channels"):
        fused(x[:, :2])
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"(?i)double"):
        fused(x.double())


class Asking(nn.Module):
    """Branches on the type of its input, for which torch.fx has a stand-in while it traces."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)
        self.requires_grad_(False).eval()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x)) * (1 if isinstance(x, Tensor) else -1)


def test_a_graph_that_is_not_the_network_does_not_run() -> None:
    network, x = Asking(), normal(16, 4, 9, 7)
    fused = fuse_activations(network)
    assert isinstance(fused, fusion._Fused)
    for _ in range(2):
        with torch.no_grad():
            assert torch.equal(fused(x), network(x))
    assert not fused.agrees


def test_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ensemble runs it, in float32 and not compiled, and makes it anew for new weights."""
    network, x = filled("resnet8", "32x32_100"), normal(2, 3, 32, 32)
    ensemble = TeacherEnsemble(network, chunk=2)

    def expect() -> None:
        want = sum(
            share * plain(copy.deepcopy(own).double(), x.double())
            for share, own in ((0.7, ensemble.teacher), (0.3, ensemble.pruned))
        )
        assert isinstance(want, Tensor)
        assert distance(ensemble(x), want) < 1e-5
        for prepared in ensemble._prepared.values():
            assert count(prepared.network) == Count(7, 7, 3, 3)

    expect()
    before = ensemble(x)
    for copied in (copy.deepcopy(ensemble), pickle.loads(pickle.dumps(ensemble))):
        assert torch.equal(copied(x), before)
    ensemble.teacher.get_parameter("conv1.weight").mul_(-1)
    ensemble.pruned.get_buffer("layer1.0.bn2.running_mean").add_(5)
    expect()
    assert distance(ensemble(x), before) > 1e-3
    monkeypatch.setattr(teacher, "processor_has_bfloat16", lambda: True)
    half = TeacherEnsemble(network, chunk=2, dtype=torch.bfloat16)
    half(x)
    of_batch = TeacherEnsemble(network, pruned_batchnorm="train")
    of_batch(x)
    assert not any(convolutions(p.network) for p in half._prepared.values())
    assert list(of_batch._prepared) == ["teacher"]
    assert distance(before, 0.7 * plain(network, x) + 0.3 * plain(prune(network), x)) < 1e-5
