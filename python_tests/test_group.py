"""correlation_kd over a process group: one loss, and the gradient of the concatenated batch."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from cases import Setting
from compare import Outcome, assert_true
from group_work import (
    SPLITS,
    collective_bytes,
    compiled,
    gradient_twice,
    kept_bytes,
    leaves_early,
    local_result,
    loss_and_grad,
    make_batch,
    never_calls,
    odd_one_out,
    parameter_gradients,
    refused_groups,
    second_derivative,
    wrong_call,
)
from ranks import RankFailure, Ranks, run_once

from r2kd_ext import distributed, moments
from r2kd_ext._arguments import CorrelationOptions

SETTINGS = [
    Setting("cosine", {}, "the defaults"),
    Setting("pearson", {"correlation": "pearson", "temperature": 1.5}, "two rounds"),
    Setting("rows", {"intra_weight": 0.0, "correlation": "pearson"}, "no columns are sent"),
    Setting("columns", {"inter_weight": 0.0}, "the row path is off"),
    Setting("hard", {"rank_weight": 2.0}, "a rank term without a gradient"),
    Setting(
        "soft",
        {"rank_weight": 1.5, "rank": "soft", "rank_strength": 0.1, "correlation": "pearson"},
        "a rank term with a gradient",
    ),
]
MADE: dict[str, dict[str, Any]] = {
    "plain": {},
    "masked": {"masked": True},
    "weighted": {"weighted": True},
    "both": {"masked": True, "weighted": True},
}
CLASSES = 37  # no multiple of a vector


def _check(
    ranks: Ranks, size: int, split: tuple[int, ...], classes: int, made: dict[str, Any],
    options: dict[str, Any], backend: str, tolerance: float = 1e-10,
) -> None:  # fmt: skip
    """Every rank's loss and gradient against the specification on the concatenated batch."""
    results = ranks.run(size, local_result, split, classes, made, options | {"backend": backend})
    batch = make_batch(split, classes, **made)
    loss, grad = loss_and_grad(batch, backend="specification", **options)
    for found, _ in results:
        assert found.item() == results[0][0].item()  # the same bits on every rank
    assert abs(results[0][0] - loss) <= tolerance * loss.abs().clamp(min=1)
    together = torch.cat([grad for _, grad in results]) / size
    assert together.shape == grad.shape
    assert (together - grad).abs().max() <= tolerance * grad.abs().max()


@pytest.mark.parametrize("size", SPLITS)
@pytest.mark.parametrize("backend", ["native", "reference", "specification"])
@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: s.name)
def test_group_is_one_process_with_the_concatenated_batch(
    ranks: Ranks, size: int, backend: str, setting: Setting
) -> None:
    for split in SPLITS[size].values():
        for made in MADE.values():
            _check(ranks, size, split, CLASSES, made, setting.options, backend)


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("correlation", ["cosine", "pearson"])
def test_nearly_uniform_columns_keep_their_digits(
    ranks: Ranks, backend: str, correlation: str
) -> None:
    """Spread 1e-3: a column's variance is 1e-8 of its mean's square."""
    split = SPLITS[4]["uneven"]
    options = {"correlation": correlation, "eps": 0.0, "temperature": 1.0}
    _check(ranks, 4, split, CLASSES, {"spread": 1e-3}, options, backend)


