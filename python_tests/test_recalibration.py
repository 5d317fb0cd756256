"""`recalibrate_batchnorm` against statistics computed by hand."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from r2kd_ext import prune, recalibrate_batchnorm


class Net(nn.Module):
    """Two batch norms, one without statistics, one instance norm with them, and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.bn = nn.BatchNorm2d(4, momentum=0.3)
        self.other = nn.InstanceNorm2d(4, track_running_stats=True)
        self.dropout = nn.Dropout(0.9)
        self.fc = nn.Linear(64, 5)
        self.bn_last = nn.BatchNorm1d(5, momentum=None)
        self.stateless = nn.BatchNorm1d(5, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(self.other(self.bn(self.conv(x)).relu()))
        return self.stateless(self.bn_last(self.fc(x.flatten(1))))


def make() -> Net:
    torch.manual_seed(4)
    net = Net().double()
    net(torch.randn(8, 2, 6, 6).double())
    return net


def loader(count: int = 3) -> list[tuple[Tensor, Tensor]]:
    source = torch.Generator().manual_seed(1)
    sizes = [4, 6, 5, 7][:count]
    return [
        (torch.randn(n, 2, 6, 6, generator=source).double() * (i + 1) + i, torch.zeros(n))
        for i, n in enumerate(sizes)
    ]


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_mean_over_the_batches() -> None:
    net, batches = make(), loader()
    recalibrate_batchnorm(net, batches, 3)
    with torch.no_grad():
        outputs = [net.conv(x) for x, _ in batches]
    means = [y.mean((0, 2, 3)) for y in outputs]
    variances = [y.var((0, 2, 3)) for y in outputs]  # unbiased, as running statistics are
    torch.testing.assert_close(net.bn.running_mean, torch.stack(means).mean(0))
    torch.testing.assert_close(net.bn.running_var, torch.stack(variances).mean(0))
    # The second one sees what the first makes of its batch in training mode, without dropout.
    net.other.eval()
    with torch.no_grad():
        hidden = [
            F.batch_norm(y, None, None, net.bn.weight, net.bn.bias, True).relu() for y in outputs
        ]
        means = [net.fc(net.other(h).flatten(1)).mean(0) for h in hidden]
    torch.testing.assert_close(net.bn_last.running_mean, torch.stack(means).mean(0))
    assert net.bn.num_batches_tracked == 3


def test_only_the_first_batches_count() -> None:
    one, other = make(), make()
    recalibrate_batchnorm(one, loader(4), 2)
    recalibrate_batchnorm(other, iter(loader(2)), 2)
    assert all(torch.equal(x, state(other)[name]) for name, x in state(one).items())


def test_everything_else_stays() -> None:
    net = make().train()
    net.dropout.eval()
    net.bn.eval()
    modes, before = [m.training for m in net.modules()], state(net)
    recalibrate_batchnorm(net, loader(), 3)
    assert [m.training for m in net.modules()] == modes
    assert (net.bn.momentum, net.bn_last.momentum) == (0.3, None)
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    changed = {name for name, x in state(net).items() if not torch.equal(x, before[name])}
    kept = ("running_mean", "running_var", "num_batches_tracked")
    assert changed == {f"{norm}.{x}" for norm in ("bn", "bn_last") for x in kept}


def test_kinds_of_batches() -> None:
    x = torch.randn(12, 2, 6, 6).double()
    nets = [make() for _ in range(3)]
    recalibrate_batchnorm(nets[0], DataLoader(TensorDataset(x, x), batch_size=4), 3)
    recalibrate_batchnorm(nets[1], x.split(4), 3)
    recalibrate_batchnorm(nets[2], [[part] for part in x.split(4)], 3)
    for net in nets[1:]:
        assert all(torch.equal(v, state(nets[0])[name]) for name, v in state(net).items())


def test_repairs_what_pruning_shifts() -> None:
    net, x = make().eval(), loader(1)[0][0]
    pruned = prune(net, 0.7)
    recalibrate_batchnorm(pruned, [x], 1)
    with torch.no_grad():
        normalised = F.batch_norm(pruned.conv(x), pruned.bn.running_mean, pruned.bn.running_var)
    zeros, ones = torch.zeros(4).double(), torch.ones(4).double()
    torch.testing.assert_close(normalised.mean((0, 2, 3)), zeros, rtol=0, atol=1e-9)
    torch.testing.assert_close(normalised.std((0, 2, 3)), ones, rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("model", "batches", "count", "error", "message"),
    [
        (make(), loader(), 0, ValueError, "batches must be an integer >= 1, got 0"),
        (make(), loader(), 1.0, TypeError, "batches must be an integer >= 1, got 1.0 of type"),
        (make(), loader(), True, TypeError, "batches must be an integer >= 1, got True of type"),
        (make(), loader(2), 3, ValueError, "loader must have at least 3 batches, got 2"),
        (make(), [], 1, ValueError, "loader must have at least 1 batch, got 0"),
        (make(), [{"x": torch.ones(1)}], 1, TypeError, "loader must give tensors, .* got dict"),
        (make(), [()], 1, TypeError, "loader must give tensors, .* got tuple"),
        (make(), [*loader(1), torch.ones(3)], 2, RuntimeError, "Input type"),  # from the network
        (nn.Linear(2, 2), loader(), 1, ValueError, "must have a batch norm .* Linear has none"),
        (
            nn.BatchNorm1d(2, track_running_stats=False),
            loader(),
            1,
            ValueError,
            "model must have a batch norm with running statistics, BatchNorm1d has none",
        ),
        (3, loader(), 1, TypeError, "model must be a torch.nn.Module, got int"),
    ],
)
def test_refused_without_a_change(
    model: Any, batches: Any, count: Any, error: type[Exception], message: str
) -> None:
    before = copy.deepcopy(model)
    with pytest.raises(error, match=message):
        recalibrate_batchnorm(model, batches, count)
    if not isinstance(model, nn.Module):
        return
    assert all(torch.equal(x, before.state_dict()[name]) for name, x in state(model).items())
    assert [m.training for m in model.modules()] == [m.training for m in before.modules()]
    momenta = [[getattr(m, "momentum", 0) for m in net.modules()] for net in (model, before)]
    assert momenta[0] == momenta[1]
