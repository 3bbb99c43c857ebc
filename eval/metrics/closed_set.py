"""Closed-set quality on labelled scenes: confusion matrix, mIoU, and the calibration error."""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64, UInt8
from torch import Tensor

from eval.metrics.bootstrap import bootstrap_interval
from eval.predict.scores import msp
from shards.errors import InputError
from shards.schema import CITYSCAPES_CLASSES, NUM_CLASSES, OUTLIER_ID, VOID_ID

_MAX_PIXELS = 1 << 24
"""`cv2.calcHist` counts in float32, which is exact up to here."""


class ConfusionMatrix:
    """Counts pixels per (true class, predicted class); counts of several processes can be added up."""

    def __init__(self, num_classes: int = NUM_CLASSES) -> None:
        self.counts: Int64[np.ndarray, "C C"] = np.zeros((num_classes, num_classes), dtype=np.int64)
        """Row: true class. Column: predicted class."""

    def add(self, label: UInt8[np.ndarray, "H W"], prediction: UInt8[np.ndarray, "H W"]) -> None:
        """Count one image.

        Args:
            label: train ids; `VOID_ID` and `OUTLIER_ID` are not counted.
            prediction: train ids below the number of classes.

        Raises:
            InputError: `label` holds another value.
        """
        num_classes = len(self.counts)
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
        self.counts += histogram[:num_classes, :num_classes]

    def merge(self, other: ConfusionMatrix) -> None:
        """Add the counts of `other`."""
        self.counts += other.counts

    def iou(self) -> Float64[np.ndarray, " C"]:
        """Return the IoU of each class; NaN where it occurs neither in ground truth nor prediction."""
        both = np.diag(self.counts)
        union = self.counts.sum(axis=0) + self.counts.sum(axis=1) - both
        return np.divide(both, union, out=np.full(len(both), np.nan), where=union > 0)

    def mean_iou(self) -> float:
        """Return the mean IoU over the classes that occur in the ground truth or in a prediction.

        A class that is only predicted counts with 0, as in the official Cityscapes script and in
        `torchmetrics.JaccardIndex`. Over the full val split all 19 classes occur and conventions agree.

        Raises:
            InputError: no pixel was counted.
        """
        if not self.counts.any():
            raise InputError("miou: no labelled pixel was seen; are all labels void?")
        return float(np.nanmean(self.iou()))


def mean_iou_of(counts: Float64[np.ndarray, "B C C"]) -> Float64[np.ndarray, " B"]:
    """Return `ConfusionMatrix.mean_iou` of many matrices at once; NaN for empty ones."""
    both = np.diagonal(counts, axis1=1, axis2=2)
    union = counts.sum(axis=1) + counts.sum(axis=2) - both
    occurs = union > 0
    iou = np.divide(both, union, out=np.zeros_like(both), where=occurs)
    total = occurs.sum(axis=1)
    return np.divide(iou.sum(axis=1), total, out=np.full(len(counts), np.nan), where=total > 0)


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


_STRIP_ROWS = 32


class MiouResult(NamedTuple):
    """Closed-set quality; fractions in [0, 1]."""

    miou: float
    iou: dict[str, float | None]
    """By class name; None where the class occurs neither in ground truth nor prediction."""
    num_images: int
    miou_ci: tuple[float, float] | None
    """95 % over images."""
    ece: float
    """Calibration error of max softmax of the evidence, over all labelled pixels."""
    ece_ci: tuple[float, float] | None


class ClosedSetCounts(NamedTuple):
    """What frames add up to, a row per frame."""

    confusion: Int64[np.ndarray, "R C C"]
    confidence: Float64[np.ndarray, "R 3 K"]
    """As `eval.metrics.closed_set.count_confidence` returns it."""


def count_scene(
    evidence: Float[Tensor, "N H W"], label: UInt8[np.ndarray, "H W"]
) -> tuple[Int64[np.ndarray, "C C"], Float64[np.ndarray, "3 K"]]:
    """Count the predicted classes (argmax of evidence) of a scene and their confidence: a row of
    `ClosedSetCounts`.

    Args:
        evidence: of the classes; maps of query scores behind it are ignored.
        label: train ids, outlier or void.

    Raises:
        InputError: a label holds another value.
    """
    confidence, prediction = _most_likely(evidence[:NUM_CLASSES])
    matrix = ConfusionMatrix()
    matrix.add(label, prediction)
    labelled = (label != VOID_ID) & (label != OUTLIER_ID)
    return matrix.counts, count_confidence(confidence, prediction == label, labelled)


@torch.no_grad()
def _most_likely(
    evidence: Float[Tensor, "C H W"],
) -> tuple[Float32[np.ndarray, "H W"], UInt8[np.ndarray, "H W"]]:
    """Return max softmax and the class it is of."""
    confidence = torch.empty(evidence.shape[1:])
    prediction = torch.empty(evidence.shape[1:], dtype=torch.uint8)
    for top in range(0, evidence.shape[1], _STRIP_ROWS):
        rows = slice(top, top + _STRIP_ROWS)
        confidence[rows] = 1 - msp(evidence[None, :, rows])[0]
        prediction[rows] = evidence[:, rows].max(dim=0).indices
    return confidence.numpy(), prediction.numpy()


def measure_closed_set(counts: ClosedSetCounts, *, intervals: bool = True) -> MiouResult:
    """Add frames up, and resample them where `intervals` are asked for.

    Raises:
        InputError: no pixel is labelled.
    """
    confusion, sure = counts
    whole = ConfusionMatrix()
    whole.counts = confusion.sum(axis=0)
    by_class = zip(CITYSCAPES_CLASSES, whole.iou().tolist(), strict=True)
    iou = {entry.name: None if math.isnan(value) else value for entry, value in by_class}

    def miou_of(weights: Float64[np.ndarray, "B R"]) -> Float64[np.ndarray, " B"]:
        return mean_iou_of(np.tensordot(weights, confusion.astype(np.float64), axes=1))

    def ece_of(weights: Float64[np.ndarray, "B R"]) -> Float64[np.ndarray, " B"]:
        return expected_calibration_error(np.tensordot(weights, sure, axes=1))

    return MiouResult(
        whole.mean_iou(),
        iou,
        len(confusion),
        bootstrap_interval(miou_of, len(confusion)) if intervals else None,
        float(expected_calibration_error(sure.sum(axis=0))),
        bootstrap_interval(ece_of, len(confusion)) if intervals else None,
    )
