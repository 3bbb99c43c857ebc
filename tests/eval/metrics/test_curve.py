"""Pixel metrics against scikit-learn, and by hand where a convention matters."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from eval.metrics.curve import FPR_RULES, pixel_metrics, pooled_metrics
from eval.metrics.runs import SortedRuns
from shards.errors import InputError


def float32(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def sklearn_metrics(positives: np.ndarray, negatives: np.ndarray) -> tuple[float, float, float, float, float]:
    truth = np.repeat([1, 0], [positives.size, negatives.size])
    scores = np.concatenate([positives, negatives]).astype(np.float64)
    scores = np.nan_to_num(scores, posinf=1e300, neginf=-1e300)  # scikit-learn refuses infinity
    fpr, tpr, _ = roc_curve(truth, scores, drop_intermediate=False)
    precision, recall, thresholds = precision_recall_curve(truth, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
    best = f1.max()
    threshold = thresholds[np.flatnonzero(f1[:-1] >= best - 1e-15)[-1]]
    return (
        float(average_precision_score(truth, scores)),
        float(fpr[np.argmax(tpr >= 0.95)]),
        float(roc_auc_score(truth, scores)),
        float(best),
        float(np.inf * threshold if abs(threshold) >= 1e300 else threshold),
    )


def runs_of(scores: np.ndarray, count: int) -> SortedRuns:
    """Deal the scores out to `count` images."""
    return SortedRuns([np.sort(scores[i::count]) for i in range(count)])


def drawn(kind: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    positives = rng.standard_normal(3001).astype(np.float32) + np.float32(1)
    negatives = rng.standard_normal(20011).astype(np.float32)
    if kind == "heavy ties":
        return np.round(positives), np.round(negatives)
    if kind == "one value":
        return np.zeros_like(positives), np.zeros_like(negatives)
    if kind == "signed zeros":
        return np.where(positives < 1, np.float32(-0.0), positives), np.where(
            negatives < 0, np.float32(0), negatives
        )
    if kind == "infinities":
        positives[:100], positives[100:150] = np.inf, -np.inf
        negatives[:70], negatives[70:900] = np.inf, -np.inf
    if kind == "few positives":
        return positives[:20], negatives  # 19 of 20 is exactly 0.95
    return positives, negatives


KINDS = ["distinct", "heavy ties", "one value", "signed zeros", "infinities", "few positives"]


@pytest.mark.parametrize("kind", KINDS)
def test_metrics_match_sklearn(kind):
    positives, negatives = drawn(kind)
    expected = sklearn_metrics(positives, negatives)
    np.testing.assert_allclose(pixel_metrics(positives, negatives), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", list(FPR_RULES))
@pytest.mark.parametrize("count", [1, 37])
def test_any_number_of_runs_and_any_interval_give_the_same_metrics(kind, rule, count):
    positives, negatives = drawn(kind)
    expected = pixel_metrics(positives, negatives, fpr_rule=rule)
    for interval in (600, 4001):
        runs = runs_of(positives, count), runs_of(negatives, count)
        np.testing.assert_allclose(
            pooled_metrics(*runs, fpr_rule=rule, interval=interval), expected, rtol=0, atol=1e-13
        )


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(-3, 3), min_size=1, max_size=50),
    st.lists(st.integers(-3, 3), min_size=1, max_size=50),
)
def test_metrics_match_sklearn_on_small_tied_sets(positives, negatives):
    expected = sklearn_metrics(float32(*positives), float32(*negatives))
    ours = pixel_metrics(float32(*positives), float32(*negatives))
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_other_fpr_rules_match_the_curve_of_sklearn(kind):
    positives, negatives = drawn(kind)
    truth = np.repeat([1, 0], [positives.size, negatives.size])
    scores = np.nan_to_num(np.concatenate([positives, negatives]), posinf=1e30, neginf=-1e30)
    fpr, tpr, _ = roc_curve(truth, scores, drop_intermediate=False)
    above = pixel_metrics(positives, negatives, fpr_rule="first-above").fpr95
    between = pixel_metrics(positives, negatives, fpr_rule="interpolated").fpr95
    np.testing.assert_allclose(above, fpr[np.argmax(tpr > 0.95)], atol=1e-12)
    np.testing.assert_allclose(between, np.interp(0.95, tpr, fpr), atol=1e-12)


def test_the_fpr_rules_differ_where_a_threshold_hits_95_percent():
    positives = float32(*range(1, 21))  # the 19th best is 2
    negatives = float32(0.5, 1.5, 1.7, 2.5)
    values = {rule: pixel_metrics(positives, negatives, fpr_rule=rule).fpr95 for rule in FPR_RULES}
    assert values == {"first-at-least": 0.25, "first-above": 0.75, "interpolated": 0.75}


def test_four_pixels_by_hand():
    metrics = pixel_metrics(float32(4, 2), float32(3, 1))
    assert metrics == pytest.approx(((1 + 2 / 3) / 2, 0.5, 0.75, 0.8, 2))


def test_inputs_stay_as_they_are_unless_lent():
    positives, negatives = drawn("distinct")
    before = positives.copy(), negatives.copy()
    kept = pixel_metrics(positives, negatives)
    np.testing.assert_array_equal(positives, before[0])
    np.testing.assert_array_equal(negatives, before[1])
    assert pixel_metrics(positives, negatives, overwrite=True) == kept


def test_nan_is_refused():
    with pytest.raises(InputError, match="2 of 3 scores of normal pixels are NaN"):
        pixel_metrics(float32(1), float32(np.nan, 0, -np.nan))


def test_an_empty_class_is_refused():
    with pytest.raises(InputError, match="no anomalous pixel; AP, FPR95 and AUROC need both classes"):
        pixel_metrics(float32(), float32(1))
    with pytest.raises(InputError, match="no normal pixel"):
        pixel_metrics(float32(1), float32())
