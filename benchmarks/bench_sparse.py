"""Sparse layers on the CPU, against the dense ones of torch and against torch.sparse.

    python benchmarks/bench_sparse.py [--turns 15] [--seconds S] [--output FILE.csv]

- csr_linear: 256 x 2048 -> 2048, in float32 and bfloat16;
- csr_conv2d: 3 x 3 with 128 channels on 64 x 16 x 16, and with 256 channels on 64 x 8 x 8, float32;
  in bfloat16 the first on 8 images at one share of zeros, since the dense one takes seconds for 64
  where the processor has no instructions for it;
- sparsify: a pruned ResNet and a pruned multilayer perceptron as a whole.

Forward only; a random share of a layer's weights is zero. ours is `SparseLinear`, `SparseConv2d` or
the model that `sparsify` made; dense is torch's layer, or the pruned model, with the same zeros;
compiled is `torch.compile` of dense. torch.sparse is a CSR weight of torch, float32: `linear` with
it from 50% of zeros on, and for the convolution, which torch.sparse has not, the product with the
unfolded images, at 90% and the second at 50%, where a call takes most of a second. Layers and
inputs stay in place.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import limits
import torch
from harness import (
    Budget,
    Call,
    Case,
    Job,
    Row,
    Work,
    compiled,
    dtype_text,
    forward_call,
    host_times,
    measure,
    parse_options,
    run_jobs,
)
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from r2kd_ext import SparseConv2d, SparseLinear, models, prune, sparsify

RESULTS = Path(__file__).parent / "results" / "sparse_cpu.csv"
SPARSITIES = {
    torch.float32: (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95),
    torch.bfloat16: (0.5, 0.9),
}
# With the shares of zeros at which torch.sparse takes part; with fewer a call takes a second.
CONVOLUTIONS = {(64, 128, 16, 16): (0.9,), (64, 256, 8, 8): (0.5, 0.9)}
LINEAR = (256, 2048, 2048)
BFLOAT16_CONVOLUTION = ((8, 128, 16, 16), torch.bfloat16, 0.9)
VENDOR_LINEAR_FROM = 0.5  # of zeros
HOST_AT = 0.9  # zeros of what is called for the time of the call itself
CONVOLUTION_SPARSITIES = (0.1, 0.5, 0.7, 0.8, 0.9, 0.95)
MODEL_SPARSITIES = (0.1, 0.5, 0.95)
ROLES = {"ours": "ours", "dense": "reference", "compiled": "peer", "torch.sparse": "peer"}


class Measured(NamedTuple):
    """A case with its contenders, how many elements the copy beside them has, and what measures the
    time of the calls themselves."""

    case: Case
    contenders: dict[str, Call]
    copied: int
    host: Callable[[], dict[str, float]]


def zeroed(layer: Any, sparsity: float) -> Any:
    """The layer with a random share of its weights at zero."""
    with torch.no_grad():
        layer.weight.mul_(torch.rand_like(layer.weight, dtype=torch.float32) >= sparsity)
    return layer


def zeros(sparsity: float) -> str:
    return f"{100 * sparsity:g}% zeros"


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The dense layer; as its weight is an input, it is compiled once for all of a shape."""
    return F.linear(x, weight, bias)


def conv2d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(x, weight, bias, padding=1)


def linear_case(shape: tuple[int, int, int], dtype: torch.dtype, sparsity: float) -> Measured:
    rows, inputs, outputs = shape
    layer = zeroed(nn.Linear(inputs, outputs), sparsity).to(dtype)
    x = torch.randn(rows, inputs).to(dtype)
    contenders = {
        "ours": forward_call(SparseLinear.from_dense(layer), x),
        "dense": forward_call(layer, x),
        "compiled": forward_call(compiled(linear), x, layer.weight, layer.bias),
    }
    if sparsity >= VENDOR_LINEAR_FROM and dtype == torch.float32:
        weight = layer.weight.detach().to_sparse_csr()
        contenders["torch.sparse"] = forward_call(F.linear, x, weight, layer.bias)
    work = limits.csr_linear(rows, inputs, outputs, int(layer.weight.count_nonzero()), dtype)
    case = Case(
        "csr_linear", shape, dtype_text(dtype), work, ROLES, "forward", zeros(sparsity), "resident"
    )
    host = partial(empty_calls, linear_case, (1, 1, 1), dtype, HOST_AT)
    return Measured(case, contenders, x.numel(), host)


