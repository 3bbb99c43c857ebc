"""Intervals and tests against closed forms, scipy's bootstrap, and sets with a known answer."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from eval.metrics.binned import count_images
from eval.metrics.bootstrap import bootstrap_interval, draw_weights, interval_of, judge_differences, resample
from eval.metrics.curve import ImageScores, pixel_metrics


def mean_of(values: np.ndarray):
    return lambda weights: weights @ values / weights.sum(axis=1)


def paired_test(first: np.ndarray, second: np.ndarray):
    drawn = [resample(mean_of(values), len(values)) for values in (first, second)]
    return judge_differences(first.mean() - second.mean(), drawn[0] - drawn[1])


def test_the_interval_of_a_mean_is_scipys():
    values = np.random.default_rng(0).exponential(size=40)
    ours = bootstrap_interval(mean_of(values), 40, count=8000)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=8000, method="percentile", random_state=np.random.default_rng(1)
    ).confidence_interval
    # Monte Carlo error of a 2.5 % quantile from 8000 draws of standard deviation 0.15 is about 0.005.
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.03)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(200):
        low, high = bootstrap_interval(mean_of(rng.normal(size=60)), 60, count=400)
        covered += low <= 0 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_resampled_sets_are_a_function_of_the_seed_and_keep_the_size():
    weights = draw_weights(7, 50, seed=3)
    np.testing.assert_array_equal(weights.sum(axis=1), 7)
    np.testing.assert_array_equal(weights, draw_weights(7, 50, seed=3))
    assert (weights != draw_weights(7, 50, seed=4)).any()


def test_a_pooled_metric_is_resampled_as_if_images_were_drawn_and_pooled():
    rng = np.random.default_rng(4)
    positives = [np.sort(rng.normal(1, 1, 50).astype(np.float32)) for _ in range(5)]
    negatives = [np.sort(rng.normal(0, 1, 400).astype(np.float32)) for _ in range(5)]
    sketch = count_images(list(map(ImageScores, positives, negatives)), range(5))
    found = resample(lambda weights: sketch.metrics(weights).ap, 5, count=30)
    for value, row in zip(found, draw_weights(5, 30), strict=True):
        drawn = [i for i, times in enumerate(row) for _ in range(int(times))]
        slow = pixel_metrics(
            np.concatenate([positives[i] for i in drawn]), np.concatenate([negatives[i] for i in drawn])
        )
        assert value == pytest.approx(slow.ap, abs=1e-3)  # few distinct scores per bin, of 2250


def test_a_better_model_is_told_from_an_equal_one():
    rng = np.random.default_rng(5)
    hardness = rng.normal(0, 3, 30)  # shared by both models
    base, equal = hardness + rng.normal(0, 0.3, 30), hardness + rng.normal(0, 0.3, 30)
    better = base + 0.5
    test = paired_test(better, equal)
    assert test.is_supported
    assert test.p_value < 0.05
    assert test.low < test.difference < test.high
    tie = paired_test(base, equal - equal.mean() + base.mean())
    assert not tie.is_supported
    assert tie.p_value > 0.5


def test_a_model_against_itself_has_p_value_one():
    values = np.arange(6.0)
    test = paired_test(values, values)
    assert (test.difference, test.low, test.high, test.p_value) == (0, 0, 0, 1)


def test_one_image_has_no_interval():
    assert bootstrap_interval(mean_of(np.array([0.5])), 1) is None
    assert interval_of(np.full(100, np.nan)) is None
