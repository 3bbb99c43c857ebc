"""Images on disk give what images in memory give."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from eval.store import ImageStore, score_arrays
from tests.support.refused import refused

Image = tuple[dict[str, np.ndarray], np.ndarray]


def drawn_images(count: int = 4) -> list[Image]:
    rng = np.random.default_rng(11)
    images = []
    for _ in range(count):
        shape = (int(rng.integers(5, 20)), 13)
        target = rng.choice(np.array([0, 1, 255], dtype=np.uint8), size=shape, p=[0.7, 0.2, 0.1])
        maps = {name: rng.standard_normal(shape).astype(np.float32) + target % 255 for name in ("A", "a/b")}
        images.append((maps, target))
    return images


def filled(folder: Path, images: list[Image]) -> ImageStore:
    store = ImageStore(folder, [{"image": str(i)} for i in range(len(images))])
    store.fill(lambda i: score_arrays(*images[i]))
    return store


def test_sorted_scores_are_those_of_each_image_in_set_order(tmp_path):
    images = drawn_images()
    images[1][1][images[1][1] == 1] = 255  # no anomaly
    store = filled(tmp_path, images)
    with store.sorted_scores("A") as found:
        assert len(found) == len(images)
        for (maps, target), scores in zip(images, found, strict=True):
            np.testing.assert_array_equal(scores.positives, np.sort(maps["A"][target == 1]))
            np.testing.assert_array_equal(scores.negatives, np.sort(maps["A"][target == 0]))
        assert sorted(path.name for path in tmp_path.iterdir()) == [f"{i}.npz" for i in range(4)]


def test_a_file_that_is_damaged_meanwhile_is_named(tmp_path):
    store = filled(tmp_path, drawn_images())
    store.path(1).write_bytes(b"no")
    with refused("1.npz: was removed or damaged meanwhile"):
        store.measure("A")


def test_void_pixels_do_not_count_and_some_must_be_anomalous(tmp_path):
    maps = {"A": np.array([[0, 1, 9, np.nan]], dtype=np.float32)}
    store = filled(tmp_path / "void", [(maps, np.array([[0, 1, 255, 255]], dtype=np.uint8))])
    assert store.measure("A") == (1.0, 0.0, 1.0, 1.0, 1.0)
    store = filled(tmp_path / "normal", [(maps, np.array([[0, 0, 255, 255]], dtype=np.uint8))])
    with refused("no anomalous pixel"):
        store.measure("A")