def unfolded(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A 3 x 3 convolution with padding 1 as a product with a CSR weight [O, 9 C]."""
    columns = F.unfold(x, 3, padding=1)  # [N, 9 C, H W]
    y = torch.sparse.mm(weight, columns.transpose(0, 1).flatten(1))  # [O, N H W]
    y = y.view(len(weight), len(x), *x.shape[2:]).transpose(0, 1)
    return y + bias[:, None, None]


def conv_case(
    shape: tuple[int, int, int, int], dtype: torch.dtype, sparsity: float, *, vendor: bool = False
) -> Measured:
    channels = shape[1]
    layer = zeroed(nn.Conv2d(channels, channels, 3, padding=1), sparsity).to(dtype)
    x = torch.randn(shape).to(dtype)
    contenders = {
        "ours": forward_call(SparseConv2d.from_dense(layer), x),
        "dense": forward_call(layer, x),
        "compiled": forward_call(compiled(conv2d), x, layer.weight, layer.bias),
    }
    if vendor:
        weight = layer.weight.detach().flatten(1).to_sparse_csr()
        with torch.no_grad():
            torch.testing.assert_close(
                unfolded(x, weight, layer.bias), layer(x), rtol=1e-3, atol=1e-3
            )
        contenders["torch.sparse"] = forward_call(unfolded, x, weight, layer.bias)
    work = limits.csr_conv2d(
        shape[0], shape[1:], shape[1:], int(layer.weight.count_nonzero()), dtype
    )
    case = Case(
        "csr_conv2d", shape, dtype_text(dtype), work, ROLES, "forward", zeros(sparsity), "resident"
    )
    host = partial(empty_calls, conv_case, (1, 1, 1, 1), dtype, HOST_AT, vendor=vendor)
    return Measured(case, contenders, x.numel(), host)


def resnet(*, least: bool = False) -> tuple[nn.Module, Tensor]:
    images = torch.randn(1, 3, 1, 1) if least else torch.randn(16, 3, 32, 32)
    return models.create("resnet8x4", 100), images


def perceptron(*, least: bool = False) -> tuple[nn.Module, Tensor]:
    inputs, hidden, classes = (1, 1, 1) if least else (1024, 2048, 100)
    model = nn.Sequential(
        nn.Linear(inputs, hidden), nn.ReLU(),
        nn.Linear(hidden, hidden), nn.ReLU(),
        nn.Linear(hidden, classes),
    )  # fmt: skip
    return model, torch.randn(1 if least else 256, inputs)


# Whole models with their inputs; the least of each is for the time of the call itself.
NETWORKS: dict[str, Callable[..., tuple[nn.Module, Tensor]]] = {
    "resnet8x4": resnet, "perceptron": perceptron,
}  # fmt: skip


def model_case(
    name: str, sparsity: float, *, least: bool = False, format: str = "auto"
) -> Measured:
    model, x = NETWORKS[name](least=least)
    dense = prune(model, sparsity).eval()
    with torch.no_grad():
        sparse = sparsify(dense, x, format)
        with FlopCounterMode(display=False) as counter:
            y = dense(x)
    contenders = {
        "ours": forward_call(sparse, x),
        "dense": forward_call(dense, x),
        # The pruned copies of a network share the compiled code.
        "compiled": forward_call(torch.compile(dense, dynamic=False), x),
    }
    kept = sum(int(weight.count_nonzero()) for weight in dense.parameters())
    moved = 4 * (x.numel() + y.numel()) + (4 + limits.INDEX_BYTES) * kept
    # All layers are pruned alike, so what is left of the products is what is left of the weights.
    work = Work(moved, math.floor(counter.get_total_flops() * (1 - sparsity)))
    case = Case(
        "sparsify", tuple(x.shape), "float32", work, ROLES, "forward",
        f"{name}, {zeros(sparsity)}", "resident",
    )  # fmt: skip
    has_sparse = any(isinstance(layer, SparseConv2d | SparseLinear) for layer in sparse.modules())
    # On the least input "auto" would choose anew.
    chosen = "csr" if has_sparse else "dense"
    host = partial(empty_calls, model_case, name, HOST_AT, least=True, format=chosen)
    return Measured(case, contenders, x.numel(), host)


@cache
def empty_calls(make: Callable[..., Measured], *options: Any, **named: Any) -> dict[str, float]:
    """Seconds of the calls themselves: a layer's on one number, a network's on a row of one number
    or on an image of one pixel."""
    contenders = make(*options, **named).contenders
    del contenders["compiled"]  # another shape would compile anew
    return host_times(contenders)


def measure_case(make: Callable[[], Measured], turns: int, seconds: float) -> list[Row]:
    torch.manual_seed(0)
    budget = Budget(seconds, 1)
    made = make()
    host = made.host()
    return measure(
        made.case,
        made.contenders,
        turns=turns,
        seconds=budget.left(),
        copied=made.copied,
        warm_up=1,
        host=host,
    )


def main() -> None:
    options = parse_options(__doc__ or "", RESULTS)
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support")
    linears = [(dtype, share) for dtype, shares in SPARSITIES.items() for share in shares]
    convolutions = [
        (shape, torch.float32, share, share in vendor_at)
        for shape, vendor_at in CONVOLUTIONS.items()
        for share in CONVOLUTION_SPARSITIES
    ]
    convolutions.append((*BFLOAT16_CONVOLUTION, False))
    made = {
        **{
            f"csr_linear, {dtype}, {share}": partial(linear_case, LINEAR, dtype, share)
            for dtype, share in linears
        },
        **{
            f"csr_conv2d {shape}, {dtype}, {share}": partial(
                conv_case, shape, dtype, share, vendor=vendor
            )
            for shape, dtype, share, vendor in convolutions
        },
        **{
            f"sparsify {name}, {share}": partial(model_case, name, share)
            for name in NETWORKS
            for share in MODEL_SPARSITIES
        },
    }
    jobs = [Job(name, partial(measure_case, make)) for name, make in made.items()]
    run_jobs(jobs, options, "sparse layers, forward, medians; ratios of paired turns")


if __name__ == "__main__":
    main()
