"""Sparse layers on the CPU, against the dense ones of torch and against torch.sparse.

    python benchmarks/bench_sparse.py [--turns 15] [--seconds S] [--output FILE.csv]

- csr_linear: 256 x 2048 -> 2048, in float32 and bfloat16;
- csr_conv2d: 3 x 3 with 128 channels on 64 x 16 x 16, and with 256 channels on 64 x 8 x 8, float32;
- sparsify: a pruned ResNet and a pruned multilayer perceptron as a whole.

Forward only; a random share of a layer's weights is zero. ours is `SparseLinear`, `SparseConv2d` or
the model that `sparsify` made; dense is torch's layer, or the pruned model, with the same zeros.
torch.sparse is a CSR weight of torch: `linear` with it from 70% of zeros on, and for the
convolution, which torch.sparse has not, the product with the unfolded images, from 90% on. Layers
and inputs stay in place.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import limits
import torch
from harness import Call, Case, Job, Row, Work, host_times, measure, parse_options, run_jobs
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from r2kd_ext import SparseConv2d, SparseLinear, models, prune, sparsify

RESULTS = Path(__file__).parent / "results" / "sparse_cpu.csv"
SPARSITIES = {
    torch.float32: (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95),
    torch.bfloat16: (0.5, 0.9),
}
CONVOLUTIONS = {"csr_conv2d 128": (64, 128, 16, 16), "csr_conv2d 256": (64, 256, 8, 8)}
LINEAR = (256, 2048, 2048)
VENDOR_LINEAR_FROM, VENDOR_CONV_FROM = 0.7, 0.9
MEMORY_AT = 0.9  # zeros at which peak memory is measured
MODEL_SPARSITIES = (0.1, 0.5, 0.9, 0.95)
ROLES = {"ours": "ours", "dense": "reference", "torch.sparse": "peer"}
Measured = tuple[Case, dict[str, Call], int]  # and how many elements the copy has


def call(function: Callable[..., object], *inputs: object) -> Call:
    """A forward call; grad mode belongs to a thread, and memory is measured in another one."""
    forward = torch.no_grad()(function)
    return lambda _: forward(*inputs)


def zeroed(layer: Any, sparsity: float) -> Any:
    """The layer with a random share of its weights at zero."""
    with torch.no_grad():
        layer.weight.mul_(torch.rand_like(layer.weight, dtype=torch.float32) >= sparsity)
    return layer


def zeros(sparsity: float) -> str:
    return f"{100 * sparsity:g}% zeros"


def linear_case(shape: tuple[int, int, int], dtype: torch.dtype, sparsity: float) -> Measured:
    rows, inputs, outputs = shape
    layer = zeroed(nn.Linear(inputs, outputs), sparsity).to(dtype)
    x = torch.randn(rows, inputs).to(dtype)
    contenders = {
        "ours": call(SparseLinear.from_dense(layer), x),
        "dense": call(layer, x),
    }
    if sparsity >= VENDOR_LINEAR_FROM and dtype == torch.float32:
        weight = layer.weight.detach().to_sparse_csr()
        contenders["torch.sparse"] = call(F.linear, x, weight, layer.bias)
    work = limits.csr_linear(rows, inputs, outputs, int(layer.weight.count_nonzero()), dtype)
    name = str(dtype).removeprefix("torch.")
    case = Case("csr_linear", shape, name, work, ROLES, "forward", zeros(sparsity), "resident")
    return case, contenders, x.numel()


def unfolded(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A 3 x 3 convolution with padding 1 as a product with a CSR weight [O, 9 C]."""
    columns = F.unfold(x, 3, padding=1)  # [N, 9 C, H W]
    y = torch.sparse.mm(weight, columns.transpose(0, 1).flatten(1))  # [O, N H W]
    y = y.view(len(weight), len(x), *x.shape[2:]).transpose(0, 1)
    return y + bias[:, None, None]


