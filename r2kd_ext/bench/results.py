"""Result files: one schema for all, one row per case and contender.

A case is an operation on inputs of a shape, dtype and placement; its contenders were timed in turn.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from ..train.files import FileProblem, write
from .timing import Timing

# role says what a contender is for: "ours"; "reference", what a user would write without the
# package; "peer", another package or torch's own; "unit", what only others are measured by. shape
# is the sizes, "256 x 1000"; variant what else distinguishes the case; times_ours the contender's
# time over ours of the same turn, with the interval of its median at 95%. Times are in
# microseconds, peak_mib is memory above what was there before the call. limit_us is what
# `bytes` and `flops` take at the rates measured in the same run.
MEASURED = (
    "us", "p20_us", "p80_us", "times_ours", "times_ours_low", "times_ours_high", "host_us",
    "peak_mib", "bytes", "flops", "copy_gb_s", "matrix_gflop_s", "limit_us", "share_of_limit",
    "turns_us",
)  # fmt: skip
CASE = ("op", "passes", "shape", "variant", "dtype", "inputs", "threads")
MACHINE = ("device", "simd", "torch", "driver", "commit")
COLUMNS = (*CASE[:-1], "contender", "role", *MEASURED, CASE[-1], *MACHINE)
ROLES = ("ours", "reference", "peer", "unit")


class Work(NamedTuple):
    """The least that an operation can do: bytes to and from memory, floating-point operations."""

    bytes: int
    flops: int = 0


class Rates(NamedTuple):
    """What the machine does a second: bytes copied, operations of a matrix product."""

    copy: float
    matrix: float

    def seconds(self, work: Work) -> float:
        """The limit: the longer of moving the bytes and doing the operations."""
        return max(work.bytes / self.copy, work.flops / self.matrix)


class Case(NamedTuple):
    """What was measured. `contenders` is name -> role, with "ours" among the names."""

    op: str
    shape: tuple[int, ...]
    dtype: str
    work: Work
    contenders: Mapping[str, str]
    passes: str = "forward+backward"
    variant: str = ""
    inputs: str = "rotating"


def rows_of(
    case: Case,
    timings: Mapping[str, Timing],
    rates: Rates,
    origin: Mapping[str, str],
    host: Mapping[str, float] | None = None,
    peaks: Mapping[str, int | None] | None = None,
) -> list[dict[str, str]]:
    """The rows of a case. `host` is seconds, `peaks` bytes; `work` is not that of a unit."""
    limit = rates.seconds(case.work)
    found = []
    for name, role in case.contenders.items():
        if name not in timings:
            continue
        timing = timings[name]
        times = timings["ours"].ratio_of(timing) if "ours" in timings else None
        peak = (peaks or {}).get(name)
        is_unit = role == "unit"
        row = {
            "op": case.op,
            "passes": case.passes,
            "shape": shape_text(case.shape),
            "variant": case.variant,
            "dtype": case.dtype,
            "inputs": case.inputs,
            "contender": name,
            "role": role,
            "us": _us(timing.median),
            "p20_us": _us(timing.p20),
            "p80_us": _us(timing.p80),
            "times_ours": "" if times is None else f"{times.estimate:.3f}",
            "times_ours_low": "" if times is None else f"{times.low:.3f}",
            "times_ours_high": "" if times is None else f"{times.high:.3f}",
            "host_us": _us((host or {}).get(name)),
            "peak_mib": "" if peak is None else f"{peak / 2**20:.1f}",
            "bytes": "" if is_unit else str(case.work.bytes),
            "flops": "" if is_unit else str(case.work.flops),
            "copy_gb_s": f"{rates.copy / 1e9:.2f}",
            "matrix_gflop_s": f"{rates.matrix / 1e9:.1f}",
            "limit_us": "" if is_unit else f"{limit * 1e6:.4g}",
            "share_of_limit": "" if is_unit else f"{limit / timing.median:.4f}",
            "turns_us": " ".join(f"{turn * 1e6:.5g}" for turn in timing.turns),
        }
        found.append({key: {**row, **origin}[key] for key in COLUMNS})
    return found


def at_matrix_rates(
    rows: Iterable[Mapping[str, str]], rates: Mapping[tuple[str, str], float]
) -> list[dict[str, str]]:
    """The rows with the limits of other matrix rates: operations a second, by the columns "threads"
    and "dtype". A dtype without a rate of its own has that of float32.

    A limit is a bound, so it takes the best rate that a run has seen, which is known at its end.
    """
    found = []
    for row in rows:
        threads, dtype = row["threads"], row["dtype"]
        matrix = rates.get((threads, dtype)) or rates[threads, "float32"]
        new = {**row, "matrix_gflop_s": f"{matrix / 1e9:.1f}"}
        if row["bytes"]:
            work = Work(int(row["bytes"]), int(row["flops"]))
            limit = Rates(float(row["copy_gb_s"]) * 1e9, matrix).seconds(work)
            new["limit_us"] = f"{limit * 1e6:.4g}"
            new["share_of_limit"] = f"{limit * 1e6 / float(row['us']):.4f}"
        found.append(new)
    return found


def shape_text(shape: Iterable[int]) -> str:
    """(256, 1000) as "256 x 1000"."""
    return " x ".join(map(str, shape))


def dtype_text(dtype: torch.dtype) -> str:
    """torch.float32 as "float32"."""
    return str(dtype).removeprefix("torch.")


def _us(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e6:.1f}"


def save(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write a result file, whole or not at all."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, text.getvalue())


def load(path: Path) -> list[dict[str, str]]:
    """The rows of a result file of this schema.

    Raises FileProblem, which names the file and what is wrong with it.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, strict=True)
            header = reader.fieldnames or ()
            rows = list(reader)
    except OSError as error:
        raise FileProblem(f"cannot read {path}: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise FileProblem(f"{path} is not a CSV file: {error}") from error
    missing = [column for column in COLUMNS if column not in header]
    if missing:
        raise FileProblem(f"{path} is no result file of a benchmark: no column {missing[0]!r}")
    if not rows:
        raise FileProblem(f"{path} has no rows")
    turns_of_case: dict[tuple[str, ...], int] = {}
    seen = set()
    for line, row in enumerate(rows, 2):
        where = f"{path}, line {line}"
        if None in row or None in row.values():
            raise FileProblem(f"{where}: not {len(header)} columns")
        turns = _checked_turns(row, where)
        case = tuple(row[column] for column in CASE)
        if turns_of_case.setdefault(case, turns) != turns:
            raise FileProblem(
                f"{where}: turns_us has {turns} times, other contenders of the case have "
                f"{turns_of_case[case]}"
            )
        key = (*case, row["contender"])
        if key in seen:
            raise FileProblem(f"{where}: a second row of {', '.join(filter(None, key))}")
        seen.add(key)
    return rows


def turns_of(row: Mapping[str, str]) -> list[float]:
    """The times of a row's turns in microseconds."""
    return [float(turn) for turn in row["turns_us"].split()]


def _checked_turns(row: Mapping[str, str], where: str) -> int:
    try:
        turns = turns_of(row)
    except ValueError:
        turns = []
    if len(turns) < 2 or not all(0 < turn < math.inf for turn in turns):
        raise FileProblem(
            f"{where}: turns_us must be at least 2 times > 0, got {row['turns_us'][:40]!r}"
        )
    return len(turns)
