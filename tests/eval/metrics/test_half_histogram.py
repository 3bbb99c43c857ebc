"""Counts per float16 value against scikit-learn on the scores themselves."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from eval.metrics.curve import FPR_RULES, pixel_metrics
from eval.metrics.half_histogram import VALUES, CountedScores, HalfHistogram, choose_bins
from shards.errors import InputError


def draw(seed: int = 0, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Anomalous and normal scores, with infinities, both zeros and many ties."""
    rng = np.random.default_rng(seed)
    positives = (scale * (rng.standard_normal(3_000) + 1)).astype(np.float16)
    negatives = (scale * rng.standard_normal(40_000)).astype(np.float16)
    positives[:20], negatives[:50], negatives[50:90] = 0.0, -0.0, -np.inf
    return positives, negatives


def filled(*pools: tuple[np.ndarray, np.ndarray]) -> HalfHistogram:
    histogram = HalfHistogram()
    for pool in pools:
        histogram.add(*pool)
    return histogram


@pytest.mark.parametrize("scale", [1e-6, 1.0, 300.0], ids=["subnormal", "ordinary", "coarse"])
def test_metrics_equal_sklearn_on_the_same_scores(scale):
    positives, negatives = draw(scale=scale)
    scores = np.concatenate([positives, negatives]).astype(np.float64)
    scores[np.isneginf(scores)] = -1e6  # scikit-learn refuses infinities; the order is the same
    truth = np.repeat([1, 0], [positives.size, negatives.size])
    found = filled((positives, negatives)).metrics()
    fpr, tpr, _ = roc_curve(truth, scores, drop_intermediate=False)
    precision, recall, _ = precision_recall_curve(truth, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    assert found.ap == pytest.approx(average_precision_score(truth, scores), abs=1e-13)
    assert found.auroc == pytest.approx(roc_auc_score(truth, scores), abs=1e-13)
    assert found.fpr95 == fpr[np.argmax(tpr >= 0.95)]
    assert found.best_f1 == pytest.approx(f1.max(), abs=1e-13)


@pytest.mark.parametrize("rule", FPR_RULES)
def test_metrics_are_those_of_sorted_scores_under_every_rule(rule):
    positives, negatives = draw()
    sorted_ones = pixel_metrics(positives.astype(np.float32), negatives.astype(np.float32), fpr_rule=rule)
    assert filled((positives, negatives)).metrics(fpr_rule=rule) == pytest.approx(sorted_ones, abs=1e-13)


def test_images_and_processes_add_up():
    pools = [draw(seed) for seed in range(3)]
    whole = filled(*pools)
    merged = filled(pools[2])
    merged.merge(filled(*pools[:2]))
    assert merged.metrics() == whole.metrics()
    assert whole.positives.nbytes + whole._counts.nbytes < 16e6


def test_a_frame_counts_without_its_void():
    scores, target = np.arange(6, dtype=np.float16).reshape(2, 3), np.array([[0, 1, 255], [255, 0, 1]])
    histogram = HalfHistogram()
    histogram.add_map(scores, target.astype(np.uint8))
    assert VALUES[histogram.positives > 0].tolist() == [1, 5]
    assert VALUES[histogram.negatives > 0].tolist() == [0, 4]


def test_counts_read_as_a_sorted_sequence():
    scores = draw()[1]
    counted = CountedScores(filled((scores, scores[:0])).positives)
    expected = np.sort(scores.astype(np.float32))
    assert [counted.nth(i) for i in (0, 60, 20_000, 39_999)] == expected[[0, 60, 20_000, 39_999]].tolist()
    values = np.array([-np.inf, -3, 0, 0.1, 9], np.float32)
    np.testing.assert_array_equal(counted.count_below(values), np.searchsorted(expected, values, "left"))
    np.testing.assert_array_equal(counted.count_not_above(values), np.searchsorted(expected, values, "right"))


@pytest.mark.parametrize("num_bins", [100, 100_000])
def test_bins_are_every_value_or_cut_each_class_evenly(num_bins):
    histogram = filled(draw())
    bins = choose_bins((histogram.positives, histogram.negatives), num_bins)
    if num_bins > 65_536:
        assert bins.tolist() == np.unique(np.concatenate(draw())).tolist()
        return
    assert bins.size <= num_bins
    for scores in draw():
        inside = np.histogram(scores.astype(np.float64), [-np.inf, *bins[bins > -np.inf].tolist(), np.inf])[0]
        at_bin = np.isin(scores, bins).sum()
        assert inside.max() <= 8 * scores.size / num_bins + at_bin


def test_what_cannot_be_measured_is_named():
    with pytest.raises(InputError, match="metrics: no anomalous pixel"):
        filled((np.zeros(0, np.float16), np.ones(3, np.float16))).metrics()
    with pytest.raises(InputError, match="metrics: 2 scores are NaN"):
        filled((np.ones(1, np.float16), np.array([0, np.nan, -np.nan], np.float16))).metrics()
