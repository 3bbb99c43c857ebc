"""Closed-set quality on labelled scenes: confusion matrix, mIoU, and the calibration error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64, Shaped, UInt8
from scipy.optimize import minimize_scalar
from torch import Tensor

from eval.metrics.bootstrap import Interval, bootstrap_intervals
from eval.predict.strips import plain_scores, predict_pixels
from shards.errors import InputError
from shards.schema import CITYSCAPES, NUM_CLASSES, OUTLIER_ID, VOID_ID

NUM_BINS = 15
"""Of confidence, of equal width."""
_MAX_PIXELS = 1 << 24
"""`cv2.calcHist` counts in float32, which is exact up to here."""


def count_classes(
    label: UInt8[np.ndarray, "H W"], prediction: UInt8[np.ndarray, "H W"], num_classes: int = NUM_CLASSES
) -> Int64[np.ndarray, "C C"]:
    """Count the pixels of an image per true class (row) and predicted class (column); images add up.

    An InputError says that `label` holds another value.

    Args:
        label: train ids; `VOID_ID` and `OUTLIER_ID` are not counted.
        prediction: train ids.
    """
    histogram = np.zeros((256, 256), dtype=np.int64)
    rows = max(1, _MAX_PIXELS // label.shape[1])
    for top in range(0, label.shape[0], rows):
        pair = [label[top : top + rows], prediction[top : top + rows]]
        # A 2-d histogram of bytes: three times as fast as np.bincount, which casts to int64 first.
        histogram += cv2.calcHist(pair, [0, 1], None, [256, 256], [0, 256, 0, 256]).astype(np.int64)
    histogram[[VOID_ID, OUTLIER_ID]] = 0
    unknown = np.flatnonzero(histogram[num_classes:].any(axis=1))
    if unknown.size:
        allowed = f"0..{num_classes - 1}, {OUTLIER_ID} (outlier) and {VOID_ID} (void)"
        raise InputError(f"miou: label value {num_classes + unknown[0]}; allowed are {allowed}")
    assert not histogram[:, num_classes:].any(), "a predicted class beyond the last"
    return histogram[:num_classes, :num_classes]


def iou_of(counts: Shaped[np.ndarray, "*B C C"]) -> Float64[np.ndarray, "*B C"]:
    """Return the IoU of each class; NaN where it occurs neither in ground truth nor prediction."""
    both = np.diagonal(counts, axis1=-2, axis2=-1)
    union = counts.sum(axis=-2) + counts.sum(axis=-1) - both
    return np.divide(both, union, out=np.full(both.shape, np.nan), where=union > 0)


def mean_iou(counts: Shaped[np.ndarray, "*B C C"]) -> Float64[np.ndarray, "*B"]:
    """Return the mean IoU over the classes that occur in the ground truth or in a prediction, else NaN.

    A class that is only predicted counts with 0, as in the official Cityscapes script and in
    `torchmetrics.JaccardIndex`. Over the full val split all 19 classes occur and conventions agree.
    """
    iou = iou_of(counts)
    total = np.asarray((~np.isnan(iou)).sum(axis=-1))
    return np.divide(np.nansum(iou, axis=-1), total, out=np.full(total.shape, np.nan), where=total > 0)


def unseen_classes(
    counts: Shaped[np.ndarray, "C C"], names: Sequence[str] = CITYSCAPES.names
) -> tuple[str, ...]:
    """Name the classes that `mean_iou` counts with 0 since they are predicted and in no label."""
    unseen = np.flatnonzero(~counts.any(axis=1) & counts.any(axis=0))
    return tuple(names[i] for i in unseen.tolist())


def count_confidence(
    confidence: Float32[np.ndarray, "H W"],
    is_right: Bool[np.ndarray, "H W"],
    counted: Bool[np.ndarray, "H W"],
) -> Float64[np.ndarray, "3 K"]:
    """Sort the pixels of an image into bins (a, b] of confidence, in [0, 1]; `counted`: the truth is known.

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


def best_likelihood(class_scores: Tensor, labels: Tensor, weight: Tensor | None = None) -> float:
    """Return the T in [0.001, 1000] that maximises the likelihood of `labels` under softmax(L / T).

    `weight` of each class, of float64; None: 1.
    """

    def loss(log_t: float) -> float:
        scaled = class_scores.double() / float(np.exp(log_t))
        return float(torch.nn.functional.cross_entropy(scaled, labels, weight))

    bounds = (float(np.log(1e-3)), float(np.log(1e3)))
    return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x))


class MiouResult(NamedTuple):
    """Closed-set quality; fractions in [0, 1]."""

    miou: float
    iou: dict[str, float | None]
    """By class name; None where the class occurs neither in ground truth nor prediction."""
    num_images: int
    miou_ci: Interval | None
    """95 % over images."""
    ece: float
    """Calibration error of the predicted class's probability, over all labelled pixels: its share of a mask
    model's evidence, L / ΣL, or the softmax of logits."""
    ece_ci: Interval | None


class ClosedSetCounts(NamedTuple):
    """What frames add up to, a row per frame."""

    confusion: Int64[np.ndarray, "R C C"]
    confidence: Float64[np.ndarray, "R 3 K"]
    """As `count_confidence` returns it."""


def count_scene(
    class_scores: Float[Tensor, "N H W"],
    label: UInt8[np.ndarray, "H W"],
    num_classes: int = NUM_CLASSES,
    *,
    has_evidence: bool,
) -> tuple[Int64[np.ndarray, "C C"], Float64[np.ndarray, "3 K"]]:
    """Count the predicted classes (argmax of class scores) of a scene, and their confidence.

    Args:
        class_scores: of the classes; maps of query scores behind it are ignored.
        label: train ids, outlier or void; another value is an InputError.
        has_evidence: whether class scores are sums of probabilities; if not, they are logits.
    """
    doubt = "NormalizedMSP" if has_evidence else "MSP"
    scores, prediction = predict_pixels(class_scores[:num_classes], [doubt], plain_scores)
    labelled = (label != VOID_ID) & (label != OUTLIER_ID)
    confusion = count_classes(label, prediction, num_classes)
    return confusion, count_confidence(1 - scores[doubt], prediction == label, labelled)


def measure_closed_set(
    counts: ClosedSetCounts, names: Sequence[str] = CITYSCAPES.names, *, intervals: bool = True
) -> MiouResult:
    """Add frames up, and resample them where `intervals` are asked for.

    An InputError says that no pixel is labelled.
    """
    confusion, sure = counts
    whole = confusion.sum(axis=0)
    if not whole.any():
        raise InputError("miou: no labelled pixel was seen; are all labels void?")
    by_class = zip(names, iou_of(whole).tolist(), strict=True)
    iou = {name: None if math.isnan(value) else value for name, value in by_class}

    def of_sets(weights: Float64[np.ndarray, "B R"]) -> tuple[Float64[np.ndarray, " B"], ...]:
        drawn = np.tensordot(weights, confusion.astype(np.float64), axes=1)
        return mean_iou(drawn), expected_calibration_error(np.tensordot(weights, sure, axes=1))

    miou_ci, ece_ci = bootstrap_intervals(of_sets, len(confusion)) if intervals else (None, None)
    ece = float(expected_calibration_error(sure.sum(axis=0)))
    return MiouResult(float(mean_iou(whole)), iou, len(confusion), miou_ci, ece, ece_ci)
