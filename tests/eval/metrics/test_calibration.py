"""Calibration error against torchmetrics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.classification import BinaryCalibrationError, MulticlassCalibrationError

from eval.metrics.closed_set import NUM_BINS, count_confidence, expected_calibration_error


def test_error_of_confidences_matches_torchmetrics():
    generator = torch.Generator().manual_seed(0)
    probability = torch.randn(3, 5, 40, 30, generator=generator).softmax(dim=1)
    truth = torch.randint(0, 5, (3, 40, 30), generator=generator)
    expected = MulticlassCalibrationError(5, n_bins=NUM_BINS)(probability, truth)
    confidence, prediction = probability.max(dim=1)
    counts = sum(
        count_confidence(c.numpy(), (p == t).numpy(), np.ones((40, 30), bool))
        for c, p, t in zip(confidence, prediction, truth, strict=True)
    )
    assert float(expected_calibration_error(counts)) == pytest.approx(expected.item(), abs=1e-6)


def test_pixels_of_unknown_truth_take_no_part():
    confidence = np.array([[0.9, 0.1, 0.5]], np.float32)
    counts = count_confidence(confidence, np.array([[True, True, False]]), np.array([[True, False, True]]))
    expected = BinaryCalibrationError(n_bins=NUM_BINS)(torch.tensor([0.9, 0.5]), torch.tensor([1, 0]))
    assert float(expected_calibration_error(counts)) == pytest.approx(expected.item(), abs=1e-6)


def test_certain_and_impossible_lie_in_the_outer_bins():
    counts = count_confidence(
        np.array([[0, 1]], np.float32), np.array([[False, True]]), np.ones((1, 2), bool)
    )
    assert (counts[0, 0], counts[0, -1]) == (1, 1)
    assert float(expected_calibration_error(counts)) == 0
    assert np.isnan(expected_calibration_error(np.zeros((3, NUM_BINS))))
