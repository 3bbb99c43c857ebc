"""Curves of counts: true and false positives at descending thresholds, and the metrics read off them.

One `Curve` serves exact metrics, half-precision counts, the toolkit of SegmentMeIfYouCan and drawn curves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float16, Float32, Float64, Int64
from numpy.typing import NDArray

from shards.errors import InputError

TPR = 0.95
_JOINED = 1 << 24
"""Negatives that are joined before positives are looked up among them: 64 MB, twice."""


class ImageScores(NamedTuple):
    """Scores of one image, higher = more anomalous, each array sorted upwards; NaN sorts last.

    Metrics take a `Sequence[ImageScores]`: one per image of the set, in set order, also those without an
    anomalous or without a normal pixel. They may be views of a file, as those of `eval.store`: metrics copy
    the positives of all images, but the negatives of a few at a time.
    """

    positives: Float32[np.ndarray, " P"]
    """Scores of the anomalous pixels."""
    negatives: Float32[np.ndarray, " N"]
    """Scores of the normal pixels."""


class PixelMetrics(NamedTuple):
    """Fractions in [0, 1], and a score."""

    ap: float
    """Σ_k (R_k - R_{k-1}) · P_k, the step sum without interpolation."""
    fpr95: float
    """FPR at 95 % TPR, by one of `FPR_RULES`."""
    auroc: float
    """P(positive > negative) + ½ P(equal)."""
    best_f1: float
    """max_k 2 TP / (2 TP + FP + FN)."""
    f1_threshold: float
    """Pixels with at least this score are called anomalous where F1 is best; of several, the highest."""


FPR_RULES = ("first-at-least", "first-above", "nearest", "interpolated")
"""Readings of the false positive rate "at 95 % TPR" off a curve of steps.

- `first-at-least`: the first threshold with TPR >= 0.95 (Fishyscapes, SMIYC, UNO). The default.
- `first-above`: the first with TPR > 0.95 (RbA, DenseHybrid); differs only where a threshold hits 0.95. They
  call `roc_curve` with its default drop_intermediate, which may skip that threshold; small sets show it.
- `nearest`: the threshold whose TPR is nearest to 0.95, the higher TPR of two, the highest FPR of a TPR
  (PEBAL, RPL).
