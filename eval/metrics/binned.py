"""Counts per image and bin of scores, and metrics of resampled sets of images.

A bootstrap over images needs the curves of resampled sets: their counts are weighted sums of the images'
counts in some thousand bins. Within a bin positives and negatives count as evenly mixed.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64
from numpy.typing import NDArray

from eval.metrics.curve import HALF_VALUES, TPR, Curve, ImageScores, choose_splitters

NUM_BINS = 4096
"""Bins aimed at; half of them split the anomalous pixels evenly, half the normal ones."""
_ROWS = 16
"""Resampled sets whose curves are computed at a time: some thousand bins of so many stay in the cache."""


class BinnedMetrics(NamedTuple):
    """Fractions in [0, 1], one per row of counts; NaN where a class is empty."""

    ap: Float64[np.ndarray, " B"]
    fpr95: Float64[np.ndarray, " B"]
    auroc: Float64[np.ndarray, " B"]
    best_f1: Float64[np.ndarray, " B"]


Runs = Sequence[Float32[np.ndarray, " _N"]]
"""Scores of one class, a sorted array per image."""
Rounding = Callable[[NDArray[np.float32]], NDArray[np.float32]]


@dataclass(frozen=True)
class ImageCounts:
    """One score over a set; bins run from the lowest score to the highest."""

    images: Int64[np.ndarray, " R"]
    """Positions in the set."""
    positives: Float32[np.ndarray, "R K"]
    """Anomalous pixels per image and bin: whole numbers, exact up to 2^24."""
    negatives: Float32[np.ndarray, "R K"]
    single: Bool[np.ndarray, " K"]
    """Whether the bin is one value, so that all in it are ties; else it is an open interval."""

    def curve(self) -> Curve:
        """Return the curve of the pooled set, whose thresholds are numbers of bins."""
        positives, negatives = (
            c.sum(axis=0, dtype=np.float64)[::-1] for c in (self.positives, self.negatives)
        )
        return Curve.from_counts(np.arange(positives.size)[::-1], positives, negatives)

    def metrics(self, weights: Float64[np.ndarray, "B R"], *, interpolate: bool = False) -> BinnedMetrics:
        """Compute the metrics of the pooled set in which image r occurs `weights[:, r]` times.

        Args:
            weights: how often each image is drawn, per resampled set.
            interpolate: read FPR95 between two thresholds even where one value holds both; see `FPR_RULES`.
        """
        positives, negatives = (
            weights @ counts.astype(np.float64) for counts in (self.positives, self.negatives)
        )
        parts = [
            binned_metrics(
                positives[begin : begin + _ROWS],
                negatives[begin : begin + _ROWS],
                self.single,
                interpolate=interpolate,
            )
            for begin in range(0, len(weights), _ROWS)
        ]
        return BinnedMetrics(*(np.concatenate(values) for values in zip(*parts, strict=True)))

    def bounds(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Return the least and the largest AP and FPR95 that scores with these counts can have.

        In an open interval every order is possible; the extremes put all its positives last or first.
        """
        positives, negatives = self.positives.sum(axis=0), self.negatives.sum(axis=0)
        return _extremes(positives.astype(np.float64), negatives.astype(np.float64), self.single)


