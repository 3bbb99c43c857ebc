"""Counted scores against float32 scores of the same pixels, pooled and measured exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from eval.metrics.half_histogram import HalfHistogram
from eval.predict.strips import compare_at
from eval.scan import SCANNED, count_frame
from eval.store import ImageStore, score_arrays

TEMPERATURES = (0.5, 1.0, 12.0)


def draw_frame(kind: str) -> tuple[torch.Tensor, np.ndarray]:
    """Evidence of a mask model, about [0, 1], or logits; anomalies are less sure, some pixels void."""
    generator = torch.Generator().manual_seed(0)
    target = np.random.default_rng(0).choice(np.array([0, 1, 255], np.uint8), (400, 700), p=[0.9, 0.05, 0.05])
    evidence = 0.02 * torch.rand(19, *target.shape, generator=generator)
    sure = 0.9 + 0.1 * torch.randn(target.shape, generator=generator)
    sure[torch.from_numpy(target == 1)] *= 0.7
    winner = torch.randint(0, 19, (1, *target.shape), generator=generator)
    evidence.scatter_add_(0, winner, sure[None])
    return (evidence if kind == "masks" else 3 * evidence), target


@pytest.mark.parametrize("kind", ["masks", "logits"])
def test_metrics_are_near_those_of_float32(tmp_path, kind):
    evidence, target = draw_frame(kind)
    counts = {(name, t): HalfHistogram() for name in SCANNED for t in TEMPERATURES}
    count_frame(counts, evidence.numpy(), target)
    for t in TEMPERATURES:
        store = ImageStore(tmp_path, [{}])
        store.write(0, score_arrays(compare_at(evidence, SCANNED, t), target))
        for name in SCANNED:
            exact, counted = store.measure(name), counts[name, t].metrics()
            assert 0.5 < exact.auroc < 1
            assert counted.ap == pytest.approx(exact.ap, abs=1e-3), (name, t)
            assert counted.auroc == pytest.approx(exact.auroc, abs=1e-4), (name, t)
            assert counted.fpr95 == pytest.approx(exact.fpr95, abs=5e-3), (name, t)


def test_very_sure_and_equal_pixels_are_counted():
    evidence = np.zeros((19, 2, 2), np.float32)
    evidence[3, 0] = 1e4, 1e5
    target = np.array([[0, 0], [1, 255]], np.uint8)
    counts = {(name, t): HalfHistogram() for name in SCANNED for t in (0.1, 5.0)}
    count_frame(counts, evidence, target)
    for histogram in counts.values():
        assert histogram.metrics().ap == 1
        assert (int(histogram.positives.sum()), int(histogram.negatives.sum())) == (1, 2)
