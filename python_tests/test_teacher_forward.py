"""What `TeacherEnsemble` does to be fast changes its logits by rounding only."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from zoo import facts, filled

from r2kd_ext import TeacherEnsemble, prune, teacher
from r2kd_ext.folding import fold_batchnorm

pytestmark = pytest.mark.usefixtures("one_thread")


def images(count: int, size: int = 32, seed: int = 0) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, size, size, generator=source)


def plain(network: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = network(x)
    return logits


def blended(network: nn.Module, x: Tensor, amount: float = 0.1) -> Tensor:
    return 0.7 * plain(network, x) + 0.3 * plain(prune(network, amount), x)


def distance(got: Tensor, want: Tensor) -> float:
    """The largest difference, relative to the largest logit."""
    return float((got.double() - want.double()).abs().max() / want.double().abs().max())


def left(network: nn.Module) -> list[str]:
    return [name for name, m in network.named_modules() if isinstance(m, _BatchNorm)]


def after_a_sum(name: str, norms: list[str]) -> list[str]:
    """The batch norms that no convolution feeds alone, by how the networks are built.

    Only wide networks have any: the first of each block, and the last of all. The first block of
    those that are widened takes its shortcut after the batch norm, so that one has the stem alone.
    """
    if not name.startswith("wrn"):
        return []
    alone = [] if name.endswith("_1") else ["block1.layer.0.bn1"]
    return [norm for norm in norms if norm.endswith("bn1") and norm not in alone]


@pytest.mark.parametrize("name", facts())
def test_zoo(name: str) -> None:
    variant = "32x32_100"
    network, clean, view = filled(name, variant), images(3), images(2, seed=1)
    folded = copy.deepcopy(network)
    count = fold_batchnorm(folded)
    norms, kept = left(network), left(folded)
    assert count == len(norms) - len(kept) > 0
    assert kept == after_a_sum(name, norms)
    assert distance(plain(folded, clean), plain(network, clean)) < 1e-5

    pruned = prune(network)
    wants = [0.7 * plain(network, x) + 0.3 * plain(pruned, x) for x in (clean, view)]
    ensemble = TeacherEnsemble(network)
    assert distance(ensemble(clean), wants[0]) < 1e-5
    for chunk in (3, 2):
        ensemble.chunk = chunk
        for got, want in zip(ensemble.both(clean, view), wants, strict=True):
            assert distance(got, want) < 1e-5


@pytest.mark.parametrize("name", ["resnet20", "wrn_16_2", "MobileNetV2"])
def test_bfloat16(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher, "processor_has_bfloat16", lambda: True)
    network, x = filled(name, "32x32_100"), images(4)
    got = TeacherEnsemble(network, dtype=torch.bfloat16)(x)
    assert got.dtype == torch.float32
    want, own = blended(network, x), plain(copy.deepcopy(network).bfloat16(), x.bfloat16())
    error = distance(own, plain(network, x))  # of torch's bfloat16 without folding
    assert 1e-4 < distance(got, want) < 1.5 * error + 0.01


@pytest.mark.parametrize("own", [torch.float32, torch.float64])
def test_bfloat16_that_the_processor_has_not(
    own: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher, "processor_has_bfloat16", lambda: False)
    network, x = filled("resnet20", "32x32_100").to(own), images(4).to(own)
    ensemble = TeacherEnsemble(network, dtype=torch.bfloat16)
    with pytest.warns(UserWarning, match="no instructions for bfloat16, so the teacher computes"):
        got = ensemble(x)
    assert got.dtype == own
    assert distance(got, TeacherEnsemble(network.float())(x.float())) < 1e-5


class Odd(nn.Module):
    """Convolutions and batch norms of which few may be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.used_twice, self.bn_twice = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.branched, self.bn_branched = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.read, self.bn_read = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.hooked, self.bn_hooked = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.plain, self.bn_plain = nn.Conv2d(3, 3, 1, bias=False), nn.BatchNorm2d(3, affine=False)
        self.alias = self.bn_plain
        self.stateless = nn.Sequential(
            nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)
        )
        self.fc = nn.Linear(3, 4)
        self.hooked.register_forward_hook(lambda module, args, output: output * 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn_twice(self.used_twice(self.used_twice(x)))
        branch = self.branched(x)
        x = self.bn_branched(branch) + branch
        x = self.bn_read(self.read(x)) * self.bn_read.weight.sum()
        x = self.bn_hooked(self.hooked(x))
        x = self.stateless(self.alias(self.plain(x)))
        return self.fc(x.mean((2, 3)))


def _moved(network: nn.Module) -> nn.Module:
    for index, module in enumerate(network.modules()):
        if isinstance(module, _BatchNorm) and module.running_mean is not None:
            assert module.running_var is not None
            module.running_mean.normal_(generator=torch.Generator().manual_seed(index))
            module.running_var.uniform_(0.5, 2)
    return network.double().eval()


def test_only_what_may_be_folded_is() -> None:
    torch.manual_seed(0)
    network, x = _moved(Odd()), images(2, 6).double()
    folded = copy.deepcopy(network)
    assert fold_batchnorm(folded) == 1
    assert isinstance(folded.bn_plain, nn.Identity)
    assert isinstance(folded.alias, nn.Identity)
    torch.testing.assert_close(plain(folded, x), plain(network, x), rtol=1e-12, atol=1e-12)


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if x.mean() < 0:
            x = self.bn(x)
        return self.fc(x.mean((2, 3)))


def test_a_network_that_cannot_be_traced_runs_as_it_is() -> None:
    torch.manual_seed(0)
    network = _moved(Untraceable())
    assert fold_batchnorm(copy.deepcopy(network)) == 0
    ensemble = TeacherEnsemble(network)
    for seed in range(4):
        x = images(2, 6, seed).double()
        torch.testing.assert_close(ensemble(x), blended(network, x), rtol=1e-12, atol=1e-12)


def test_weights_that_would_overflow_are_not_folded() -> None:
    network = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2)).half().eval()
    with torch.no_grad():
        network.get_parameter("0.weight").fill_(6e4)
        network.get_parameter("1.weight").fill_(100)
    assert fold_batchnorm(network) == 0