def count_images(
    images: Sequence[ImageScores], positions: Sequence[int], num_bins: int = NUM_BINS
) -> ImageCounts:
    """Count the scores of each image in bins chosen from all of them.

    Every threshold is a score that occurs; what equals it is a bin of its own, so that ties stay ties. An
    open bin holds at most 8 / `num_bins` of the positives or as little of the negatives. Where fewer distinct
    scores occur than bins, the counts are exact.

    Args:
        images: scores of all images that count.
        positions: place of each in the set.
    """
    classes = [image.positives for image in images], [image.negatives for image in images]
    sizes = (sum(run.size for run in runs) for runs in classes)
    chosen = [
        choose_splitters(runs, max(1, 8 * size // num_bins))
        for runs, size in zip(classes, sizes, strict=True)
    ]
    return count_on_bins(images, positions, np.unique(np.concatenate(chosen)))


def choose_half_bins(
    classes: Sequence[Int64[np.ndarray, " K"]], num_bins: int = NUM_BINS
) -> Float32[np.ndarray, " _S"]:
    """Choose values that cut each class into open intervals of few scores.

    Every value that occurs, where `num_bins` suffice; else those at which a further 8 / `num_bins` of a class
    is reached.

    Args:
        classes: counts of each class per entry of `HALF_VALUES`.
    """
    used = np.flatnonzero(sum(classes))
    if used.size <= num_bins:
        return HALF_VALUES[used]
    chosen = []
    for counts in classes:
        up_to = counts.cumsum()
        steps = np.arange(1, num_bins // 4 + 1) * (up_to[-1] / (num_bins // 4))
        chosen.append(np.minimum(np.searchsorted(up_to, steps), HALF_VALUES.size - 1))
    return HALF_VALUES[np.unique(np.concatenate(chosen))]


def count_on_bins(
    images: Iterable[ImageScores], positions: Sequence[int], splitters: Float32[np.ndarray, " _S"]
) -> ImageCounts:
    """Count the scores of each image; looks at one image at a time.

    Args:
        splitters: each is a bin of its own, and so is what lies between two; upwards.
    """
    tables = np.empty((2, len(positions), 2 * splitters.size + 1), dtype=np.float32)
    for row, image in enumerate(images):
        for table, scores in zip(tables, image, strict=True):
            left = np.searchsorted(scores, splitters, side="left")
            right = np.searchsorted(scores, splitters, side="right")
            edges = np.stack([left, right], axis=1).ravel()
            table[row] = np.diff(edges, prepend=0, append=scores.size)
    single = np.arange(2 * splitters.size + 1) % 2 == 1
    used = tables.any(axis=(0, 1))
    positives, negatives = (table[:, used] for table in tables)
    return ImageCounts(np.array(positions, dtype=np.int64), positives, negatives, single[used])


def binned_metrics(
    positives: Float64[np.ndarray, "B K"],
    negatives: Float64[np.ndarray, "B K"],
    single: Bool[np.ndarray, " K"],
    *,
    interpolate: bool = False,
) -> BinnedMetrics:
    """Compute the metrics of many curves at once.

    A bin of one value is one threshold, as in `pixel_metrics`. In an open bin positives and negatives are
    taken as evenly mixed: precision is linear in recall there, and so is FPR in TPR.
    """
    positives, negatives = positives[:, ::-1], negatives[:, ::-1]  # from the highest score down
    single = single[::-1]
    true, false = positives.cumsum(axis=1), negatives.cumsum(axis=1)
    num_true, num_false = true[:, -1:], false[:, -1:]
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.where(true + false > 0, true / (true + false), 0.0)
        before = np.empty_like(precision)
        before[:, 0] = precision[:, 0]
        before[:, 1:] = precision[:, :-1]
        before = np.where(single | (true == positives), precision, (before + precision) / 2)
        ap = (positives * before).sum(axis=1) / num_true[:, 0]
        auroc = (
            (positives * (num_false - false + negatives / 2)).sum(axis=1) / num_true[:, 0] / num_false[:, 0]
        )
        best_f1 = (2 * true / (true + false + num_true)).max(axis=1)
        fpr95 = _fpr95(positives, negatives, true, false, single & (not interpolate))
    empty = (num_true[:, 0] == 0) | (num_false[:, 0] == 0)
    return BinnedMetrics(*(np.where(empty, np.nan, values) for values in (ap, fpr95, auroc, best_f1)))


def _fpr95(
    positives: Float64[np.ndarray, "B K"],
    negatives: Float64[np.ndarray, "B K"],
    true: Float64[np.ndarray, "B K"],
    false: Float64[np.ndarray, "B K"],
    step: Bool[np.ndarray, " K"],
) -> Float64[np.ndarray, " B"]:
    needed = TPR * true[:, -1]
    at = (true >= needed[:, None] * (1 - 1e-12)).argmax(axis=1)
    rows = np.arange(len(true))
    inside, width = positives[rows, at], negatives[rows, at]
    share = np.where(step[at], 1.0, (needed - true[rows, at] + inside) / inside)
    return (false[rows, at] - width + share * width) / false[:, -1]


def _extremes(
    positives: Float64[np.ndarray, " K"], negatives: Float64[np.ndarray, " K"], single: Bool[np.ndarray, " K"]
) -> tuple[tuple[float, float], tuple[float, float]]:
    positives, negatives, single = positives[::-1], negatives[::-1], single[::-1]
    true, false = positives.cumsum(), negatives.cumsum()
    with np.errstate(divide="ignore", invalid="ignore"):
        tied = np.where(positives > 0, true / (true + false), 0.0)
        # Open bins: at worst all negatives come first, at best all positives; each bin's precision is bounded
        # by its value at the bin's first or last positive.
        lowest = np.where(positives > 0, (true - positives + 1) / (true - positives + 1 + false), 0.0)
        highest = np.where(positives > 0, true / (true + false - negatives), 0.0)
    low = float((positives * np.where(single, tied, lowest)).sum() / true[-1])
    high = float((positives * np.where(single, tied, highest)).sum() / true[-1])
    at = int((true >= TPR * true[-1] * (1 - 1e-12)).argmax())
    fpr_high = float(false[at] / false[-1])
    fpr_low = fpr_high if single[at] else float((false[at] - negatives[at]) / false[-1])
    return (low, high), (fpr_low, fpr_high)


NUM_HISTOGRAM_BINS = 64
TAIL = 0.001
"""Share of each class that may lie beyond the bins of equal width, in the first and the last bin."""


@dataclass(frozen=True)
class ScoreDistribution:
    """Histograms of both classes between the same edges."""

    edges: Float64[np.ndarray, " K1"]
    """The least score, then K - 1 edges at equal distances, then the largest score."""
    normal: Int64[np.ndarray, " K"]
    anomalous: Int64[np.ndarray, " K"]
    normal_median: float
    anomalous_median: float

    @property
    def gap(self) -> float:
        """Median score of anomalous pixels minus that of normal ones, in the score's unit."""
        return self.anomalous_median - self.normal_median


def count_scores(
    positives: Runs, negatives: Runs, num_bins: int = NUM_HISTOGRAM_BINS, rounded: Rounding = np.asarray
) -> ScoreDistribution:
    """Count the scores of both classes, neither empty and all `rounded`, in `num_bins` bins.

    A bin holds what is at least its lower edge and below its upper one; the outer bins also hold everything
    beyond, the last one the largest score. Medians are scores that occur, of two the lower.
    """
    both = (negatives, positives)
    ranks = [[_nth_of(runs, share, rounded) for share in (0.0, TAIL, 0.5, 1 - TAIL, 1.0)] for runs in both]
    low, high = min(ranks[0][1], ranks[1][1]), max(ranks[0][3], ranks[1][3])
    inner = np.linspace(low, high, num_bins - 1).astype(np.float32)
    sizes = [sum(run.size for run in runs) for runs in both]
    counts = [
        np.diff(count_below(map(rounded, runs), inner), prepend=0, append=n)
        for runs, n in zip(both, sizes, strict=True)
    ]
    outer = min(low, ranks[0][0], ranks[1][0]), max(high, ranks[0][4], ranks[1][4])
    edges = np.concatenate([outer[:1], inner.astype(np.float64), outer[1:]])
    return ScoreDistribution(edges, counts[0], counts[1], ranks[0][2], ranks[1][2])


def nth_score(runs: Runs, index: int) -> Float32[np.ndarray, ""]:
    """Return the score at position `index` of all runs together, sorted upwards and counted from 0.

    Bisects the bit patterns of float32, so that nothing is gathered.
    """

    def value(pattern: int) -> NDArray[np.float32]:  # grows with the pattern
        return np.array(pattern if pattern >= 0 else pattern ^ 0x7FFFFFFF, dtype=np.int32).view(np.float32)

    patterns = range(-0x7F800001, 0x7F800001)  # from -inf to inf
    at = bisect_left(patterns, index + 1, key=lambda pattern: int(count_below(runs, value(pattern), "right")))
    return np.array(value(patterns[at]) + np.float32(0))  # 0, where it is -0


def _nth_of(runs: Runs, share: float, rounded: Rounding) -> float:
    score = nth_score(runs, int(share * (sum(run.size for run in runs) - 1)))
    return float(np.nan_to_num(rounded(score)))


def count_below(
    runs: Iterable[Float32[np.ndarray, " _N"]],
    values: NDArray[np.float32],
    side: Literal["left", "right"] = "left",
) -> NDArray[np.int64]:
    """Count, for each value, the scores below it, or with side "right" not above it."""
    return np.asarray(np.sum([np.searchsorted(run, values, side=side) for run in runs], axis=0), np.int64)
