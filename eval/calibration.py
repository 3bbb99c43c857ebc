"""Calibration: whether what a model is 90 % sure of is right nine times in ten."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float32, Float64

NUM_BINS = 15


def count_confidence(
    confidence: Float32[np.ndarray, "H W"],
    is_right: Bool[np.ndarray, "H W"],
    counted: Bool[np.ndarray, "H W"],
) -> Float64[np.ndarray, "3 K"]:
    """Sort the pixels of an image into bins (a, b] of confidence.

    Args:
        confidence: in [0, 1].
        is_right: whether what the confidence speaks of is true.
        counted: False where the truth is unknown.

    Returns:
        Per bin: pixels, sum of confidences, right ones. Images, processes and resampled sets add up.
    """
    values = confidence[counted].astype(np.float64)
    assert values.size == 0 or (values.min() >= 0 and values.max() <= 1), "confidence outside [0, 1]"
    bins = np.clip(np.ceil(values * NUM_BINS).astype(np.int64) - 1, 0, NUM_BINS - 1)
    right = is_right[counted].astype(np.float64)
    return np.stack([np.bincount(bins, w, NUM_BINS) for w in (np.ones_like(values), values, right)])


def expected_calibration_error(counts: Float64[np.ndarray, "*B 3 K"]) -> Float64[np.ndarray, "*B"]:
    """Return Σ_bins (pixels / all) · |share right - mean confidence|, in [0, 1]; NaN without pixels.

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017; 15 bins of equal width.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        gaps = np.abs(counts[..., 2, :] - counts[..., 1, :]).sum(axis=-1)
        return np.asarray(gaps / counts[..., 0, :].sum(axis=-1))
