"""Pixel metrics, exact over all pixels of a test set: AP, FPR at 95 % TPR, AUROC and best F1.

Only thresholds at which an anomalous pixel lies change recall, so there is no curve to build: for each
distinct positive score, look up how many positives and negatives are at least as high. The scores come as
sorted runs, one per image, and are joined one interval of values at a time: memory does not grow with the
set.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32
from numpy.typing import NDArray

from eval.metrics.runs import SortedRuns, choose_splitters, cut
from shards.errors import InputError

TPR = 0.95
_INTERVAL = 1 << 20
"""Scores joined at a time; with the 64-bit counts of its positives at most some 80 MB."""


class ImageScores(NamedTuple):
    """Scores of one image, higher = more anomalous, each array sorted upwards; NaN sorts last.

    Metrics take a `Sequence[ImageScores]`: one per image of the set, in set order, also those without an
    anomalous or without a normal pixel. It may be lazy: read and sort an image whenever it is indexed or
    iterated over. Metrics hold one image at a time.
    """

    positives: Float32[np.ndarray, " P"]
    """Scores of the anomalous pixels."""
    negatives: Float32[np.ndarray, " N"]
    """Scores of the normal pixels."""


class PixelMetrics(NamedTuple):
    """Fractions in [0, 1], and a score."""

    ap: float
    fpr95: float
    auroc: float
    best_f1: float
    f1_threshold: float
    """Pixels with at least this score are called anomalous where F1 is best; of several, the highest."""


def pixel_metrics(
    positives: Float32[np.ndarray, " P"],
    negatives: Float32[np.ndarray, " N"],
    *,
    fpr_rule: str = "first-at-least",
    overwrite: bool = False,
) -> PixelMetrics:
    """Compute the metrics of scores that are in memory; see `pooled_metrics`.

    Args:
        positives: scores of the anomalous pixels, higher = more anomalous.
        negatives: scores of the normal pixels.
        fpr_rule: a name of `FPR_RULES`.
        overwrite: sort in place and leave the inputs sorted, which saves 4 bytes per pixel.

    Raises:
        InputError: a class is empty, or a score is NaN.
    """
    if not overwrite:
        positives, negatives = positives.copy(), negatives.copy()
    positives.sort()  # float32 has a vectorised sort; NaN goes last
    negatives.sort()
    return pooled_metrics(SortedRuns([positives]), SortedRuns([negatives]), fpr_rule=fpr_rule)


def pooled_metrics(
    positives: SortedRuns,
    negatives: SortedRuns,
    *,
    fpr_rule: str = "first-at-least",
    interval: int = _INTERVAL,
) -> PixelMetrics:
    """Compute the metrics over all runs, exactly, whatever the order and number of runs.

    AP = Σ_k (R_k - R_{k-1}) · P_k over the distinct scores from the highest down (step sum, no
    interpolation); AUROC = P(positive > negative) + ½ P(equal); best F1 = max_k 2 TP / (TP + FP + P). Equal
    scores are one threshold. Scores may be infinite; -0.0 equals 0.0.

    Args:
        positives: scores of the anomalous pixels, higher = more anomalous; a sorted run per image.
        negatives: scores of the normal pixels.
        fpr_rule: a name of `FPR_RULES`.
        interval: scores joined at a time.

    Raises:
        InputError: a class is empty, or a score is NaN.

    Source: `average_precision_score`, `roc_curve(drop_intermediate=False)` and `precision_recall_curve` of
    scikit-learn, which this agrees with to rounding.
    """
    for name, scores in (("anomalous", positives), ("normal", negatives)):
        if scores.size == 0:
            raise InputError(f"metrics: no {name} pixel; AP, FPR95 and AUROC need both classes")
        if count := scores.count_nan():
            raise InputError(f"metrics: {count} of {scores.size} scores of {name} pixels are NaN")
    precision_parts, rank_parts = [], []
    best_f1, f1_threshold = -1.0, 0.0
    for steps in _steps(positives, negatives, interval):
        precision = steps.equal * steps.true_positives / (steps.true_positives + steps.false_positives)
        precision_parts.append(float(precision.sum()))
        below = 2 * negatives.size - steps.false_positives - steps.false_above
        rank_parts.append(float((steps.equal * below).sum()))
        f1 = 2 * steps.true_positives / (steps.true_positives + steps.false_positives + positives.size)
        last = f1.size - 1 - int(f1[::-1].argmax())
        if f1[last] >= best_f1:
            best_f1, f1_threshold = float(f1[last]), float(steps.values[last])
    return PixelMetrics(
        ap=math.fsum(precision_parts) / positives.size,
        fpr95=FPR_RULES[fpr_rule](positives, negatives),
        auroc=math.fsum(rank_parts) / 2 / positives.size / negatives.size,
        best_f1=best_f1,
        f1_threshold=f1_threshold,
    )


class _Steps(NamedTuple):
    """Distinct scores of positives, upwards, and what they count."""

    values: NDArray[np.float32]
    equal: NDArray[np.float64]
    """Positives with this score."""
    true_positives: NDArray[np.int64]
    """Positives with at least this score."""
    false_positives: NDArray[np.int64]
    """Negatives with at least this score."""
    false_above: NDArray[np.int64]
    """Negatives with a higher score."""


def _steps(positives: SortedRuns, negatives: SortedRuns, interval: int) -> Iterator[_Steps]:
    splitters = choose_splitters((positives, negatives), interval)
    if splitters.size:
        below = positives.count_below(splitters)
        equal = positives.count_not_above(splitters) - below
        found = equal > 0
        if found.any():
            yield _Steps(
                splitters[found],
                equal[found].astype(np.float64),
                positives.size - below[found],
                negatives.size - negatives.count_below(splitters)[found],
                negatives.size - negatives.count_not_above(splitters)[found],
            )
    for part in cut(positives, negatives, splitters):
        if part.positives.size == 0:
            continue
        is_first = np.empty(part.positives.size, dtype=bool)
        is_first[0] = True
        np.not_equal(part.positives[1:], part.positives[:-1], out=is_first[1:])
        first = np.flatnonzero(is_first)  # where each distinct score begins
        values = part.positives[first]
        above = negatives.size - part.negatives_below
        yield _Steps(
            values,
            np.diff(first, append=part.positives.size).astype(np.float64),
            positives.size - part.positives_below - first,
            above - np.searchsorted(part.negatives, values, side="left"),
            above - np.searchsorted(part.negatives, values, side="right"),
        )


def _fpr_at(positives: SortedRuns, negatives: SortedRuns, *, strict: bool) -> float:
    """Return the FPR at the highest threshold whose TPR is at least (strict: above) 0.95."""
    count = _required_count(positives.size, strict=strict)
    threshold = np.asarray(positives.nth(positives.size - count))
    return float((negatives.size - negatives.count_below(threshold)) / negatives.size)


def _fpr_interpolated(positives: SortedRuns, negatives: SortedRuns) -> float:
    """Return `np.interp(0.95, tpr, fpr)`: linear between the two points around 0.95.

    Where several points share the lower TPR, `np.interp` takes the last, which has the highest FPR.
    """
    num_positives, num_negatives = positives.size, negatives.size
    count = _required_count(num_positives, strict=True)
    threshold = np.asarray(positives.nth(num_positives - count))
    tpr = (num_positives - positives.count_below(threshold)) / num_positives
    fpr = (num_negatives - negatives.count_below(threshold)) / num_negatives
    lower_tpr = (num_positives - positives.count_not_above(threshold)) / num_positives
    lower_fpr = (num_negatives - negatives.count_not_above(threshold)) / num_negatives
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


FPR_RULES: dict[str, Callable[[SortedRuns, SortedRuns], float]] = {
    "first-at-least": lambda positives, negatives: _fpr_at(positives, negatives, strict=False),
    "first-above": lambda positives, negatives: _fpr_at(positives, negatives, strict=True),
    "interpolated": _fpr_interpolated,
}
"""How a false positive rate "at 95 % TPR" is read off a curve of steps; all take sorted runs.

- `first-at-least`: the first threshold with TPR >= 0.95 (Fishyscapes, SMIYC, UNO). The default.
- `first-above`: the first with TPR > 0.95 (RbA, DenseHybrid); differs only where a threshold hits 0.95.
- `interpolated`: linear between the points around 0.95 (`ood_metrics`, the course's script); such a point
  belongs to no threshold, and with many equal scores it can be far from both others.
"""
