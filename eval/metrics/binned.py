"""Counts per image and bin of scores, and metrics of resampled sets of images.

A bootstrap over images needs the curves of resampled sets: their counts are weighted sums of the images'
counts in some thousand bins. Within a bin positives and negatives count as evenly mixed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64
from numpy.typing import NDArray

from eval.metrics.curve import TPR, Curve, ImageScores

NUM_BINS = 4096
"""Bins aimed at; half of them split the anomalous pixels evenly, half the normal ones."""
_ROWS, _COUNTS = 4, 1 << 14
"""Resampled sets whose curves are computed at a time, or counts of more: so many stay in the cache."""


class BinnedMetrics(NamedTuple):
    """Fractions in [0, 1], one per row of counts; NaN where a class is empty."""

    ap: Float64[np.ndarray, " B"]
    fpr95: Float64[np.ndarray, " B"]
    auroc: Float64[np.ndarray, " B"]
    best_f1: Float64[np.ndarray, " B"]


Runs = Sequence[Float32[np.ndarray, " _N"]]
"""Scores of one class, a sorted array per image."""
Rounding = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Keeps the order."""


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
        sums = (counts.sum(axis=0, dtype=np.float64) for counts in (self.positives, self.negatives))
        return Curve.from_counts(np.arange(self.single.size), *sums)

    def metrics(self, weights: Float64[np.ndarray, "B R"], *, interpolate: bool = False) -> BinnedMetrics:
        """Compute the metrics of the pooled set in which image r occurs `weights[:, r]` times.

        A bin of one value is one threshold, as in `pixel_metrics`. In an open bin positives and negatives are
        taken as evenly mixed: precision is linear in recall there, and so is FPR in TPR.

        Args:
            weights: how often each image is drawn, per resampled set.
            interpolate: read FPR95 between two thresholds even where one value holds both; see `FPR_RULES`.
        """
        single = self.single[::-1]  # from the highest score down
        step = single & (not interpolate)
        classes = (counts[:, ::-1] for counts in (self.positives, self.negatives))
        sums = [counts.cumsum(axis=1, dtype=np.float64) for counts in classes]
        parts, rows = [], max(_ROWS, _COUNTS // self.single.size)
        for begin in range(0, len(weights), rows):
            true, false = (weights[begin : begin + rows] @ above for above in sums)
            parts.append(_read_metrics(true, false, single, step))
        return BinnedMetrics(*map(np.concatenate, zip(*parts, strict=True)))


def count_images(
    images: Sequence[ImageScores],
    positions: Sequence[int],
    num_bins: int = NUM_BINS,
    rounded: Rounding = np.asarray,
) -> ImageCounts:
    """Count the scores of each image, `rounded`, in bins chosen from all of them.

    Every threshold is a score that occurs; what equals it is a bin of its own, so that ties stay ties. An
    open bin holds at most 8 / `num_bins` of the positives or as little of the negatives. Where fewer distinct
    scores occur than bins, the counts are exact.

    Args:
        images: those that count.
        positions: place of each in the set.
    """
    classes = [image.positives for image in images], [image.negatives for image in images]
    chosen = [choose_splitters(runs, max(1, 8 * _size(runs) // num_bins)) for runs in classes]
    splitters = np.unique(rounded(np.concatenate(chosen)))  # each is a bin, and so is what lies between
    tables = np.empty((2, len(positions), 2 * splitters.size + 1), dtype=np.float32)
    for row, image in enumerate(images):
        for table, scores in zip(tables, map(rounded, image), strict=True):
            left = np.searchsorted(scores, splitters, side="left")
            right = np.searchsorted(scores, splitters, side="right")
            edges = np.stack([left, right], axis=1).ravel()
            table[row] = np.diff(edges, prepend=0, append=scores.size)
    single = np.arange(2 * splitters.size + 1) % 2 == 1
    used = tables.any(axis=(0, 1))
    positives, negatives = (table[:, used] for table in tables)
    return ImageCounts(np.array(positions, dtype=np.int64), positives, negatives, single[used])


def choose_splitters(runs: Sequence[Float32[np.ndarray, " _N"]], most: int) -> Float32[np.ndarray, " _S"]:
    """Choose values that cut the union of sorted runs into open intervals of at most `most` scores.

    A value that occurs often becomes a splitter itself, and what equals a splitter lies in no interval: ties,
    however many, never make an interval large.

    Sampling every s-th score of each of R runs leaves fewer than s scores of a run between two neighbours of
    its sample, so an interval with m samples inside has at most (m + R) · s scores.
    """
    runs = [run for run in runs if run.size]
    if sum(run.size for run in runs) <= most:
        return np.zeros(0, dtype=np.float32)
    stride = max(1, most // (2 * len(runs)))
    samples = np.sort(np.concatenate([run[stride - 1 :: stride] for run in runs]))
    every = max(1, most // (2 * stride))
    return np.unique(samples[every - 1 :: every])


def _read_metrics(
    true: Float64[np.ndarray, "B K"],
    false: Float64[np.ndarray, "B K"],
    single: Bool[np.ndarray, " K"],
    step: Bool[np.ndarray, " K"],
) -> BinnedMetrics:
    """Read metrics off counts in bins and all above them; FPR95 is one point of a bin that is a `step`."""
    rows, num_true, num_false = np.arange(len(true)), true[:, -1], false[:, -1]
    positives = np.diff(true, axis=1, prepend=0)
    called = true + false
    precision = true / np.maximum(called, 1)
    needed = TPR * num_true
    at = np.array([np.searchsorted(*pair) for pair in zip(true, needed * (1 - 1e-12), strict=True)])
    inside, width = positives[rows, at], false[rows, at] - np.where(at > 0, false[rows, at - 1], 0)
    mixed = positives * ~single / 2  # in an open bin precision goes from that of the bin above to its own
    mixed[rows, (true > 0).argmax(axis=1)] = 0  # but above the first positive there is none
    area = _dot(positives, precision) - _dot(mixed[:, 1:], np.diff(precision, axis=1))
    above = (_dot(positives, false) + _dot(positives[:, 1:], false[:, :-1])) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(step[at], 1.0, (needed - true[rows, at] + inside) / inside)
        metrics = BinnedMetrics(
            ap=area / num_true,
            fpr95=(false[rows, at] - width + share * width) / num_false,
            auroc=1 - above / num_true / num_false,
            best_f1=(2 * true / (called + num_true[:, None])).max(axis=1),
        )
    is_empty = (num_true == 0) | (num_false == 0)
    return BinnedMetrics(*(np.where(is_empty, np.nan, values) for values in metrics))


def _dot(a: Float64[np.ndarray, "B K"], b: Float64[np.ndarray, "B K"]) -> Float64[np.ndarray, " B"]:
    return np.einsum("bk,bk->b", a, b)


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


def count_scores(positives: Runs, negatives: Runs, rounded: Rounding = np.asarray) -> ScoreDistribution:
    """Count the scores of both classes, neither empty and all `rounded`.

    A bin holds what is at least its lower edge and below its upper one; the outer bins also hold everything
    beyond, the last one the largest score. Medians are scores that occur, of two the lower.
    """
    both = (negatives, positives)
    shares = (0.0, TAIL, 0.5, 1 - TAIL, 1.0)
    found = [nth_scores(runs, [int(share * (_size(runs) - 1)) for share in shares]) for runs in both]
    finite = np.nan_to_num(np.stack([rounded(of_class) for of_class in found]))
    least, lower, medians, upper, largest = finite.T.tolist()
    low, high = min(lower), max(upper)
    inner = np.linspace(low, high, NUM_HISTOGRAM_BINS - 1).astype(np.float32)
    counts = [np.diff(count_below(map(rounded, runs), inner), prepend=0, append=_size(runs)) for runs in both]
    edges = np.concatenate([[min(low, *least)], inner.astype(np.float64), [max(high, *largest)]])
    return ScoreDistribution(edges, counts[0], counts[1], *medians)


def _size(runs: Runs) -> int:
    return sum(run.size for run in runs)


def nth_scores(runs: Runs, indices: Sequence[int]) -> Float32[np.ndarray, " I"]:
    """Return the scores at positions `indices` of all runs together, sorted upwards and counted from 0.

    Bisects the bit patterns of float32, so that nothing is gathered.
    """
    low, high = (np.full(len(indices), end, np.int64) for end in (-0x7F800001, 0x7F800000))  # -inf to inf
    while (low < high).any():
        middle = (low + high) // 2
        is_enough = count_below(runs, _value_at(middle), "right") > indices
        low, high = np.where(is_enough, low, middle + 1), np.where(is_enough, middle, high)
    return _value_at(low) + np.float32(0)  # 0, where it is -0


def _value_at(pattern: Int64[np.ndarray, " I"]) -> Float32[np.ndarray, " I"]:
    """Return the float32 of a bit pattern, which grows with the pattern."""
    return np.where(pattern >= 0, pattern, pattern ^ 0x7FFFFFFF).astype(np.int32).view(np.float32)


def count_below(
    runs: Iterable[Float32[np.ndarray, " _N"]],
    values: NDArray[np.float32],
    side: Literal["left", "right"] = "left",
) -> NDArray[np.int64]:
    """Count, for each value, the scores below it, or with side "right" not above it."""
    return np.asarray(np.sum([np.searchsorted(run, values, side=side) for run in runs], axis=0), np.int64)
