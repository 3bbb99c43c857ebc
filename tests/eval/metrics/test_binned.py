"""The sketch of a set against the exact metrics of the set, as it is and resampled."""

from __future__ import annotations

import numpy as np
import pytest

from eval.metrics.binned import count_images
from eval.metrics.curve import pixel_metrics


def drawn(kind: str, num_images: int = 6) -> tuple[list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(5)
    positives, negatives = [], []
    for i in range(num_images):
        shift = rng.normal(0, 0.5)
        count = 0 if kind == "image without anomaly" and i == 2 else int(rng.integers(300, 3000))
        positives.append(rng.normal(1.5 + shift, 1, count).astype(np.float32))
        negatives.append(rng.normal(shift, 1, 20_000).astype(np.float32))
        if kind == "half precision":
            positives[-1] = positives[-1].astype(np.float16).astype(np.float32)
            negatives[-1] = negatives[-1].astype(np.float16).astype(np.float32)
        if kind == "saturated":
            positives[-1], negatives[-1] = np.clip(positives[-1], 0, 2), np.clip(negatives[-1], 0, 2)
        if kind == "few values":
            positives[-1], negatives[-1] = np.round(positives[-1]), np.round(negatives[-1])
    return [np.sort(p) for p in positives], [np.sort(n) for n in negatives]


def repeated(arrays: list[np.ndarray], weights: np.ndarray) -> np.ndarray:
    return np.concatenate([np.tile(a, int(w)) for a, w in zip(arrays, weights, strict=True)])


KINDS = ["distinct", "half precision", "saturated", "few values", "image without anomaly"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_resampled_set_has_the_metrics_of_its_pixels(kind):
    positives, negatives = drawn(kind)
    sketch = count_images(range(6), positives, negatives)
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


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_bins", [40, 4096])
def test_the_exact_numbers_lie_within_the_stated_bounds(kind, num_bins):
    positives, negatives = drawn(kind)
    sketch = count_images(range(6), positives, negatives, num_bins)
    ap, fpr95 = sketch.bounds()
    exact = pixel_metrics(np.concatenate(positives), np.concatenate(negatives))
    assert ap[0] - 1e-12 <= exact.ap <= ap[1] + 1e-12
    assert fpr95[0] - 1e-12 <= exact.fpr95 <= fpr95[1] + 1e-12
    assert num_bins == 40 or ap[1] - ap[0] < 4e-3


def test_the_interpolated_rule_goes_between_ties():
    positives, negatives = drawn("few values")
    sketch = count_images(range(6), positives, negatives)
    exact = pixel_metrics(np.concatenate(positives), np.concatenate(negatives), fpr_rule="interpolated")
    assert sketch.metrics(np.ones((1, 6)), interpolate=True).fpr95[0] == pytest.approx(exact.fpr95, abs=1e-12)


def test_a_set_without_positives_has_no_metric():
    positives, negatives = drawn("image without anomaly")
    sketch = count_images(range(6), positives, negatives)
    assert np.isnan(sketch.metrics(np.array([[0, 0, 6.0, 0, 0, 0]]))).all()
