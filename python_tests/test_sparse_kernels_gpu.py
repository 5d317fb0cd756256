"""The sparse ops' kernels on a CUDA device, by both backends, against float64."""

from __future__ import annotations

import importlib.util
from types import ModuleType
from typing import Any

import pytest
import torch
from compare import assert_same_bits
from sparse_cases import DTYPES, check, csr, laid_out, sparse
from torch import Tensor
from torch.nn import functional as F

from r2kd_ext import _core, ops_sparse
from r2kd_ext.backends import Choice, cuda, cuda_sparse, triton

# --- without a GPU -------------------------------------------------------------------------------


def launch_linear() -> None:
    _core.cuda_csr_linear(5, 3, 7, 0, 7, 1, 0, 0, 0, 0, 0, 0, 0, 0)


def launch_conv2d() -> None:
    ones = (1, 1, 1, 1)
    _core.cuda_csr_conv2d(
        (2, 4, 5, 6), (120, 30, 6, 1), (2, 3, 5, 6), ones, (0, 0, 1, 1), 1, 0, 0, 0, 0, 0, 0, 0,
        False, 0, 0,
    )  # fmt: skip


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize(
    ("launch", "call"),
    [
        (launch_linear, "csr_linear, preparing the launch, x 5 x 7, weight 3 x 7: "),
        (launch_conv2d, "csr_conv2d, preparing the launch, x 2 x 4 x 5 x 6, weight 3 x 4: "),
    ],
)
def test_a_launch_without_a_gpu_says_what_failed_and_why(launch: Any, call: str) -> None:
    for _ in range(2):  # the first failure leaves nothing behind
        with pytest.raises(RuntimeError, match=f"^{call}.+") as raised:
            launch()
    reason = "CUDA error" if cuda.is_compiled() else "built without CUDA"
    assert reason in str(raised.value)


