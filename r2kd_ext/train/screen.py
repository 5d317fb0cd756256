"""What a training run shows: a bar on a terminal, one line an epoch anywhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table


class Screen:
    """Prints where `shown`, which one process of a run is."""

    def __init__(self, console: Console, shown: bool = True) -> None:
        self.console, self.shown = console, shown
        self._progress: Progress | None = None
        self._task = TaskID(0)

    def line(self, text: str) -> None:
        """Print one line as it is: no markup, no wrapping, no colour."""
        if self.shown:
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def training(self, steps: int, done: int) -> Iterator[None]:
        """Keep a bar of the run's steps, of which `done` were done before."""
        with Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps  {task.fields[figures]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not (self.shown and self.console.is_terminal),
            transient=True,
        ) as progress:
            self._progress = progress
            self._task = progress.add_task(
                "training", total=steps, completed=done, epoch="", figures=""
            )
            yield
            self._progress = None

    def step(self, epoch: str, losses: Mapping[str, float], images_per_second: float) -> None:
        """Move the bar by one step."""
        if self._progress is not None:
            figures = "  ".join(f"{name} {value:.4f}" for name, value in losses.items())
            figures = f"{figures}  {images_per_second:.0f} images/s"
            self._progress.update(self._task, advance=1, epoch=epoch, figures=figures)

    def epoch(self, row: Mapping[str, Any], epochs: int) -> None:
        """Print the line of an epoch: a row of metrics.csv."""
        width = len(str(epochs))
        accuracies = (
            f"{name.replace('_', ' ')} {value:.4f}" for name, value in row.items() if "top" in name
        )
        self.line(
            f"epoch {row['epoch']:>{width}}/{epochs}  loss {row['loss']:.4f}  "
            f"{'  '.join(accuracies)}  rate {row['learning_rate']:.3g}  "
            f"{row['images_per_second']:.0f} images/s"
        )

    def parts(self, seconds: Mapping[str, float], batch_size: int, steps: int) -> None:
        """Print the table of `--profile`."""
        whole = sum(seconds.values())
        table = Table(title=f"one step, median of {steps}", title_justify="left")
        for name, side in (("part", "left"), ("ms", "right"), ("share", "right")):
            table.add_column(name, justify=side)  # type: ignore[arg-type]
        for name, value in [*seconds.items(), ("sum", whole)]:
            table.add_row(name, f"{value * 1e3:.2f}", f"{value / whole:.0%}")
        if self.shown:
            self.console.print(table)
        self.line(f"{batch_size / whole:.0f} images/s")
