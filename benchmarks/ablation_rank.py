"""Which rank term is worth its cost on real images: the demo's R2KD student with each, five seeds.

    python benchmarks/ablation_rank.py [--table] [--output FILE.csv]

Teacher, splits, students and recipe are those of `r2kd demo`; only the rank term of the loss
differs. Judged by the accuracy on the validation split after the last epoch: the test split is not
read. A variant is better than the loss without ranks if its mean difference over the seeds, which
share images, batches and first weights, is more than 2.78 standard errors (Student's t for five
seeds, 95%).
"""

from __future__ import annotations

import argparse
import csv
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness import machine, write_rows

from r2kd_ext import CorrelationKDLoss
from r2kd_ext.demo import jobs
from r2kd_ext.demo.loop import predict
from r2kd_ext.demo.methods import r2kd
from r2kd_ext.demo.settings import Settings

RESULTS = Path(__file__).parent / "results" / "ablation_rank.csv"
SEEDS = 5
T_OF_FIVE = 2.776
# The strengths are a third of the spacing of the teacher's logits, the spacing, and enough for one
# pool of all ten classes (docs/rank.md).
VARIANTS: dict[str, dict[str, Any]] = {
    "none": {},
    "hard": {"rank_weight": 2.0},
    "soft 0.3": {"rank_weight": 2.0, "rank": "soft", "rank_strength": 0.3},
    "soft 1": {"rank_weight": 2.0, "rank": "soft", "rank_strength": 1.0},
    "soft 3": {"rank_weight": 2.0, "rank": "soft", "rank_strength": 3.0},
}


def run(settings: Settings) -> list[dict[str, object]]:
    """One row per variant and seed."""
    splits = jobs.splits_of(settings)
    dense = jobs.train(jobs.teacher_job(settings, splits), splits.validation)
    teacher = jobs.ensemble_of(dense.network.eval(), settings)
    print(f"teacher: validation accuracy {dense.course[-1].accuracy:.3f}", flush=True)
    spread = float(predict(teacher, splits.train.images).std(1).mean())
    found: list[dict[str, object]] = []
    for seed in range(settings.seeds):
        for variant, options in VARIANTS.items():
            method = r2kd(CorrelationKDLoss(**options))
            job = jobs.student_job(method, seed, settings, splits, teacher)
            last = jobs.train(job, splits.validation).course[-1]
            print(f"{variant}, seed {seed}: validation accuracy {last.accuracy:.3f}", flush=True)
            found.append(
                {
                    "variant": variant,
                    "seed": seed,
                    "validation_accuracy": last.accuracy,
                    "validation_images": len(splits.validation.labels),
                    "epochs": last.epoch,
                    "teacher_spread": f"{spread:.2f}",
                    **machine(),
                }
            )
    return found


def table(path: Path) -> str:
    """The result file as the table of docs/rank.md, in percent and percentage points."""
    with path.open() as file:
        rows = list(csv.DictReader(file))
    accuracy: dict[str, list[float]] = {}
    for row in rows:
        accuracy.setdefault(row["variant"], []).append(100 * float(row["validation_accuracy"]))
    lines = ["| rank term | validation accuracy | minus none | better than none |"]
    lines += ["|---|---:|---:|---|"]
    for variant, values in accuracy.items():
        mean, deviation = statistics.fmean(values), statistics.stdev(values)
        cells = [variant, f"{mean:.2f} ± {deviation:.2f}", "", ""]
        if variant != "none":
            pairs = [a - b for a, b in zip(values, accuracy["none"], strict=True)]
            gain, error = statistics.fmean(pairs), statistics.stdev(pairs) / len(pairs) ** 0.5
            cells[2] = f"{gain:+.2f} ± {error:.2f}"
            cells[3] = "yes" if gain > T_OF_FIVE * error else "no"
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--table", action="store_true", help="only print the table of a finished result file"
    )
    parser.add_argument("--output", type=Path, default=RESULTS, help="the result file (CSV)")
    options = parser.parse_args()
    if not options.table:
        write_rows(options.output, run(replace(Settings(), seeds=SEEDS)))
        print(f"written to {options.output}")
    print(table(options.output))


if __name__ == "__main__":
    main()