def conv_case(shape: tuple[int, int, int, int], sparsity: float) -> Measured:
    channels = shape[1]
    layer, x = zeroed(nn.Conv2d(channels, channels, 3, padding=1), sparsity), torch.randn(shape)
    contenders = {
        "ours": call(SparseConv2d.from_dense(layer), x),
        "dense": call(layer, x),
    }
    if sparsity >= VENDOR_CONV_FROM:
        weight = layer.weight.detach().flatten(1).to_sparse_csr()
        with torch.no_grad():
            torch.testing.assert_close(
                unfolded(x, weight, layer.bias), layer(x), rtol=1e-3, atol=1e-3
            )
        contenders["torch.sparse"] = call(unfolded, x, weight, layer.bias)
    work = limits.csr_conv2d(
        shape[0], shape[1:], shape[1:], int(layer.weight.count_nonzero()), torch.float32
    )
    case = Case("csr_conv2d", shape, "float32", work, ROLES, "forward", zeros(sparsity), "resident")
    return case, contenders, x.numel()


def networks() -> dict[str, Callable[[], tuple[nn.Module, Tensor]]]:
    """Whole models with their inputs."""

    def perceptron() -> tuple[nn.Module, Tensor]:
        model = nn.Sequential(
            nn.Linear(1024, 2048), nn.ReLU(), nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, 100)
        )
        return model, torch.randn(256, 1024)

    return {
        "resnet8x4": lambda: (models.create("resnet8x4", 100), torch.randn(16, 3, 32, 32)),
        "perceptron": perceptron,
    }


def model_case(name: str, sparsity: float) -> Measured:
    model, x = networks()[name]()
    dense = prune(model, sparsity).eval()
    with torch.no_grad():
        sparse = sparsify(dense, x)
        with FlopCounterMode(display=False) as counter:
            y = dense(x)
    kept = sum(int(weight.count_nonzero()) for weight in dense.parameters())
    moved = 4 * (x.numel() + y.numel()) + (4 + limits.INDEX_BYTES) * kept
    # All layers are pruned alike, so what is left of the products is what is left of the weights.
    work = Work(moved, math.floor(counter.get_total_flops() * (1 - sparsity)))
    case = Case(
        "sparsify", tuple(x.shape), "float32", work, ROLES, "forward",
        f"{name}, {zeros(sparsity)}", "resident",
    )  # fmt: skip
    return case, {"ours": call(sparse, x), "dense": call(dense, x)}, x.numel()


@cache
def empty_calls(op: str) -> dict[str, float]:
    """Seconds of a layer's calls themselves, on one number; those of a whole model have none."""
    if op == "csr_linear":
        return host_times(linear_case((1, 1, 1), torch.float32, MEMORY_AT)[1])
    return host_times(conv_case((1, 1, 1, 1), MEMORY_AT)[1]) if op == "csr_conv2d" else {}


def measure_case(make: Callable[[], Measured], turns: int, seconds: float) -> list[Row]:
    torch.manual_seed(0)
    case, contenders, copied = make()
    return measure(
        case,
        contenders,
        turns=turns,
        seconds=seconds,
        copied=copied,
        warm_up=1,
        host=empty_calls(case.op),
        with_memory=zeros(MEMORY_AT) in case.variant,
        seconds_per_turn=0.02,
    )


def main() -> None:
    options = parse_options(__doc__ or "", RESULTS)
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support")
    float32 = SPARSITIES[torch.float32]
    made = {
        **{
            f"csr_linear, {dtype}, {share}": partial(linear_case, LINEAR, dtype, share)
            for dtype, shares in SPARSITIES.items()
            for share in shares
        },
        **{
            f"{name}, {share}": partial(conv_case, shape, share)
            for name, shape in CONVOLUTIONS.items()
            for share in float32
        },
        **{
            f"sparsify {name}, {share}": partial(model_case, name, share)
            for name in networks()
            for share in MODEL_SPARSITIES
        },
    }
    jobs = [Job(name, partial(measure_case, make)) for name, make in made.items()]
    run_jobs(jobs, options, "sparse layers, forward, medians; ratios of paired turns")


if __name__ == "__main__":
    main()
