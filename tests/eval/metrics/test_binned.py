"""Counts per bin against the exact metrics of the set, as it is and resampled, and against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from eval.metrics.binned import (
    ImageCounts,
    choose_splitters,
    count_images,
    count_scores,
    nth_scores,
)
from eval.metrics.curve import ImageScores, pixel_metrics


def drawn(kind: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
    change = {
        "half precision": lambda scores: scores.astype(np.float16).astype(np.float32),
        "saturated": lambda scores: np.clip(scores, 0, 2),
        "few values": np.round,
    }.get(kind, np.asarray)
    rng = np.random.default_rng(5)
    positives, negatives = [], []
    for i in range(6):
        shift = rng.normal(0, 0.5)
        count = 0 if kind == "image without anomaly" and i == 2 else int(rng.integers(300, 3000))
        positives.append(np.sort(change(rng.normal(1.5 + shift, 1, count).astype(np.float32))))
        negatives.append(np.sort(change(rng.normal(shift, 1, 20_000).astype(np.float32))))
    return positives, negatives


def sketch_of(kind: str, num_bins: int = 4096) -> tuple[ImageCounts, list[np.ndarray], list[np.ndarray]]:
    positives, negatives = drawn(kind)
    return (
        count_images(list(map(ImageScores, positives, negatives)), range(6), num_bins),
        positives,
        negatives,
    )


def repeated(arrays: list[np.ndarray], weights: np.ndarray) -> np.ndarray:
    return np.concatenate([np.tile(a, int(w)) for a, w in zip(arrays, weights, strict=True)])


KINDS = ["distinct", "half precision", "saturated", "few values", "image without anomaly"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_resampled_set_has_the_metrics_of_its_pixels(kind):
    sketch, positives, negatives = sketch_of(kind)
    weights = np.array([[1, 1, 1, 1, 1, 1], [0, 2, 0, 3, 1, 0], [4, 0, 2, 0, 0, 0]], dtype=np.float64)
    found = sketch.metrics(weights)
    for i, row in enumerate(weights):
        exact = pixel_metrics(repeated(positives, row), repeated(negatives, row))
        # Of some thousand positives, drawn up to four times each, one is a step of 1e-3 in recall; the sketch
        # spreads such steps evenly. An interval is points wide.
        tolerance = 1e-12 if kind == "few values" else 1e-3
        assert found.ap[i] == pytest.approx(exact.ap, abs=tolerance)
        assert found.auroc[i] == pytest.approx(exact.auroc, abs=tolerance)
        assert found.best_f1[i] == pytest.approx(exact.best_f1, abs=5e-4)
        assert found.fpr95[i] == pytest.approx(exact.fpr95, abs=tolerance if kind == "few values" else 2e-3)


def test_few_bins_are_near_the_metrics_too():
    sketch, positives, negatives = sketch_of("distinct", num_bins=40)
    exact = pixel_metrics(np.concatenate(positives), np.concatenate(negatives))
    assert sketch.single.size < 120
    for found, expected in zip(sketch.metrics(np.ones((1, 6))), exact[:4], strict=True):
        assert found[0] == pytest.approx(expected, abs=0.02)


def test_the_interpolated_rule_goes_between_ties():
    sketch, positives, negatives = sketch_of("few values")
    exact = pixel_metrics(np.concatenate(positives), np.concatenate(negatives), fpr_rule="interpolated")
    assert sketch.metrics(np.ones((1, 6)), interpolate=True).fpr95[0] == pytest.approx(exact.fpr95, abs=1e-12)


def test_a_set_without_positives_has_no_metric():
    sketch, *_ = sketch_of("image without anomaly")
    assert np.isnan(sketch.metrics(np.array([[0, 0, 6.0, 0, 0, 0]]))).all()


def test_scores_may_be_rounded_while_they_are_counted():
    positives, negatives = drawn("distinct")

    def half(scores: np.ndarray) -> np.ndarray:
        return scores.astype(np.float16).astype(np.float32)

    rounded = count_images(
        [ImageScores(half(p), half(n)) for p, n in zip(positives, negatives, strict=True)], range(6)
    )
    found = count_images(list(map(ImageScores, positives, negatives)), range(6), rounded=half)
    for ours, expected in zip(vars(found).values(), vars(rounded).values(), strict=True):
        np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize("most", [12, 100, 2000, 10**6])
def test_open_intervals_between_splitters_are_small(ties, most):
    rng = np.random.default_rng(1)
    runs = [rng.standard_normal(size).astype(np.float32) for size in (0, 1, 7, 500, 3000)]
    if ties:
        runs = [np.round(run) for run in runs]
        runs[3][:20], runs[4][:9] = np.inf, -np.inf
    splitters = choose_splitters([np.sort(run) for run in runs], most)
    scores = np.concatenate(runs)
    inside = np.searchsorted(splitters, scores[~np.isin(scores, splitters)])
    assert np.bincount(inside, minlength=1).max() <= most


def split(scores: np.ndarray, pieces: int) -> list[np.ndarray]:
    return [np.sort(part) for part in np.array_split(scores.astype(np.float32), pieces)]


@pytest.mark.parametrize("pieces", [1, 3])
def test_histograms_are_those_of_numpy_whatever_the_images(pieces):
    rng = np.random.default_rng(0)
    normal, anomalous = rng.normal(0, 1, 5001), rng.normal(2, 1, 301)
    spread = count_scores(split(anomalous, pieces), split(normal, pieces))
    for counts, scores in ((spread.normal, normal), (spread.anomalous, anomalous)):
        assert counts.tolist() == np.histogram(scores.astype(np.float32), spread.edges)[0].tolist()
        assert counts.sum() == scores.size
    assert spread.edges[0] == pytest.approx(min(normal.min(), anomalous.min()))
    assert spread.gap == pytest.approx(np.median(anomalous) - np.median(normal), abs=1e-6)


def test_equal_and_infinite_scores_are_counted():
    same = count_scores([np.full(3, 0.5, np.float32)], [np.full(4, 0.5, np.float32)])
    assert (same.normal.sum(), same.anomalous.sum(), same.gap) == (4, 3, 0.0)
    ends = [np.array([-np.inf, 0.0, np.inf], np.float32)]
    spread = count_scores(ends, ends)
    assert np.isfinite(spread.edges).all()
    assert spread.normal.sum() == 3


def test_positions_are_those_of_the_joined_array():
    scores = np.round(np.random.default_rng(0).standard_normal(3000), 1)
    scores[:20], scores[20:29] = np.inf, -np.inf
    indices = [0, 8, 9, 1700, 2979, 2980, 2999]
    expected = np.sort(scores.astype(np.float32))[indices]
    np.testing.assert_array_equal(nth_scores(split(scores, 4), indices), expected)
