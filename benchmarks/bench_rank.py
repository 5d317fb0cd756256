"""Ranks on the CPU, against eager formulas, torchsort and torch.sort.

    python benchmarks/bench_rank.py [--turns 15] [--seconds S] [--output FILE.csv]

Three operations, each timed in turn with its own contenders on the same inputs, in float32 where
nothing else is said:

- spearman: `r2kd_ext.spearman` of hard ranks, forward, against the published formula with argsort
  of argsort in plain PyTorch, `torch.compile` of it, and 2 calls of `torch.sort`, one for each
  input; one shape in bfloat16, too;
- soft_rank: `r2kd_ext.soft_rank`, forward + backward, against torchsort's compiled extension where
  it is installed (`pip install torchsort --no-build-isolation`; what it computes is compared
  first), and 3 calls of `torch.sort` on the input. At strength 1 a row of 100 or more normal
  numbers is one pool, which ours does not sort; at 3 / C pools are a few neighbours;
- correlation: `r2kd_ext.correlation_kd`, forward + backward, with hard and with soft ranks, against
  the same without a rank term, and with hard ranks against the eager formula.

Inputs are standard normal and stay in place. A variant of a rank term is not a variant of the
correlation benchmark, so the cases of both files differ. 512 x 32000 takes half a minute, and is
the last: the eager formula needs seconds a call, and an interval 6 turns.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import limits
import torch
from bench_correlation import eager as eager_value
from harness import Call, Case, Job, Row, host_times, measure, parse_options, run_jobs
from torch import Tensor

from r2kd_ext import correlation_kd, soft_rank, spearman

RESULTS = Path(__file__).parent / "results" / "rank_cpu.csv"
DTYPE = torch.float32
SPEARMAN = [
    (64, 100, torch.float32),
    (256, 1000, torch.float32),
    (256, 1000, torch.bfloat16),
    (512, 32000, torch.float32),
]
COMPILED = [(64, 100, torch.float32), (256, 1000, torch.float32)]
SOFT_RANK = [(64, classes, strength) for classes in (100, 1000, 10000)
             for strength in (1.0, 3 / classes)]  # fmt: skip
LOSS = [(64, 100), (64, 200), (256, 1000)]
Measured = tuple[Case, dict[str, Call]]


def eager_spearman(x: Tensor, y: Tensor) -> Tensor:
    """The published formula, as one would write it."""
    classes = x.shape[1]

    def centred(z: Tensor) -> Tensor:
        ranks = (z.argsort(dim=1).argsort(dim=1) + 1) / (classes * (classes + 1) / 2)  # [B, C]
        return ranks - ranks.mean(1, True)

    a, b = centred(x), centred(y)
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-8)


def spearman_case(rows: int, classes: int, dtype: torch.dtype) -> Measured:
    x, y = (torch.randn(rows, classes).to(dtype) for _ in range(2))  # [B, C] each
    contenders: dict[str, Call] = {
        "ours": lambda _: spearman(x, y),
        "eager": lambda _: eager_spearman(x, y),
        "2 torch.sort": lambda _: (torch.sort(x), torch.sort(y)),
    }
    if (rows, classes, dtype) in COMPILED:
        compiled = torch.compile(eager_spearman, dynamic=False)
        contenders["compiled"] = lambda _: compiled(x, y)
    roles = {"ours": "ours", "eager": "reference", "compiled": "peer", "2 torch.sort": "unit"}
    name = str(dtype).removeprefix("torch.")
    work = limits.hard_spearman(rows, classes, dtype)
    case = Case("spearman", (rows, classes), name, work, roles, "forward", "hard", "resident")
    return case, contenders


def training_call(
    function: Callable[[Tensor], Tensor], x: Tensor, grad: Tensor | None = None
) -> Call:
    """Forward + backward of a function of x; `grad` is that of its result, None for a scalar."""

    def run(call: int) -> None:
        x.grad = None
        function(x).backward(grad)

    return run


def soft_rank_case(rows: int, classes: int, strength: float) -> Measured:
    x, weight = torch.randn(rows, classes, requires_grad=True), torch.randn(rows, classes)

    def sorts(call: int) -> None:
        for _ in range(3):
            torch.sort(x.detach())

    ours = partial(soft_rank, strength=strength)
    contenders = {"ours": training_call(ours, x, weight), "3 torch.sort": sorts}
    if find_spec("torchsort"):
        import torchsort

        peer = partial(torchsort.soft_rank, regularization_strength=strength)
        torch.testing.assert_close(peer(x), ours(x), rtol=1e-3, atol=1e-2)
        contenders["torchsort"] = training_call(peer, x, weight)
    roles = {"ours": "ours", "torchsort": "peer", "3 torch.sort": "unit"}
    work = limits.soft_rank(rows, classes, DTYPE)
    case = Case(
        "soft_rank", (rows, classes), "float32", work, roles,
        variant=f"strength {strength:g}", inputs="resident",
    )  # fmt: skip
    return case, contenders


def loss_case(rows: int, classes: int, rank: str) -> Measured:
    student, teacher = torch.randn(rows, classes, requires_grad=True), torch.randn(rows, classes)

    def trained(**options: Any) -> Call:
        return training_call(partial(correlation_kd, teacher_logits=teacher, **options), student)

    def eager(student: Tensor) -> Tensor:
        return eager_value(student, teacher) + 2 * (1 - eager_spearman(student, teacher).mean())

    strength = 3 / classes
    if rank == "hard":
        variant = "hard ranks"
        contenders = {"ours": trained(rank_weight=2.0), "eager": training_call(eager, student)}
    else:
        variant = f"soft ranks, strength {strength:g}"
        contenders = {"ours": trained(rank_weight=2.0, rank="soft", rank_strength=strength)}
    case = Case(
        "correlation",
        (rows, classes),
        "float32",
        limits.ranked_correlation(rows, classes, DTYPE, soft=rank == "soft"),
        {"ours": "ours", "eager": "reference", "ours without ranks": "unit"},
        variant=variant,
        inputs="resident",
    )
    return case, {**contenders, "ours without ranks": trained()}


@cache
def empty_calls(make: Callable[..., Measured], *options: Any) -> dict[str, float]:
    """Seconds of the calls themselves, on one number."""
    return host_times(make(1, 1, *options)[1])


def measure_case(
    make: Callable[..., Measured],
    rows: int,
    classes: int,
    option: Any,
    turns: int,
    seconds: float,
) -> list[Row]:
    case, contenders = make(rows, classes, option)
    slow = case.shape[0] * case.shape[1] > 1_000_000  # one eager call takes seconds there
    return measure(
        case,
        contenders,
        turns=turns,
        seconds=seconds,
        copied=case.shape[0] * case.shape[1],
        warm_up=0 if slow else 2,
        host=empty_calls(make, option),
    )


def main() -> None:
    options = parse_options(__doc__ or "", RESULTS)
    made: list[tuple[Callable[..., Measured], int, int, Any]] = [
        *((spearman_case, *case) for case in SPEARMAN[:-1]),
        *((soft_rank_case, *case) for case in SOFT_RANK),
        *((loss_case, *shape, rank) for shape in LOSS for rank in ("hard", "soft")),
    ]
    made.append((spearman_case, *SPEARMAN[-1]))
    jobs = [
        Job(f"{make.__name__}, {rows} x {classes}, {option}",
            partial(measure_case, make, rows, classes, option),
            weight=len(made) - 1 if (rows, classes, option) == SPEARMAN[-1] else 1)
        for make, rows, classes, option in made
    ]  # fmt: skip
    run_jobs(jobs, options, "ranks, medians; ratios of paired turns")


if __name__ == "__main__":
    main()