def test_changes_of_the_weights_are_followed() -> None:
    """Folded copies must not outlive what they were made from."""
    network, x = filled("resnet8", "32x32_100"), images(2)
    ensemble = TeacherEnsemble(network, 0.0)
    before = ensemble(x)

    def expect(want: Callable[[], Tensor]) -> None:
        assert distance(ensemble(x), before) > 1e-3
        assert distance(ensemble(x), want()) < 1e-5
        ensemble.load_state_dict(start)
        assert torch.equal(ensemble(x), before)

    start = copy.deepcopy(ensemble.state_dict())

    def own() -> Tensor:
        return 0.7 * plain(ensemble.teacher, x) + 0.3 * plain(ensemble.pruned, x)

    ensemble.teacher.get_parameter("conv1.weight").mul_(-1)
    expect(own)
    ensemble.pruned.get_buffer("layer1.0.bn2.running_mean").add_(5)
    expect(own)
    ensemble.teacher.get_submodule("fc").weight = nn.Parameter(torch.ones(100, 64))
    expect(own)
    assert ensemble.double()(x.double()).dtype == torch.float64
    assert distance(ensemble(x.double()), before) < 1e-5


def test_a_pruned_copy_whose_batchnorm_trains_is_not_folded() -> None:
    network, clean, view = filled("resnet8", "32x32_100"), images(6), images(6, seed=1)
    ensemble = TeacherEnsemble(network, pruned_batchnorm="train")
    pruned = prune(network)
    for module in pruned.modules():
        if isinstance(module, _BatchNorm):
            module.train()
    got = ensemble.both(clean, view)  # one after the other: each has its own statistics
    for x, logits in zip((clean, view), got, strict=True):
        want = 0.7 * plain(network, x) + 0.3 * plain(pruned, x)
        assert distance(logits, want) < 1e-5
    for key, value in pruned.state_dict().items():
        torch.testing.assert_close(ensemble.pruned.state_dict()[key], value)


class Counting(nn.Module):
    """Keeps the sizes of the batches that it has seen, also in its copies."""

    seen: list[int] = []  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        return self.fc(x)


@pytest.mark.parametrize(
    ("chunk", "sizes"), [(8, [8]), (100, [8]), (5, [5, 3]), (1, [1, 1, 1, 1, 1, 1, 1, 1])]
)
def test_chunks_as_given(chunk: int, sizes: list[int]) -> None:
    torch.manual_seed(0)
    network = Counting()
    ensemble = TeacherEnsemble(network, chunk=chunk)
    first, second = torch.randn(3, 4), torch.randn(5, 4)
    Counting.seen.clear()
    clean, view = ensemble.both(first, second)
    assert Counting.seen == [size for size in sizes for _ in range(2)]
    torch.testing.assert_close(clean, blended(network, first))
    torch.testing.assert_close(view, blended(network, second))


