"""The rank benchmark: its eager formulas compute what ours computes, and who takes part where."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from r2kd_ext import reference
from r2kd_ext.bench import results

F32, BF16 = torch.float32, torch.bfloat16


@pytest.fixture
def bench(uncompiled_benchmark: Callable[[str], ModuleType]) -> Iterator[ModuleType]:
    """With what is compiled run as it is, but for the slow test."""
    module = uncompiled_benchmark("bench_rank")
    yield module
    module.empty_calls.cache_clear()


@pytest.mark.parametrize("classes", [1, 2, 37, 200])
@pytest.mark.parametrize("strength", [3e-2, 1.0, 30.0])
def test_the_eager_soft_rank_is_that_of_pools(
    bench: ModuleType, classes: int, strength: float
) -> None:
    """Against pool-adjacent-violators in float64; rows with ties among them."""
    torch.manual_seed(classes)
    x = 2 * torch.randn(9, classes)
    x[4:] = (2 * x[4:]).round()
    weight = torch.randn(9, classes)
    x64 = x.double().requires_grad_()
    expected = reference.soft_rank(x64, strength)
    expected.backward(weight.double())
    x.requires_grad_()
    ranks = bench.eager_soft_rank(x, strength)
    ranks.backward(weight)
    # Sums over a row of numbers as large as C / strength are float32.
    torch.testing.assert_close(ranks.double(), expected, rtol=0, atol=2e-3)
    assert x.grad is not None
    assert x64.grad is not None
    untied = slice(0, 4)  # a tie may be cut either way, and the gradient with it
    torch.testing.assert_close(
        x.grad[untied].double(), x64.grad[untied], rtol=1e-3, atol=1e-4 / strength
    )
    torch.testing.assert_close(
        bench.eager_soft_rank(x, torch.tensor(strength)), ranks, rtol=0, atol=2e-3
    )


@pytest.mark.parametrize("strength", [None, 0.1])
def test_the_eager_loss_is_that_of_the_reference(bench: ModuleType, strength: float | None) -> None:
    student, teacher = torch.randn(16, 30), torch.randn(16, 30)
    rank = {"rank": "hard"} if strength is None else {"rank": "soft", "rank_strength": strength}
    expected = reference.correlation_kd(student.double(), teacher.double(), rank_weight=2.0, **rank)
    loss = bench.eager_loss(student, teacher, strength)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)


def gradient(x: Tensor, run: Callable[[int], object]) -> Tensor:
    run(0)
    assert x.grad is not None
    return x.grad.clone()


@pytest.mark.parametrize(("rank", "dtype"), [("hard", F32), ("soft", F32), ("hard", BF16)], ids=str)
def test_contenders_of_the_loss_have_one_gradient(
    bench: ModuleType, rank: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs: list[Tensor] = []
    training_call = bench.training_call

    def noted(function: object, x: Tensor, grad: Tensor | None = None) -> object:
        inputs.append(x)
        return training_call(function, x, grad)

    monkeypatch.setattr(bench, "training_call", noted)
    case, contenders = bench.loss_case(16, 30, rank, dtype)
    others = ["eager", "compiled"] if rank == "hard" else ["eager"]
    assert list(contenders) == ["ours", *others, "ours without ranks"]
    assert case.dtype == str(dtype).removeprefix("torch.")
    student = inputs[0]
    ours = gradient(student, contenders["ours"])
    largest = ours.abs().max().item()
    for name in others:
        other = gradient(student, contenders[name])
        atol = (1e-3 if dtype == F32 else 3e-2) * largest
        torch.testing.assert_close(other, ours, rtol=1e-3, atol=atol)
    without = gradient(student, contenders["ours without ranks"])
    assert torch.equal(without, ours) == (rank == "hard")


def test_contenders_of_spearman_compute_the_same(bench: ModuleType) -> None:
    for dtype in (F32, BF16):
        _, contenders = bench.spearman_case(16, 30, dtype)
        ours = contenders["ours"](0)
        for name in ("eager", "compiled"):
            # torch's argsort orders equal elements, of which bfloat16 has many, either way.
            atol = 1e-4 if dtype == F32 else 0.05
            torch.testing.assert_close(contenders[name](0), ours.float(), rtol=0, atol=atol)
        assert "2 torch.sort" in contenders


def test_who_takes_part_where(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "SLOW", (4, 30))
    assert list(bench.spearman_case(4, 30, F32)[1]) == ["ours", "eager"]
    peers = ["torchsort"] if find_spec("torchsort") else []
    assert list(bench.soft_rank_case(4, 30, 0.1, F32)[1]) == [
        "ours", "eager", "compiled", *peers, "3 torch.sort",
    ]  # fmt: skip
    assert "compiled" not in bench.loss_case(4, 30, "soft", F32)[1]
    # Above so many classes the eager formula would take memory of O(B C^2).
    monkeypatch.setattr(bench, "EAGER_UP_TO", 20)
    assert list(bench.soft_rank_case(4, 30, 0.1, F32)[1]) == ["ours", *peers, "3 torch.sort"]
    assert list(bench.soft_rank_case(4, 30, 0.1, BF16)[1]) == ["ours", "3 torch.sort"]
    assert list(bench.loss_case(4, 30, "soft", F32)[1]) == ["ours", "ours without ranks"]
    assert "compiled" in bench.loss_case(4, 30, "hard", F32)[1]


def test_no_function_is_compiled_for_more_shapes_than_are_kept(bench: ModuleType) -> None:
    losses = [case for case in bench.LOSS if case[2] == "hard"]
    soft = [case for case in bench.SOFT_RANK if case[1] <= bench.EAGER_UP_TO]
    for cases in (bench.SPEARMAN, losses, soft):
        assert 1 < len(cases) <= torch._dynamo.config.recompile_limit


def test_rows(bench: ModuleType, tmp_path: Path) -> None:
    for make, options in (
        (bench.spearman_case, (F32,)),
        (bench.soft_rank_case, (0.1, F32)),
        (bench.loss_case, ("hard", F32)),
    ):
        rows = bench.measure_case(make, (16, 30), options, 2, 0.1)
        results.save(tmp_path / "a.csv", rows)
        found = {row["contender"]: row for row in results.load(tmp_path / "a.csv")}
        for name in ("ours", "eager"):
            assert float(found[name]["host_us"]) > 0
            assert found[name]["peak_mib"]
        assert (found["compiled"]["role"], found["compiled"]["host_us"]) == ("peer", "")


@pytest.mark.slow
def test_the_compiled_soft_rank_is_one_graph_for_all_strengths(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    bench.compiled.cache_clear()
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    for strength in (0.1, 1.0):
        _, contenders = bench.soft_rank_case(4, 10, strength, F32)  # compares what they compute
        contenders["compiled"](0)
    assert counters["stats"]["unique_graphs"] == 1
