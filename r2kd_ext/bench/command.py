"""The command `r2kd bench`. Needs rich, of the extra "bench", when it runs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .compare import Comparison

OK, FAILED, BAD_INPUT = 0, 1, 2


def add_commands(commands: Any) -> None:
    """Add `bench` to the subparsers of `r2kd`."""
    bench = commands.add_parser(
        "bench",
        help="measure the loss on this machine, or compare two result files",
        description=(
            "Without options: time forward + backward of correlation_kd on the CPU against the "
            "same formula in plain PyTorch, in half a minute. With --compare: say what became "
            "slower from one result file to another, beyond noise; ends with 1 if anything did."
        ),
        allow_abbrev=False,
    )
    what = bench.add_mutually_exclusive_group()
    what.add_argument(
        "--compare",
        type=Path,
        nargs=2,
        metavar=("OLD.csv", "NEW.csv"),
        help="compare two result files of benchmarks/, or of --output, by paired ratios",
    )
    what.add_argument(
        "--output", type=Path, metavar="FILE.csv", help="also write what was measured to this file"
    )
    bench.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run `r2kd bench`; the exit code."""
    from ..train.files import FileProblem

    try:
        if arguments.compare is not None:
            return _compare(*arguments.compare)
        return _measure(arguments.output)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "rich":
            raise
        _error("bench needs the package rich: pip install 'r2kd_ext[bench]'")
        return FAILED
    except FileProblem as error:
        _error(str(error))
        return BAD_INPUT


def _error(message: str) -> None:
    print(f"r2kd: error: {message}", file=sys.stderr)


def _compare(old: Path, new: Path) -> int:
    from . import compare, results

    comparison = compare.compare(results.load(old), results.load(new))
    _show(comparison)
    return FAILED if any(c.verdict == "slower" for c in comparison.changes) else OK


def _show(comparison: Comparison) -> None:
    from rich.table import Table

    for note in comparison.notes:
        _print(f"note: {note}")
    changes = comparison.changes
    shown = [c for c in changes if c.verdict != "no change shown"]
    if shown:
        table = Table("case", "old us", "new us", "new / old", "interval", "in units of", "verdict")
        for c in sorted(shown, key=lambda c: -c.ratio.estimate):
            table.add_row(
                c.name, f"{c.old_us:,.1f}", f"{c.new_us:,.1f}", f"{c.ratio.estimate:.3f}",
                f"{c.ratio.low:.3f} to {c.ratio.high:.3f}", c.unit or "-", c.verdict,
            )  # fmt: skip
        _print(table)
    counts = {v: sum(c.verdict == v for c in changes) for v in ("slower", "faster")}
    rest = len(changes) - len(shown)
    _print(
        f"{len(changes)} cases in both files: {counts['slower']} slower, {counts['faster']} "
        f"faster, {rest} without a change beyond noise"
    )
    elsewhere = len(shown) - sum(counts.values())
    if elsewhere:
        _print(f"{elsewhere} were measured on another machine, and are not judged")


def _measure(output: Path | None) -> int:
    from rich.table import Table

    from . import results, short

    rows: list[dict[str, str]] = []
    if output is not None and not output.parent.is_dir():
        from ..train.files import FileProblem

        raise FileProblem(f"cannot write {output}: there is no folder {output.parent}")
    table = Table(
        "logits", "ours us", "plain PyTorch us", "faster", "interval (95%)", "peak MiB",
        "plain peak MiB", "share of the copy rate",
    )  # fmt: skip
    for found in short.measure():
        rows += found
        ours, plain = found[0], found[1]
        table.add_row(
            ours["shape"], ours["us"], plain["us"], f"{float(plain['times_ours']):.1f}x",
            f"{float(plain['times_ours_low']):.1f} to {float(plain['times_ours_high']):.1f}",
            ours["peak_mib"] or "-", plain["peak_mib"] or "-",
            f"{float(ours['share_of_limit']):.0%}",
        )  # fmt: skip
    where = rows[0]
    if any(float(row["p80_us"]) > 1.5 * float(row["p20_us"]) for row in rows):
        _print("note: the times vary by more than half; other processes may be running")
    _print("forward + backward of the default loss, float32, medians of paired turns")
    _print(table)
    _print(
        f"{where['device']}, {where['threads']} threads, {where['simd']}, torch {where['torch']}, "
        f"commit {where['commit']}"
    )
    if output is not None:
        results.save(output, rows)
        _print(f"written to {output}")
    return OK


def _print(what: Any) -> None:
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 160, highlight=False, markup=False).print(
        what, soft_wrap=isinstance(what, str)
    )
