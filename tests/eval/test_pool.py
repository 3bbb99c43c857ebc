"""Pooling on disk gives what pooling in memory gives."""

from __future__ import annotations

import os

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from eval.pool import ScorePool
from shards.errors import InputError


def drawn_images(count: int = 4) -> list[tuple[dict[str, np.ndarray], np.ndarray]]:
    rng = np.random.default_rng(11)
    images = []
    for _ in range(count):
        shape = (int(rng.integers(5, 20)), 13)
        target = rng.choice(np.array([0, 1, 255], dtype=np.uint8), size=shape, p=[0.7, 0.2, 0.1])
        maps = {name: rng.standard_normal(shape).astype(np.float32) + target % 255 for name in ("A", "B")}
        images.append((maps, target))
    return images


def filled(images: list[tuple[dict[str, np.ndarray], np.ndarray]], first: int = 0) -> ScorePool:
    pool = ScorePool(["A", "B"])
    for i, (scores, target) in enumerate(images):
        pool.add(scores, target, first + i)
    return pool


def test_pooled_metrics_match_sklearn_over_all_pixels():
    images = drawn_images()
    truth = np.concatenate([target[target != 255] for _, target in images])
    with filled(images) as pool:
        assert (pool.num_images, pool.num_pixels, pool.num_anomalous) == (4, truth.size, int(truth.sum()))
        for name in ("A", "B"):
            scores = np.concatenate([maps[name][target != 255] for maps, target in images])
            metrics = pool.metrics(name)
            assert metrics.ap == pytest.approx(average_precision_score(truth, scores), abs=1e-12)
            assert metrics.auroc == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)


def test_order_and_merging_change_nothing():
    images = drawn_images()
    with filled(images) as whole, filled(images[2:], first=2) as merged, filled(images[:2]) as rest:
        merged.merge(rest)
        assert merged.metrics("A") == whole.metrics("A")
        assert (merged.num_images, merged.num_pixels) == (whole.num_images, whole.num_pixels)
        assert merged.images == [0, 1, 2, 3]
        for ours, theirs in zip(merged.runs("B")[1], whole.runs("B")[1], strict=True):
            np.testing.assert_array_equal(ours, theirs)  # images lie in the order of the set again


def test_a_saved_pool_is_read_back(tmp_path):
    with filled(drawn_images()) as pool:
        pool.save(tmp_path / "saved")
        with ScorePool.load(tmp_path / "saved", tmp_path) as loaded:
            assert loaded.images == pool.images
            assert loaded.metrics("B") == pool.metrics("B")
            for ours, theirs in zip(loaded.runs("A")[0], pool.runs("A")[0], strict=True):
                np.testing.assert_array_equal(ours, theirs)


def test_a_saved_pool_that_was_cut_off_is_refused(tmp_path):
    with filled(drawn_images()) as pool:
        pool.save(tmp_path / "saved")
    (tmp_path / "saved" / "1.f32").write_bytes(b"1234")
    with pytest.raises(InputError, match=r"1.f32: expected \d+ bytes of scores; it was cut off"):
        ScorePool.load(tmp_path / "saved")
    with pytest.raises(InputError, match="nowhere: no saved pool of scores"):
        ScorePool.load(tmp_path / "nowhere")


def test_images_can_be_added_after_a_metric_was_read():
    images = drawn_images()
    with filled(images[:3]) as pool, filled(images) as whole:
        pool.metrics("A")
        pool.add(*images[3])
        assert pool.metrics("A") == whole.metrics("A")


def test_void_pixels_do_not_count():
    target = np.array([[0, 1, 255, 255]], dtype=np.uint8)
    with ScorePool(["A"]) as pool:
        pool.add({"A": np.array([[0, 1, 9, np.nan]], dtype=np.float32)}, target)
        assert pool.num_pixels == 2
        assert pool.metrics("A") == (1.0, 0.0, 1.0, 1.0, 1.0)


def test_nothing_is_left_in_the_folder(tmp_path):
    with ScorePool(["A"], folder=tmp_path) as pool:
        pool.add({"A": np.ones((2, 2), dtype=np.float32)}, np.array([[0, 1], [1, 0]], dtype=np.uint8))
        assert os.listdir(tmp_path) == []  # noqa: PTH208


def test_a_pool_without_anomalies_says_so():
    with ScorePool(["A"]) as pool:
        pool.add({"A": np.ones((2, 2), dtype=np.float32)}, np.zeros((2, 2), dtype=np.uint8))
        with pytest.raises(InputError, match="no anomalous pixel"):
            pool.metrics("A")
