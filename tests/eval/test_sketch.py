"""Sketches are read back as they were written, and compared on the same resampled sets."""

from __future__ import annotations

import numpy as np
import pytest

from eval.metrics.binned import count_images
from eval.metrics.bootstrap import draw_weights
from eval.metrics.curve import ImageScores
from eval.sketch import Sketch, compare_resampled, read_sketch, resample_sketch, write_sketch
from tests.support.refused import refused


def drawn(seed: int, shift: float, num_images: int = 12) -> Sketch:
    rng = np.random.default_rng(seed)
    positives = [np.sort(rng.normal(shift, 1, 80).astype(np.float32)) for _ in range(num_images)]
    negatives = [np.sort(rng.normal(0, 1, 900).astype(np.float32)) for _ in range(num_images)]
    stems = tuple(f"frame{i}" for i in range(num_images))
    counts = count_images(list(map(ImageScores, positives, negatives)), range(num_images))
    return Sketch(counts, stems, "native")


def test_a_sketch_is_read_back(tmp_path):
    sketch = drawn(0, 1)
    write_sketch(tmp_path / "s" / "a.npz", sketch)
    again = read_sketch(tmp_path / "s" / "a.npz")
    assert (again.stems, again.protocol) == (sketch.stems, sketch.protocol)
    for ours, theirs in zip(again.counts.__dict__.values(), sketch.counts.__dict__.values(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_clearly_better_model_is_supported_and_an_equal_one_is_not():
    good, poor, also_poor = (resample_sketch(drawn(i, shift)) for i, shift in enumerate((2, 1, 1)))
    better = compare_resampled([[good]], [[poor]], "ap")
    assert better.is_supported
    assert better.difference > 0.2
    assert compare_resampled([[good]], [[poor]], "fpr95").high < 0
    assert not compare_resampled([[poor]], [[also_poor]], "ap").is_supported
    itself = compare_resampled([[good]], [[good]], "ap")
    assert (itself.difference, itself.low, itself.high) == (0, 0, 0)


@pytest.mark.parametrize(("metric", "protocol"), [("ap", "native"), ("fpr95", "course-512")])
def test_models_are_compared_on_the_same_resampled_sets(metric, protocol):
    first, second = (drawn(seed, shift)._replace(protocol=protocol) for seed, shift in ((0, 2), (1, 1)))
    test = compare_resampled([[resample_sketch(first)]], [[resample_sketch(second)]], metric)
    both = [
        getattr(sketch.counts.metrics(weights, interpolate=protocol == "course-512"), metric)
        for sketch in (first, second)
        for weights in (np.ones((1, 12)), draw_weights(12, 1000))
    ]
    assert test.difference == pytest.approx(float((both[0] - both[2])[0]), rel=1e-9)
    np.testing.assert_allclose(
        (test.low, test.high), np.quantile(both[1] - both[3], [0.025, 0.975]), rtol=1e-9
    )


def test_the_mean_over_sets_of_independent_images_varies_less():
    """Two sets are drawn apart from each other, though both have twelve images."""
    good, poor = (resample_sketch(drawn(seed, shift)) for seed, shift in ((0, 2), (1, 1)))
    one, two = (compare_resampled([[good] * count], [[poor] * count], "ap") for count in (1, 2))
    assert two.difference == pytest.approx(one.difference)
    assert two.high - two.low == pytest.approx((one.high - one.low) / 2**0.5, rel=0.1)
    assert (one.seeds, one.images, two.images) == (1, 12, 24)


def test_other_files_are_refused(tmp_path):
    (tmp_path / "c.npz").write_text("no")
    with refused("c.npz: no sketch of an evaluation"):
        read_sketch(tmp_path / "c.npz")
