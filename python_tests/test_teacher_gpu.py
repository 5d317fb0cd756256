"""What only a GPU can show of `TeacherEnsemble`: captured forward passes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from zoo import filled

from r2kd_ext import TeacherEnsemble, cuda_graphs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


def images(count: int, seed: int) -> Tensor:
    source = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(count, 3, 32, 32, generator=source, device="cuda")


def assert_near(got: Tensor, want: Tensor) -> None:
    """Equal but for the rounding of another choice of convolution kernels (TF32 is off)."""
    assert float((got - want).abs().max()) < 1e-5 * float(want.abs().max())


def test_replays_equal_plain_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    captured = []
    original = cuda_graphs.CapturedForward._captured

    def counting(self: cuda_graphs.CapturedForward, *rest: object) -> object:
        captured.append(rest)
        return original(self, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(cuda_graphs.CapturedForward, "_captured", counting)
    network = filled("resnet8", "32x32_100").cuda()
    plain, graphed = TeacherEnsemble(network), TeacherEnsemble(network, cuda_graphs=True)
    kept = []
    for seed in range(3):
        for count in (4, 6):
            x = images(count, seed)
            kept.append((graphed(x), plain(x)))
    assert len(captured) == 2  # once for each shape
    for got, want in kept:  # a later replay has not overwritten what an earlier one gave
        assert_near(got, want)

    changed = copy.deepcopy(network.state_dict())
    changed["fc.weight"] *= -2
    for ensemble in (plain, graphed):
        ensemble.teacher.load_state_dict(changed)
    x = images(4, 9)
    assert_near(graphed(x), plain(x))
    assert len(captured) == 3


def test_on_another_stream() -> None:
    network = filled("resnet8", "32x32_100").cuda()
    graphed = TeacherEnsemble(network, cuda_graphs=True)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        got = [graphed(images(4, seed)) for seed in range(3)]
    torch.cuda.synchronize()
    for seed, logits in enumerate(got):
        assert_near(logits, graphed(images(4, seed)))
