"""What the demo leaves to read: report.md, its pictures, and the table on the screen."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from rich.table import Table

from .. import models
from ..train.files import write
from . import data, plots, results
from .loop import Epoch
from .methods import KL_TEMPERATURE, KL_WEIGHT, METHODS
from .settings import QUICK, STUDENT_MODEL, TEACHER_MODEL

NAME = "report.md"
_HARDEST = 12


def plot(folder: Path, outcome: results.Outcome, courses: dict[str, list[list[Epoch]]]) -> None:
    """Write curves.png, agreement.png and hardest.png into `folder`."""
    plots.curves(folder / "curves.png", courses, outcome)
    plots.agreement(folder / "agreement.png", outcome)
    plots.hardest(folder / "hardest.png", outcome, results.hardest(outcome, _HARDEST))


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f}"


def _rows(summary: dict[str, Any]) -> list[list[str]]:
    """A row per network: name, mean, std, per seed, R2KD minus it, its std, seeds won by R2KD."""
    rows = [
        ["teacher", _percent(summary["teacher"]["accuracy"]), "", "", "", "", ""],
        ["pruned teacher", _percent(summary["pruned_teacher"]["accuracy"]), "", "", "", "", ""],
    ]
    for name, method in summary["methods"].items():
        row = [
            f"student, {METHODS[name].title}",
            _percent(method["mean"]),
            _percent(method["std"]),
            ", ".join(_percent(value) for value in method["accuracy"]),
        ]
        difference = summary["differences"].get(f"r2kd - {name}")
        if difference is None:
            row += ["", "", ""]
        else:
            won = sum(value > 0 for value in difference["per_seed"])
            row += [
                f"{100 * difference['mean']:+.2f}",
                _percent(difference["std"]),
                f"{won} of {len(difference['per_seed'])}",
            ]
        rows.append(row)
    return rows


_HEADINGS = ["network", "mean", "std", "per seed", "R2KD minus it", "std", "seeds won by R2KD"]


def table(summary: dict[str, Any]) -> Table:
    """The results for the screen."""
    shown = Table(title="Accuracy on the test split (%)")
    for place, heading in enumerate(("network", "mean", "std", "R2KD minus it")):
        shown.add_column(heading, justify="left" if place == 0 else "right")
    for name, mean, std, _, difference, difference_std, _ in _rows(summary):
        shown.add_row(name, mean, std, difference and f"{difference} ± {difference_std}")
    return shown


def _markdown_table(summary: dict[str, Any]) -> str:
    lines = [_HEADINGS, ["---"] + ["---:"] * (len(_HEADINGS) - 1), *_rows(summary)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _verdict(summary: dict[str, Any]) -> str:
    """One sentence on each comparison, in words that follow from the numbers alone."""
    sentences = []
    for name, difference in summary["differences"].items():
        other = METHODS[name.removeprefix("r2kd - ")].title
        per_seed = difference["per_seed"]
        points = f"{100 * abs(difference['mean']):.2f} points"
        if all(value > 0 for value in per_seed):
            sentences.append(
                f"R2KD is better than {other} with every seed, by {points} on average."
            )
        elif all(value < 0 for value in per_seed):
            sentences.append(f"R2KD is worse than {other} with every seed, by {points} on average.")
        else:
            sentences.append(
                f"Between R2KD and {other} the seeds disagree; the mean difference is "
                f"{100 * difference['mean']:+.2f} points."
            )
    return "\n".join(f"- {sentence}" for sentence in sentences)


def _methods_table(config: dict[str, Any]) -> str:
    blend = f"{config['dense_weight']:g} teacher + {1 - config['dense_weight']:g} pruned teacher"
    weights = f"{1 - KL_WEIGHT:g} cross-entropy + {KL_WEIGHT:g} T² KL, T = {KL_TEMPERATURE:g}"
    r2kd = "cross-entropy on the standard view + `CorrelationKDLoss.r2kd()` on both views"
    lines = [
        ["name", "loss", "teacher", "views", "learning rate"],
        ["---"] * 5,
        ["ce", "cross-entropy", "none", "standard"],
        ["kl", weights, "teacher", "standard"],
        ["dist", "cross-entropy + `CorrelationKDLoss.dist()`", "teacher", "standard"],
        ["r2kd", r2kd, blend, "standard and strong"],
    ]
    for line in lines[2:]:
        line.append(f"{config['student_learning_rates'][line[0]]:g}")
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _command(config: dict[str, Any]) -> str:
    """The command line whose settings are `config`."""
    words = ["r2kd demo", f"--seeds {config['seeds']}", f"--epochs {config['student_epochs']}"]
    if config["teacher_epochs"] == QUICK["teacher_epochs"]:
        words.append("--quick")
    return " ".join(words)


def write_report(
    folder: Path, summary: dict[str, Any], outcome: results.Outcome, splits: data.Splits
) -> None:
    """Write report.md into `folder`."""
    config, versions = summary["config"], summary["versions"]
    per_class, epochs = config["images_per_class"], config["student_epochs"]
    tested, seeds = len(outcome.test.labels), config["seeds"]
    steps = epochs * max(1, per_class * data.NUM_CLASSES // config["student_batch_size"])
    sizes = [
        sum(p.numel() for p in models.create(name, data.NUM_CLASSES).parameters())
        for name in (TEACHER_MODEL, STUDENT_MODEL)
    ]
    best = max(method["mean"] for method in summary["methods"].values())
    sampling = math.sqrt(best * (1 - best) / tested)
    text = f"""# Distillation on {per_class} labelled images per class

