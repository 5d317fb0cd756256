"""The rank ops on a CUDA device, by both backends, against the CPU's kernels."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from cases import each_dtype, make_logits, make_mask
from compare import assert_same_bits, pools_of
from torch import Tensor

import r2kd_ext
from r2kd_ext import _core, ops_rank
from r2kd_ext.backends import cuda, native_rank

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="GPU tests skipped: torch sees no CUDA device"
    ),
]
each_number_of_classes = pytest.mark.parametrize("classes", [1, 7, 100, 1000, 4096, 4097, 50_000])
each_backend = pytest.mark.parametrize(
    "backend",
    [
        pytest.param(
            "native",
            marks=pytest.mark.skipif(
                not cuda.is_compiled(), reason="backend 'native' skipped: built without CUDA"
            ),
        ),
        pytest.param(
            "triton",
            marks=pytest.mark.skipif(
                importlib.util.find_spec("triton") is None,
                reason="backend 'triton' skipped: the package triton is not installed",
            ),
        ),
    ],
)


def inputs(classes: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """More rows than one program of pools_kernel has lanes, some with what is treated apart."""
    x, y = make_logits(70, classes, dtype=dtype)
    if classes >= 7:
        x[0, 0], x[0, 2] = torch.inf, -torch.inf
        x[1, 1] = torch.nan
        x[2] = x[2].round()
    return x, y, make_mask(70)


def assert_near(got: Tensor, expected: Tensor) -> None:
    eps = torch.finfo(expected.dtype).eps
    atol = 8 * eps * float(expected.double().nan_to_num(0).abs().max())
    torch.testing.assert_close(got.cpu(), expected, rtol=8 * eps, atol=atol, equal_nan=True)


@each_backend
@each_dtype
@each_number_of_classes
def test_hard(classes: int, dtype: torch.dtype, backend: str) -> None:
    x, y, mask = inputs(classes, dtype)
    which = {"triton": backend == "triton"}
    got = ops_rank.spearman(x.cuda(), y.cuda(), mask.cuda(), False, 1.0, 1e-8, **which)
    assert_same_bits(got.cpu(), native_rank.spearman(x, y, mask, False, 1.0, 1e-8))


@each_backend
@each_dtype
@each_number_of_classes
@pytest.mark.parametrize("strength", [0.01, 20.0])
def test_soft(strength: float, classes: int, dtype: torch.dtype, backend: str) -> None:
    x, y, mask = inputs(classes, dtype)
    which = {"triton": backend == "triton"}
    on_gpu = [t.cuda() for t in (x, y, mask)]
    ranks, order = native_rank.soft_rank(x, strength)
    got_ranks, got_order = ops_rank.soft_rank(on_gpu[0], strength, **which)
    assert torch.equal(pools_of(got_order.cpu()), pools_of(order))
    assert_near(got_ranks, ranks)
    assert_near(
        ops_rank.soft_rank_backward(ranks.cuda(), order.cuda(), strength, dtype, **which),
        native_rank.soft_rank_backward(ranks, order, strength, dtype),
    )
    rho = native_rank.spearman(x, y, mask, True, strength, 1e-8)
    assert_near(ops_rank.spearman(*on_gpu, True, strength, 1e-8, **which), rho)
    grad = torch.linspace(-1, 1, 70, dtype=rho.dtype)
    assert_near(
        ops_rank.spearman_backward(grad.cuda(), *on_gpu, strength, 1e-8, **which),
        native_rank.spearman_backward(grad, x, y, mask, strength, 1e-8),
    )


@each_backend
@pytest.mark.parametrize("rank", ["hard", "soft"])
@pytest.mark.parametrize("classes", [100, 5000])
def test_loss_without_synchronisation(classes: int, rank: str, backend: str) -> None:
    x, y = make_logits(70, classes)
    options: dict[str, Any] = {"rank_weight": 2.0, "rank": rank, "rank_strength": 0.1}
    losses, grads = [], []
    for device, which in (("cpu", "native"), ("cuda", backend)):
        for sync in ("default", "error"):  # the first call compiles, which waits
            z, t = x.to(device).requires_grad_(), y.to(device)
            torch.cuda.set_sync_debug_mode(sync)
            try:
                loss = r2kd_ext.correlation_kd(z, t, backend=which, **options)
                (grad,) = torch.autograd.grad(loss, z)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        losses.append(loss.cpu().detach())
        grads.append(grad.cpu())
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=0)
    torch.testing.assert_close(
        grads[1], grads[0], rtol=1e-4, atol=1e-6 * float(grads[0].abs().max())
    )


@each_backend
@pytest.mark.parametrize("classes", [100, 5000])
def test_graph_capture(classes: int, backend: str) -> None:
    """A replay on other logits gives what a call on them gives."""
    which = {"triton": backend == "triton"}
    x, y = (t.cuda() for t in make_logits(70, classes))
    grad = torch.ones(70, device="cuda")

    def step() -> tuple[Tensor, ...]:
        ranks, order = ops_rank.soft_rank(x, 0.1, **which)
        return (
            ops_rank.spearman(x, y, None, False, 1.0, 1e-8, **which),
            ops_rank.spearman(x, y, None, True, 0.1, 1e-8, **which),
            ops_rank.spearman_backward(grad, x, y, None, 0.1, 1e-8, **which),
            ranks,
            ops_rank.soft_rank_backward(ranks, order, 0.1, torch.float32, **which),
        )

    step()  # Triton compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    x.copy_(x.flip(1) * 1.5)
    graph.replay()
    for a, b in zip(captured, step(), strict=True):
        assert_same_bits(a.cpu(), b.cpu())


@pytest.mark.skipif(not cuda.is_compiled(), reason="backend 'native' skipped: built without CUDA")
def test_error_of_a_launch_native() -> None:
    """The kernel and the shape are in the message; the next call works."""
    x = torch.zeros(2, 5, device="cuda")
    with pytest.raises(RuntimeError, match=r"soft_rank, preparing.*, 2 x 5 elements: .*error 101"):
        _core.cuda_soft_rank_forward(
            2, 5, 1.0, x.data_ptr(), 5, 1, 0, x.data_ptr(), x.data_ptr(), x.data_ptr(), 99, 0
        )
    assert ops_rank.soft_rank(x, 1.0)[0].isfinite().all()
