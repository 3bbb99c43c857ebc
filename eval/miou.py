"""Mean intersection over union of a closed-set segmentation, accumulated as one confusion matrix."""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Float64, Int64, UInt8

from shards.errors import InputError
from shards.schema import NUM_CLASSES, OUTLIER_ID, VOID_ID

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
