"""The training step of every pair of networks of configs/cifar100, against the published step.

    python benchmarks/bench_zoo.py [--turns 15] [--seconds S] [--output FILE.csv]

The pairs have their published images, 32 x 32 with 100 classes; the batch is 4 and not the
published 64, so that all pairs take about a minute. That is the same for both contenders, and makes
the loss a larger part of the step. `bench_step.py` has one pair as published, and the time of the
calls themselves, which would take as long as the step here. At most 6 turns. Pairs whose networks
are not this package's (ImageNet's come from timm) are not here.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from harness import Job, parse_options, run_jobs
from steps import Pair, measure_pair

from r2kd_ext.train.configure import load_config

RESULTS = Path(__file__).parent / "results" / "zoo_cpu.csv"
CONFIGS = Path(__file__).parent.parent / "configs" / "cifar100"
CLASSES, BATCH, SIZE = 100, 4, 32


def pairs() -> list[Pair]:
    configs = [load_config(path) for path in sorted(CONFIGS.glob("*.yaml"))]
    return [
        Pair(config.teacher.name, config.student.name, CLASSES, BATCH, SIZE) for config in configs
    ]


def main() -> None:
    options = parse_options(__doc__ or "", RESULTS)
    jobs = [Job(f"{pair.teacher} to {pair.student}", partial(measure_pair, pair))
            for pair in pairs()]  # fmt: skip
    run_jobs(jobs, options, "a training step, medians; ratios of paired turns")


if __name__ == "__main__":
    main()
