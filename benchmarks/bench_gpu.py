"""Every op of the package on a GPU, against eager, compiled and the peers that are installed.

    python benchmarks/bench_gpu.py [--turns 15] [--seconds S] [--output FILE.csv]

The shapes of all ops in turn, the small ones of each first, so that every op has rows where the
seconds do not last. What is timed how: `gpu_harness.py`. ours is what the public function runs on
this machine; where a second backend runs too, it is beside it as "ours (triton)". Peers are
optional: torchsort, Liger-Kernel's distillation losses (`pip install liger-kernel`), which are
other losses of the same inputs. Contenders that do not run are named with their error. Cases with
their contenders: `gpu_cases.py`. The file is written after each case.
"""

from __future__ import annotations

import sys
from functools import partial
from itertools import zip_longest
from pathlib import Path

import gpu_cases
import torch
from gpu_harness import Cuda, Device, measure
from harness import Job, Row, parse_options, run_jobs

RESULTS = Path(__file__).parent / "results" / "gpu.csv"


def measure_made(make: gpu_cases.Make, device: Device, turns: int, seconds: float) -> list[Row]:
    """The rows of a case; a compiler's and the allocator's memory of it are freed."""
    made = make(device.name)
    try:
        return measure(
            made.case, made.contenders, device, turns=turns, copied=made.copied, dtype=made.dtype
        )
    finally:
        del made
        torch.compiler.reset()
        if device.name == "cuda":
            torch.cuda.empty_cache()


def jobs(device: Device) -> list[Job]:
    """One case of each op after the other."""
    of_ops = [
        [Job(f"{op} {name}", partial(measure_made, make, device)) for name, make in cases.items()]
        for op, cases in gpu_cases.CASES.items()
    ]
    return [job for some in zip_longest(*of_ops) for job in some if job is not None]


def main() -> None:
    options = parse_options(__doc__ or "", RESULTS)
    if not torch.cuda.is_available():
        sys.exit("error: this benchmark needs an NVIDIA GPU, and torch sees none")
    run_jobs(jobs(Cuda()), options, "ops on a GPU, medians", write_each=True)


if __name__ == "__main__":
    main()
