"""What became slower between two result files, beyond noise."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from .intervals import Interval, ratio_interval
from .results import CASE, turns_of

Row = dict[str, str]
# Where these differ, a difference of the times says nothing about the package.
SAME = ("device", "simd")
TOLD = ("threads", "torch", "driver")
WRONG_CALLS = 0.05  # probability of one or more in a comparison where nothing changed


class Change(NamedTuple):
    """A case of both files: times in microseconds, and by what factor it became slower."""

    name: str
    old_us: float
    new_us: float
    ratio: Interval
    unit: str  # the contender by whose times of the same turns ours were divided; "" for none
    verdict: str  # "slower", "faster", "no change shown", "another machine"


class Comparison(NamedTuple):
    changes: list[Change]
    notes: list[str]  # what differs between the files besides the times


def compare(old: Sequence[Row], new: Sequence[Row]) -> Comparison:
    """Compare the rows of the package itself ("ours") that both files have.

    Each time is divided by that of the same turn of the case's reference, or where there is none of
    its unit, so that a slower hour of the machine is no slower kernel: these are paired ratios. A
    case is called slower or faster where the interval of the quotient of the two files' paired
    ratios excludes 1. The intervals are so wide that a comparison in which nothing changed has a
    wrong call with a probability of 5%.
    """
    cases_of_old, cases_of_new = _by_case(old), _by_case(new)
    both = [case for case in cases_of_new if case in cases_of_old]
    level = 1 - WRONG_CALLS / max(len(both), 1)
    changes = [_change(cases_of_old[case], cases_of_new[case], level) for case in both]
    notes = []
    for column in (*SAME, *TOLD):
        values = [sorted({row[column] for row in rows}) for rows in (old, new)]
        if values[0] != values[1]:
            notes.append(f"{column}: {', '.join(values[0])} -> {', '.join(values[1])}")
    for cases, others, which in (
        (cases_of_old, cases_of_new, "old"), (cases_of_new, cases_of_old, "new"),
    ):  # fmt: skip
        alone = [_name(rows["ours"]) for case, rows in cases.items() if case not in others]
        if alone:
            shown = "; ".join(alone[:3]) + ("; ..." if len(alone) > 3 else "")
            notes.append(f"{len(alone)} cases are in the {which} file alone: {shown}")
    return Comparison(changes, notes)


def _by_case(rows: Sequence[Row]) -> dict[tuple[str, ...], dict[str, Row]]:
    """Case -> role -> row, of the cases that measured ours."""
    found: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[column] for column in CASE), {}).setdefault(row["role"], row)
    return {case: roles for case, roles in found.items() if "ours" in roles}


def _change(old: dict[str, Row], new: dict[str, Row], level: float) -> Change:
    role = next(
        (r for r in ("reference", "unit")
         if r in old and r in new and old[r]["contender"] == new[r]["contender"]),
        None,
    )  # fmt: skip
    ratio = ratio_interval(_paired(new, role), _paired(old, role), level)
    if any(old["ours"][column] != new["ours"][column] for column in SAME):
        verdict = "another machine"
    elif ratio.excludes(1.0):
        verdict = "slower" if ratio.estimate > 1 else "faster"
    else:
        verdict = "no change shown"
    unit = "" if role is None else new[role]["contender"]
    old_us, new_us = (statistics.median(turns_of(rows["ours"])) for rows in (old, new))
    return Change(_name(new["ours"]), old_us, new_us, ratio, unit, verdict)


def _paired(rows: dict[str, Row], role: str | None) -> list[float]:
    ours = turns_of(rows["ours"])
    if role is None:
        return ours
    return [a / b for a, b in zip(ours, turns_of(rows[role]), strict=True)]


def _name(row: Row) -> str:
    keys = ("op", "passes", "shape", "variant", "dtype", "inputs")
    return ", ".join(row[key] for key in keys if row[key])
