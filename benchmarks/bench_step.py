"""One training step of R2KD: the published one in plain PyTorch, and that of `r2kd train`.

    python benchmarks/bench_step.py [--turns 15] [--seconds S] [--output FILE.csv]

ResNet56 teaches ResNet20 on images of 64 x 64 and 200 classes, 64 to a batch, or 16 where the time
is limited, with cutmix as the augmented view: the whole step (op "step") and its parts ("step:
teacher", ...), each turn one step of which all parts are timed. The published step is
`published.py`; `r2kd train` crops and flips within its step, too. A student in bfloat16 is timed
where the processor has instructions for it; run.teacher_dtype bf16, which is float32 on others,
there and where the time is not limited. At most 6 turns, since a step takes seconds. host_us is the
same on 2 images of 4 x 4. `bench_zoo.py` has the other pairs of networks.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

from harness import Job, parse_options, run_jobs
from steps import Pair, measure_pair

RESULTS = Path(__file__).parent / "results" / "step_cpu.csv"
PAIR = Pair("resnet56", "resnet20", classes=200, batch=64, size=64)
LIMITED_BATCH = 16  # where the time is limited


def main() -> None:
    options = parse_options(__doc__ or "", RESULTS)
    pair = PAIR if math.isinf(options.seconds) else PAIR._replace(batch=LIMITED_BATCH)
    jobs = [
        Job(
            f"{pair.teacher} to {pair.student}",
            partial(measure_pair, pair, by_part=True, with_host=True),
        )
    ]
    run_jobs(jobs, options, "a training step and its parts, medians; ratios of paired turns")


if __name__ == "__main__":
    main()