@pytest.mark.parametrize("correlation", ["cosine", "pearson"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_error_against_the_truth_in_narrow_types(
    ranks: Ranks, dtype: torch.dtype, correlation: str
) -> None:
    for split in ((40, 25), (700, 3)):  # in one block of the kernels, and in many
        options: dict[str, Any] = {"correlation": correlation}
        results = ranks.run(2, local_result, split, 65, {"dtype": dtype}, options)
        batch = make_batch(split, 65, dtype=dtype)
        grad = torch.cat([grad for _, grad in results]) / 2
        assert_true(Outcome(results[0][0], grad), batch.student, batch.teacher, **options)


@pytest.mark.parametrize("size", SPLITS)
@pytest.mark.parametrize("correlation", ["cosine", "pearson"])
def test_gradients_after_ddp_are_those_of_one_process(
    ranks: Ranks, size: int, correlation: str
) -> None:
    options = {"correlation": correlation, "rank_weight": 1.0, "rank": "soft"}
    for split in SPLITS[size].values():
        expected = parameter_gradients(None, split, 11, options)
        for found in ranks.run(size, parameter_gradients, split, 11, options):
            assert len(found) == len(expected) == 4
            for a, b in zip(found, expected, strict=True):
                assert (a - b).abs().max() <= 1e-10 * b.abs().max()


@pytest.mark.parametrize("size", SPLITS)
def test_no_row_on_any_rank(ranks: Ranks, size: int) -> None:
    for options in ({}, {"correlation": "pearson", "rank_weight": 1.0}):
        for loss, grad in ranks.run(size, local_result, (0,) * size, 5, {}, options):
            assert loss == 0
            assert grad.shape == (0, 5)
        split = (3,) + (0,) * (size - 1)
        made = {"masked": True, "only_masked": True}
        for loss, grad in ranks.run(size, local_result, split, 5, made, options):
            assert loss == 0
            assert not grad.any()


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_bytes_over_the_network(ranks: Ranks, backend: str) -> None:
    """6 + 3 C numbers of 8 bytes, with Pearson 6 + 2 C and 3 C, and none in backward."""
    expected = {
        "cosine": ([8 * (6 + 3 * 50)], 0),
        "pearson": ([8 * (6 + 2 * 50), 8 * 3 * 50], 0),
    }
    for correlation, numbers in expected.items():
        options = {"correlation": correlation, "rank_weight": 1.0, "rank": "soft"}
        for found in ranks.run(2, collective_bytes, 50, options):
            assert found == numbers
    for found in ranks.run(2, collective_bytes, 50, {"intra_weight": 0.0}):
        assert found == ([8 * 6], 0)


def test_kept_for_backward_is_of_the_order_of_rows_and_classes(ranks: Ranks) -> None:
    small, *_ = ranks.run(2, kept_bytes, 300, 500, "native")
    large, *_ = ranks.run(2, kept_bytes, 600, 1000, "native")
    assert 0 < large <= 2 * small
    assert large <= 4 * (8 * 600 + 6 * 1000)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_same_bits_twice(ranks: Ranks, backend: str) -> None:
    assert all(ranks.run(4, gradient_twice, backend))


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_second_derivative_is_refused(ranks: Ranks, backend: str) -> None:
    with pytest.raises(RankFailure) as failure:
        ranks.run(2, second_derivative, backend)
    for kind, message, _ in failure.value.errors.values():
        assert kind == "RuntimeError"
        assert "create_graph" in message


@pytest.mark.parametrize(
    "odd",
    [{"temperature": 2.0}, {"eps": 0.0}, {"rank_weight": 1.0}, {"inter_weight": 0.0}],
    ids=lambda odd: next(iter(odd)),
)
def test_ranks_that_disagree_in_an_option(ranks: Ranks, odd: dict[str, Any]) -> None:
    """An error on every rank, and the group serves the next call."""
    with pytest.raises(RankFailure) as failure:
        ranks.run(4, odd_one_out, odd, {})
    assert len(failure.value.errors) == 4
    for rank, (kind, message, _) in failure.value.errors.items():
        assert kind == "ValueError"
        assert "ranks of group disagree" in message
        assert "classes=6" in message
        assert (f"temperature={odd.get('temperature', 4.0)}" in message) or rank != 1
    assert len(ranks.run(4, odd_one_out, {}, {})) == 4


def test_refused_groups(ranks: Ranks) -> None:
    first, second = ranks.run(2, refused_groups)
    assert first == second[1:]
    assert first[0].startswith("TypeError: group must be a ProcessGroup")
    assert second[0].startswith("TypeError: group") or "must contain this rank" in second[0]


@pytest.mark.slow
def test_compiled_caller_breaks_its_graph_there(ranks: Ranks) -> None:
    (eager, broken, message), _ = ranks.run(2, compiled)
    assert eager == broken
    assert "group must be None inside torch.compile" in message


@pytest.mark.parametrize("centered", [False, True])
def test_moments_by_the_forward_kernels_are_those_of_the_moments_kernel(centered: bool) -> None:
    """The way of GPUs, taken on the CPU: columns by torch in chunks, rows from the forward op."""
    batch = make_batch((60_000, 0), CLASSES, masked=True, weighted=True)
    assert batch.mask is not None
    batch.mask[::3] = False
    assert batch.student.numel() > 2 * moments._CHUNK_ELEMENTS
    options = CorrelationOptions(2.0, centered, 1.0, 1.0, 1e-8)
    a, b = (
        function(*batch[:3], options, batch.sample_weight, "native")
        for function in (distributed.partial_moments, distributed.moments_by_forward)
    )
    for name in ("rows", "weight", "r", "columns"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=1e-11, atol=1e-13)
    rows = (distributed.row_stats(part.stats, batch.student)[batch.mask] for part in (a, b))
    torch.testing.assert_close(*rows, rtol=1e-11, atol=1e-13)


def test_a_rank_that_is_gone_is_an_error_on_the_others() -> None:
    begin = time.monotonic()
    answers = run_once(3, 5, leaves_early)
    assert [well for well, _ in answers] == [True, False, True]
    assert answers[0][1]
    assert answers[2][1]
    assert time.monotonic() - begin < 50


def test_a_rank_that_does_not_call_is_an_error_after_the_time_out() -> None:
    answers = run_once(2, 2, never_calls, (5.0,))
    assert "imed out" in answers[0][1]


def test_another_number_of_classes_is_no_hang() -> None:
    """gloo ends the process that receives too much, with a message; the other gets an error."""
    answers = run_once(2, 5, wrong_call, (6, 7))
    for well, answer in answers:
        assert answer if well else answer[0] == "gone"
