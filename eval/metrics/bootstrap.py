"""Intervals and paired tests by resampling images.

Pixels of one image are alike, so a set of 10 images says as much as 10 observations, not as 9 million. A
bootstrap therefore draws images, with replacement, and computes the metric of the pooled drawn set.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

NUM_RESAMPLES = 1000
LEVEL = 0.95
_BLOCK = 200
"""Resampled sets at a time: bounds memory to some hundred MB for thousands of bins."""

Interval = tuple[float, float]
Statistic = Callable[[Float64[np.ndarray, "B R"]], Sequence[Float64[np.ndarray, " B"]]]
"""Weights of the R images, one row per resampled set, to metrics of each; NaN where one does not exist."""


@dataclass(frozen=True)
class Comparison:
    """A paired test of A against B: the difference A - B with its 95 % interval."""

    difference: float
    """On the set as it is, or of the means over seeds."""
    low: float
    high: float
    """Infinite where a single number tells nothing of the spread, NaN where too few resampled sets do."""
    seeds: int
    """Number of seeds in common."""
    images: int
    """Number of images that were resampled; 0 where the interval is over the seeds alone."""

    @property
    def is_supported(self) -> bool:
        """Whether the interval excludes 0; if not, more images or seeds may turn the sign around."""
        return self.low > 0 or self.high < 0


def draw_weights(
    num_images: int, count: int = NUM_RESAMPLES, seed: int = 0, drawn: int | None = None
) -> Float64[np.ndarray, "B R"]:
    """Draw how often each image occurs in each of `count` resampled sets of `drawn` images; None: of as many.

    A function of the arguments alone: two models of one set are compared on the same resampled sets.
    """
    rng, drawn = np.random.default_rng([seed, num_images]), num_images if drawn is None else drawn
    return rng.multinomial(drawn, np.full(num_images, 1 / num_images), size=count).astype(np.float64)


def resample(
    statistic: Statistic, num_images: int, count: int = NUM_RESAMPLES
) -> list[Float64[np.ndarray, " B"]]:
    """Return each metric of the sets of `draw_weights`, some of which are alike where images are few.

    Those are computed once, and others some at a time, which bounds memory.
    """
    distinct, places = np.unique(draw_weights(num_images, count), axis=0, return_inverse=True)
    blocks = (distinct[begin : begin + _BLOCK] for begin in range(0, len(distinct), _BLOCK))
    found = zip(*map(statistic, blocks), strict=True)
    return [np.concatenate(values)[places.ravel()] for values in found]


def interval_of(values: Float64[np.ndarray, " B"]) -> Interval | None:
    """Return the central interval that holds 95 % of the values without NaN; None for fewer than 20.

    Source: percentile interval, Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    values = values[~np.isnan(values)]
    if values.size < 20:
        return None
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def bootstrap_intervals(
    statistic: Statistic, num_images: int, count: int = NUM_RESAMPLES
) -> list[Interval | None]:
    """Return the 95 % interval of each metric, all from the same resampled sets.

    None where too few sets have the metric, and for one image, which says nothing about others.
    """
    count = count if num_images > 1 else 1
    return [interval_of(values) for values in resample(statistic, num_images, count)]
