"""How the scores of normal and of anomalous pixels are spread, as two histograms over the same bins."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from eval.metrics.runs import SortedRuns

NUM_BINS = 64
TAIL = 0.001
"""Share of each class that may lie beyond the bins of equal width, in the first and the last bin."""


@dataclass(frozen=True)
class ScoreDistribution:
    """Counts of both classes between the same edges."""

    edges: Float64[np.ndarray, " K1"]
    """The least score, then K - 1 edges at equal distances, then the largest score."""
    normal: Int64[np.ndarray, " K"]
    anomalous: Int64[np.ndarray, " K"]
    normal_median: float
    anomalous_median: float

    @property
    def gap(self) -> float:
        """By how much the median anomalous pixel scores above the median normal one, in the score's unit."""
        return self.anomalous_median - self.normal_median


def count_scores(positives: SortedRuns, negatives: SortedRuns, num_bins: int = NUM_BINS) -> ScoreDistribution:
    """Count the scores of anomalous (positive) and normal pixels, some of each, in `num_bins` bins.

    A bin holds what is at least its lower edge and below its upper one; the outer bins also hold everything
    beyond, the last one the largest score. Medians are scores that occur, of two the lower.
    """
    both = (negatives, positives)
    tails = [runs.nth(_at(runs, share)) for runs in both for share in (TAIL, 1 - TAIL)]
    low, high = _finite(min(tails)), _finite(max(tails))
    inner = np.linspace(low, high, num_bins - 1).astype(np.float32)
    counts = [np.diff(runs.count_below(inner), prepend=0, append=runs.size) for runs in both]
    least = _finite(min(runs.nth(0) for runs in both))
    largest = _finite(max(runs.nth(runs.size - 1) for runs in both))
    edges = np.concatenate([[min(least, low)], inner.astype(np.float64), [max(largest, high)]])
    medians = [float(runs.nth(_at(runs, 0.5))) for runs in both]
    return ScoreDistribution(edges, counts[0], counts[1], *medians)


def _at(runs: SortedRuns, share: float) -> int:
    return int(share * (runs.size - 1))


def _finite(score: np.float32) -> float:
    return float(np.nan_to_num(score))
