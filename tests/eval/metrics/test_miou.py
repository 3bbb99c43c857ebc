"""Mean IoU against torchmetrics and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics import JaccardIndex

from eval.metrics import closed_set as miou
from eval.metrics.closed_set import ConfusionMatrix
from shards.errors import InputError


def drawn_maps(count: int = 3, highest: int = 19) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(2)
    maps = []
    for _ in range(count):
        label = rng.integers(0, highest, (24, 37)).astype(np.uint8)
        wrong = rng.integers(0, highest, label.shape).astype(np.uint8)
        prediction = np.where(rng.random(label.shape) < 0.4, wrong, label)
        label[rng.random(label.shape) < 0.1] = 255
        maps.append((label, prediction))
    return maps


def counted(maps: list[tuple[np.ndarray, np.ndarray]]) -> ConfusionMatrix:
    matrix = ConfusionMatrix()
    for label, prediction in maps:
        matrix.add(label, prediction)
    return matrix


@pytest.mark.parametrize("highest", [19, 7], ids=["all classes", "absent classes"])
def test_iou_matches_torchmetrics(highest):
    maps = drawn_maps(highest=highest)
    metric = JaccardIndex(task="multiclass", num_classes=19, ignore_index=255, average="macro")
    for label, prediction in maps:
        metric.update(torch.from_numpy(prediction)[None].long(), torch.from_numpy(label)[None].long())
    assert counted(maps).mean_iou() == pytest.approx(metric.compute().item(), abs=1e-6)


def test_outliers_and_void_do_not_count():
    label = np.array([[0, 1, 254, 255]], dtype=np.uint8)
    prediction = np.array([[0, 0, 5, 6]], dtype=np.uint8)
    matrix = counted([(label, prediction)])
    assert matrix.counts.sum() == 2
    np.testing.assert_array_equal(matrix.iou()[:2], [0.5, 0.0])
    assert np.isnan(matrix.iou()[2:]).all()
    assert matrix.mean_iou() == 0.25


def test_a_class_that_is_only_predicted_counts_with_zero():
    matrix = counted([(np.zeros((1, 4), dtype=np.uint8), np.array([[0, 0, 0, 3]], dtype=np.uint8))])
    assert matrix.mean_iou() == 0.75 / 2


def test_merged_counts_equal_those_of_one_process():
    maps = drawn_maps()
    first, second = counted(maps[:1]), counted(maps[1:])
    first.merge(second)
    np.testing.assert_array_equal(first.counts, counted(maps).counts)


def test_images_beyond_the_exact_range_are_counted_in_parts(monkeypatch):
    maps = drawn_maps(1)
    whole = counted(maps).counts
    monkeypatch.setattr(miou, "_MAX_PIXELS", 100)
    np.testing.assert_array_equal(counted(maps).counts, whole)


def test_a_label_outside_the_convention_is_named():
    label = np.full((2, 2), 26, dtype=np.uint8)
    with pytest.raises(InputError, match=r"label value 26; allowed are 0\.\.18, 254 \(outlier\) and 255"):
        ConfusionMatrix().add(label, np.zeros_like(label))


def test_only_void_has_no_mean():
    matrix = counted([(np.full((2, 2), 255, dtype=np.uint8), np.zeros((2, 2), dtype=np.uint8))])
    with pytest.raises(InputError, match="no labelled pixel was seen"):
        matrix.mean_iou()
