"""The order of the images."""

from __future__ import annotations

import itertools

import pytest

from r2kd_ext.train.sampler import BatchSampler, shares


@pytest.mark.parametrize("world", [1, 2, 4])
def test_processes_share_the_same_global_batches(world: int) -> None:
    one = list(BatchSampler(103, 8, seed=3))
    parts = [list(BatchSampler(103, 8, seed=3, rank=r, world=world)) for r in range(world)]
    assert [list(itertools.chain(*batch)) for batch in zip(*parts, strict=True)] == one
    seen = list(itertools.chain(*one))
    assert len(seen) == len(set(seen)) == 103 // 8 * 8
    assert set(seen) <= set(range(103))


def test_order_depends_on_seed_and_epoch() -> None:
    def order(seed: int, epochs: int) -> list[list[int]]:
        sampler = BatchSampler(50, 5, seed=seed)
        for _ in range(epochs):
            sampler.next_epoch()
        return list(sampler)

    assert order(0, 0) == order(0, 0)
    orders = [order(0, 0), order(0, 1), order(1, 0)]
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_goes_on_in_the_middle_of_an_epoch() -> None:
    whole = BatchSampler(50, 5, seed=1)
    whole.next_epoch()
    expected = list(whole)
    for done in range(len(expected) + 1):
        first = BatchSampler(50, 5, seed=1)
        first.next_epoch()
        fetched = iter(first)
        for _ in range(done):
            next(fetched)
            first.advance()
        for _ in range(2):
            next(fetched, None)  # loaders fetch ahead
        again = BatchSampler(50, 5, seed=1)
        again.load_state_dict(first.state_dict())
        assert len(again) == len(expected) - done
        assert list(again) == expected[done:]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of the number of processes, 3, got 4"):
        BatchSampler(50, 4, seed=0, world=3)
    with pytest.raises(ValueError, match="number of training images, 50, got 51"):
        BatchSampler(50, 51, seed=0)
    state = BatchSampler(50, 5, seed=0).state_dict()
    with pytest.raises(ValueError, match="made with batch_size 5, now it is 10"):
        BatchSampler(50, 10, seed=0).load_state_dict(state)
    with pytest.raises(ValueError, match="no batch 11"):
        BatchSampler(50, 5, seed=0).load_state_dict({**state, "batch": 11})


@pytest.mark.parametrize(("count", "world"), [(10, 1), (10, 3), (1, 4), (16, 2), (17, 2)])
def test_shares_cover_once_with_equal_numbers(count: int, world: int) -> None:
    parts = [shares(count, 4, rank, world) for rank in range(world)]
    assert len({len(part) for part in parts}) == 1
    assert {len(batch) for part in parts for batch in part} == {4}
    flat = [i for part in parts for batch in part for i in batch if i >= 0]
    assert flat == list(range(count))
