"""The teacher's forward passes of one training step on the CPU, against four plain ones.

    python benchmarks/bench_ensemble.py [--turns 15] [--seconds S] [--output FILE.csv]

A step of R2KD needs the blended logits of a clean and of an augmented batch. Published: the teacher
and its pruned copy run on each, four forward passes. `TeacherEnsemble.both` folds batch norms,
computes in channels-last order, most 3 x 3 convolutions by Winograd's filtering, and takes as many
images at a time as were measured to be fastest. Images of 64 x 64, 200 classes, random weights:
ResNet56 and WRN-40-2 with 64 images to a batch, as published, unless the time is limited: then 16.
At most 6 turns, since a call takes long. "compiled" is `torch.compile` of both networks of the four
passes, which takes 20 seconds, so only where the time is not limited. "ours in bfloat16" is what
dtype=torch.bfloat16 gives: on a processor without instructions for it, float32, so in a limited
time it is left out there. The unit is a copy of the images' size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import limits
import torch
from harness import (
    LEAST_TURNS,
    Budget,
    Call,
    Case,
    Job,
    Row,
    host_times,
    measure,
    parse_options,
    run_jobs,
)
from torch import Tensor, nn

from r2kd_ext import TeacherEnsemble, models, prune
from r2kd_ext._dtypes import processor_has_bfloat16

RESULTS = Path(__file__).parent / "results" / "ensemble_cpu.csv"
NETWORKS = ("resnet56", "wrn_40_2")
PUBLISHED_BATCH = 64
LIMITED_BATCH = 16  # where the time is limited
SIZE, CLASSES = 64, 200
ROLES = {
    "ours": "ours", "four passes": "reference", "compiled": "peer", "ours in bfloat16": "peer",
}  # fmt: skip
Network = Callable[[Tensor], Tensor]


def four_passes(networks: Sequence[Network], images: Sequence[Tensor]) -> Call:
    """The published forward passes of the teacher and its pruned copy."""
    teacher, pruned = networks

    @torch.no_grad()
    def run(call: int) -> list[Tensor]:
        return [0.7 * teacher(x) + 0.3 * pruned(x) for x in images]

    return run


def contenders_of(
    teacher: nn.Module, batch: int, size: int, *, unlimited: bool = False
) -> dict[str, Call]:
    """Our forward passes of two batches of images and the published ones, networks in eval mode.

    All contenders where the time is `unlimited`.
    """
    images = [torch.randn(batch, 3, size, size) for _ in range(2)]
    networks = [teacher.eval(), prune(teacher, 0.1).eval()]

    def both(ensemble: TeacherEnsemble) -> Call:
        return lambda call: ensemble.both(*images)

    contenders = {
        "ours": both(TeacherEnsemble(teacher)),
        "four passes": four_passes(networks, images),
    }
    if unlimited:
        compiled = [torch.compile(x, dynamic=False) for x in networks]
        contenders["compiled"] = four_passes(compiled, images)
    if unlimited or processor_has_bfloat16():
        contenders["ours in bfloat16"] = both(TeacherEnsemble(teacher, dtype=torch.bfloat16))
    return contenders


def empty_calls(teacher: nn.Module, *, unlimited: bool) -> dict[str, float]:
    """Seconds of the calls themselves, on images of one number in each channel."""
    contenders = contenders_of(teacher, 1, 1, unlimited=unlimited)
    contenders.pop("compiled", None)  # another shape would compile anew
    return host_times(contenders)


def measure_network(name: str, turns: int, seconds: float) -> list[Row]:
    """Our forward passes and the published ones."""
    budget = Budget(seconds, 1)
    unlimited = math.isinf(seconds)
    batch = PUBLISHED_BATCH if unlimited else LIMITED_BATCH
    teacher = models.create(name, CLASSES).eval()
    host = empty_calls(teacher, unlimited=unlimited)
    contenders = contenders_of(teacher, batch, SIZE, unlimited=unlimited)
    weights = sum(weight.numel() for weight in teacher.parameters())
    multiplications = limits.multiplications(teacher, torch.zeros(1, 3, SIZE, SIZE))
    numbers = 3 * SIZE * SIZE
    work = limits.ensemble(2 * batch, numbers, CLASSES, weights, multiplications)
    case = Case(
        "ensemble", (2 * batch, 3, SIZE, SIZE), "float32", work,
        ROLES,
        "forward", name, "resident",
    )  # fmt: skip
    return measure(
        case,
        contenders,
        turns=min(turns, LEAST_TURNS),
        seconds=budget.left(),
        copied=2 * batch * numbers,
        warm_up=0,
        host=host,
    )


def main() -> None:
    options = parse_options(__doc__ or "", RESULTS)
    jobs = [Job(name, partial(measure_network, name)) for name in NETWORKS]
    run_jobs(jobs, options, "the teachers of a step, medians; ratios of paired turns")


if __name__ == "__main__":
    main()
