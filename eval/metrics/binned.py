"""Metrics of a curve known at thresholds only: what lies between two of them counts as evenly mixed.

`ImageCounts` keeps, per image, how many positives and negatives lie in each of some thousand bins. It is
what a bootstrap over images needs: the counts of a resampled set are a weighted sum of the images' counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from eval.metrics.curve import TPR
from eval.metrics.runs import SortedRuns, choose_splitters

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


@dataclass(frozen=True)
class ImageCounts:
    """A sketch of one score over a set; bins run from the lowest score to the highest."""

    images: Int64[np.ndarray, " R"]
    """Positions in the set."""
    positives: Float32[np.ndarray, "R K"]
    """Anomalous pixels per image and bin: whole numbers, exact up to 2^24."""
    negatives: Float32[np.ndarray, "R K"]
    single: Bool[np.ndarray, " K"]
    """Whether the bin is one value, so that all in it are ties; else it is an open interval."""

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
    images: Sequence[int],
    positives: Sequence[Float32[np.ndarray, " _P"]],
    negatives: Sequence[Float32[np.ndarray, " _N"]],
    num_bins: int = NUM_BINS,
) -> ImageCounts:
    """Sketch the sorted scores of each image, on bins chosen from all of them.

    Every threshold is a score that occurs; what equals it is a bin of its own, so that ties stay ties. An
    open bin holds at most 8 / `num_bins` of the positives or as little of the negatives. Where fewer distinct
    scores occur than bins, the sketch is exact.
    """
    chosen = []
    for runs in (SortedRuns(positives), SortedRuns(negatives)):
        chosen.append(choose_splitters([runs], max(1, 8 * runs.size // num_bins)))
    return count_on_bins(images, positives, negatives, np.unique(np.concatenate(chosen)))


def count_on_bins(
    images: Sequence[int],
    positives: Iterable[Float32[np.ndarray, " _P"]],
    negatives: Iterable[Float32[np.ndarray, " _N"]],
    splitters: Float32[np.ndarray, " _S"],
) -> ImageCounts:
    """Sketch the sorted scores of each image on given thresholds; looks at one image at a time.

    Args:
        positives: per image, sorted upwards.
        splitters: each is a bin of its own, and so is what lies between two; upwards.
    """
    counts = []
    for runs_of_class in (positives, negatives):
        table = np.empty((len(images), 2 * splitters.size + 1), dtype=np.float32)
        for row, run in zip(table, runs_of_class, strict=True):
            left = np.searchsorted(run, splitters, side="left")
            right = np.searchsorted(run, splitters, side="right")
            edges = np.stack([left, right], axis=1).ravel()
            row[:] = np.diff(edges, prepend=0, append=run.size)
        counts.append(table)
    single = np.arange(2 * splitters.size + 1) % 2 == 1
    used = counts[0].any(axis=0) | counts[1].any(axis=0)
    return ImageCounts(np.array(images, dtype=np.int64), counts[0][:, used], counts[1][:, used], single[used])


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
