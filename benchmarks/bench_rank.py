"""Ranks on the CPU, against eager formulas, torchsort and torch.sort.

    python benchmarks/bench_rank.py [--turns 15] [--output FILE.csv]

Three operations in float32, each timed in turn with its own contenders on the same inputs:

- spearman: `r2kd_ext.spearman` of hard ranks, forward, against the published formula with argsort
  of argsort in plain PyTorch, and 2 calls of `torch.sort`, one for each input;
- soft_rank: `r2kd_ext.soft_rank`, forward + backward, against torchsort's compiled extension where
  it is installed (`pip install torchsort --no-build-isolation`; what it computes is compared
  first), and 3 calls of `torch.sort` on the input. At strength 1 a row of normal numbers is one
  pool; at 3 / C pools are a few neighbours;
- loss: `r2kd_ext.correlation_kd`, forward + backward, with hard and with soft ranks, against the
  same without a rank term.

Inputs are standard normal and stay in place. Of 512 x 32000 at most 5 turns are taken: one call of
the eager formula takes seconds there.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from harness import Timing, machine, parse_options, time_in_turns, write_rows
from rich.console import Console
from rich.table import Table
from torch import Tensor

from r2kd_ext import correlation_kd, soft_rank, spearman

RESULTS = Path(__file__).parent / "results" / "rank_cpu.csv"
Call = Callable[[int], object]


class Case(NamedTuple):
    """An operation on B x C numbers; contenders by the name of their columns."""

    op: str
    rows: int
    classes: int
    strength: float | None
    contenders: dict[str, Call]
    sorts: int | None = None  # how often `sorts` calls torch.sort


def eager_spearman(x: Tensor, y: Tensor) -> Tensor:
    """The published formula, as one would write it."""
    classes = x.shape[1]

    def centred(z: Tensor) -> Tensor:
        ranks = (z.argsort(dim=1).argsort(dim=1) + 1) / (classes * (classes + 1) / 2)  # [B, C]
        return ranks - ranks.mean(1, True)

    a, b = centred(x), centred(y)
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-8)


def spearman_case(rows: int, classes: int) -> Case:
    x, y = torch.randn(rows, classes), torch.randn(rows, classes)  # [B, C] each
    contenders: dict[str, Call] = {
        "fused": lambda _: spearman(x, y),
        "eager": lambda _: eager_spearman(x, y),
        "sorts": lambda _: (torch.sort(x), torch.sort(y)),
    }
    return Case("spearman", rows, classes, None, contenders, sorts=2)


def training_call(
    function: Callable[[Tensor], Tensor], x: Tensor, grad: Tensor | None = None
) -> Call:
    """Forward + backward of a function of x; `grad` is that of its result, None for a scalar."""

    def run(call: int) -> None:
        x.grad = None
        function(x).backward(grad)

    return run


def soft_rank_case(rows: int, classes: int, strength: float) -> Case:
    x, weight = torch.randn(rows, classes, requires_grad=True), torch.randn(rows, classes)

    def sorts(call: int) -> None:
        for _ in range(3):
            torch.sort(x.detach())

    ours = partial(soft_rank, strength=strength)
    contenders = {"fused": training_call(ours, x, weight), "sorts": sorts}
    if find_spec("torchsort"):
        import torchsort

        peer = partial(torchsort.soft_rank, regularization_strength=strength)
        torch.testing.assert_close(peer(x), ours(x), rtol=1e-3, atol=1e-2)
        contenders["torchsort"] = training_call(peer, x, weight)
    return Case("soft_rank", rows, classes, strength, contenders, sorts=3)


def loss_cases(rows: int, classes: int) -> list[Case]:
    student, teacher = torch.randn(rows, classes, requires_grad=True), torch.randn(rows, classes)

    def trained(**options: Any) -> Call:
        loss = partial(correlation_kd, teacher_logits=teacher, **options)
        return training_call(loss, student)

    strength = 3 / classes
    soft = trained(rank_weight=2.0, rank="soft", rank_strength=strength)
    hard, value = trained(rank_weight=2.0), trained()
    return [
        Case("loss, hard", rows, classes, None, {"fused": hard, "value": value}),
        Case("loss, soft", rows, classes, strength, {"fused": soft, "value": value}),
    ]


def cases() -> Iterator[Case]:
    """One after another, so that the inputs of one do not take the caches of the next."""
    for shape in ((64, 100), (256, 1000), (512, 32000)):
        yield spearman_case(*shape)
    for classes in (100, 1000, 10000):
        for strength in (1.0, 3 / classes):
            yield soft_rank_case(64, classes, strength)
    for shape in ((64, 100), (64, 200), (256, 1000)):
        yield from loss_cases(*shape)


def measure(case: Case, turns: int) -> dict[str, object]:
    """The row of one case."""
    slow = case.rows * case.classes > 1_000_000
    timings = (
        time_in_turns(case.contenders, turns=min(turns, 5), warm_up=1)
        if slow
        else time_in_turns(case.contenders, turns=turns)
    )
    fused = timings["fused"]

    def microseconds(timing: Timing | None) -> str:
        return "" if timing is None else f"{timing.median * 1e6:.1f}"

    def times(name: str) -> str:
        return f"{fused.times_faster_than(timings[name]):.2f}" if name in timings else ""

    return {
        "op": case.op,
        "rows": case.rows,
        "classes": case.classes,
        "dtype": "float32",
        "strength": "" if case.strength is None else f"{case.strength:g}",
        "fused_us": microseconds(fused),
        "fused_p20_us": f"{fused.p20 * 1e6:.1f}",
        "fused_p80_us": f"{fused.p80 * 1e6:.1f}",
        "eager_us": microseconds(timings.get("eager")),
        "torchsort_us": microseconds(timings.get("torchsort")),
        "sorts": "" if case.sorts is None else case.sorts,
        "sorts_us": microseconds(timings.get("sorts")),
        "value_us": microseconds(timings.get("value")),
        "times_eager": times("eager"),
        "times_torchsort": times("torchsort"),
        "times_sorts": times("sorts"),
        "of_value": (
            f"{timings['value'].times_faster_than(fused):.2f}" if "value" in timings else ""
        ),
    }


def show(rows: list[dict[str, object]]) -> None:
    table = Table(title="medians; ratios are medians of paired turns")
    for column in (
        "operation", "ours", "eager", "torchsort", "torch.sort", "value term",
        "ours is faster than eager", "than torchsort", "than torch.sort", "takes of the value term",
    ):  # fmt: skip
        table.add_column(column, justify="right")
    for row in rows:
        strength = f", strength {row['strength']}" if row["strength"] else ""
        times = ("fused_us", "eager_us", "torchsort_us", "sorts_us", "value_us")
        ratios = ("times_eager", "times_torchsort", "times_sorts", "of_value")
        table.add_row(
            f"{row['op']} {row['rows']} x {row['classes']}{strength}",
            *(f"{row[key]} us" if row[key] else "-" for key in times),
            *(f"{row[key]}x" if row[key] else "-" for key in ratios),
        )
    Console(width=None if sys.stdout.isatty() else 180).print(table)


def main() -> None:
    options = parse_options(__doc__ or "", RESULTS)
    rows: list[dict[str, object]] = []
    for case in cases():
        print(f"{case.op}, {case.rows} x {case.classes} ...", file=sys.stderr, flush=True)
        rows.append(measure(case, options.turns) | machine())
    write_rows(options.output, rows)
    show(rows)
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()
