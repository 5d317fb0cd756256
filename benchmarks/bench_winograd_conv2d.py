"""3 x 3 convolutions of frozen networks with what follows them, on the CPU, against torch.

    python benchmarks/bench_winograd_conv2d.py [--turns 15] [--seconds S] [--output FILE.csv]

relu(conv2d(x, w) + bias + other) in float32, channels last, with as many channels as it has inputs:
layers of ResNet56 and WRN-40-2 for images of 64 x 64, with as many images as a chunk of
`TeacherEnsemble` has, and layers of many channels with few tiles. "torch" is `F.conv2d`, then the
sum, then ReLU in place; compiled is `torch.compile` of it; "oneDNN" the convolution that computes
both itself, which the prepared teacher used before and uses for other kernels. Inputs stay in
place.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import limits
import torch
from harness import (
    Budget,
    Call,
    Case,
    Job,
    Row,
    compiled,
    forward_call,
    host_times,
    measure,
    parse_options,
    run_jobs,
)
from torch import Tensor
from torch.nn import functional as F

from r2kd_ext.ops_winograd import winograd_conv2d
from r2kd_ext.winograd import PANEL, transform_weight

RESULTS = Path(__file__).parent / "results" / "winograd_conv2d_cpu.csv"
SHAPES = (
    (16, 16, 64, 64), (16, 32, 32, 32), (16, 64, 16, 16),  # ResNet56
    (8, 128, 16, 16),  # WRN-40-2
    (16, 512, 4, 4), (1, 512, 8, 8),
)  # fmt: skip
ROLES = {"ours": "ours", "torch": "reference", "oneDNN": "peer", "compiled": "peer"}


def convolution(x: Tensor, weight: Tensor, bias: Tensor, other: Tensor) -> Tensor:
    return F.conv2d(x, weight, bias, padding=1).add_(other).relu_()


def contenders_of(batch: int, channels: int, height: int, width: int) -> dict[str, Call]:
    """Forward calls that compute the same."""

    def images() -> Tensor:
        x = torch.randn(batch, channels, height, width)
        return x.contiguous(memory_format=torch.channels_last)

    x, other, bias = images(), images(), torch.randn(channels)
    weight = torch.randn(channels, channels, 3, 3) / (9 * channels) ** 0.5
    transformed = transform_weight(weight)
    weight = weight.contiguous(memory_format=torch.channels_last)
    geometry = ((1, 1), (1, 1), (1, 1), 1)
    one_dnn = torch.ops.mkldnn._convolution_pointwise.binary
    after: tuple[object, ...] = ("add", 1, "relu", [], None)
    return {
        "ours": forward_call(winograd_conv2d, x, transformed, bias, other, True),
        "torch": forward_call(convolution, x, weight, bias, other),
        "oneDNN": forward_call(one_dnn, x, other, weight, bias, *geometry, *after),
        "compiled": forward_call(compiled(convolution), x, weight, bias, other),
    }


def empty_calls() -> dict[str, float]:
    """Seconds of the calls themselves, on one image of one pixel."""
    contenders = contenders_of(1, PANEL, 1, 1)
    del contenders["compiled"]  # another shape would compile anew
    return host_times(contenders)


def measure_shape(shape: tuple[int, int, int, int], turns: int, seconds: float) -> list[Row]:
    torch.manual_seed(0)
    budget = Budget(seconds, 1)
    batch, channels, height, width = shape
    host = empty_calls()
    case = Case(
        "winograd_conv2d", shape, "float32",
        limits.conv2d_3x3(batch, channels, channels, height, width),
        ROLES, "forward", "", "resident",
    )  # fmt: skip
    return measure(
        case,
        contenders_of(*shape),
        turns=turns,
        seconds=budget.left(),
        copied=batch * channels * height * width,
        warm_up=1,
        host=host,
    )


def main() -> None:
    options = parse_options(__doc__ or "", RESULTS)
    jobs = [Job(str(shape), partial(measure_shape, shape)) for shape in SHAPES]
    run_jobs(jobs, options, "3 x 3 convolutions, forward, medians; ratios of paired turns")


if __name__ == "__main__":
    main()
