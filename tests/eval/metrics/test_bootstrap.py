"""Intervals against closed forms, scipy's bootstrap, and sets with a known answer."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from eval.metrics.bootstrap import bootstrap_intervals, draw_weights, interval_of, resample


def mean_of(*values: np.ndarray):
    return lambda weights: [weights @ each / weights.sum(axis=1) for each in values]


def test_the_interval_of_a_mean_is_scipys():
    values = np.random.default_rng(0).exponential(size=40)
    (ours,) = bootstrap_intervals(mean_of(values), 40, 8000)
    rng = np.random.default_rng(1)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=8000, method="percentile", random_state=rng)
    # Monte Carlo error of a 2.5 % quantile from 8000 draws of standard deviation 0.15 is about 0.005.
    assert ours == pytest.approx(tuple(theirs.confidence_interval), abs=0.03)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    values = np.random.default_rng(2).normal(size=(200, 60))
    found = bootstrap_intervals(mean_of(*values), 60, 400)
    assert 0.88 <= np.mean([low <= 0 <= high for low, high in found]) <= 0.99


def test_resampled_sets_are_a_function_of_the_seed_and_keep_the_size():
    weights = draw_weights(7, 50, seed=3)
    np.testing.assert_array_equal(weights.sum(axis=1), 7)
    np.testing.assert_array_equal(weights, draw_weights(7, 50, seed=3))
    assert (weights != draw_weights(7, 50, seed=4)).any()


def test_sets_of_the_same_images_are_computed_once_and_count_as_often_as_they_are_drawn():
    seen: list[list[float]] = []
    values = np.array([0.5, 2.0])
    (found,) = resample(lambda weights: seen.extend(weights.tolist()) or [weights @ values], 2)
    assert sorted(seen) == [[0, 2], [1, 1], [2, 0]]
    np.testing.assert_array_equal(found, draw_weights(2) @ values)


def test_one_image_has_no_interval():
    assert bootstrap_intervals(mean_of(np.array([0.5]), np.array([1.0])), 1) == [None, None]
    assert interval_of(np.full(100, np.nan)) is None
