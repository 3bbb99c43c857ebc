"""Metrics of anomalies as objects: what share of each is found, and how many finds are true.

A frame is cut into segments: 8-connected regions of the ground truth and of the pixels scored above a
threshold. For a true segment k, with the predicted segments that touch it joined to K,

    sIoU(k) = |k ∩ K| / |(k ∪ K) \\ A|,    A: pixels of K that belong to other true segments,

so that one predicted region over two neighbouring objects costs neither of them. For a predicted segment p,

    PPV(p) = |p ∩ T| / |p|,    T: all true segments.

At a threshold τ a true segment counts as found where sIoU >= τ, else as missed, and a predicted one is
false where PPV < τ. F1* is the mean of F1 = 2 TP / (2 TP + FN + FP) over τ = 0.25, 0.30, ..., 0.75.

Source: Chan et al., SegmentMeIfYouCan, NeurIPS 2021, and `SegEval` of its toolkit (road-anomaly-benchmark),
whose numbers these are. We differ in speed: one table of overlaps per frame takes the place of a pass per
segment.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float32, Float64, UInt8

from shards.schema import ANOMALY, VOID

TAUS: tuple[float, ...] = tuple(np.linspace(0.25, 0.75, 11).tolist())
"""As the toolkit computes them: 0.6 is 0.6000000000000001, so that three pixels of five do not reach it."""


class ComponentMetrics(NamedTuple):
    """Fractions in [0, 1], one per set; NaN where there is no segment to average over."""

    siou: Float64[np.ndarray, " B"]
    ppv: Float64[np.ndarray, " B"]
    f1_star: Float64[np.ndarray, " B"]


def count_components(
    scores: Float32[np.ndarray, "H W"],
    target: UInt8[np.ndarray, "H W"],
    threshold: float,
    smallest: tuple[int, int],
) -> Float64[np.ndarray, " F"]:
    """Compare the segments of one frame.

    Args:
        scores: higher = more anomalous.
        target: 0 normal, 1 anomaly, 255 void. Void is cut out of predictions before they are segmented.
        threshold: pixels above it (not at it) are predicted; usually where the pixels' F1 is best.
        smallest: fewest pixels of a predicted segment, others are dropped; and of a true one, others become
            void, with what is predicted on them.

    Returns:
        Sums, so that frames add up: number of true and of predicted segments, sum of sIoU and of PPV; then
        per τ of `TAUS` the true segments with sIoU >= τ; then those predicted with PPV < τ.
    """
    true = number_segments(target == ANOMALY)
    predicted = number_segments((scores > threshold) & (target != VOID))
    predicted_sizes = np.bincount(predicted.ravel())
    keep = predicted_sizes >= smallest[0]
    keep[0] = False
    predicted = np.where(keep[predicted], predicted, 0)
    too_small = np.bincount(true.ravel()) < smallest[1]
    too_small[0] = False
    counted = (target != VOID) & ~too_small[true]
    return _compare(true[counted], predicted[counted])


def number_segments(mask: np.ndarray) -> np.ndarray:
    """Return a map that numbers the 8-connected regions of `mask` from 1; 0 is none."""
    return cv2.connectedComponents(mask.astype(np.uint8), connectivity=8, ltype=cv2.CV_32S)[1]


def _compare(true: np.ndarray, predicted: np.ndarray) -> Float64[np.ndarray, " F"]:
    """Compare two numberings of the same pixels through the table of their overlaps."""
    columns = int(predicted.max(initial=0)) + 1
    rows = int(true.max(initial=0)) + 1
    pairs = true.astype(np.int64) * columns + predicted
    overlap = np.bincount(pairs, minlength=rows * columns).reshape(rows, columns)
    true_sizes, predicted_sizes = overlap.sum(axis=1)[1:], overlap.sum(axis=0)[1:]
    hits = overlap[1:, 1:]  # true × predicted
    touches = (hits > 0).astype(np.int64)
    intersection = hits.sum(axis=1)
    joined = touches @ predicted_sizes  # |K|
    on_true = touches @ hits.sum(axis=0)  # pixels of K on any true segment
    union = true_sizes + joined - intersection - (on_true - intersection)
    siou = (intersection / np.maximum(union, 1))[true_sizes > 0]
    ppv = (hits.sum(axis=0) / np.maximum(predicted_sizes, 1))[predicted_sizes > 0]
    found = (siou[:, None] >= np.array(TAUS)).sum(axis=0)
    false = (ppv[:, None] < np.array(TAUS)).sum(axis=0)
    return np.concatenate([[siou.size, ppv.size, siou.sum(), ppv.sum()], found, false])


def component_metrics(
    frames: Float64[np.ndarray, "R F"], weights: Float64[np.ndarray, "B R"] | None = None
) -> ComponentMetrics:
    """Add frames up and compute the metrics of the set.

    Args:
        frames: a row of `count_components` per frame.
        weights: how often each frame occurs, per resampled set; None is once, in a single set.
    """
    weights = np.ones((1, len(frames))) if weights is None else weights
    sums = weights @ frames
    num_true, num_predicted, siou_sum, ppv_sum = sums[:, :4].T
    found, false = np.split(sums[:, 4:], 2, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        f1 = 2 * found / (found + num_true[:, None] + false)  # 2 TP + FN + FP = TP + true segments + FP
        return ComponentMetrics(siou_sum / num_true, ppv_sum / num_predicted, f1.mean(axis=1))
