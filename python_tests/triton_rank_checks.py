"""Checks of the Triton kernels of ranks that only a session in Triton's interpreter can run.

test_triton_ranks.py starts that session; by hand:
TRITON_INTERPRET=1 R2KD_BACKEND=triton pytest python_tests/triton_rank_checks.py
"""

from __future__ import annotations

import pytest
import torch
from cases import generator, make_logits, make_mask
from compare import accumulator, assert_same_bits, pools_of
from torch import Tensor

import r2kd_ext
from r2kd_ext import ops_rank, reference
from r2kd_ext.backends import native_rank, triton
from r2kd_ext.backends.triton import configs

INF, NAN = torch.inf, torch.nan


def test_this_session_runs_triton() -> None:
    for op in ("spearman", "soft_rank"):
        assert r2kd_ext.build_info()["ops"][op]["cpu"]["backend"] == "triton"
    assert configs.sorts_in_registers(4096, double=False)
    assert not configs.sorts_in_registers(4097, double=False)
    assert not configs.sorts_in_registers(3, double=True)


def special(x: Tensor) -> Tensor:
    """x with a row of each kind that the kernels treat apart, where there are classes enough."""
    x = x.clone()
    if x.shape[1] >= 3:
        x[0, 0], x[0, 2] = INF, -INF
        x[1, 1] = NAN
        x[2] = x[2].round()  # ties
    return x


@pytest.fixture(autouse=True)
def short_sorts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of few classes is not padded to 64: sorting them is most of the interpreter's time."""
    monkeypatch.setattr(configs, "_SORTED_BLOCK", 8)


