"""The soft rank against its definition, its limits and its Jacobian."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import rank_formula
import torch
from cases import each_dtype, generator, make_logits
from compare import accumulator, assert_same_bits
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import r2kd_ext
from r2kd_ext import reference

STRENGTHS = [1e-3, 0.02, 0.3, 4.0, 1e3]

every_implementation = pytest.mark.parametrize(
    "soft_rank", [r2kd_ext.soft_rank, reference.soft_rank], ids=["fused", "reference"]
)
each_strength = pytest.mark.parametrize("strength", STRENGTHS)


def logits(classes: int, dtype: torch.dtype = torch.float64, rows: int = 3) -> Tensor:
    return make_logits(rows, classes, dtype=dtype)[0]


@every_implementation
@each_dtype
@each_strength
@pytest.mark.parametrize("classes", [1, 2, 3, 16, 33, 200])
def test_formula(classes: int, strength: float, dtype: torch.dtype, soft_rank: Any) -> None:
    """Against the minimax formula, which finds no pools; it is exact to 1e-9 or so."""
    x = logits(classes, dtype)
    ranks = soft_rank(x, strength)
    assert ranks.dtype is accumulator(dtype)
    expected = rank_formula.soft_ranks(x.double().numpy(), strength)
    rtol = 1e-9 if dtype is torch.float64 else float(torch.finfo(torch.float32).eps)
    np.testing.assert_allclose(ranks, expected, rtol=rtol, atol=1e-9)


@pytest.mark.parametrize("strength", [1e-2, 0.3, 100.0])
@pytest.mark.parametrize("classes", [600, 6000])
def test_is_the_projection(classes: int, strength: float) -> None:
    """The conditions of the projection itself, for rows too long for the formula.

    A point r of a convex set is the projection of t if (t - r) (w - r) <= 0 for all w in the set;
    over the permutations, the left side is largest where w is ordered as t - r is.
    """
    t = logits(classes).numpy() / strength
    ranks = r2kd_ext.soft_rank(torch.from_numpy(t)).numpy()
    for row, rank in zip(t, ranks, strict=True):
        assert rank_formula.distance_to_permutahedron(rank) < 1e-8 * classes
        furthest = np.empty(classes)
        furthest[np.argsort(row - rank)] = np.arange(1.0, classes + 1)
        scale = np.linalg.norm(row - rank) * classes**1.5
        assert (row - rank) @ (furthest - rank) <= 1e-12 * scale


def test_the_conditions_can_fail() -> None:
    """What the test above looks at rejects ranks that are nearly right."""
    rank = np.arange(1.0, 7)
    rank[2] += 1e-3
    assert rank_formula.distance_to_permutahedron(rank) > 9e-4
    row = np.array([0.0, 0.2, 2.5])
    wrong = np.array([1.0, 2.0, 3.0])  # in the set, but 0 and 0.2 belong to one pool
    furthest = np.empty(3)
    furthest[np.argsort(row - wrong)] = np.arange(1.0, 4)
    assert (row - wrong) @ (furthest - wrong) > 0.1


@every_implementation
def test_small_strength_is_the_hard_rank(soft_rank: Any) -> None:
    x = logits(60)
    hard = rank_formula.hard_ranks(x.numpy())
    np.testing.assert_allclose(soft_rank(x, 1e-9), hard, rtol=1e-12)
    assert abs(soft_rank(x, 0.05).numpy() - hard).max() > 0.1


@every_implementation
@each_dtype
def test_large_strength_is_the_mean(dtype: torch.dtype, soft_rank: Any) -> None:
    x = logits(60, dtype)
    np.testing.assert_allclose(soft_rank(x, 1e9), np.full((3, 60), 30.5), rtol=1e-7)


@every_implementation
def test_one_pool_is_affine(soft_rank: Any) -> None:
    x = logits(60)
    expected = 30.5 + (x - x.mean(1, True)) / 5
    torch.testing.assert_close(soft_rank(x, 5.0), expected, rtol=1e-12, atol=1e-12)


@every_implementation
@each_strength
def test_up_to_which_span_a_row_is_one_pool(strength: float, soft_rank: Any) -> None:
    """max - min = strength C / 2 is the bound: two halves reach it, nothing below it has two."""
    classes = 20
    halves = torch.arange(classes).ge(classes // 2).double()
    noise = torch.rand(classes, generator=generator("span"), dtype=torch.float64)
    for x in (halves, (noise - noise.min()) / (noise.max() - noise.min())):
        x = x * 0.999 * strength * classes / 2
        affine = (classes + 1) / 2 + (x - x.mean()) / strength
        torch.testing.assert_close(soft_rank(x, strength), affine, rtol=1e-10, atol=1e-10)
    ranks = soft_rank(halves * 1.01 * strength * classes / 2, strength)
    torch.testing.assert_close(ranks, 5.5 + 10 * halves, rtol=1e-12, atol=0)


@every_implementation
@each_strength
def test_equal_elements_share_their_rank(strength: float, soft_rank: Any) -> None:
    x = torch.tensor([[2.0, 7.0, 2.0, 2.0, 100.0], [3.0, 3.0, 3.0, 3.0, 3.0]])
    ranks = soft_rank(x, strength)
    assert (ranks[0, [0, 2, 3]] == ranks[0, 0]).all()
    assert (ranks[1] == 3).all()
    if strength < 1:
        assert ranks[0].tolist() == [2, 4, 2, 2, 5]


@every_implementation
def test_infinite_elements(soft_rank: Any) -> None:
    """-inf marks a class that is ruled out: all such share the lowest places, without gradient."""
    inf = torch.inf
    x = torch.tensor([[0.0, -inf, 0.5, -inf, inf], [inf, inf, -inf, inf, inf], [-inf] * 5])
    x.requires_grad_()
    ranks = soft_rank(x, 0.1)
    expected = torch.tensor([[3.0, 1.5, 4, 1.5, 5], [3.5, 3.5, 1, 3.5, 3.5], [3.0] * 5])
    torch.testing.assert_close(ranks.detach(), expected)
    (grad,) = torch.autograd.grad((soft_rank(x, 10.0) * torch.arange(5.0)).sum(), x)
    assert (grad[x.isinf()] == 0).all()
    torch.testing.assert_close(grad[0, [0, 2]], torch.tensor([-0.1, 0.1]))


@every_implementation
@each_dtype
@pytest.mark.parametrize("classes", [1, 30, 700])
def test_nan_poisons_its_row(classes: int, dtype: torch.dtype, soft_rank: Any) -> None:
    x = logits(classes, dtype)
    clean = soft_rank(x)
    x[1, classes // 2] = torch.nan
    ranks = soft_rank(x.requires_grad_())
    assert ranks[1].isnan().all()
    assert_same_bits(ranks[::2].detach(), clean[::2])
    (grad,) = torch.autograd.grad(ranks.sum(), x)
    assert grad[1].isnan().all()
    assert grad[::2].isfinite().all()


@every_implementation
@each_strength
def test_jacobian(strength: float, soft_rank: Any) -> None:
    """Dense, against pools found in exact arithmetic."""
    x = logits(12, rows=1)[0]
    jacobian = torch.autograd.functional.jacobian(lambda z: soft_rank(z, strength), x)
    expected = rank_formula.soft_rank_jacobian(x.numpy(), strength)
    np.testing.assert_allclose(jacobian, expected, rtol=1e-12, atol=1e-12 / strength)


@every_implementation
@each_strength
def test_gradcheck(strength: float, soft_rank: Any) -> None:
    x = logits(8).requires_grad_()
    function = partial(soft_rank, strength=strength)
    assert torch.autograd.gradcheck(function, x, eps=min(1e-6, strength * 1e-4))
    assert torch.autograd.gradgradcheck(
        lambda z: function(z).pow(2), x, eps=min(1e-6, strength * 1e-4), atol=1e-3
    )


@each_dtype
@each_strength
@pytest.mark.parametrize("classes", [5, 100, 3000])
def test_backward_against_the_reference(classes: int, strength: float, dtype: torch.dtype) -> None:
    x = logits(classes, dtype)
    weight = torch.randn(3, classes, generator=generator("weight"), dtype=torch.float64)
    grads = []
    for function, z in ((r2kd_ext.soft_rank, x.clone()), (reference.soft_rank, x.double())):
        ranks = function(z.requires_grad_(), strength)
        grads.append(torch.autograd.grad((ranks * weight.to(ranks.dtype)).sum(), z)[0])
    assert grads[0].dtype is dtype
    error = (grads[0].double() - grads[1]).abs().max()
    # Singletons: the weight less itself. Pools: the weight was rounded before its mean was taken.
    assert error <= 4 * torch.finfo(dtype).eps * max(float(grads[1].abs().max()), 1e-30)


@given(
    st.lists(st.integers(-6, 6).map(lambda n: n / 4), min_size=1, max_size=12),
    st.sampled_from([0.01, 0.25, 0.3, 1.0, 8.0]),
)
def test_any_row(row: list[float], strength: float) -> None:
    """Ties and pools of equal mean, where the two implementations must still agree on the value."""
    x = torch.tensor([row], dtype=torch.float64)
    expected = rank_formula.soft_ranks(x.numpy(), strength)
    for function in (r2kd_ext.soft_rank, reference.soft_rank):
        np.testing.assert_allclose(function(x, strength), expected, rtol=1e-9, atol=1e-9)