- `interpolated`: linear between the points around 0.95 (`ood_metrics`, the course's script); such a point
  belongs to no threshold, and with many equal scores it can be far from both others.
"""


class Curve(NamedTuple):
    """Pixels counted as anomalous at each of K thresholds, from the highest down.

    Thresholds at which no positive lies may be left out: they change no metric.
    """

    thresholds: NDArray[np.number]
    true: NDArray[np.number]
    """Positives with at least this score."""
    false: NDArray[np.number]
    """Negatives with at least this score."""
    false_above: NDArray[np.number]
    """Negatives with a higher score."""
    num_negatives: int

    @classmethod
    def from_counts(
        cls, thresholds: NDArray[np.number], positives: NDArray[np.number], negatives: NDArray[np.number]
    ) -> Curve:
        """Add up the pixels at each threshold; all arguments run upwards."""
        positives, negatives = positives[::-1], negatives[::-1]
        false = negatives.cumsum()
        return cls(thresholds[::-1], positives.cumsum(), false, false - negatives, int(negatives.sum()))

    @property
    def precision(self) -> Float64[np.ndarray, " K"]:
        """True positives among the pixels counted as anomalous; 1 where no pixel is."""
        counted = self.true + self.false
        return np.asarray(np.divide(self.true, counted, out=np.ones(counted.shape), where=counted > 0))

    @property
    def recall(self) -> Float64[np.ndarray, " K"]:
        """True positives among the positives; also called TPR."""
        return np.asarray(self.true / self.true[-1])

    @property
    def fpr(self) -> Float64[np.ndarray, " K"]:
        """False positives among the negatives."""
        return np.asarray(self.false / self.num_negatives)

    def metrics(self, fpr_rule: str = "first-at-least") -> PixelMetrics:
        """Read all metrics off, FPR95 by one of `FPR_RULES`; an InputError says that a class is empty."""
        for name, is_empty in (("anomalous", not self.true.any()), ("normal", not self.num_negatives)):
            if is_empty:
                raise InputError(f"metrics: no {name} pixel; AP, FPR95 and AUROC need both classes")
        num_positives = int(self.true[-1])
        positives = np.diff(self.true, prepend=0)
        at = np.flatnonzero(positives)
        precision = positives[at] * self.true[at] / (self.true[at] + self.false[at])
        ordered = float((positives * (2 * self.num_negatives - self.false - self.false_above)).sum())
        f1 = 2 * self.true / (self.true + self.false + num_positives)
        best = int(f1.argmax())
        return PixelMetrics(
            ap=float(precision.sum()) / num_positives,
            fpr95=self._fpr95(fpr_rule),
            auroc=ordered / 2 / num_positives / self.num_negatives,
            best_f1=float(f1[best]),
            f1_threshold=float(self.thresholds[best]),
        )

    def _fpr95(self, rule: str) -> float:
        if rule == "first-at-least":
            return float(self.fpr[np.argmax(self.recall >= TPR)])
        if rule == "nearest":
            at = self.recall.size - 1 - int(np.argmin(np.abs(self.recall - TPR)[::-1]))
            last = at == self.recall.size - 1
            return float((self.false[at] if last else self.false_above[at + 1]) / self.num_negatives)
        at = int(np.argmax(self.recall > TPR))
        if rule == "first-above":
            return float(self.fpr[at])
        assert rule == "interpolated", rule
        # `np.interp(0.95, tpr, fpr)`; of points that share the lower TPR it takes the last, of highest FPR.
        tpr, fpr = self.recall[at], self.fpr[at]
        lower_tpr = self.recall[at - 1] if at else 0.0
        lower_fpr = self.false_above[at] / self.num_negatives
        return float(lower_fpr + (fpr - lower_fpr) / (tpr - lower_tpr) * (TPR - lower_tpr))


def exact_curve(images: Sequence[ImageScores]) -> Curve:
    """Count at every distinct score of a positive, over all images.

    Scores may be infinite; -0.0 equals 0.0. Memory is some 70 bytes per anomalous pixel and two times 64 MB
    for negatives: it grows with the anomalous pixels of the set, not with its images otherwise. An InputError
    says that a score is NaN.

    Source: `average_precision_score`, `roc_curve(drop_intermediate=False)` and `precision_recall_curve` of
    scikit-learn, which the metrics of this curve agree with to rounding.
    """
    positives = np.concatenate([np.zeros(0, np.float32), *(image.positives for image in images)])
    positives.sort()
    _refuse_nan([positives], "anomalous")
    _refuse_nan([image.negatives for image in images], "normal")
    begins = np.append(True, positives[1:] != positives[:-1])[: positives.size]
    first = np.flatnonzero(begins)  # of each distinct score
    values = positives[first]
    below, tied = np.zeros(values.size, dtype=np.int64), np.zeros(values.size, dtype=np.int64)
    for negatives in _join([image.negatives for image in images]):
        left = np.searchsorted(negatives, values, side="left")
        below += left
        equal = np.flatnonzero(negatives[np.minimum(left, negatives.size - 1)] == values)
        tied[equal] += np.searchsorted(negatives, values[equal], side="right") - left[equal]
    num_negatives = sum(image.negatives.size for image in images)
    false = num_negatives - below[::-1]
    return Curve(values[::-1], positives.size - first[::-1], false, false - tied[::-1], num_negatives)


def _join(runs: Sequence[Float32[np.ndarray, " _N"]]) -> Iterator[Float32[np.ndarray, " _M"]]:
    """Yield the runs, several joined and sorted where they are short."""
    batch: list[NDArray[np.float32]] = []
    for i, run in enumerate(runs):
        batch += [run] if run.size else []
        if batch and (i == len(runs) - 1 or sum(part.size for part in batch) >= _JOINED):
            yield batch[0] if len(batch) == 1 else np.sort(np.concatenate(batch))
            batch = []


def _refuse_nan(runs: Sequence[Float32[np.ndarray, " _N"]], name: str) -> None:
    count = sum(int(np.isnan(run).sum()) for run in runs if run.size and np.isnan(run[-1]))
    if count:
        total = sum(run.size for run in runs)
        raise InputError(f"metrics: {count} of {total} scores of {name} pixels are NaN")


def pixel_metrics(
    positives: Float32[np.ndarray, " P"],
    negatives: Float32[np.ndarray, " N"],
    *,
    fpr_rule: str = "first-at-least",
) -> PixelMetrics:
    """Compute the exact metrics of scores in memory, in any order.

    An InputError says that a class is empty, or a score is NaN.
    """
    return exact_curve([ImageScores(np.sort(positives), np.sort(negatives))]).metrics(fpr_rule)


_PATTERNS = np.concatenate([np.arange(0xFC00, 0x8000, -1), np.arange(0x7C01)])
"""Bit patterns of all float16 but -0.0 and NaN, upwards."""
HALF_VALUES: Float32[np.ndarray, " K"] = _PATTERNS.astype(np.uint16).view(np.float16).astype(np.float32)
"""All values that are told apart, upwards, infinities included; -0.0 counts as 0.0."""
_AT_ONCE = 1 << 24
"""`cv2.calcHist` counts in float32, which is exact up to here; it is five times as fast as np.bincount."""


def count_half(scores: Float16[np.ndarray, " _N"]) -> Int64[np.ndarray, " K"]:
    """Count half-precision scores per entry of `HALF_VALUES`, for `Curve.from_counts`; counts add up.

    An InputError says that a score is NaN.
    """
    bits = np.ascontiguousarray(scores).view(np.uint16)
    counts = np.zeros(1 << 16, dtype=np.int64)
    for begin in range(0, bits.size, _AT_ONCE):
        part = bits[None, begin : begin + _AT_ONCE]
        counts += cv2.calcHist([part], [0], None, [1 << 16], [0, 1 << 16]).ravel().astype(np.int64)
    counts[0] += counts[0x8000]
    ordered = counts[_PATTERNS]
    if ordered.sum() < scores.size:
        raise InputError(f"metrics: {scores.size - ordered.sum()} scores are NaN")
    return np.asarray(ordered)
