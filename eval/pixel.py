"""Pixel metrics, exact over all pixels of a test set: average precision, FPR at 95 % TPR and AUROC.

Only thresholds at which an anomalous pixel lies change recall, so there is no curve to build: sort both
classes, and look up, for each distinct positive score, how many negatives lie above it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32
from numpy.typing import NDArray

from shards.errors import InputError

TPR = 0.95
_BLOCK = 1 << 18
"""Positives merged at a time: bounds the 64-bit counts to some 20 MB, however many positives."""


class PixelMetrics(NamedTuple):
    """Fractions in [0, 1]."""

    ap: float
    fpr95: float
    auroc: float


def pixel_metrics(
    positives: Float32[np.ndarray, " P"],
    negatives: Float32[np.ndarray, " N"],
    *,
    fpr_rule: str = "first-at-least",
    overwrite: bool = False,
) -> PixelMetrics:
    """Compute the three metrics in one pass over the sorted scores.

    AP = Σ_k (R_k - R_{k-1}) · P_k over the distinct scores from the highest down (step sum, no
    interpolation); AUROC = P(positive > negative) + ½ P(equal). Equal scores are one threshold. Scores may
    be infinite; -0.0 equals 0.0.

    Args:
        positives: scores of the anomalous pixels, higher = more anomalous.
        negatives: scores of the normal pixels.
        fpr_rule: a name of `FPR_RULES`.
        overwrite: sort in place and leave the inputs sorted, which saves 4 bytes per pixel.

    Raises:
        InputError: a class is empty, or a score is NaN.

    Source: `average_precision_score` and `roc_curve(drop_intermediate=False)` of scikit-learn, which this
    agrees with to rounding.
    """
    for name, scores in (("anomalous", positives), ("normal", negatives)):
        if scores.size == 0:
            raise InputError(f"metrics: no {name} pixel; AP, FPR95 and AUROC need both classes")
    if not overwrite:
        positives, negatives = positives.copy(), negatives.copy()
    for name, scores in (("anomalous", positives), ("normal", negatives)):
        scores.sort()  # float32 has a vectorised sort; NaN goes last
        if np.isnan(scores[-1]):
            count = int(np.isnan(scores).sum())
            raise InputError(f"metrics: {count} of {scores.size} scores of {name} pixels are NaN")
    ap, auroc = _areas(positives, negatives)
    return PixelMetrics(ap=ap, fpr95=FPR_RULES[fpr_rule](positives, negatives), auroc=auroc)


def _areas(positives: NDArray[np.float32], negatives: NDArray[np.float32]) -> tuple[float, float]:
    """Return AP and AUROC of sorted scores."""
    num_positives, num_negatives = positives.size, negatives.size
    precision_parts, rank_parts = [], []
    for begin in range(0, num_positives, _BLOCK):
        end = min(begin + _BLOCK, num_positives)
        block = positives[begin:end]
        is_first = np.empty(block.size, dtype=bool)
        is_first[0] = begin == 0 or block[0] != positives[begin - 1]
        np.not_equal(block[1:], block[:-1], out=is_first[1:])
        first = np.flatnonzero(is_first) + begin  # where each distinct score begins
        if first.size == 0:
            continue  # one score fills the block; it was counted where it began
        values = positives[first]
        after = np.append(first[1:], np.searchsorted(positives, values[-1], side="right"))
        equal = (after - first).astype(np.float64)  # positives with this score
        below = np.searchsorted(negatives, values, side="left")
        not_above = np.searchsorted(negatives, values, side="right")
        true_positives = num_positives - first
        false_positives = num_negatives - below
        precision_parts.append(float(np.sum(equal * true_positives / (true_positives + false_positives))))
        rank_parts.append(float(np.sum(equal * (below + not_above))))
    ap = math.fsum(precision_parts) / num_positives
    auroc = math.fsum(rank_parts) / 2 / num_positives / num_negatives
    return ap, auroc


def _fpr_at(positives: NDArray[np.float32], negatives: NDArray[np.float32], *, strict: bool) -> float:
    """Return the FPR at the highest threshold whose TPR is at least (strict: above) 0.95."""
    count = _required_count(positives.size, strict=strict)
    threshold = positives[positives.size - count]
    return float((negatives.size - np.searchsorted(negatives, threshold, side="left")) / negatives.size)


def _fpr_interpolated(positives: NDArray[np.float32], negatives: NDArray[np.float32]) -> float:
    """Return `np.interp(0.95, tpr, fpr)`: linear between the two points around 0.95.

    Where several points share the lower TPR, `np.interp` takes the last, which has the highest FPR.
    """
    num_positives, num_negatives = positives.size, negatives.size
    threshold = positives[num_positives - _required_count(num_positives, strict=True)]
    tpr = (num_positives - np.searchsorted(positives, threshold, side="left")) / num_positives
    fpr = (num_negatives - np.searchsorted(negatives, threshold, side="left")) / num_negatives
    lower_tpr = (num_positives - np.searchsorted(positives, threshold, side="right")) / num_positives
    lower_fpr = (num_negatives - np.searchsorted(negatives, threshold, side="right")) / num_negatives
    return float(lower_fpr + (fpr - lower_fpr) / (tpr - lower_tpr) * (TPR - lower_tpr))


def _required_count(num_positives: int, *, strict: bool) -> int:
    """Return the fewest true positives whose rate passes 0.95, compared as float64 as scikit-learn does."""
    passes: Callable[[int], bool] = (
        (lambda count: count / num_positives > TPR)
        if strict
        else (lambda count: count / num_positives >= TPR)
    )
    count = math.ceil(TPR * num_positives)
    while count > 1 and passes(count - 1):
        count -= 1
    while not passes(count):
        count += 1
    return count


FPR_RULES: dict[str, Callable[[NDArray[np.float32], NDArray[np.float32]], float]] = {
    "first-at-least": lambda positives, negatives: _fpr_at(positives, negatives, strict=False),
    "first-above": lambda positives, negatives: _fpr_at(positives, negatives, strict=True),
    "interpolated": _fpr_interpolated,
}
"""How a false positive rate "at 95 % TPR" is read off a curve of steps; all take sorted scores.

- `first-at-least`: the first threshold with TPR >= 0.95 (Fishyscapes, SMIYC, UNO). The default.
- `first-above`: the first with TPR > 0.95 (RbA, DenseHybrid); differs only where a threshold hits 0.95.
- `interpolated`: linear between the points around 0.95 (`ood_metrics`, the course's script); such a point
  belongs to no threshold, and with many equal scores it can be far from both others.
"""
