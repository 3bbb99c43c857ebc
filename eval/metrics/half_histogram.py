"""Exact pixel metrics of half-precision scores from counts alone: float16 has 65,536 values, each a bin.

State is 1 MB whatever the number of pixels, adds up over images, processes and array tasks, and nothing is
sorted or kept. For scores that are float16 anyway, such as those of submissions, it loses nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Bool, Float16, Float32, Int64, UInt8, UInt16
from numpy.typing import NDArray

from eval.metrics.curve import FPR_RULES, PixelMetrics
from eval.metrics.runs import SortedRuns
from shards.errors import InputError
from shards.schema import ANOMALY, NORMAL

_NUM_VALUES = 1 << 16
_AT_ONCE = 1 << 24
"""`cv2.calcHist` counts in float32, which is exact up to here; it is five times as fast as np.bincount."""


def _ordered_patterns() -> UInt16[np.ndarray, " _K"]:
    """Return the bit patterns of all float16 but -0.0 and NaN, upwards."""
    patterns = np.arange(_NUM_VALUES, dtype=np.uint16)
    values = patterns.view(np.float16)
    patterns = patterns[~np.isnan(values) & (patterns != _MINUS_ZERO)]
    return patterns[np.argsort(patterns.view(np.float16), kind="stable")]


_MINUS_ZERO = 0x8000
_PATTERNS = _ordered_patterns()
VALUES: Float32[np.ndarray, " K"] = _PATTERNS.view(np.float16).astype(np.float32)
"""All values that are told apart, upwards, infinities included; -0.0 counts as 0.0."""


class HalfHistogram:
    """Counts of anomalous and normal pixels for each float16 value."""

    def __init__(self) -> None:
        self._counts = np.zeros((2, _NUM_VALUES), dtype=np.int64)
        """Normal, anomalous; by bit pattern."""

    def add(self, positives: Float16[np.ndarray, " _P"], negatives: Float16[np.ndarray, " _N"]) -> None:
        """Count scores, higher = more anomalous.

        Args:
            positives: of anomalous pixels.
            negatives: of normal pixels.
        """
        for row, scores in ((ANOMALY, positives), (NORMAL, negatives)):
            self._counts[row] += _count_patterns(scores)

    def add_map(self, scores: Float16[np.ndarray, "H W"], target: UInt8[np.ndarray, "H W"]) -> None:
        """Count a frame.

        Args:
            scores: higher = more anomalous.
            target: `NORMAL`, `ANOMALY` or `VOID`, which is not counted.
        """
        self.add(scores[target == ANOMALY], scores[target == NORMAL])

    def merge(self, other: HalfHistogram) -> None:
        """Add the counts of `other`."""
        self._counts += other._counts

    @property
    def positives(self) -> Int64[np.ndarray, " K"]:
        """Anomalous pixels per entry of `VALUES`."""
        return self._ordered(ANOMALY)

    @property
    def negatives(self) -> Int64[np.ndarray, " K"]:
        """Normal pixels per entry of `VALUES`."""
        return self._ordered(NORMAL)

    def _ordered(self, row: int) -> Int64[np.ndarray, " K"]:
        counts = self._counts[row][_PATTERNS]
        counts[_ZERO] += self._counts[row][_MINUS_ZERO]
        return counts

    def count_nan(self) -> int:
        """Return how many scores are NaN."""
        return int(self._counts[:, _IS_NAN].sum())

    def metrics(self, *, fpr_rule: str = "first-at-least") -> PixelMetrics:
        """Compute what `eval.metrics.curve.pooled_metrics` does of the same scores.

        Raises:
            InputError: a class is empty, or a score is NaN.
        """
        positives, negatives = self.positives, self.negatives
        num_true, num_false = int(positives.sum()), int(negatives.sum())
        for name, number in (("anomalous", num_true), ("normal", num_false)):
            if number == 0:
                raise InputError(f"metrics: no {name} pixel; AP, FPR95 and AUROC need both classes")
        if count := self.count_nan():
            raise InputError(f"metrics: {count} scores are NaN")
        occurs = np.flatnonzero(positives)
        equal = positives[occurs].astype(np.float64)
        true = positives[::-1].cumsum()[::-1][occurs]
        at_least = negatives[::-1].cumsum()[::-1]
        false, above = at_least[occurs], (at_least - negatives)[occurs]
        f1 = 2 * true / (true + false + num_true)
        best = f1.size - 1 - int(f1[::-1].argmax())
        ranks = math.fsum((equal * (2 * num_false - false - above)).tolist())
        return PixelMetrics(
            ap=math.fsum((equal * true / (true + false)).tolist()) / num_true,
            fpr95=FPR_RULES[fpr_rule](CountedScores(positives), CountedScores(negatives)),
            auroc=ranks / 2 / num_true / num_false,
            best_f1=float(f1[best]),
            f1_threshold=float(VALUES[occurs[best]]),
        )


class CountedScores(SortedRuns):
    """The scores of one class as counts per entry of `VALUES`, read as a sorted sequence."""

    def __init__(self, counts: Int64[np.ndarray, " K"]) -> None:
        """Use the counts; nothing is spread out."""
        super().__init__([])
        self._up_to = counts.cumsum()
        self.size = int(self._up_to[-1])

    def count_nan(self) -> int:
        """Return 0: NaN is no entry."""
        return 0

    def _count(self, values: NDArray[np.float32], side: str) -> NDArray[np.int64]:
        places = np.searchsorted(VALUES, values, side=side)  # type: ignore[call-overload]
        return np.asarray(np.where(places > 0, self._up_to[np.maximum(places, 1) - 1], 0))

    def nth(self, index: int) -> np.float32:
        """Return the score at position `index` of the whole sequence, counted from 0."""
        assert 0 <= index < self.size, (index, self.size)
        return np.float32(VALUES[np.searchsorted(self._up_to, index, side="right")])


def _count_patterns(scores: Float16[np.ndarray, " _N"]) -> Int64[np.ndarray, " K"]:
    bits = np.ascontiguousarray(scores).view(np.uint16)
    counts = np.zeros(_NUM_VALUES, dtype=np.int64)
    for begin in range(0, bits.size, _AT_ONCE):
        part = bits[None, begin : begin + _AT_ONCE]
        counts += cv2.calcHist([part], [0], None, [_NUM_VALUES], [0, _NUM_VALUES]).ravel().astype(np.int64)
    return counts


def _nan_patterns() -> Bool[np.ndarray, " K"]:
    return np.isnan(np.arange(_NUM_VALUES, dtype=np.uint16).view(np.float16))


_IS_NAN = _nan_patterns()
_ZERO = int(np.searchsorted(VALUES, 0.0))


def choose_bins(classes: Sequence[Int64[np.ndarray, " K"]], num_bins: int) -> Float32[np.ndarray, " _S"]:
    """Choose values that cut each class into open intervals of few scores (`eval.metrics.binned`).

    Every value that occurs, where `num_bins` suffice; else those at which a further 8 / `num_bins` of a class
    is reached.
    """
    used = np.flatnonzero(sum(classes))
    if used.size <= num_bins:
        return VALUES[used]
    chosen = []
    for counts in classes:
        up_to = counts.cumsum()
        steps = np.arange(1, num_bins // 4 + 1) * (up_to[-1] / (num_bins // 4))
        chosen.append(np.minimum(np.searchsorted(up_to, steps), VALUES.size - 1))
    return VALUES[np.unique(np.concatenate(chosen))]
