"""Accuracy of the demo's teacher when pruned, with its batch norms as they were and recalibrated.

Trains the teacher of `r2kd demo` (about a minute), then prunes copies of it. The batches that
recalibrate come from the training images, shuffled and not augmented; accuracy is on the test
images.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from harness import machine, write_rows
from torch import nn

from r2kd_ext import prune, recalibrate_batchnorm
from r2kd_ext.demo import data, jobs
from r2kd_ext.demo.loop import accuracy_of, predict
from r2kd_ext.demo.settings import TEACHER_MODEL, Settings

RESULTS = Path(__file__).parent / "results" / "recalibration.csv"
AMOUNTS = (0.1, 0.3, 0.5, 0.7)
METHODS = ("l1_unstructured", "global_l1")
BATCH, BATCHES = 250, 8
SEED = 0  # of the order of the training images


def rows(teacher: nn.Module, splits: data.Splits) -> list[dict[str, object]]:
    def accuracy(network: nn.Module) -> str:
        return f"{100 * accuracy_of(predict(network, splits.test.images), splits.test.labels):.2f}"

    order = torch.randperm(len(splits.train.labels), generator=torch.Generator().manual_seed(SEED))
    loader = splits.train.take(order).images.split(BATCH)
    found: list[dict[str, object]] = []
    dense = accuracy(teacher)
    for method in METHODS:
        for amount in AMOUNTS:
            pruned = prune(teacher, amount, method)
            kept = accuracy(pruned)
            recalibrate_batchnorm(pruned, loader, BATCHES)
            found.append(
                {
                    "network": TEACHER_MODEL,
                    "method": method,
                    "amount": amount,
                    "dense_percent": dense,
                    "pruned_percent": kept,
                    "recalibrated_percent": accuracy(pruned),
                    "batches": BATCHES,
                    "batch_size": BATCH,
                    "test_images": len(splits.test.labels),
                    **machine(),
                }
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=RESULTS, help="the result file (CSV)")
    output: Path = parser.parse_args().output
    settings = Settings()
    splits = jobs.splits_of(settings)
    dense = jobs.train(jobs.teacher_job(settings, splits), splits.validation)
    write_rows(output, rows(dense.network.eval(), splits))


if __name__ == "__main__":
    main()
