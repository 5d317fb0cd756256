"""What sees the rank ops instead of the functions: compilers, fake tensors, opcheck."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from cases import each_dtype, generator, make_logits, make_mask
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode

import r2kd_ext
from r2kd_ext import ops_rank

CALLS: dict[str, Any] = {
    "hard": r2kd_ext.spearman,
    "soft": partial(r2kd_ext.spearman, rank="soft", rank_strength=0.3),
    "hard loss": partial(r2kd_ext.correlation_kd, rank_weight=2.0),
    "soft loss": partial(r2kd_ext.correlation_kd, rank_weight=2.0, rank="soft"),
    "masked and weighted": partial(
        r2kd_ext.correlation_kd,
        rank_weight=2.0,
        rank="soft",
        mask=make_mask(12),
        sample_weight=torch.rand(12, generator=generator("weight")),
    ),
    "soft rank": lambda x, y: (r2kd_ext.soft_rank(x, 0.3) * y).sum(),
}


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch.compiler.reset()


def value_and_grad(function: Any, x: Tensor, y: Tensor) -> list[Tensor]:
    x = x.detach().requires_grad_()
    result = function(x, y)
    if not result.requires_grad:
        return [result]
    return [result.detach(), *torch.autograd.grad(result.sum(), x)]


@each_dtype
@pytest.mark.parametrize("call", CALLS)
def test_fullgraph(call: str, dtype: torch.dtype) -> None:
    x, y = make_logits(12, 37, dtype=dtype)
    compiled = torch.compile(CALLS[call], fullgraph=True, backend="aot_eager")
    got, expected = (value_and_grad(f, x, y) for f in (compiled, CALLS[call]))
    assert len(got) == len(expected) == (1 if call == "hard" else 2)
    for a, b in zip(got, expected, strict=True):
        # In 16 bits a sum of two rounded gradients, or one that is rounded once.
        rtol = max(1e-6, 2 * torch.finfo(a.dtype).eps)
        torch.testing.assert_close(a, b, rtol=rtol, atol=1e-6)


def test_dynamic_shapes() -> None:
    counter = CompileCounterWithBackend("aot_eager")
    function = torch.compile(CALLS["soft loss"], fullgraph=True, dynamic=True, backend=counter)
    frames = []
    for shape in ((6, 9), (5, 9), (33, 10), (64, 100)):
        x, y = make_logits(*shape)
        for a, b in zip(
            value_and_grad(function, x, y), value_and_grad(CALLS["soft loss"], x, y), strict=True
        ):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
        frames.append(counter.frame_count)
    assert frames[-1] == frames[0] > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("masked", [False, True])
def test_opcheck(masked: bool, dtype: torch.dtype) -> None:
    x, y = make_logits(6, 11, dtype=dtype)
    mask = make_mask(6) if masked else None
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    check = partial(torch.library.opcheck, test_utils=tests)
    accumulator = torch.float64 if dtype is torch.float64 else torch.float32
    for is_soft in (False, True):
        check(ops_rank.spearman, (x, y, mask, is_soft, 0.3, 1e-8))
    grad_rho = torch.ones(1, dtype=accumulator).expand(6)
    check(ops_rank.spearman_backward, (grad_rho, x, y, mask, 0.3, 1e-8))
    check(ops_rank.soft_rank, (x.T.contiguous().T, 0.3))
    ranks, order = ops_rank.soft_rank(x, 0.3)
    check(ops_rank.soft_rank_backward, (ranks, order, 0.3, dtype))
    check(
        torch.ops.r2kd.correlation.default,
        (x, y, mask, 1.0, True, 1.0, 1.0, 1e-8, torch.rand(6, dtype=torch.float64)),
    )


@pytest.mark.parametrize("call", CALLS)
def test_fake_tensors(call: str) -> None:
    """Shapes and dtypes without a computation."""
    real = make_logits(12, 37, dtype=torch.bfloat16)
    expected = value_and_grad(CALLS[call], *real)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        got = value_and_grad(CALLS[call], *(mode.from_tensor(t) for t in real))
    assert [(t.shape, t.dtype) for t in got] == [(t.shape, t.dtype) for t in expected]
