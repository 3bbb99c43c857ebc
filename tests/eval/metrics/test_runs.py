"""Sorted runs against the joined, sorted array."""

from __future__ import annotations

import numpy as np
import pytest

from eval.metrics.runs import SortedRuns, choose_splitters, cut


def drawn(seed: int, ties: bool) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    runs = [rng.standard_normal(size).astype(np.float32) for size in (0, 1, 7, 500, 3000)]
    if ties:
        runs = [np.round(run) for run in runs]
        runs[3][:20], runs[4][:9] = np.inf, -np.inf
    return [np.sort(run) for run in runs]


@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
def test_counts_and_positions_are_those_of_the_joined_array(ties):
    runs = SortedRuns(drawn(0, ties))
    joined = np.sort(np.concatenate(drawn(0, ties)))
    values = np.array([-np.inf, -1, -0.0, 0, 0.3, 2, np.inf], np.float32)
    assert runs.size == joined.size
    np.testing.assert_array_equal(runs.count_below(values), np.searchsorted(joined, values, "left"))
    np.testing.assert_array_equal(runs.count_not_above(values), np.searchsorted(joined, values, "right"))
    for index in (0, 1, 8, 30, 1700, joined.size - 1):
        assert runs.nth(index) == joined[index]


@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize("most", [12, 100, 2000, 10**6])
def test_intervals_are_small_and_with_the_splitters_hold_every_score_once(ties, most):
    positives, negatives = SortedRuns(drawn(1, ties)), SortedRuns(drawn(2, ties))
    splitters = choose_splitters((positives, negatives), most)
    low = -1
    gathered = []
    for part in cut(positives, negatives, splitters):
        assert part.positives.size + part.negatives.size <= most
        assert part.positives_below >= low
        low = part.positives_below
        gathered += [part.positives, part.negatives]
    everything = np.concatenate(drawn(1, ties) + drawn(2, ties))
    expected = np.sort(everything[~np.isin(everything, splitters)])
    np.testing.assert_array_equal(np.sort(np.concatenate(gathered)), expected)


def test_nan_is_counted():
    runs = SortedRuns([np.array([0, np.nan], np.float32), np.array([1], np.float32)])
    assert runs.count_nan() == 1
