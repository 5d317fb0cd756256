"""Logits whose classes are spread over ranks: the loss and gradient of the gathered logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import Setting
from compare import Outcome, assert_true
from group_work import loss_and_grad, make_batch
from ranks import RankFailure, Ranks
from vocab_work import (
    SPLITS,
    collective_bytes,
    distributed_tensor_result,
    in_chunks,
    kept_bytes,
    local_result,
    odd_one_out,
    vocabulary,
    without_a_group,
)

SETTINGS = [
    Setting("cosine", {}, "the defaults"),
    Setting("pearson", {"correlation": "pearson", "temperature": 1.5}, "centred"),
    Setting("rows", {"intra_weight": 0.0, "correlation": "pearson"}, "the column path is off"),
    Setting("columns", {"inter_weight": 0.0}, "the row path is off"),
]
MADE: list[dict[str, Any]] = [{}, {"masked": True}, {"masked": True, "weighted": True}]


@pytest.mark.parametrize("size", SPLITS)
@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: s.name)
def test_shards_are_the_gathered_logits(ranks: Ranks, size: int, setting: Setting) -> None:
    for split in SPLITS[size].values():
        for made in MADE:
            results = ranks.run(size, local_result, split, made, setting.options)
            whole = vocabulary(split, made)
            loss, grad = loss_and_grad(whole, backend="specification", **setting.options)
            for found, _ in results:
                assert found == results[0][0]
            assert (results[0][0] - loss).abs() <= 1e-10 * loss.abs().clamp(min=1)
            together = torch.cat([grad for _, grad in results], dim=1)
            assert (together - grad).abs().max() <= 1e-10 * grad.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("correlation", ["cosine", "pearson"])
def test_error_against_the_truth_in_narrow_types(
    ranks: Ranks, dtype: torch.dtype, correlation: str
) -> None:
    split, made = (100, 157), {"dtype": dtype}
    options: dict[str, Any] = {"correlation": correlation}
    results = ranks.run(2, local_result, split, made, options)
    whole = vocabulary(split, made)
    grad = torch.cat([grad for _, grad in results], dim=1)
    assert_true(Outcome(results[0][0], grad), whole.student, whole.teacher, **options)


def test_all_rows_masked(ranks: Ranks) -> None:
    made = {"masked": True, "only_masked": True}
    for loss, grad in ranks.run(2, local_result, (4, 5), made, {"eps": 0.0}):
        assert loss == 0
        assert not grad.any()


def test_chunks_of_rows(ranks: Ranks) -> None:
    assert all(ranks.run(2, in_chunks))


def test_distributed_tensors(ranks: Ranks) -> None:
    """10 classes over 4 ranks are shards of 3, 3, 3 and 1."""
    loss, grad = loss_and_grad(
        make_batch((5, 2), 10), backend="specification", correlation="pearson"
    )
    for found, found_grad, message in ranks.run(4, distributed_tensor_result, 10):
        assert (found - loss).abs() <= 1e-10
        assert (found_grad - grad).abs().max() <= 1e-10 * grad.abs().max()
        assert "teacher_logits must be sharded on its last dimension" in message


@pytest.mark.parametrize("classes", [10, 1000])
def test_bytes_over_the_network_do_not_grow_with_the_vocabulary(ranks: Ranks, classes: int) -> None:
    rows = 9
    expected = [4 * (2 + 2 * rows), 8 * (1 + 2 * rows), 8 * (1 + 4 * rows)]
    for found in ranks.run(2, collective_bytes, rows, classes):
        assert found == (expected, 0)


def test_kept_for_backward_is_of_the_order_of_rows_and_classes(ranks: Ranks) -> None:
    small, *_ = ranks.run(2, kept_bytes, 300, 500)
    large, *_ = ranks.run(2, kept_bytes, 600, 1000)
    assert 0 < large <= 2 * small
    assert large <= 4 * (8 * 600 + 6 * 1000)


def test_ranks_that_disagree(ranks: Ranks) -> None:
    with pytest.raises(RankFailure) as failure:
        ranks.run(4, odd_one_out)
    assert [kind for kind, _, _ in failure.value.errors.values()] == ["ValueError"] * 4
    assert "ranks of group disagree" in str(failure.value)


def test_tensors_need_a_group(ranks: Ranks) -> None:
    with pytest.raises(RankFailure, match="group must be a ProcessGroup"):
        ranks.run(2, without_a_group)
