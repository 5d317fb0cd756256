"""Draws the curves that train.py has written: plot.py CURVES.csv PICTURE.png"""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path

from matplotlib.figure import Figure

from r2kd_ext.train.files import write

# Colours of Okabe and Ito (2008); markers for greyscale.
STYLES = {"teacher": ("#000000", "o"), "labels": ("#0072B2", "s"), "distilled": ("#D55E00", "D")}
LABELS = {
    "teacher": "teacher",
    "labels": "student, labels alone",
    "distilled": "student, labels and teacher",
}


def main(curves: Path, picture: Path) -> None:
    with curves.open() as file:
        rows = list(csv.DictReader(file))
    figure = Figure(figsize=(9.5, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    for run, (colour, marker) in STYLES.items():
        own = [row for row in rows if row["run"] == run]
        steps = [int(row["step"]) for row in own]
        values = [float(row["validation_ce"]) for row in own]
        left.plot(steps, values, color=colour, marker=marker, markersize=3, label=LABELS[run])
        if run == "distilled":
            losses = [float(row["train_correlation_loss"]) for row in own]
            right.plot(steps, losses, color=colour, marker=marker, markersize=3)
    left.set_ylabel("validation cross-entropy, nats per character")
    left.legend(frameon=False)
    right.set_ylabel("correlation loss, training batch")
    right.set_yscale("log")
    for axis in (left, right):
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    write(picture, buffer.getvalue())


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
