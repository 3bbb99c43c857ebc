"""Mean IoU and calibration error against torchmetrics and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics import JaccardIndex
from torchmetrics.classification import BinaryCalibrationError, MulticlassCalibrationError

from eval.metrics import closed_set
from eval.metrics.closed_set import (
    NUM_BINS,
    ClosedSetCounts,
    count_classes,
    count_confidence,
    count_scene,
    expected_calibration_error,
    iou_of,
    mean_iou,
    measure_closed_set,
)
from tests.support.refused import refused


def drawn_maps(highest: int = 19) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(2)
    maps = []
    for _ in range(3):
        label, wrong = rng.integers(0, highest, (2, 24, 37)).astype(np.uint8)
        prediction = np.where(rng.random(label.shape) < 0.4, wrong, label)
        label[rng.random(label.shape) < 0.1] = 255
        maps.append((label, prediction))
    return maps


@pytest.mark.parametrize("highest", [19, 7], ids=["all classes", "absent classes"])
def test_iou_matches_torchmetrics_and_images_add_up(highest):
    maps = drawn_maps(highest)
    metric = JaccardIndex(task="multiclass", num_classes=19, ignore_index=255, average="macro")
    for label, prediction in maps:
        metric.update(torch.from_numpy(prediction)[None].long(), torch.from_numpy(label)[None].long())
    counts = sum(count_classes(*pair) for pair in maps)
    assert mean_iou(counts) == pytest.approx(metric.compute().item(), abs=1e-6)
    np.testing.assert_array_equal(mean_iou(np.stack([counts, 0 * counts])), [mean_iou(counts), np.nan])


@pytest.mark.parametrize(
    ("label", "prediction", "iou"),
    [([0, 1, 254, 255], [0, 0, 5, 6], {0: 0.5, 1: 0.0}), ([0, 0, 0, 0], [0, 0, 0, 3], {0: 0.75, 3: 0.0})],
    ids=["outliers and void do not count", "a class that is only predicted counts with zero"],
)
def test_iou_by_hand(label, prediction, iou):
    counts = count_classes(np.array([label], np.uint8), np.array([prediction], np.uint8))
    assert {i: value for i, value in enumerate(iou_of(counts).tolist()) if value == value} == iou
    assert mean_iou(counts) == sum(iou.values()) / 2


def test_images_beyond_the_exact_range_are_counted_in_parts(monkeypatch):
    label, prediction = drawn_maps()[0]
    whole = count_classes(label, prediction)
    monkeypatch.setattr(closed_set, "_MAX_PIXELS", 100)
    np.testing.assert_array_equal(count_classes(label, prediction), whole)


def test_a_label_outside_the_convention_and_void_alone_are_refused():
    label = np.full((2, 2), 26, dtype=np.uint8)
    with refused(r"label value 26; allowed are 0\.\.18, 254 \(outlier\) and 255"):
        count_classes(label, np.zeros_like(label))
    with refused("no labelled pixel was seen"):
        measure_closed_set(ClosedSetCounts(np.zeros((2, 19, 19), int), np.zeros((2, 3, NUM_BINS))))


def test_error_of_confidences_matches_torchmetrics():
    generator = torch.Generator().manual_seed(0)
    probability = torch.randn(3, 5, 40, 30, generator=generator).softmax(dim=1)
    truth = torch.randint(0, 5, (3, 40, 30), generator=generator)
    expected = MulticlassCalibrationError(5, n_bins=NUM_BINS)(probability, truth)
    confidence, prediction = probability.max(dim=1)
    everywhere = np.ones((40, 30), bool)
    sides = zip(confidence.numpy(), (prediction == truth).numpy(), strict=True)
    counts = sum(count_confidence(*side, everywhere) for side in sides)
    assert float(expected_calibration_error(counts)) == pytest.approx(expected.item(), abs=1e-6)


def evidence_of(label: np.ndarray, share: float) -> torch.Tensor:
    """A mask model that claims a tenth of each pixel: `share` of it for its class, the rest for the next."""
    one_hot = torch.nn.functional.one_hot(torch.from_numpy(label).long(), 19).permute(2, 0, 1).float()
    return 0.1 * (share * one_hot + (1 - share) * one_hot.roll(1, dims=0))


@pytest.mark.parametrize(("share", "error"), [(1.0, 0.0), (0.8, 0.2)])
def test_confidence_of_a_mask_model_is_the_share_of_evidence(share, error):
    label = np.arange(19 * 12, dtype=np.uint8).reshape(12, 19) % 19
    confusion, confidence = count_scene(evidence_of(label, share), label, has_evidence=True)
    assert mean_iou(confusion) == 1
    assert float(expected_calibration_error(confidence)) == pytest.approx(error, abs=1e-6)


def test_confidence_of_a_pixel_network_is_the_softmax_of_its_logits():
    label = np.zeros((3, 4), dtype=np.uint8)
    logits = torch.randn(19, 3, 4, generator=torch.Generator().manual_seed(0))
    _, confidence = count_scene(logits, label, has_evidence=False)
    assert confidence[1].sum() == pytest.approx(float(logits.softmax(dim=0).amax(dim=0).sum()), rel=1e-6)


def test_pixels_of_unknown_truth_take_no_part():
    confidence = np.array([[0.9, 0.1, 0.5]], np.float32)
    counts = count_confidence(confidence, np.array([[True, True, False]]), np.array([[True, False, True]]))
    expected = BinaryCalibrationError(n_bins=NUM_BINS)(torch.tensor([0.9, 0.5]), torch.tensor([1, 0]))
    assert float(expected_calibration_error(counts)) == pytest.approx(expected.item(), abs=1e-6)


def test_certain_and_impossible_lie_in_the_outer_bins():
    confidence, is_right = np.array([[0, 1]], np.float32), np.array([[False, True]])
    counts = count_confidence(confidence, is_right, np.ones((1, 2), bool))
    assert (counts[0, 0], counts[0, -1]) == (1, 1)
    assert float(expected_calibration_error(counts)) == 0
    assert np.isnan(expected_calibration_error(np.zeros((3, NUM_BINS))))
