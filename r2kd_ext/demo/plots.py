"""The pictures of the report."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ..train.files import write
from . import results
from .loop import Epoch
from .methods import METHODS

# Colours of Okabe and Ito (2008), made to be told apart by the colour-blind; markers for greyscale.
_COLOURS = {"ce": "#000000", "kl": "#0072B2", "dist": "#E69F00", "r2kd": "#D55E00"}
_MARKERS = {"ce": "o", "kl": "s", "dist": "^", "r2kd": "D"}
_LABELS = {"ce": "CE", "kl": "KL", "dist": "DIST", "r2kd": "R2KD"}
_AGREE, _DIFFER = "#0072B2", "#D55E00"
_DPI = 120


def _save(figure: Figure, path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    write(path, buffer.getvalue())


def _two_axes(figure: Figure, widths: tuple[int, int]) -> tuple[Axes, Axes]:
    left, right = figure.subplots(1, 2, width_ratios=widths)
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    return left, right


def curves(path: Path, courses: dict[str, list[list[Epoch]]], outcome: results.Outcome) -> None:
    """Validation accuracy over training (method -> course per seed), and accuracy on test."""
    figure = Figure(figsize=(10.5, 4.6), layout="constrained")
    left, right = _two_axes(figure, (3, 2))
    ends = []
    for method, per_seed in courses.items():
        epochs = [e.epoch for e in per_seed[0] if e.accuracy is not None]
        percent = torch.tensor(
            [[100 * e.accuracy for e in course if e.accuracy is not None] for course in per_seed]
        )  # [seeds, evaluations]
        left.plot(
            epochs, percent.mean(0).numpy(), color=_COLOURS[method], marker=_MARKERS[method],
            markersize=4, linewidth=1.5, label=_LABELS[method],
        )  # fmt: skip
        left.fill_between(
            epochs,
            percent.amin(0).numpy(),
            percent.amax(0).numpy(),
            color=_COLOURS[method],
            alpha=0.12,
            lw=0,
        )
        ends.append(float(percent[:, -1].min()))
    left.set_title("While training: validation split")
    left.set_xlabel("epoch")
    left.set_ylabel("accuracy (%)")
    left.set_ylim(bottom=max(0, min(ends) - 25))  # the first epochs would flatten the rest
    left.legend(title="mean; band: all seeds", loc="lower right")

    accuracies = {
        method: [100 * results.accuracy_of(logits, outcome.test.labels) for logits in per_seed]
        for method, per_seed in outcome.students.items()
    }
    for of_one_seed in zip(*accuracies.values(), strict=True):
        right.plot(range(len(accuracies)), of_one_seed, color="#999999", linewidth=0.8, zorder=1)
    for place, (method, values) in enumerate(accuracies.items()):
        right.scatter(
            [place] * len(values), values, color=_COLOURS[method], marker=_MARKERS[method],
            s=40, zorder=2,
        )  # fmt: skip
    right.set_xticks(range(len(accuracies)), [_LABELS[method] for method in accuracies])
    right.set_xlim(-0.5, len(accuracies) - 0.5)
    right.set_title("At the end: test split, a line per seed")
    right.set_ylabel("accuracy (%)")
    _save(figure, path)


def agreement(path: Path, outcome: results.Outcome) -> None:
    """Log-odds of the true class in both teachers, and what more pruning would do."""
    labels = outcome.test.labels
    x, y = _log_odds(outcome.teacher, labels), _log_odds(outcome.pruned, labels)  # [N] each
    differ = outcome.teacher.argmax(1) != outcome.pruned.argmax(1)  # [N]

    figure = Figure(figsize=(10.5, 4.6), layout="constrained")
    left, right = _two_axes(figure, (1, 1))
    left.axline((0, 0), slope=1, color="#999999", linewidth=0.8)
    for chosen, colour, marker, size, name in (
        (~differ, _AGREE, "o", 12, "same class"),
        (differ, _DIFFER, "D", 30, "different class"),
    ):
        left.scatter(
            x[chosen].numpy(), y[chosen].numpy(), s=size, color=colour, marker=marker, alpha=0.7,
            linewidths=0, label=f"{name}: {int(chosen.sum())} images",
        )  # fmt: skip
    left.set_title("Log-odds of the true class, test split")
    left.set_xlabel("teacher (natural logarithm)")
    left.set_ylabel("pruned teacher (natural logarithm)")
    left.legend(loc="upper left")

    amounts = [100 * point.amount for point in outcome.sweep]
    for values, colour, marker, name in (
        ([point.accuracy for point in outcome.sweep], _AGREE, "o", "accuracy"),
        ([point.agreement for point in outcome.sweep], _DIFFER, "D", "agreement with the teacher"),
    ):
        right.plot(
            amounts, [100 * value for value in values], color=colour, marker=marker,
            markersize=5, label=name,
        )  # fmt: skip
    right.axvline(100 * outcome.sparsity, color="#555555", linestyle="--", label="this run")
    right.set_title("With more pruning, validation split")
    right.set_xlabel("weights pruned in each layer (%)")
    right.set_ylabel("of the images (%)")
    right.set_ylim(bottom=0)
    right.legend(loc="lower left")
    _save(figure, path)


def _log_odds(logits: Tensor, labels: Tensor) -> Tensor:
    """log(p / (1 - p)) of the true class; logits (N, C), labels (N,) -> (N,)."""
    truth = labels[:, None]
    others = logits.scatter(1, truth, -torch.inf)  # [N, C]
    return logits.gather(1, truth)[:, 0] - others.logsumexp(1)


def hardest(path: Path, outcome: results.Outcome, indices: Tensor) -> None:
    """The images at `indices` with the predictions of teacher, pruned teacher and students."""
    columns = 6
    rows = -(-len(indices) // columns)
    figure = Figure(figsize=(10.5, 2.35 * rows + 0.5), layout="constrained")
    figure.suptitle(
        "Hardest test images for the blended teacher (students: seed 0; * marks an error)"
    )
    figure.set_layout_engine("constrained", h_pad=0.12)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    for axis, index in zip(axes.flat, indices.tolist(), strict=False):
        label = int(outcome.test.labels[index])

        def named(name: str, logits: Tensor, index: int = index, label: int = label) -> str:
            predicted = int(logits[index].argmax())
            return f"{name} {predicted}{'' if predicted == label else '*'}"

        students = [named(_LABELS[m], outcome.students[m][0]) for m in METHODS]
        axis.imshow(outcome.test.images[index, 0].numpy(), cmap="gray_r", vmin=0, vmax=1)
        axis.set_title(
            f"true {label}\n"
            f"{named('teacher', outcome.teacher)}  {named('pruned', outcome.pruned)}\n"
            f"{'  '.join(students[:2])}\n{'  '.join(students[2:])}",
            fontsize=9,
        )
    _save(figure, path)
