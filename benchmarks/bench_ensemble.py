"""The teacher's forward passes of one training step on the CPU, against four plain ones.

    python benchmarks/bench_ensemble.py [--turns 15] [--seconds S] [--output FILE.csv]

A step of R2KD needs the blended logits of a clean and of an augmented batch. Published: the teacher
and its pruned copy run on each, four forward passes. `TeacherEnsemble.both` folds batch norms,
computes in channels-last order, and takes as many images at a time as were measured to be fastest.
Images of 64 x 64, 200 classes, random weights; 64 images to a batch, as published, unless the time
is limited: then 32 for ResNet56 and 16 for WRN-40-2, which is larger. At most 6 turns, since a call
takes seconds.
bfloat16 is timed where the processor has instructions for it. The unit is a copy of the images'
size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import limits
import torch
from harness import LEAST_TURNS, Call, Case, Job, Row, measure, parse_options, run_jobs
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from r2kd_ext import TeacherEnsemble, models, prune

RESULTS = Path(__file__).parent / "results" / "ensemble_cpu.csv"
NETWORKS = {"resnet56": 32, "wrn_40_2": 16}  # images to a batch where the time is limited
PUBLISHED_BATCH = 64
SIZE, CLASSES = 64, 200


def four_passes(name: str, images: list[Tensor]) -> Callable[[int], object]:
    """The published forward passes, with both networks in eval mode."""
    teacher = models.create(name, CLASSES).eval()
    pruned = prune(teacher, 0.1)

    @torch.no_grad()
    def run(call: int) -> list[Tensor]:
        return [0.7 * teacher(x) + 0.3 * pruned(x) for x in images]

    return run


def products(network: nn.Module, size: int = SIZE) -> int:
    """What the network multiplies and adds for an image."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, size, size))
    return int(counter.get_total_flops()) // 2


def measure_network(name: str, turns: int, seconds: float) -> list[Row]:
    """Our forward passes and the published ones."""
    batch = PUBLISHED_BATCH if math.isinf(seconds) else NETWORKS[name]
    images = [torch.randn(batch, 3, SIZE, SIZE) for _ in range(2)]
    teacher = models.create(name, CLASSES).eval()

    def both(ensemble: TeacherEnsemble) -> Call:
        return lambda call: ensemble.both(*images)

    contenders = {"ours": both(TeacherEnsemble(teacher)), "four passes": four_passes(name, images)}
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        contenders["ours in bfloat16"] = both(TeacherEnsemble(teacher, dtype=torch.bfloat16))
    weights = sum(weight.numel() for weight in teacher.parameters())
    numbers = 3 * SIZE * SIZE
    work = limits.ensemble(2 * batch, numbers, CLASSES, weights, products(teacher))
    case = Case(
        "ensemble", (2 * batch, 3, SIZE, SIZE), "float32", work,
        {"ours": "ours", "four passes": "reference", "ours in bfloat16": "peer"},
        "forward", name, "resident",
    )  # fmt: skip
    return measure(
        case,
        contenders,
        turns=min(turns, LEAST_TURNS),
        seconds=seconds,
        copied=2 * batch * numbers,
        warm_up=0,
        with_memory=False,
    )


def main() -> None:
    options = parse_options(__doc__ or "", RESULTS)
    jobs = [Job(name, partial(measure_network, name)) for name in NETWORKS]
    run_jobs(jobs, options, "the teachers of a step, medians; ratios of paired turns")


if __name__ == "__main__":
    main()
