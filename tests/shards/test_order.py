from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.order import (
    BatchPositions,
    SampleOrder,
    sample_generator,
)
from tests.support.refused import refused


def sample_at(position: int, num_samples: int, seed: int) -> tuple[int, int]:
    """What an order without memory says of a position."""
    return SampleOrder(num_samples, seed).at(position)


@given(num_samples=st.integers(1, 60), seed=st.integers(0, 2**40), start_epoch=st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_every_epoch_holds_every_sample_once(num_samples: int, seed: int, start_epoch: int) -> None:
    order = SampleOrder(num_samples, seed)
    first = start_epoch * num_samples
    for epoch in (start_epoch, start_epoch + 1):
        seen = [order.at(first + i) for i in range(num_samples)]
        assert {e for e, _ in seen} == {epoch}
        assert sorted(index for _, index in seen) == list(range(num_samples))
        first += num_samples


def test_the_memory_of_permutations_does_not_change_the_order() -> None:
    order = SampleOrder(7, seed=3)
    places = [0, 30, 6, 7, 69, 1, 13, 14, 0]
    assert [order.at(p) for p in places] == [sample_at(p, 7, 3) for p in places]
    assert len(order._permutations) <= 2


def test_epochs_and_seeds_differ() -> None:
    orders = [tuple(SampleOrder(50, seed).permutation(epoch)) for seed in range(4) for epoch in range(4)]
    assert len(set(orders)) == 16


def test_the_order_is_the_one_of_earlier_releases() -> None:
    """Read off once: another order would silently change every resumed run."""
    assert SampleOrder(10, seed=0).permutation(0).tolist() == [3, 2, 1, 8, 6, 0, 7, 4, 5, 9]
    assert SampleOrder(10, seed=7).permutation(2).tolist() == [8, 6, 4, 0, 5, 7, 1, 3, 9, 2]


def test_the_first_sample_of_an_epoch_is_uniform() -> None:
    counts = Counter(sample_at(0, 5, seed)[1] for seed in range(1000))
    assert max(counts.values()) < 260  # 200 expected, standard deviation 12.6
    assert min(counts.values()) > 140


@given(
    ranks=st.integers(1, 5),
    batch_size=st.integers(1, 5),
    num_samples=st.integers(1, 40),
    epoch=st.integers(0, 9),
)
@settings(max_examples=60, deadline=None)
def test_ranks_share_the_sequence_without_gap_or_overlap(
    ranks: int, batch_size: int, num_samples: int, epoch: int
) -> None:
    start = epoch * num_samples
    steps = -(-num_samples // (ranks * batch_size))
    share = {"start": start, "world_size": ranks, "batch_size": batch_size, "num_batches": steps}
    positions = [p for rank in range(ranks) for batch in BatchPositions(rank=rank, **share) for p in batch]
    assert sorted(positions) == list(range(start, start + steps * ranks * batch_size))
    counts = Counter(sample_at(position, num_samples, 0)[1] for position in positions)
    assert len(counts) == num_samples


def test_random_numbers_depend_on_purpose_seed_epoch_and_key_only() -> None:
    names = list(itertools.product(["crop", "paste"], [0, 1], [0, 1], ["a", "b"]))
    draws = [[sample_generator(*name).random() for name in names] for _ in range(2)]
    assert len(set(draws[0])) == 16
    assert draws[0] == draws[1]


def test_the_random_numbers_are_those_of_earlier_releases() -> None:
    bits = sample_generator("augment", 0, 0, "aachen_000000_000019").bit_generator
    assert isinstance(bits, np.random.PCG64)
    assert int(bits.random_raw()) == 11411860566835610589


@pytest.mark.parametrize(
    ("num_samples", "seed", "message"),
    [(0, 0, "shards: hold 0 samples; at least one is needed"), (5, -1, "seed: got -1; a whole number >= 0")],
)
def test_impossible_orders_are_refused(num_samples: int, seed: int, message: str) -> None:
    with refused(message):
        SampleOrder(num_samples, seed)
