"""Spread over seeds, against scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from eval.report.seeds import compare_seeds, estimate


def test_mean_and_deviation_of_a_hand_worked_case() -> None:
    found = estimate([1.0, 2.0, None, 6.0])
    assert found is not None
    assert (found.mean, found.spread) == (3.0, pytest.approx(math.sqrt(7)))


def test_a_single_run_has_no_spread_and_supports_nothing() -> None:
    found = estimate([4.0])
    assert found is not None
    assert found.spread is None
    assert estimate([None, math.nan]) is None
    assert not compare_seeds([9.0], [1.0]).is_supported


@pytest.mark.parametrize("count", [2, 3, 10])
def test_the_interval_is_that_of_the_paired_t_test(count: int) -> None:
    rng = np.random.default_rng(count)
    first, second = rng.normal(1, 1, count), rng.normal(0, 1, count)
    expected = scipy.stats.ttest_rel(first, second)
    found = compare_seeds(first.tolist(), second.tolist())
    interval = expected.confidence_interval(0.95)
    np.testing.assert_allclose((found.low, found.high), (interval.low, interval.high), rtol=1e-9)
    assert found.is_supported is bool(expected.pvalue < 0.05)


def test_a_shared_shift_is_supported_although_each_method_spreads_more() -> None:
    second = [10.0, 30.0, 50.0]
    first = [value + shift for value, shift in zip(second, (2.0, 2.1, 1.9), strict=True)]
    alone = estimate(first)
    assert alone is not None
    assert alone.spread is not None
    assert alone.spread > 10
    assert compare_seeds(first, second).is_supported


def test_pairs_are_needed() -> None:
    with pytest.raises(ValueError, match="as many numbers of both methods are needed, got 2 and 1"):
        compare_seeds([1.0, 2.0], [1.0])