@pytest.mark.parametrize(
    ("by_the_sample", "want"),
    [
        ({64: 4, 32: 3, 16: 2, 8: 1, 4: 3}, 8),
        ({64: 1, 32: 2, 16: 3}, 64),  # two that are slower end the search
        ({64: 2, 32: 3, 16: 1, 8: 2, 4: 3}, 16),  # one does not
        ({64: 4, 32: 3, 16: 2, 8: 1.5, 4: 1}, 4),
    ],
)
def test_chunk_by_measurement_once_per_shape(
    by_the_sample: dict[int, float], want: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensemble, measured = TeacherEnsemble(Counting()), []

    def seconds(run: Callable[[Tensor], object], x: Tensor) -> float:
        measured.append(len(x))
        return by_the_sample[len(x)] * len(x)

    monkeypatch.setattr(teacher, "_seconds", seconds)
    for _ in range(3):
        Counting.seen.clear()
        assert ensemble(torch.ones(64, 4)).shape == (64, 2)
        assert Counting.seen == [want] * (2 * 64 // want)
    assert measured == list(by_the_sample)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_few_samples_are_taken_at_once(count: int) -> None:
    ensemble = TeacherEnsemble(Counting())
    Counting.seen.clear()
    assert ensemble(torch.ones(count, 4)).shape == (count, 2)
    assert Counting.seen == [count] * 2


def test_the_measurement_finds_the_slower_size() -> None:
    """A stand-in that takes time by the square of the batch: small chunks win."""

    def square(x: Tensor) -> None:
        end = time.perf_counter() + 1e-6 * len(x) ** 2
        while time.perf_counter() < end:
            pass

    assert teacher._fastest_chunk(square, torch.ones(64, 1)) == 4
    assert teacher._fastest_chunk(lambda x: time.sleep(0.002), torch.ones(64, 1)) == 64


@pytest.mark.slow
def test_compiled() -> None:
    torch.manual_seed(0)
    network = _moved(
        nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 5)
        )
    )
    ensemble = TeacherEnsemble(network, 0.5, compile=True)
    for seed in range(2):
        x = images(2, 6, seed).double()
        want = blended(network, x, 0.5)
        torch.testing.assert_close(ensemble(x), want, rtol=1e-12, atol=1e-12)
    network.get_parameter("4.weight").data.mul_(2)
    ensemble.teacher.load_state_dict(network.state_dict())
    ensemble.pruned.load_state_dict(prune(network, 0.5).state_dict())
    want = blended(network, x, 0.5)
    torch.testing.assert_close(ensemble(x), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: TeacherEnsemble(t, dtype=torch.float16), "dtype must be None or torch.bfloat16"),
        (
            lambda t: TeacherEnsemble(t, compile=cast(Any, "max-autotune")),
            "compile must be True or False, got 'max-autotune'",
        ),
        (
            lambda t: TeacherEnsemble(t, cuda_graphs=True, pruned_batchnorm="train"),
            "cuda_graphs must be False with pruned_batchnorm='train'",
        ),
        (
            lambda t: TeacherEnsemble(t, compile=True, pruned_batchnorm="train"),
            "compile must be False with pruned_batchnorm='train'",
        ),
        (
            lambda t: TeacherEnsemble(t, cuda_graphs=True)(torch.ones(2, 4)),
            "x must be on a CUDA device with cuda_graphs=True, got a tensor on cpu",
        ),
        (lambda t: TeacherEnsemble(t, chunk=0), "chunk must be an integer >= 1, got 0"),
        (
            lambda t: TeacherEnsemble(t, chunk=8, pruned_batchnorm="train"),
            "chunk must be None with pruned_batchnorm='train'",
        ),
        (
            lambda t: TeacherEnsemble(t).both(torch.ones(2, 4), torch.ones(2, 5)),
            r"same sample shape, dtype and device, got \(2, 4\) .* and \(2, 5\)",
        ),
        (
            lambda t: TeacherEnsemble(t).both(torch.ones(2, 4), torch.ones(2, 4).double()),
            "same sample shape, dtype and device, got .*float32.*float64",
        ),
    ],
)
def test_refused(call: Callable[[Any], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(Counting())