@pytest.fixture
def low_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows beyond 16 classes go to torch.sort and are passed over in blocks of 16: the interpreter
    takes seconds for the real limits, at which test_triton_compile.py compiles."""
    monkeypatch.setattr(configs, "_SORTED_COLS", 16)
    monkeypatch.setattr(configs, "SUM_BLOCK", 16)


# Classes behind every branch: one warp to sort a row, several, torch.sort; one block and several.
@pytest.mark.parametrize(
    ("classes", "dtype", "masked"),
    [
        (1, torch.float32, False),
        (3, torch.bfloat16, True),
        (70, torch.float32, True),
        (70, torch.float64, True),
        (300, torch.float16, False),
        (4100, torch.float32, True),
    ],
)
def test_hard_as_the_native_backend(classes: int, dtype: torch.dtype, masked: bool) -> None:
    """The same integers."""
    x, y = make_logits(4, classes, dtype=dtype)
    mask = torch.tensor([True, True, True, False]) if masked else None
    arguments = (special(x), y, mask, False, 1.0, 1e-8)
    assert_same_bits(triton.spearman(*arguments), native_rank.spearman(*arguments))


def assert_as_native(x: Tensor, y: Tensor, mask: Tensor | None, strength: float) -> None:
    """All ops of soft ranks: the same pools; numbers to rounding, from another order of sums."""
    grad = torch.linspace(-1, 1, 2 * len(x), dtype=accumulator(x.dtype, y.dtype))[::2]
    got, expected = (
        [
            *kernels.soft_rank(x, strength),
            kernels.spearman(x, y, mask, True, strength, 1e-8),
            kernels.spearman_backward(grad, x, y, mask, strength, 1e-8),
        ]
        for kernels in (triton, native_rank)
    )
    got[1], expected[1] = pools_of(got[1]), pools_of(expected[1])
    assert_same_bits(got[1], expected[1])
    for a, b in zip(got, expected, strict=True):
        scale = float(b.double().nan_to_num(0).abs().max())
        eps = torch.finfo(a.dtype).eps if a.dtype.is_floating_point else 0
        torch.testing.assert_close(a, b, rtol=8 * eps, atol=8 * eps * scale, equal_nan=True)


# Small pools and one over all, in blocks and in torch's order; each dtype.
@pytest.mark.parametrize(
    ("classes", "strength", "dtype"),
    [
        (1, 0.05, torch.float16),
        (3, 20.0, torch.bfloat16),
        (37, 0.05, torch.float32),
        (37, 20.0, torch.float64),
    ],
)
def test_soft_as_the_native_backend(
    classes: int, strength: float, dtype: torch.dtype, low_limits: None
) -> None:
    x, y = make_logits(5, classes, dtype=dtype)
    x, y[-1, 0] = special(x), NAN
    x[3] = 0.5
    mask = torch.tensor([True, True, True, True, False]) if strength < 1 else None
    assert_as_native(x, y, mask, strength)


def test_layouts_and_mixed_dtypes() -> None:
    x, y = make_logits(3, 7)
    mask = (torch.arange(6) != 2)[::2]
    transposed, wide = x.t().contiguous().t(), x.double()
    pairs = [(transposed, y[:1].expand(3, 7)), (wide[:, ::2], y.half()[:, ::2])]
    for a, b in pairs:
        arguments = (a, b, mask, False, 1.0, 1e-8)
        assert_same_bits(triton.spearman(*arguments), native_rank.spearman(*arguments))
        assert_as_native(a, b, mask, 0.5)


def test_pools_of_rows_that_are_sorted_in_registers() -> None:
    x = special(make_logits(4, 60)[0])
    got, expected = (kernels.soft_rank(x, 0.05) for kernels in (triton, native_rank))
    assert_same_bits(pools_of(got[1]), pools_of(expected[1]))
    torch.testing.assert_close(got[0], expected[0], rtol=1e-6, atol=0, equal_nan=True)


@pytest.mark.parametrize("strength", [0.3, 1e3])
def test_pools_across_blocks(strength: float, low_limits: None) -> None:
    """The last pool of a block goes on in the next; the largest strength has one over all three."""
    classes = 2 * configs.SUM_BLOCK + 5
    x = make_logits(2, classes, dtype=torch.float64)[0]
    weight = torch.randn(2, classes, generator=generator("weight"), dtype=torch.float64)
    grads = []
    for function in (r2kd_ext.soft_rank, reference.soft_rank):
        z = x.clone().requires_grad_()
        ranks = function(z, strength)
        grads.append(torch.autograd.grad((ranks * weight).sum(), z)[0])
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-11, atol=1e-12 / strength)


def test_gradients_far_apart_in_size() -> None:
    """A pool's mean must not suffer from what another pool's gradients sum to."""
    x = torch.tensor([[0.0, 0.1, 5.0, 5.1, 9.0, 9.1]], requires_grad=True)
    weight = torch.tensor([[1e20, 3e20, 1.0, 3.0, -1e30, 1e30]])
    (grad,) = torch.autograd.grad((r2kd_ext.soft_rank(x, 0.5) * weight).sum(), x)
    expected = torch.tensor([[-2e20, 2e20, -2.0, 2.0, -2e30, 2e30]])
    torch.testing.assert_close(grad, expected, rtol=1e-6, atol=0)


def test_more_rows_than_lanes() -> None:
    """Rows of one program end at different steps: few pools, many, none."""
    rows = configs.POOLED_ROWS + 5
    x = make_logits(rows, 7)[0] * torch.logspace(-3, 2, rows)[:, None]
    x[3], x[4, :6], x[5] = NAN, INF, 1.0
    got, expected = (kernels.soft_rank(x, 0.4) for kernels in (triton, native_rank))
    assert_same_bits(pools_of(got[1]), pools_of(expected[1]))
    torch.testing.assert_close(got[0], expected[0], rtol=1e-6, atol=0, equal_nan=True)


def test_same_bits_in_every_run() -> None:
    x, y = make_logits(2, 8)
    grad = torch.ones(2)
    first, second = (
        [
            triton.spearman(x, y, None, False, 1.0, 1e-8),
            triton.spearman(x, y, None, True, 0.3, 1e-8),
            triton.spearman_backward(grad, x, y, None, 0.3, 1e-8),
        ]
        for _ in range(2)
    )
    for a, b in zip(first, second, strict=True):
        assert_same_bits(a, b)


@pytest.mark.parametrize(("classes", "dtype"), [(1, torch.float64), (7, torch.float16)])
def test_results_are_of_the_kind_that_the_fake_kernels_say(
    dtype: torch.dtype, classes: int
) -> None:
    x, y = make_logits(3, classes, dtype=dtype)
    mask = make_mask(3)
    a, b, meta_mask = (t.to("meta") for t in (x, y, mask))
    ranks, order = triton.soft_rank(x, 0.3)
    fake_ranks, fake_order = ops_rank.soft_rank(a, 0.3)
    rho = triton.spearman(x, y, mask, True, 0.3, 1e-8)
    fake_rho = ops_rank.spearman(a, b, meta_mask, True, 0.3, 1e-8)
    pairs = [
        (ranks, fake_ranks),
        (order, fake_order),
        (rho, fake_rho),
        (triton.spearman(x, y, mask, False, 1.0, 1e-8), fake_rho),
        (
            triton.spearman_backward(rho, x, y, mask, 0.3, 1e-8),
            ops_rank.spearman_backward(fake_rho, a, b, meta_mask, 0.3, 1e-8),
        ),
        (
            triton.soft_rank_backward(ranks, order, 0.3, dtype),
            ops_rank.soft_rank_backward(fake_ranks, fake_order, 0.3, dtype),
        ),
    ]
    for real, fake in pairs:
        assert (real.shape, real.dtype) == (fake.shape, fake.dtype)
