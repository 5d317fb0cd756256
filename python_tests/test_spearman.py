"""Spearman's correlation and the rank term: values, the absence and the presence of gradients."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rank_formula
import torch
from cases import DTYPES, each_dtype, every_backend, generator, loss_of, make_logits, make_mask
from compare import accumulator, assert_same_bits
from scipy import stats
from torch import Tensor

import r2kd_ext
from r2kd_ext import CorrelationKDLoss, reference

PUBLISHED = np.load(Path(__file__).parent / "data" / "loss_vectors.npz")
RANK_ONLY: dict[str, Any] = {"inter_weight": 0.0, "intra_weight": 0.0, "rank_weight": 2.0}

# Classes around the change from counting to buckets (192 and 96 of float and double with AVX-512,
# less with narrower registers), from buckets to radix passes (4096), and around registers.
CLASSES = [1, 2, 3, 15, 16, 17, 47, 49, 96, 97, 100, 191, 193, 257, 511, 1000, 4096, 4097]

every_implementation = pytest.mark.parametrize(
    "spearman", [r2kd_ext.spearman, reference.spearman], ids=["fused", "reference"]
)


def rows(classes: int, dtype: torch.dtype = torch.float64, count: int = 6) -> tuple[Tensor, Tensor]:
    return make_logits(count, classes, dtype=dtype)


def true_rho(x: Tensor, y: Tensor, eps: float = 1e-8) -> Any:
    a, b = (rank_formula.hard_ranks(t.double().numpy()) for t in (x, y))
    return rank_formula.spearman(a, b, eps)


def ulps(found: Tensor, expected: Any) -> float:
    """Largest difference in units of the last place at 1."""
    return float(abs(found.double().numpy() - expected).max()) / torch.finfo(found.dtype).eps


@every_implementation
@each_dtype
@pytest.mark.parametrize("classes", CLASSES)
def test_formula(classes: int, dtype: torch.dtype, spearman: Any) -> None:
    """In 16-bit formats most rows have ties."""
    x, y = rows(classes, dtype, 3)
    rho = spearman(x, y)
    assert rho.dtype is accumulator(dtype)
    assert rho.shape == (3,)
    fused = spearman is r2kd_ext.spearman
    assert ulps(rho, true_rho(x, y)) <= (1 if fused else 4)


@every_implementation
@pytest.mark.parametrize("classes", [2, 14, 100, 1000])
def test_scipy(classes: int, spearman: Any) -> None:
    """Without ties, and without eps: |a| |b| = (C - 1) / (3 C (C + 1)) for any two permutations."""
    x, y = rows(classes)
    norms = (classes - 1) / (3 * classes * (classes + 1))
    expected = [stats.spearmanr(a, b).statistic for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(
        spearman(x, y) * (1 + 1e-8 / norms), expected, rtol=1e-12, atol=1e-14
    )


@pytest.mark.parametrize("case", [f"case{i}" for i in range(6)])
@every_backend
def test_published(case: str, backend: str) -> None:
    """The published figures are float32 (ranks were divided in float32): half a unit per row, and
    ties (case 3 has some) that its sort left in any order."""
    student, teacher = (
        torch.from_numpy(PUBLISHED[f"{case}/{who}"]).double() for who in ("student", "teacher")
    )
    published = float(PUBLISHED[f"{case}/rank_loss"])
    assert published == np.float32(published)
    loss = loss_of(backend)(student, teacher, **RANK_ONLY)
    assert loss.item() == pytest.approx(published, abs=1.5e-7)
    # The same formula in float32 reproduces the figure itself.
    a, b = (
        torch.from_numpy(rank_formula.hard_ranks(t.numpy())).float() for t in (student, teacher)
    )
    rho = reference.rank_correlation(a, b, 1e-8)
    assert float(2 * (1 - rho.mean())) == pytest.approx(published, abs=2.4e-7)
    # And in float64 it is ours.
    expected = 2 * (1 - true_rho(student, teacher).mean())
    assert loss.item() == pytest.approx(expected, abs=1e-12)


@every_backend
def test_eps_is_that_of_the_loss(backend: str) -> None:
    student, teacher = rows(50)
    for eps in (0.0, 1e-3, 0.5):
        loss = loss_of(backend)(student, teacher, **RANK_ONLY, eps=eps)
        expected = 2 * (1 - true_rho(student, teacher, eps).mean())
        assert loss.item() == pytest.approx(expected, abs=1e-13)


@every_implementation
def test_ties_go_by_index(spearman: Any) -> None:
    x = torch.tensor([[1.0, 1.0, 0.0, -0.0, 1.0]])
    assert spearman(x, torch.tensor([[3.0, 4.0, 1.0, 2.0, 5.0]])).item() == pytest.approx(
        1, abs=1e-6
    )
    assert spearman(x, torch.tensor([[3.0, 4.0, 2.0, 1.0, 5.0]])).item() == pytest.approx(
        0.9, abs=1e-6
    )


@every_implementation
def test_known_values(spearman: Any) -> None:
    x = torch.arange(10.0).double().view(1, -1)
    assert spearman(x, x).item() == pytest.approx(1, abs=1e-6)
    assert spearman(x, -x).item() == pytest.approx(-1, abs=1e-6)
    assert spearman(x, x.exp()).item() == spearman(x, x).item()
    assert spearman(x[:, :1], x[:, 1:2]).item() == 0


@each_dtype
@pytest.mark.parametrize("classes", [40, 700, 5000])
def test_outliers(classes: int, dtype: torch.dtype) -> None:
    """One class far away takes all quanta of the quick sort: the order must not suffer."""
    for far in (-1e4, 6e4, -np.inf, np.inf, float(torch.finfo(dtype).min)):
        x, y = rows(classes, dtype, 2)
        x[:, 3], y[:, -1] = far, -far
        assert ulps(r2kd_ext.spearman(x, y), true_rho(x, y)) <= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("classes", [40, 700, 5000])
def test_hostile_orders(classes: int, dtype: torch.dtype) -> None:
    """Few values, sorted, reversed, denormal, of one exponent, of all exponents, one ulp apart."""
    limits = torch.finfo(dtype)
    noise = torch.rand(4, classes, generator=generator("hostile", classes), dtype=torch.float64)
    inputs = {
        "few values": (noise * 3).round(),
        "sorted": noise.sort(dim=1).values,
        "reversed": noise.sort(dim=1, descending=True).values,
        "denormal": (noise - 0.5) * limits.smallest_normal,
        "all exponents": (noise - 0.5).sign() * 2.0 ** (noise * 200 - 100),
        "ulps": 1 + (noise * 50).round() * limits.eps,
        "whole range": (noise - 0.5) * 2 * limits.max,
        "zeros": torch.where(noise < 0.5, -0.0, 0.0).double(),
        "half ruled out": torch.where(noise < 0.5, -torch.inf, noise),
        "both infinities": torch.where(
            noise < 0.3, -torch.inf, noise.where(noise < 0.6, torch.inf)
        ),
    }
    y = noise.roll(1, dims=0).to(dtype)
    for name, x in inputs.items():
        rho = r2kd_ext.spearman(x.to(dtype), y)
        assert ulps(rho, true_rho(x.to(dtype), y)) <= 1, name


@every_implementation
def test_hard_has_no_gradient(spearman: Any) -> None:
    x, y = (t.requires_grad_() for t in rows(20))
    assert not spearman(x, y).requires_grad
    assert spearman(x, y, rank="soft").requires_grad


@every_backend
def test_hard_adds_a_constant_to_the_loss(backend: str) -> None:
    x, y = rows(20)
    x.requires_grad_()
    with_ranks = loss_of(backend)(x, y, rank_weight=2.0)
    without = loss_of(backend)(x, y)
    expected = 2 * (1 - true_rho(x.detach(), y).mean())
    assert (with_ranks - without).item() == pytest.approx(expected, abs=1e-12)
    assert_same_bits(torch.autograd.grad(with_ranks, x)[0], torch.autograd.grad(without, x)[0])


@every_backend
def test_rank_alone_has_gradient_zero(backend: str) -> None:
    x, y = rows(20)
    loss = loss_of(backend)(x.requires_grad_(), y, **RANK_ONLY)
    assert (torch.autograd.grad(loss, x)[0] == 0).all()


@every_backend
@pytest.mark.parametrize("rank", ["hard", "soft"])
def test_temperature_does_not_enter(rank: str, backend: str) -> None:
    x, y = rows(20)
    losses = [loss_of(backend)(x, y, t, **RANK_ONLY, rank=rank).item() for t in (1.0, 4.0)]
    assert losses[0] == losses[1]


def test_preset_is_the_published_form() -> None:
    case = "case0"
    student, teacher = (
        torch.from_numpy(PUBLISHED[f"{case}/{who}"]).double() for who in ("student", "teacher")
    )
    assert PUBLISHED[f"{case}/temperature"] == 4
    loss = CorrelationKDLoss.r2kd()(student, teacher)
    value, ranks = (float(PUBLISHED[f"{case}/{part}_loss"]) for part in ("value", "rank"))
    assert loss.item() == pytest.approx(value + ranks, abs=1.5e-7)


# --- the soft form -------------------------------------------------------------------------------


def soft_rho(x: Tensor, y: Tensor, strength: float, eps: float = 1e-8) -> Any:
    a, b = (rank_formula.soft_ranks(t.double().numpy(), strength) for t in (x, y))
    return rank_formula.spearman(a, b, eps)


STRENGTHS = [1e-3, 0.05, 0.3, 5.0, 1e3]


@every_implementation
@each_dtype
@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("classes", [1, 2, 17, 100])
def test_soft_formula(classes: int, strength: float, dtype: torch.dtype, spearman: Any) -> None:
    """The formula is in float64, and sums by prefix; double gets room for its rounding."""
    x, y = rows(classes, dtype, 3)
    rho = spearman(x, y, rank="soft", rank_strength=strength)
    assert rho.dtype is accumulator(dtype)
    tolerance = 1e-9 if dtype is torch.float64 else 2e-7
    np.testing.assert_allclose(rho, soft_rho(x, y, strength), rtol=0, atol=tolerance)


def test_soft_tends_to_hard_and_to_pearson() -> None:
    """Strength to 0: Spearman. From the strength that pools all on: Pearson of the logits."""
    x, y = rows(50)
    soft = partial(r2kd_ext.spearman, rank="soft")
    np.testing.assert_allclose(soft(x, y, rank_strength=1e-9), true_rho(x, y), atol=1e-12)
    pearson = [stats.pearsonr(a, b).statistic for a, b in zip(x, y, strict=True)]
    # eps counts for more the smaller the ranks' deviations; without it the two are equal.
    loss = [
        1 - r2kd_ext.correlation_kd(
            a.view(1, -1), b.view(1, -1), inter_weight=0.0, intra_weight=0.0,
            rank_weight=1.0, rank="soft", rank_strength=10.0, eps=0.0,
        ).item()
        for a, b in zip(x, y, strict=True)
    ]  # fmt: skip
    np.testing.assert_allclose(loss, pearson, rtol=1e-12)


@every_implementation
@pytest.mark.parametrize("strength", STRENGTHS)
def test_soft_gradcheck(strength: float, spearman: Any) -> None:
    x, y = (t.requires_grad_() for t in rows(9, count=3))
    function = partial(spearman, rank="soft", rank_strength=strength)
    # The largest strength leaves deviations of 1e-3 of a rank: relative to eps, not to 1.
    assert torch.autograd.gradcheck(function, (x, y), eps=min(1e-6, strength * 1e-3))
    if strength >= 0.05:
        assert torch.autograd.gradgradcheck(function, (x, y), eps=1e-6, atol=1e-4, rtol=1e-3)


@every_backend
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_soft_loss_gradcheck(weighted: bool, masked: bool, backend: str) -> None:
    x, y = rows(4, count=4)
    options: dict[str, Any] = {"rank_weight": 1.5, "rank": "soft", "rank_strength": 0.7}
    if masked:
        options["mask"] = torch.tensor([True, False, True, True])
    if weighted:
        options["sample_weight"] = torch.tensor([0.5, 2.0, 0.0, 1.3])

    def loss(z: Tensor) -> Tensor:
        return loss_of(backend)(z, y, **options)

    assert torch.autograd.gradcheck(loss, x.requires_grad_())
    assert torch.autograd.gradgradcheck(loss, x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("classes", [17, 600])
def test_soft_gradient_against_the_reference(
    classes: int, strength: float, dtype: torch.dtype
) -> None:
    """Each in its own dtype; the reference computes in float64 from the same inputs."""
    x, y = rows(classes, dtype, 4)
    mask = torch.tensor([True, True, False, True])
    grads = []
    for function, z in (
        (r2kd_ext.correlation_kd, x.clone()),
        (reference.correlation_kd, x.double()),
    ):
        z.requires_grad_()
        loss = function(z, y, rank_weight=2.0, rank="soft", rank_strength=strength, mask=mask)
        grads.append(torch.autograd.grad(loss, z)[0])
    assert grads[0].dtype is dtype
    error = (grads[0].double() - grads[1]).abs().max() / grads[1].abs().max()
    own = 16 if dtype is torch.float64 else 4  # in float64 the reference rounds, too
    assert error <= own * torch.finfo(dtype).eps
    assert (grads[0][2] == 0).all()


@each_dtype
@pytest.mark.parametrize("strength", [0.05, 5.0])
def test_soft_loss_of_more_dimensions(strength: float, dtype: torch.dtype) -> None:
    """Through the ops, one term after the other, the same as both by the kernels at once."""
    x, y = rows(60, dtype, 6)
    results = []
    for shape in ((6, 60), (2, 3, 60)):
        z = x.reshape(shape).requires_grad_()
        loss = r2kd_ext.correlation_kd(
            z, y.reshape(shape), rank_weight=2.0, rank="soft", rank_strength=strength
        )
        results.append((loss, torch.autograd.grad(3 * loss, z)[0].reshape(6, 60)))
    (short, short_grad), (long, long_grad) = results
    torch.testing.assert_close(short, long, rtol=1e-6, atol=0)
    eps = torch.finfo(dtype).eps
    atol = 4 * eps * float(long_grad.abs().max())
    torch.testing.assert_close(short_grad, long_grad, rtol=4 * eps, atol=atol)


def test_soft_gradient_moves_the_student() -> None:
    """The purpose: steps along it raise the rank correlation; the hard form cannot."""
    x, y = rows(30)
    before = r2kd_ext.spearman(x, y).mean()
    for _ in range(100):
        x.requires_grad_()
        loss = r2kd_ext.correlation_kd(x, y, **RANK_ONLY, rank="soft", rank_strength=1.0)
        x = (x - 30 * torch.autograd.grad(loss, x)[0]).detach()
    assert r2kd_ext.spearman(x, y).mean() > 0.95 > before + 0.3


# --- weights and masks ---------------------------------------------------------------------------


@every_backend
@each_dtype
@pytest.mark.parametrize("rank", ["hard", "soft"])
def test_mask_equals_selection(rank: str, dtype: torch.dtype, backend: str) -> None:
    x, y = rows(40, dtype, 12)
    mask = make_mask(12)
    loss = partial(loss_of(backend), rank_weight=2.0, rank=rank)
    got, expected = loss(x, y, mask=mask), loss(x[mask], y[mask])
    assert got.item() == pytest.approx(expected.item(), rel=4 * torch.finfo(got.dtype).eps)
    x[~mask], y[~mask] = torch.nan, torch.inf
    assert loss(x, y, mask=mask).item() == got.item()


@every_backend
@pytest.mark.parametrize("correlation", ["cosine", "pearson"])
@pytest.mark.parametrize("masked", [False, True])
def test_sample_weight(masked: bool, correlation: str, backend: str) -> None:
    """Rows weighted, one by one against the loss of single rows; columns not at all."""
    x, y = rows(15, count=8)
    weight = torch.rand(8, generator=generator("weight"))
    mask = make_mask(8) if masked else torch.ones(8, dtype=torch.bool)
    loss = partial(loss_of(backend), correlation=correlation, temperature=2.0)
    row_terms: dict[str, Any] = {"intra_weight": 0.0, "rank_weight": 0.7}
    single = [loss(x[i : i + 1], y[i : i + 1], **row_terms).item() for i in range(8)]
    expected = np.average(np.array(single)[mask], weights=weight.double()[mask])
    got = loss(x, y, **row_terms, sample_weight=weight, mask=mask)
    assert got.item() == pytest.approx(expected, rel=1e-12)
    columns = {"inter_weight": 0.0, "mask": mask}
    got = loss(x, y, **columns, sample_weight=weight)
    assert got.item() == pytest.approx(loss(x, y, **columns).item(), rel=1e-14)


@every_backend
@each_dtype
def test_equal_weights_change_nothing(dtype: torch.dtype, backend: str) -> None:
    x, y = rows(15, dtype, 8)
    results = []
    for weight in (None, torch.full((8,), 3.0), torch.full((8,), 0.25, dtype=torch.float16)):
        z = x.clone().requires_grad_()
        loss = loss_of(backend)(
            z, y, rank_weight=1.0, rank="soft", rank_strength=0.5, sample_weight=weight
        )
        results.append((loss.item(), torch.autograd.grad(loss, z)[0].double()))
    eps = torch.finfo(dtype).eps
    for value, grad in results[1:]:
        assert value == pytest.approx(results[0][0], rel=1e-6)
        torch.testing.assert_close(
            grad, results[0][1], rtol=4 * eps, atol=4 * eps * float(grad.abs().max())
        )


@every_backend
def test_weights_that_sum_to_nothing(backend: str) -> None:
    """No row counts: the row terms are 0, the columns stay."""
    x, y = rows(15, count=8)
    x.requires_grad_()
    loss = loss_of(backend)(x, y, rank_weight=1.0, rank="soft", sample_weight=torch.zeros(8))
    columns = loss_of(backend)(x, y, inter_weight=0.0)
    assert loss.item() == pytest.approx(columns.item(), rel=1e-14)
    torch.testing.assert_close(
        torch.autograd.grad(loss, x)[0], torch.autograd.grad(columns, x)[0], rtol=1e-12, atol=1e-14
    )


@every_backend
def test_weights_get_no_gradient(backend: str) -> None:
    x, y = rows(15, count=8)
    weight = torch.ones(8, requires_grad=True)
    loss_of(backend)(
        x.requires_grad_(), y, rank_weight=1.0, rank="soft", sample_weight=weight
    ).backward()
    assert weight.grad is None