@pytest.mark.parametrize(
    ("backend", "name"),
    [("native", "cuda_sparse"), ("triton", "triton"), ("reference", "reference_sparse")],
)
def test_the_ops_go_where_the_choice_was(
    backend: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []
    monkeypatch.setattr(ops_sparse, "choose_sparse", lambda _: Choice(backend, ""))
    for module in ("cuda_sparse", "triton", "reference_sparse"):
        for op in ("csr_linear", "csr_conv2d"):
            kernels = getattr(ops_sparse, module)
            monkeypatch.setattr(kernels, op, lambda *_, at=(module, op): called.append(at))
    ops_sparse._csr_linear_gpu(torch.ones(1))
    ops_sparse._csr_conv2d_gpu(torch.ones(1))
    assert called == [(name, "csr_linear"), (name, "csr_conv2d")]


def test_larger_images_than_the_kernel_counts() -> None:
    x = torch.empty(1, 1, 1, 2**30, device="meta")
    entries = (x[0, 0, 0], x[0, 0, 0], torch.empty(2, device="meta"))
    arguments: tuple[Any, ...] = (x, *entries, None, [1, 1], [1, 1], [0, 1], [1, 1], 1)
    with pytest.raises(ValueError, match=r"x must have at most 1073741824 channels, .*1073741824"):
        cuda_sparse.csr_conv2d(*arguments)


# --- on a GPU ------------------------------------------------------------------------------------


def on_a_gpu(test: Any) -> Any:
    for mark in (
        pytest.mark.gpu,
        pytest.mark.skipif(
            not torch.cuda.is_available(), reason="GPU tests skipped: torch sees no CUDA device"
        ),
        pytest.mark.parametrize(
            "kernels",
            [
                pytest.param(
                    cuda_sparse,
                    id="native",
                    marks=pytest.mark.skipif(
                        not cuda.is_compiled(),
                        reason="backend 'native' skipped: built without CUDA",
                    ),
                ),
                pytest.param(
                    triton,
                    id="triton",
                    marks=pytest.mark.skipif(
                        importlib.util.find_spec("triton") is None,
                        reason="backend 'triton' skipped: the package triton is not installed",
                    ),
                ),
            ],
        ),
    ):
        test = mark(test)
    return test


# Short tiles, and with more rows the tall ones of 1, 2 and 4 samples a lane; odd sizes.
LINEAR = [(1, 1, 1), (257, 100, 300), (64, 1000, 513), (31, 17_000, 70), (64, 17_001, 300),
          (500, 9000, 600)]  # fmt: skip


@on_a_gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", LINEAR, ids=str)
def test_csr_linear(shape: tuple[int, int, int], dtype: torch.dtype, kernels: ModuleType) -> None:
    batch, rows, cols = shape
    torch.manual_seed(rows)
    weight, x = sparse(rows, cols, density=0.1, dtype=dtype), torch.randn(batch, cols).to(dtype)
    bias = torch.randn(rows).to(dtype)
    moved = [t.cuda() for t in (x, *csr(weight), bias)]
    check(kernels.csr_linear(*moved).cpu(), F.linear, x, weight, bias)


@on_a_gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("batch", [5, 70])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_csr_conv2d(
    layout: torch.memory_format, batch: int, groups: int, dtype: torch.dtype, kernels: ModuleType
) -> None:
    torch.manual_seed(groups)
    weight = sparse(24, 16 // groups, 3, 3, density=0.2, dtype=dtype)
    x = torch.randn(batch, 16, 17, 19).to(dtype).to(memory_format=layout)
    options: tuple[Any, ...] = ([2, 1], [1, 2], [1, 2], groups)
    arguments: tuple[Any, ...] = (*csr(weight.flatten(1).cuda()), None, [3, 3], *options)
    y = kernels.csr_conv2d(x.cuda(), *arguments)
    assert y.is_contiguous(memory_format=layout)
    check(y.cpu(), lambda a, w, b: F.conv2d(a, w, b, *options), x, weight, None)


@on_a_gpu
@pytest.mark.parametrize("rows", [16, 128, 512])
def test_csr_conv2d_of_the_teachers(rows: int, kernels: ModuleType) -> None:
    """Channels, images and batches of the zoo; 16-byte pieces of outputs."""
    torch.manual_seed(rows)
    weight = sparse(rows, rows, 3, 3, density=0.1)
    x = torch.randn(64, rows, 512 // rows, 512 // rows)
    options: tuple[Any, ...] = ([1, 1], [1, 1], [1, 1], 1)
    y = kernels.csr_conv2d(x.cuda(), *csr(weight.flatten(1).cuda()), None, [3, 3], *options)
    check(y.cpu(), lambda a, w, b: F.conv2d(a, w, b, *options), x, weight, None)


@on_a_gpu
@pytest.mark.parametrize("layout", ["every_second", "transposed", "expanded"])
def test_layouts(layout: str, kernels: ModuleType) -> None:
    weight = sparse(20, 27, density=0.3)
    entries = [t.cuda() for t in csr(weight)]
    x = laid_out((33, 27), layout, torch.float32)
    check(kernels.csr_linear(x.cuda(), *entries, None).cpu(), F.linear, x, weight, None)
    images = laid_out((5, 3, 9, 8), layout, torch.float32)
    options: tuple[Any, ...] = ([1, 1], [1, 1], [1, 1], 1)
    y = kernels.csr_conv2d(images.cuda(), *entries, None, [3, 3], *options)
    kernel = weight.view(20, 3, 3, 3)
    check(y.cpu(), lambda a, w, b: F.conv2d(a, w, b, *options), images, kernel, None)


@on_a_gpu
def test_graph_capture_without_synchronisation(kernels: ModuleType) -> None:
    """A replay on other inputs gives what a call on them gives, bit for bit."""
    torch.manual_seed(7)
    entries = [t.cuda() for t in csr(sparse(20, 27, density=0.3))]
    x, images = torch.randn(70, 27, device="cuda"), torch.randn(40, 3, 9, 8, device="cuda")

    def step() -> tuple[Tensor, ...]:
        ones = [1, 1]
        return (
            kernels.csr_linear(x, *entries, None),
            kernels.csr_conv2d(images, *entries, None, [3, 3], ones, ones, ones, 1),
        )

    step()  # Triton compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    x.copy_(x.flip(1) * 1.5)
    images.copy_(images.flip(0))
    graph.replay()
    for a, b in zip(captured, step(), strict=True):
        assert_same_bits(a.cpu(), b.cpu())
