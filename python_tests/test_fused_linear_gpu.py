"""The fused linear loss on a CUDA device: the truth, and what only a GPU can get wrong."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from cases import generator
from fused_linear_cases import Heads, distances, make_heads, truth_of
from torch import Tensor

from r2kd_ext import fused_linear_correlation_kd, reference
from r2kd_ext.backends import cuda

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="GPU tests skipped: torch sees no CUDA device"
    ),
]
each_backend = pytest.mark.parametrize(
    "backend",
    [
        "reference",
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
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
MIB = 2**20


@pytest.fixture(autouse=True)
def _no_tf32() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def on_gpu(heads: Heads) -> Heads:
    moved = Heads(*(x.detach().clone().cuda() for x in heads))
    for x in moved.student:
        x.requires_grad_()
    return moved


@each_backend
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("correlation", ["pearson", "cosine"])
@pytest.mark.parametrize("case", ["plain", "mask", "softcap", "map", "topk"])
def test_truth(case: str, correlation: str, dtype: torch.dtype, backend: str) -> None:
    """Losses as in float32; gradients to what rounding that of the logits to 16 bits costs."""
    heads = make_heads(200, 999, 64, 96, dtype=dtype)
    inputs = on_gpu(heads)
    options: dict[str, Any] = {}
    known: dict[str, Any] = {}
    if case == "mask":
        known["mask"] = torch.rand(200, generator=generator("mask")) < 0.6
        options["mask"] = known["mask"].cuda()
        with torch.no_grad():
            inputs.student_hidden[~options["mask"]] = torch.nan
            inputs.teacher_hidden[~options["mask"]] = torch.nan
    elif case == "softcap":
        options = {"logit_softcap": 5.0, "logit_scale": (0.7, 1.3)}
        known = {"caps": (5.0, 5.0), "scales": (0.7, 1.3)}
    elif case == "map":
        places = torch.randint(0, 999, (999,), generator=generator("map"))
        th, tw, tb = (x.double() for x in heads[3:])
        known["teacher_logits"] = (th @ tw.T + tb)[:, places].numpy()
        options["vocab_map"] = places.cuda()
    elif case == "topk":
        th, tw, tb = (x.double() for x in heads[3:])
        top = torch.topk(torch.log_softmax(th @ tw.T + tb, 1), 999)
        options["teacher_topk"] = (top.values.float().cuda(), top.indices.cuda())
        options |= {"teacher_hidden": None, "teacher_weight": None, "teacher_bias": None}
    loss = fused_linear_correlation_kd(
        **(inputs.keywords() | options), correlation=correlation, chunk_rows=64, backend=backend
    )
    lift = 2.0**12  # above what float16 cannot hold
    grads = torch.autograd.grad(loss, inputs.student, torch.tensor(lift, device="cuda"))
    truth = truth_of(heads, correlation=correlation, **known)
    assert loss.item() == pytest.approx(truth.loss, abs=5e-6)
    h, w = (x.detach().double().numpy() for x in heads.student[:2])
    if case == "mask":
        h = h * known["mask"].numpy()[:, None]
    square = truth.logit_grad**2
    unit = 0.0 if dtype in (torch.float32, torch.float64) else torch.finfo(dtype).eps / 2
    sizes = (square @ w**2, square.T @ h**2, np.zeros(1))
    found = tuple(x.double().cpu() / lift for x in grads)
    for far, size, exact in zip(distances(found, truth), sizes, truth.grads, strict=True):
        norm = np.linalg.norm(exact)
        assert far <= unit * (np.sqrt(size.sum()) + norm) + 2e-5 * norm


def test_products_of_halves_are_not_rounded() -> None:
    """torch.mm(out_dtype=float32) is what the precision of the logits stands on."""
    from r2kd_ext import linear_head

    if not linear_head._multiplies_halves(torch.device("cuda")):
        pytest.skip("this torch has no torch.mm(out_dtype=...)")
    a, b = (torch.randn(64, 256, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    found = linear_head._product(a, b.t(), torch.float32)
    exact = a.double() @ b.double().t()
    assert found.dtype == torch.float32
    assert (found - exact).norm() <= 1e-5 * exact.norm()


@each_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_nothing_waits_for_the_device(dtype: torch.dtype, backend: str) -> None:
    heads = on_gpu(make_heads(50, 301, 16, 24, dtype=dtype))
    mask, places = torch.rand(50, device="cuda") < 0.5, torch.arange(301, device="cuda")

    def step() -> None:
        loss = fused_linear_correlation_kd(
            **heads.keywords(), mask=mask, vocab_map=places, chunk_rows=16, backend=backend
        )
        loss.backward()

    step()  # compiles, loads
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@each_backend
def test_memory(backend: str) -> None:
    """Above the gradients: the chunk, and the float32 sums of 16-bit gradients."""
    rows, classes, width, chunk = 2048, 32768, 512, 256
    h, th = (torch.randn(rows, width, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    w, tw = (torch.randn(classes, width, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    h.requires_grad_(), w.requires_grad_()

    def peak(function: Any, **options: Any) -> int:
        h.grad = w.grad = None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function(h, w, th, tw, **options).backward()
        return torch.cuda.max_memory_allocated() - before

    options: dict[str, Any] = {"chunk_rows": chunk, "backend": backend}
    peak(fused_linear_correlation_kd, **options)  # workspaces
    fused = peak(fused_linear_correlation_kd, **options)
    buffers = 8 if backend == "reference" else 4
    held = 4 * (classes * width + rows * width) + 2 * (classes * width + rows * width)
    assert fused <= held + buffers * 4 * chunk * classes + 96 * MIB
    assert fused < peak(reference.fused_linear_correlation_kd) / 4


def test_default_chunk_and_tensor_kinds() -> None:
    heads = on_gpu(make_heads(30, 100, 16, 24, dtype=torch.bfloat16))
    loss = fused_linear_correlation_kd(**heads.keywords())
    grads: tuple[Tensor, ...] = torch.autograd.grad(loss, heads.student)
    assert loss.dtype == torch.float32
    assert all(
        (g.dtype, g.device, g.shape) == (x.dtype, x.device, x.shape)
        for g, x in zip(grads, heads.student, strict=True)
    )
