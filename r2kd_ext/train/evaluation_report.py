"""What `r2kd eval` leaves to read: report.md, results.json and the pictures."""

from __future__ import annotations

import io
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from .config import Config
from .corruptions import SEVERITIES, STRENGTHS
from .evaluate import BINS, Evaluation, Measures
from .files import write, write_json

NAME = "report.md"
# Colours of Okabe and Ito (2008), made to be told apart by the colour-blind; markers for greyscale.
_COLOURS = {"student": "#D55E00", "teacher": "#0072B2"}
_MARKERS = {"student": "D", "teacher": "s"}
_DPI = 120


def write_report(folder: Path, title: str, config: Config, found: Evaluation) -> Path:
    """Write the pictures, results.json and, last, report.md into `folder`; the path of the last.

    `title` says what was evaluated. Raises FileProblem where a file cannot be written.
    """
    _reliability(folder / "reliability.png", found)
    if found.student.corrupted:
        _robustness(folder / "robustness.png", found)
    write_json(folder / "results.json", _plain(title, found))
    write(folder / NAME, _text(title, config, found))
    return folder / NAME


def summary(found: Evaluation) -> list[list[str]]:
    """A row for each network: name, top-1, top-5, calibration error, under corruption."""
    return [
        [
            name,
            _percent(measures.top1),
            _percent(measures.top5),
            _percent(measures.calibration_error),
            _percent(measures.mean_corrupted) if measures.corrupted else "",
        ]
        for name, measures in _networks(found).items()
    ]


HEADINGS = ["network", "top-1", "top-5", "calibration error", "top-1 corrupted"]


def _networks(found: Evaluation) -> dict[str, Measures]:
    networks = {"student": found.student}
    return networks if found.teacher is None else networks | {"teacher": found.teacher}


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"


def _plain(title: str, found: Evaluation) -> dict[str, Any]:
    content = asdict(found)
    for name, measures in _networks(found).items():
        content[name]["bins"] = [b._asdict() if b.images else {"images": 0} for b in measures.bins]
    versions = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    return {"evaluated": title, **content, "versions": versions}


def _table(lines: list[list[str]]) -> str:
    ruled = [lines[0], ["---"] + ["---:"] * (len(lines[0]) - 1), *lines[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in ruled)


def _text(title: str, config: Config, found: Evaluation) -> str:
    sampling = math.sqrt(found.student.top1 * (1 - found.student.top1) / found.images)
    parts = [
        f"# Evaluation of {title}",
        f"{found.images} test images of {found.classes} classes ({config.data.name}"
        f"{': ' + config.data.path if config.data.path else ''}). The student is "
        f"{config.student.name}, trained with `{config.method.name}`"
        + (f" by {config.teacher.name}." if found.teacher is not None else "."),
        _table([HEADINGS, *summary(found)]),
        f"All in %. One image is {100 / found.images:.2f} points; another test set of this size "
        f"would move the student's top-1 accuracy by about {100 * sampling:.1f} points (one "
        "standard deviation).",
    ]
    if found.agreement is not None:
        parts.append(
            f"Student and teacher choose the same class for {_percent(found.agreement)} % of the "
            "images."
        )
    parts += [
        "## Calibration",
        f"The expected calibration error is over {BINS} bins of equal width: the mean, over the "
        "images, of how far the accuracy of a bin is from the mean probability that the network "
        "gives its own choice there.",
        "![Accuracy against confidence](reliability.png)",
    ]
    if found.student.corrupted:
        parts += [
            "## Under corruption",
            f"Top-1 accuracy in %, at severities 1 to {SEVERITIES}; the corruptions and their "
            "strengths are those of `r2kd_ext.train.corruptions`, with random numbers of seed "
            f"{config.run.seed}. They are no published benchmark.",
            _table(_corruption_rows(found)),
            "![Top-1 accuracy by corruption and severity](robustness.png)",
        ]
    parts.append("The numbers are in `results.json`.")
    return "\n\n".join(parts) + "\n"


def _corruption_rows(found: Evaluation) -> list[list[str]]:
    networks = _networks(found)
    severities = range(1, SEVERITIES + 1)
    rows = [["corruption"] + [f"{name} {severity}" for name in networks for severity in severities]]
    for kind in STRENGTHS:
        shares = [share for measures in networks.values() for share in measures.corrupted[kind]]
        rows.append([kind.replace("_", " ")] + [_percent(share) for share in shares])
    return rows


def _save(figure: Figure, path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    write(path, buffer.getvalue())


def _reliability(path: Path, found: Evaluation) -> None:
    figure = Figure(figsize=(6.2, 6.0), layout="constrained")
    upper, lower = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    upper.plot([0, 1], [0, 1], color="#999999", linewidth=1, linestyle="--", label="perfect")
    edges = [place / BINS for place in range(BINS + 1)]
    for name, measures in _networks(found).items():
        shown = [b for b in measures.bins if b.images > 0]
        upper.plot(
            [b.confidence for b in shown], [b.accuracy for b in shown], color=_COLOURS[name],
            marker=_MARKERS[name], markersize=4,
            label=f"{name}, error {_percent(measures.calibration_error)} %",
        )  # fmt: skip
        lower.stairs([b.images for b in measures.bins], edges, color=_COLOURS[name], linewidth=1.5)
    figure.legend(loc="outside upper center", ncols=3, frameon=False, columnspacing=1.2)
    upper.set_ylabel("accuracy")
    lower.set_xlabel("probability of the chosen class")
    lower.set_ylabel("images of the bin")
    # Most images have a sure choice; the points of the few others are to be read with their number.
    lower.set_yscale("log")
    lower.set_ylim(bottom=0.7)
    for axis in (upper, lower):
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def _robustness(path: Path, found: Evaluation) -> None:
    figure = Figure(figsize=(10.5, 5.2), layout="constrained")
    columns = 4
    axes = figure.subplots(len(STRENGTHS) // columns, columns, sharex=True, sharey=True)
    severities = list(range(SEVERITIES + 1))
    for axis, kind in zip(axes.flat, STRENGTHS, strict=True):
        for name, measures in _networks(found).items():
            shares = [measures.top1, *measures.corrupted[kind]]
            axis.plot(
                severities, [100 * share for share in shares], color=_COLOURS[name],
                marker=_MARKERS[name], markersize=4, label=name,
            )  # fmt: skip
        axis.set_title(kind.replace("_", " "))
        axis.set_xticks(severities)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylim(bottom=0)
    axes[0, 0].legend()
    figure.supxlabel("severity (0: none)")
    figure.supylabel("top-1 accuracy (%)")
    _save(figure, path)