{summary["dataset"]}.

{_markdown_table(summary)}

Accuracies on the {tested} images of the test split, in %; one image is {100 / tested:.2f} points.
The standard deviations are over {seeds} seeds (n - 1 in the denominator). Seeds are shared: with
one seed, every method starts from the same weights and sees the same images in the same order, and
the differences are taken seed by seed.

{_verdict(summary)}

{seeds} seeds and {tested} images decide no small difference: another test split of this size would
move each accuracy by about {100 * sampling:.1f} points (one standard deviation).

![Validation accuracy while training, and test accuracy](curves.png)

## Teacher and pruned teacher

The teacher ({sizes[0]:,} parameters) was trained on {len(splits.train.labels)} labelled images for
{config["teacher_epochs"]} epochs. In its pruned copy the smallest
{100 * config["pruning_amount"]:g} % of the weights of each convolution and linear layer are zero
(measured over all of them: {_percent(summary["pruned_teacher"]["sparsity"])} %). Both give the same
class for {_percent(results.agreement(outcome))} % of the test images.

![Agreement of teacher and pruned teacher](agreement.png)

## Hardest images

Those to whose true class the blended teacher gives the least probability.

![Hardest test images with predictions](hardest.png)

## What is compared

A student of {sizes[1]:,} parameters, trained on {per_class} images of each class. They are a part
of what the teacher was trained on, drawn anew with each seed. Every method makes {steps} steps on
the same batches of {config["student_batch_size"]}, with the same optimiser (SGD with Nesterov
momentum and weight decay, cosine learning rate) and the same standard augmentation (random shifts).

{_methods_table(config)}

Only R2KD sees the strong view (rotation, shift, scale, shear, mixup). It is a part of that method;
the labels are not used on it. R2KD runs the student twice in a step, so a step costs more time.

The splits are stratified and fixed: {len(splits.train.labels)} images to train,
{len(splits.validation.labels)} to validate, {tested} to test. All choices (images per class,
augmentation, epochs, learning rates) were made on the validation split. The test split was read
once, after the last student.

## Again

`{_command(config)}` gives the same accuracies with the same versions on the same machine with as
many threads. This run took {summary["seconds"]:.0f} s with {versions["threads"]} threads and torch
{versions["torch"]}. The numbers are in `results.json`, the weights in `teacher.safetensors` and
`students/`.
"""
    write(folder / NAME, text)
