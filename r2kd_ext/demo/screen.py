"""What the demo shows while it runs: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from .loop import Epoch


class Screen:
    """Prints lines, and on a terminal keeps one bar below them for the part that runs."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def line(self, text: str) -> None:
        """Print one line as it is: no markup, no wrapping, no colour."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def part(
        self, title: str, place: str, epochs: int, line_every: int
    ) -> Iterator[Callable[[Epoch], None]]:
        """Show one network's training; gives the function to call after each epoch.

        `place` ("part 2 of 13") stands beside the bar.
        A line comes with every evaluated epoch whose number is a multiple of `line_every`, and
        with the last one.
        """
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("epochs"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
            transient=True,
        ) as progress:
            task = progress.add_task(f"{place}: {title}", total=epochs)
            width = len(str(epochs))

            def after(epoch: Epoch) -> None:
                progress.advance(task)
                if epoch.accuracy is None:
                    return
                if epoch.epoch % line_every == 0 or epoch.epoch == epochs:
                    self.line(
                        f"{title:<18} epoch {epoch.epoch:>{width}}/{epochs}"
                        f"  loss {epoch.loss:7.4f}  validation accuracy {epoch.accuracy:.3f}"
                    )

            yield after
