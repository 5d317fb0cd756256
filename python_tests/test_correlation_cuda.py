"""The CUDA C++ backend by itself: its paths and launches on a GPU, its errors without one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cases import loss_of, make_logits, make_mask
from compare import Outcome, assert_true, run
from torch import Tensor

from r2kd_ext import _core, ops, reference
from r2kd_ext.backends import cuda

# --- without a GPU -------------------------------------------------------------------------------


def launch() -> None:
    _core.cuda_correlation_forward(
        64, 100, 4.0, False, 1.0, 1.0, 1e-8, 0, 100, 1, 0, 0, 100, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_launch_without_a_gpu_says_what_failed_and_why() -> None:
    message = r"^correlation forward, preparing the launch, 64 x 100 logits: .+"
    for _ in range(2):  # the first failure leaves nothing behind
        with pytest.raises(RuntimeError, match=message) as raised:
            launch()
    reason = "CUDA error" if cuda.is_compiled() else "built without CUDA"
    assert reason in str(raised.value)
    with pytest.raises(RuntimeError, match=r"^correlation, preparing the launch, 64 x 100 "):
        cuda.plan(64, 100, False, True, True, torch.float32, torch.float32, False, 0)


def test_more_classes_than_the_kernels_count() -> None:
    logits = torch.empty(1, _core.MAX_CUDA_COLS + 1, device="meta")
    with pytest.raises(ValueError, match=r"student_logits must have at most 1073741824 classes"):
        cuda.correlation(logits, logits, None, 4.0, False, 1.0, 1.0, 1e-8)


def test_the_op_goes_where_the_choice_was(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    for name, module in (("native", ops.cuda), ("triton", ops.triton_kernels)):
        for op in ("correlation", "correlation_backward"):
            monkeypatch.setattr(module, op, lambda *_, name=name: called.append(name))
    nvidia: Any = SimpleNamespace(is_cuda=True)
    other: Any = SimpleNamespace(is_cuda=False)
    for student in (nvidia, other):
        for triton in (False, True):
            ops._correlation_gpu(student, triton=triton)
            ops._correlation_backward_gpu(torch.ones(()), student, triton=triton)
    assert called == ["native", "native", *["triton"] * 6]


# --- on a GPU ------------------------------------------------------------------------------------

on_a_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="GPU tests skipped: torch sees no CUDA device"
    ),
    pytest.mark.skipif(
        not cuda.is_compiled(), reason="backend 'native' skipped: built without CUDA"
    ),
]


def gpu(test: Any) -> Any:
    for mark in on_a_gpu:
        test = mark(test)
    return test


def plan_of(
    student: Tensor, teacher: Tensor, *, intra: bool = True, weighed: bool = False
) -> _core.CudaPlan:
    rows, cols = student.shape
    return cuda.plan(rows, cols, False, True, intra, student.dtype, teacher.dtype, weighed, 0)


# Shape, dtype, path of forward, path of backward with clusters and without. 129 rows are just too
# many for a forward pass in clusters.
PATHS = [
    ((64, 100), torch.float32, "tiles", "warp", "warp"),
    ((2100, 1024), torch.float32, "tiles", "warp", "warp"),
    ((700, 512), torch.float64, "tiles", "warp", "warp"),
    ((130, 1025), torch.float32, "rows", "block", "block"),
    ((300, 4096), torch.bfloat16, "rows", "block", "block"),
    ((9, 4097), torch.float64, "rows", "block", "block"),
    ((40, 12_000), torch.float32, "rows", "block", "block"),
    ((129, 21_841), torch.float32, "rows", "cluster of 2", "stream"),
    ((129, 32_768), torch.bfloat16, "rows", "cluster of 4", "stream"),
    ((8, 131_072), torch.bfloat16, "rows, cluster of 8", "cluster of 16", "stream"),
    ((3, 262_144), torch.float32, "rows, cluster of 8", "cluster of 16", "stream"),
    ((2, 1_000_003), torch.float32, "rows, cluster of 8", "stream", "stream"),
]


@gpu
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("correlation", ["cosine", "pearson"])
@pytest.mark.parametrize("path", PATHS, ids=lambda p: f"{p[0][0]}x{p[0][1]}-{p[1]}")
def test_every_path(path: tuple[Any, ...], correlation: str, masked: bool) -> None:
    shape, dtype, forward, with_clusters, without = path
    student, teacher = make_logits(*shape, dtype=dtype)
    clusters = torch.cuda.get_device_capability() >= (9, 0)
    plan = plan_of(student, teacher)
    assert plan["forward"] == (forward if clusters else forward.partition(",")[0])
    if clusters or without != "stream":  # how much stays in shared memory depends on the GPU
        assert plan["backward"] == (with_clusters if clusters else without)
    options: dict[str, Any] = {"correlation": correlation}
    on_device = dict(options)
    if masked:
        options["mask"] = make_mask(shape[0])
        on_device["mask"] = options["mask"].cuda()
    got = run(loss_of("native"), student.cuda(), teacher.cuda(), **on_device)
    assert_true(Outcome(got.loss.cpu(), got.grad.cpu()), student, teacher, **options)


@gpu
@pytest.mark.parametrize("shape", [(64, 100), (1024, 1000), (16, 9001)], ids=str)
def test_launches(shape: tuple[int, int]) -> None:
    """As many kernels as the plan says; at 64 x 100 two forward and one backward."""
    student, teacher = (x.cuda() for x in make_logits(*shape))
    loss_of("native")(student.requires_grad_(), teacher).backward()
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        loss_of("native")(student, teacher).backward()
        torch.cuda.synchronize()
    kernels = [event.name for event in profile.events() if "r2kd::cuda" in event.name]
    backward = [name for name in kernels if "backward_kernel" in name]
    expected = plan_of(student, teacher)["forward_launches"]
    assert len(backward) == 1, kernels
    assert len(kernels) - 1 == expected, kernels
    if shape == (64, 100):
        assert expected == 2


@gpu
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", [(33, 65), (9, 2100)], ids=str)
def test_sample_weight(shape: tuple[int, int], masked: bool) -> None:
    student, teacher = make_logits(*shape, dtype=torch.float64)
    options = {"sample_weight": torch.rand(shape[0], dtype=torch.float64).pow(2)}
    if masked:
        options["mask"] = make_mask(shape[0])
    moved = {name: x.cuda() for name, x in options.items()}
    got = run(loss_of("native"), student.cuda(), teacher.cuda(), correlation="pearson", **moved)
    expected = run(reference.correlation_kd, student, teacher, correlation="pearson", **options)
    torch.testing.assert_close(got.loss.cpu(), expected.loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(got.grad.cpu(), expected.grad, rtol=1e-9, atol=1e-15)
    moved["sample_weight"] = torch.zeros_like(moved["sample_weight"])
    got = run(loss_of("native"), student.cuda(), teacher.cuda(), intra_weight=0.0, **moved)
    assert got.loss.item() == 0
    assert not got.grad.any()


@gpu
def test_error_of_a_launch() -> None:
    """A device that does not exist; the next call works."""
    student, teacher = (x.cuda() for x in make_logits(4, 9))
    with pytest.raises(RuntimeError, match=r"correlation, preparing the launch.*CUDA error 101"):
        cuda.plan(4, 9, False, True, True, torch.float32, torch.float32, False, 99)
    assert loss_of("native")(student, teacher).isfinite()
