"""Pixel metrics against scikit-learn, and by hand where a convention matters."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from eval.metrics import curve as module
from eval.metrics.curve import (
    FPR_RULES,
    HALF_VALUES,
    Curve,
    ImageScores,
    PixelMetrics,
    count_half,
    exact_curve,
    pixel_metrics,
)
from tests.support.refused import refused


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


def drawn(kind: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    positives = rng.standard_normal(3001).astype(np.float32) + np.float32(1)
    negatives = rng.standard_normal(20011).astype(np.float32)
    match kind:
        case "heavy ties":
            return np.round(positives), np.round(negatives)
        case "one value":
            return np.zeros_like(positives), np.zeros_like(negatives)
        case "signed zeros":
            positives[positives < 1], negatives[negatives < 0] = -0.0, 0.0
        case "infinities":
            positives[:100], positives[100:150] = np.inf, -np.inf
            negatives[:70], negatives[70:900] = np.inf, -np.inf
        case "few positives":
            return positives[:20], negatives  # 19 of 20 is exactly 0.95
    return positives, negatives


def half_metrics(positives: np.ndarray, negatives: np.ndarray, rule: str = "first-at-least") -> PixelMetrics:
    counts = [count_half(scores.astype(np.float16)) for scores in (positives, negatives)]
    return Curve.from_counts(HALF_VALUES, *counts).metrics(rule)


KINDS = ["distinct", "heavy ties", "one value", "signed zeros", "infinities", "few positives"]


@pytest.mark.parametrize("kind", KINDS)
def test_metrics_match_sklearn(kind):
    positives, negatives = drawn(kind)
    expected = sklearn_metrics(positives, negatives)
    np.testing.assert_allclose(pixel_metrics(positives, negatives), expected, rtol=0, atol=1e-12)
    truth = np.repeat([1, 0], [positives.size, negatives.size])
    scores = np.nan_to_num(np.concatenate([positives, negatives]), posinf=1e30, neginf=-1e30)
    fpr, tpr, _ = roc_curve(truth, scores, drop_intermediate=False)
    rules = {"first-above": fpr[np.argmax(tpr > 0.95)], "interpolated": np.interp(0.95, tpr, fpr)}
    for rule, value in rules.items():
        found = pixel_metrics(positives, negatives, fpr_rule=rule).fpr95
        assert found == pytest.approx(value, rel=1e-7, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", FPR_RULES)
@pytest.mark.parametrize("count", [1, 37])
def test_metrics_do_not_depend_on_images_and_blocks(monkeypatch, kind, rule, count):
    positives, negatives = drawn(kind)
    expected = pixel_metrics(positives, negatives, fpr_rule=rule)
    images = [ImageScores(np.sort(positives[i::count]), np.sort(negatives[i::count])) for i in range(count)]
    assert exact_curve(images).metrics(rule) == expected
    for most in (600, 4001):
        monkeypatch.setattr(module, "_JOINED", most)
        assert exact_curve(images).metrics(rule) == expected


small_sets = st.lists(st.integers(-3, 3), min_size=1, max_size=50)


@settings(max_examples=60, deadline=None)
@given(small_sets, small_sets)
def test_metrics_match_sklearn_on_small_tied_sets(positives, negatives):
    scores = float32(*positives), float32(*negatives)
    np.testing.assert_allclose(pixel_metrics(*scores), sklearn_metrics(*scores), rtol=0, atol=1e-12)


def test_the_fpr_rules_differ_where_a_threshold_hits_95_percent():
    positives = float32(*range(1, 21))  # the 19th best is 2
    negatives = float32(0.5, 1.5, 1.7, 2.5)
    values = {rule: pixel_metrics(positives, negatives, fpr_rule=rule).fpr95 for rule in FPR_RULES}
    assert values == {"first-at-least": 0.25, "first-above": 0.75, "nearest": 0.75, "interpolated": 0.75}


def test_four_pixels_by_hand():
    metrics = pixel_metrics(float32(4, 2), float32(3, 1))
    assert metrics == pytest.approx(((1 + 2 / 3) / 2, 0.5, 0.75, 0.8, 2))


def test_inputs_stay_as_they_are():
    scores = drawn("distinct")
    pixel_metrics(*scores)
    for part, before in zip(scores, drawn("distinct"), strict=True):
        np.testing.assert_array_equal(part, before)


@pytest.mark.parametrize(
    ("measure", "positives", "negatives", "message"),
    [
        (pixel_metrics, [1], [np.nan, 0, -np.nan], "2 of 3 scores of normal pixels are NaN"),
        (pixel_metrics, [], [1], "no anomalous pixel; AP, FPR95 and AUROC need both classes"),
        (pixel_metrics, [1], [], "no normal pixel"),
        (half_metrics, [1], [0, np.nan, -np.nan], "metrics: 2 scores are NaN"),
        (half_metrics, [], [1, 1, 1], "metrics: no anomalous pixel"),
    ],
)
def test_nan_and_an_empty_class_are_refused(measure, positives, negatives, message):
    with refused(message):
        measure(float32(*positives), float32(*negatives))


def draw_half(scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Anomalous and normal scores, with infinities, both zeros and many ties."""
    rng = np.random.default_rng(0)
    positives = (scale * (rng.standard_normal(3_000) + 1)).astype(np.float16)
    negatives = (scale * rng.standard_normal(40_000)).astype(np.float16)
    positives[:20], negatives[:50], negatives[50:90] = 0.0, -0.0, -np.inf
    return positives, negatives


@pytest.mark.parametrize("scale", [1e-6, 1.0, 300.0], ids=["subnormal", "ordinary", "coarse"])
def test_half_precision_counts_match_sklearn(scale):
    scores = draw_half(scale)
    expected = sklearn_metrics(*scores)
    np.testing.assert_allclose(half_metrics(*scores)[:4], expected[:4], rtol=0, atol=1e-13)
    for rule in FPR_RULES:  # as sorted scores are read
        exact = pixel_metrics(*(part.astype(np.float32) for part in scores), fpr_rule=rule)
        assert half_metrics(*scores, rule) == pytest.approx(exact, abs=1e-13)


def test_half_precision_counts_are_those_of_numpy_and_add_up():
    scores = draw_half()[1]
    counts = count_half(scores)
    values, expected = np.unique(scores.astype(np.float32), return_counts=True)
    np.testing.assert_array_equal(HALF_VALUES[counts > 0], values)
    np.testing.assert_array_equal(counts[counts > 0], expected)
    np.testing.assert_array_equal(count_half(scores[:100]) + count_half(scores[100:]), counts)
