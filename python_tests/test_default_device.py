"""torch.set_default_device moves what is made from nothing, not what is computed from tensors.

"meta" stands for any other device: memory that a CPU kernel must not be handed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

import r2kd_ext
from r2kd_ext import _core

ROWS, CLASSES = 6, 40


def _logits() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    student, teacher = (
        torch.randn(ROWS, CLASSES, generator=generator, device="cpu") for _ in range(2)
    )
    return student, teacher


WEIGHT = torch.linspace(0.5, 1.5, ROWS)
LAYER = torch.nn.Linear(CLASSES, 8)
CONV = torch.nn.Conv2d(2, 3, 3)
IMAGES = torch.linspace(-1, 1, 2 * 2 * 5 * 5).reshape(2, 2, 5, 5)
CALLS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cosine": r2kd_ext.correlation_kd,
    "pearson": lambda s, t: r2kd_ext.correlation_kd(s, t, correlation="pearson"),
    "op": lambda s, t: r2kd_ext.correlation_kd(s, t, sample_weight=WEIGHT),
    "strided": lambda s, t: r2kd_ext.correlation_kd(s.t(), t.t()),
    "hard ranks": lambda s, t: r2kd_ext.correlation_kd(s, t, rank_weight=2.0),
    "soft ranks": lambda s, t: r2kd_ext.correlation_kd(s, t, rank_weight=2.0, rank="soft"),
    "reference": lambda s, t: r2kd_ext.correlation_kd(s, t, backend="reference"),
    "reference, soft ranks": lambda s, t: r2kd_ext.correlation_kd(
        s, t, rank_weight=2.0, rank="soft", backend="reference"
    ),
    "spearman": lambda s, t: r2kd_ext.spearman(s, t, rank="soft").sum() + s.sum(),
    "soft_rank": lambda s, t: (r2kd_ext.soft_rank(s, 0.1) * t).sum(),
    "fused": lambda s, t: r2kd_ext.fused_linear_correlation_kd(
        s, LAYER.weight, t, LAYER.weight.detach()
    ),
}


@pytest.fixture
def other_device() -> Iterator[Callable[[], None]]:
    yield lambda: torch.set_default_device("meta")
    torch.set_default_device(None)


@pytest.mark.parametrize("name", CALLS)
def test_results_stay_with_their_arguments(name: str, other_device: Callable[[], None]) -> None:
    def run() -> tuple[Tensor, Tensor]:
        student, teacher = _logits()
        student.requires_grad_()
        loss = CALLS[name](student, teacher)
        (grad,) = torch.autograd.grad(loss, student)
        return loss.detach(), grad

    expected = run()
    other_device()
    for found, wanted in zip(run(), expected, strict=True):
        assert found.device.type == "cpu"
        assert torch.equal(found, wanted)


@pytest.mark.parametrize(
    ("layer", "x"), [(LAYER, _logits()[0]), (CONV, IMAGES)], ids=["linear", "conv"]
)
def test_sparse_layers_too(
    layer: torch.nn.Module, x: Tensor, other_device: Callable[[], None]
) -> None:
    sparse_of = (
        r2kd_ext.SparseLinear if isinstance(layer, torch.nn.Linear) else r2kd_ext.SparseConv2d
    )
    sparse = sparse_of.from_dense(layer, format="csr")  # type: ignore[arg-type]
    expected = sparse(x)
    other_device()
    assert torch.equal(sparse(x), expected)


def test_folding_too(other_device: Callable[[], None]) -> None:
    norm = torch.nn.BatchNorm2d(3, affine=False)
    teacher = torch.nn.Sequential(CONV, norm, torch.nn.Flatten(), torch.nn.Linear(27, 4))
    expected = r2kd_ext.TeacherEnsemble(teacher)(IMAGES)
    other_device()
    assert torch.equal(r2kd_ext.TeacherEnsemble(teacher)(IMAGES), expected)


def test_the_core_refuses_wrong_calls() -> None:
    with pytest.raises(TypeError, match="takes 15 arguments, got 1"):
        _core.correlation_forward_contiguous(1)  # type: ignore[call-arg]
    numbers = (1, 1, 4.0, False, 1.0, 1.0, 1e-8, 0, 0, 0, 0, 0, 0, 0, 1)
    with pytest.raises(TypeError, match="must be real number"):
        _core.correlation_forward_contiguous(*numbers[:2], "4", *numbers[3:])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="cannot create"):
        _core.CorrelationState()
