"""Ranks on the CPU, against eager formulas, torchsort and torch.sort.

    python benchmarks/bench_rank.py [--turns 15] [--seconds S] [--output FILE.csv]

Three operations, each timed in turn with its own contenders on the same inputs, in float32, and one
shape of each in bfloat16, too. compiled is `torch.compile` of eager:

- spearman: `r2kd_ext.spearman` of hard ranks, forward, against the published formula with argsort
  of argsort in plain PyTorch, and 2 calls of `torch.sort`, one for each input. At 512 x 32000,
  where each takes seconds, there is eager alone;
- soft_rank: `r2kd_ext.soft_rank`, forward + backward, against torchsort's compiled extension where
  it is installed (`pip install torchsort --no-build-isolation`; float32 only), up to 200 classes
  `eager_soft_rank`, and 3 calls of `torch.sort` on the input. What they compute is compared first.
  At strength 1 a row of 100 or more normal numbers is one pool, which ours does not sort; at 3 / C
  pools are a few neighbours;
- correlation: `r2kd_ext.correlation_kd`, forward + backward, with hard and with soft ranks, against
  the same without a rank term, and against the eager formula, which takes soft ranks from
  `eager_soft_rank`, and with soft ranks is not compiled.

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
from harness import (
    Budget,
    Call,
    Case,
    Job,
    Row,
    compiled,
    dtype_text,
    host_times,
    measure,
    parse_options,
    run_jobs,
)
from torch import Tensor
from torch.nn import functional as F

from r2kd_ext import correlation_kd, soft_rank, spearman

RESULTS = Path(__file__).parent / "results" / "rank_cpu.csv"
F32, BF16 = torch.float32, torch.bfloat16
SLOW = (512, 32000)
SPEARMAN = [(64, 100, F32), (256, 1000, F32), (256, 1000, BF16)]
SOFT_RANK = [
    *((64, classes, strength, F32) for classes in (100, 1000, 10000)
      for strength in (1.0, 3 / classes)),
    (64, 1000, 3 / 1000, BF16),
]  # fmt: skip
LOSS = [
    *((*shape, rank, F32) for shape in ((64, 100), (64, 200), (256, 1000))
      for rank in ("hard", "soft")),
    (256, 1000, "hard", BF16),
]  # fmt: skip
EAGER_UP_TO = 200  # classes of eager_soft_rank, which takes memory of O(C^2) for each row
Measured = tuple[Case, dict[str, Call]]


def eager_rho(ranks: Tensor, others: Tensor) -> Tensor:
    """The published cosine of ranks [B, C], as one would write it."""
    classes = ranks.shape[1]

    def centred(ranks: Tensor) -> Tensor:
        shares = ranks / (classes * (classes + 1) / 2)  # [B, C]
        return shares - shares.mean(1, True)

    a, b = centred(ranks), centred(others)
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-8)


def eager_spearman(x: Tensor, y: Tensor) -> Tensor:
    """The published formula of hard ranks."""
    return eager_rho(*(z.argsort(dim=1).argsort(dim=1) + 1 for z in (x, y)))


def eager_soft_rank(x: Tensor, strength: float | Tensor) -> Tensor:
    """The soft ranks of `r2kd_ext.soft_rank` in float32, by operations that autograd and
    `torch.compile` know; memory of O(B C^2).

    The ranks are z - v, where z is x / strength in descending order, and v the non-increasing
    isotonic regression of y = z - (C, ..., 1) (Blondel, Teboul, Berthet, Djolonga, "Fast
    Differentiable Sorting and Ranking", ICML 2020). v is by the min-max formula (Robertson, Wright,
    Dykstra, "Order Restricted Statistical Inference", 1988): v_i is the least over j <= i of the
    largest over k >= i of the mean of y_j, ..., y_k.
    """
    classes = x.shape[1]
    places = torch.arange(classes, device=x.device)
    lengths = places - places[:, None] + 1  # [C, C] of j, ..., k
    z, order = (x.float() / strength).sort(dim=1, descending=True)  # [B, C]
    sums = F.pad((z - (classes - places)).cumsum(1), (1, 0))  # [B, C + 1]
    means = (sums[:, None, 1:] - sums[:, :-1, None]) / lengths.clamp(min=1)  # [B, C, C]
    largest = means.masked_fill(lengths < 1, -torch.inf).flip(2).cummax(2).values.flip(2)
    v = largest.masked_fill(lengths < 1, torch.inf).amin(1)  # [B, C]
    return (z - v).gather(1, order.argsort(1))


def eager_loss(student: Tensor, teacher: Tensor, strength: float | None) -> Tensor:
    """The default correlation loss with hard ranks, or soft ones of a strength; their weight 2."""
    if strength is None:
        rho = eager_spearman(student, teacher)
    else:
        rho = eager_rho(*(eager_soft_rank(x, strength) for x in (student, teacher)))
    return eager_value(student, teacher) + 2 * (1 - rho.mean())


def spearman_case(rows: int, classes: int, dtype: torch.dtype) -> Measured:
    x, y = (torch.randn(rows, classes).to(dtype) for _ in range(2))  # [B, C] each
    contenders: dict[str, Call] = {
        "ours": lambda _: spearman(x, y),
        "eager": lambda _: eager_spearman(x, y),
    }
    if (rows, classes) != SLOW:
        function = compiled(eager_spearman)
        contenders["compiled"] = lambda _: function(x, y)
        contenders["2 torch.sort"] = lambda _: (torch.sort(x), torch.sort(y))
    roles = {"ours": "ours", "eager": "reference", "compiled": "peer", "2 torch.sort": "unit"}
    work = limits.hard_spearman(rows, classes, dtype)
    shape = (rows, classes)
    case = Case("spearman", shape, dtype_text(dtype), work, roles, "forward", "hard", "resident")
    return case, contenders


def training_call(
    function: Callable[[Tensor], Tensor], x: Tensor, grad: Tensor | None = None
) -> Call:
    """Forward + backward of a function of x; `grad` is that of its result, None for a scalar."""

    def run(call: int) -> None:
        x.grad = None
        function(x).backward(grad)

    return run


def soft_rank_case(rows: int, classes: int, strength: float, dtype: torch.dtype) -> Measured:
    x = torch.randn(rows, classes).to(dtype).requires_grad_()
    weight = torch.randn(rows, classes)

    def sorts(call: int) -> None:
        for _ in range(3):
            torch.sort(x.detach())

    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "ours": partial(soft_rank, strength=strength)
    }
    if classes <= EAGER_UP_TO:
        functions["eager"] = partial(eager_soft_rank, strength=strength)
        # As a tensor the strength is an input, so that both are compiled at once.
        functions["compiled"] = partial(compiled(eager_soft_rank), strength=torch.tensor(strength))
    if find_spec("torchsort") and dtype == F32:
        import torchsort

        functions["torchsort"] = partial(torchsort.soft_rank, regularization_strength=strength)
    for other in list(functions.values())[1:]:
        torch.testing.assert_close(other(x), functions["ours"](x), rtol=1e-3, atol=1e-2)
    contenders = {name: training_call(function, x, weight) for name, function in functions.items()}
    roles = {
        "ours": "ours", "eager": "reference", "compiled": "peer", "torchsort": "peer",
        "3 torch.sort": "unit",
    }  # fmt: skip
    work = limits.soft_rank(rows, classes, dtype)
    case = Case(
        "soft_rank", (rows, classes), dtype_text(dtype), work, roles,
        variant=f"strength {strength:g}", inputs="resident",
    )  # fmt: skip
    return case, {**contenders, "3 torch.sort": sorts}


def loss_case(rows: int, classes: int, rank: str, dtype: torch.dtype) -> Measured:
    student, teacher = (torch.randn(rows, classes).to(dtype) for _ in range(2))
    student.requires_grad_()
    soft = rank == "soft"
    strength = 3 / classes
    ranked: dict[str, Any] = {"rank_weight": 2.0}
    if soft:
        ranked |= {"rank": "soft", "rank_strength": strength}

    def trained(loss: Callable[..., Tensor], *options: Any, **named: Any) -> Call:
        return training_call(lambda x: loss(x, teacher, *options, **named), student)

    contenders = {"ours": trained(correlation_kd, **ranked)}
    if not soft or classes <= EAGER_UP_TO:
        eager_strength = strength if soft else None
        contenders["eager"] = trained(eager_loss, eager_strength)
        if not soft:  # that took 10 seconds to compile, and is in soft_rank's own cases
            contenders["compiled"] = trained(compiled(eager_loss), eager_strength)
    case = Case(
        "correlation",
        (rows, classes),
        dtype_text(dtype),
        limits.ranked_correlation(rows, classes, dtype, soft=soft),
        {"ours": "ours", "eager": "reference", "compiled": "peer", "ours without ranks": "unit"},
        variant=f"soft ranks, strength {strength:g}" if soft else "hard ranks",
        inputs="resident",
    )
    return case, {**contenders, "ours without ranks": trained(correlation_kd)}


@cache
def empty_calls(make: Callable[..., Measured], *options: Any) -> dict[str, float]:
    """Seconds of the calls themselves, on one number."""
    contenders = make(1, 1, *options)[1]
    contenders.pop("compiled", None)  # another shape would compile anew
    return host_times(contenders)


def measure_case(
    make: Callable[..., Measured],
    shape: tuple[int, int],
    options: tuple[Any, ...],
    turns: int,
    seconds: float,
) -> list[Row]:
    budget = Budget(seconds, 1)
    case, contenders = make(*shape, *options)
    host = empty_calls(make, *options)
    return measure(
        case,
        contenders,
        turns=turns,
        seconds=budget.left(),
        copied=shape[0] * shape[1],
        dtype=getattr(torch, case.dtype),
        warm_up=0 if shape == SLOW else 2,
        host=host,
    )


def main() -> None:
    options = parse_options(__doc__ or "", RESULTS)
    made: list[tuple[Callable[..., Measured], tuple[int, int], tuple[Any, ...]]] = [
        *((spearman_case, case[:2], case[2:]) for case in SPEARMAN),
        *((soft_rank_case, case[:2], case[2:]) for case in SOFT_RANK),
        *((loss_case, case[:2], case[2:]) for case in LOSS),
        (spearman_case, SLOW, (F32,)),
    ]
    jobs = [
        Job(f"{make.__name__}, {shape[0]} x {shape[1]}, {', '.join(map(str, of_case))}",
            partial(measure_case, make, shape, of_case),
            weight=len(made) - 1 if shape == SLOW else 1)
        for make, shape, of_case in made
    ]  # fmt: skip
    run_jobs(jobs, options, "ranks, medians; ratios of paired turns")


if __name__ == "__main__":
    main()
