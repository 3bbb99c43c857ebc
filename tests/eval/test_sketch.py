"""Sketches are read back as they were written, and compare only what is comparable."""

from __future__ import annotations

import numpy as np
import pytest

from eval.metrics.binned import count_images
from eval.sketch import (
    Sketch,
    compare_resampled,
    compare_sketches,
    read_sketch,
    resample_sketch,
    write_sketch,
)
from shards.errors import InputError


def drawn(seed: int, shift: float, num_images: int = 12) -> Sketch:
    rng = np.random.default_rng(seed)
    positives = [np.sort(rng.normal(shift, 1, 80).astype(np.float32)) for _ in range(num_images)]
    negatives = [np.sort(rng.normal(0, 1, 900).astype(np.float32)) for _ in range(num_images)]
    stems = tuple(f"frame{i}" for i in range(num_images))
    return Sketch(count_images(range(num_images), positives, negatives), stems, "native")


def test_a_sketch_is_read_back(tmp_path):
    sketch = drawn(0, 1)
    write_sketch(tmp_path / "s" / "a.npz", sketch)
    again = read_sketch(tmp_path / "s" / "a.npz")
    assert (again.stems, again.protocol) == (sketch.stems, sketch.protocol)
    for ours, theirs in zip(again.counts.__dict__.values(), sketch.counts.__dict__.values(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_clearly_better_model_is_supported_and_an_equal_one_is_not(tmp_path):
    for name, sketch in (("good", drawn(0, 2)), ("poor", drawn(1, 1)), ("also poor", drawn(2, 1))):
        write_sketch(tmp_path / f"{name}.npz", sketch)
    better = compare_sketches(tmp_path / "good.npz", tmp_path / "poor.npz", "ap")
    assert better.is_supported
    assert better.difference > 0.2
    lower = compare_sketches(tmp_path / "good.npz", tmp_path / "poor.npz", "fpr95")
    assert lower.high < 0
    assert not compare_sketches(tmp_path / "poor.npz", tmp_path / "also poor.npz", "ap").is_supported


@pytest.mark.parametrize(("metric", "protocol"), [("ap", "native"), ("fpr95", "course-512")])
def test_resampling_once_for_many_comparisons_finds_the_same(tmp_path, metric, protocol):
    sketches = [drawn(seed, shift)._replace(protocol=protocol) for seed, shift in ((0, 2), (1, 1))]
    for name, sketch in zip("ab", sketches, strict=True):
        write_sketch(tmp_path / f"{name}.npz", sketch)
    kept = compare_resampled(*map(resample_sketch, sketches), metric)
    np.testing.assert_allclose(
        kept, compare_sketches(tmp_path / "a.npz", tmp_path / "b.npz", metric), rtol=1e-9
    )


def test_other_images_another_protocol_and_other_files_are_refused(tmp_path):
    write_sketch(tmp_path / "a.npz", drawn(0, 1))
    write_sketch(tmp_path / "b.npz", drawn(0, 1, num_images=5))
    (tmp_path / "c.npz").write_text("no")
    with pytest.raises(InputError, match=r"b.npz: 5 images under protocol native, but .*a.npz has 12 under"):
        compare_sketches(tmp_path / "a.npz", tmp_path / "b.npz", "ap")
    with pytest.raises(InputError, match="c.npz: no sketch of an evaluation"):
        compare_sketches(tmp_path / "a.npz", tmp_path / "c.npz", "ap")
    with pytest.raises(InputError, match="metric 'AP': allowed are ap, fpr95, auroc, best_f1"):
        compare_sketches(tmp_path / "a.npz", tmp_path / "a.npz", "AP")
