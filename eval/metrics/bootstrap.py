"""How sure a number is: intervals and paired tests by resampling images.

Pixels of one image are alike, so a set of 10 images says as much as 10 observations, not as 9 million. A
bootstrap therefore draws images, with replacement, and computes the metric of the pooled drawn set.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

NUM_RESAMPLES = 1000
LEVEL = 0.95
SEED = 0
_BLOCK = 200
"""Resampled sets at a time: bounds memory to some hundred MB for thousands of bins."""

Statistic = Callable[[Float64[np.ndarray, "B R"]], Float64[np.ndarray, " B"]]
"""Weights of the R images, one row per resampled set, to the metric of each; NaN where it does not exist."""


class PairedTest(NamedTuple):
    """What the images say about model A minus model B."""

    difference: float
    """On the set as it is."""
    low: float
    high: float
    """Interval of the difference."""
    p_value: float
    """Two-sided; below 0.05 the sign of the difference holds for other images of this kind."""

    @property
    def is_supported(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0


def draw_weights(num_images: int, count: int, seed: int = SEED) -> Float64[np.ndarray, "B R"]:
    """Draw how often each image occurs in each of `count` resampled sets of the same size.

    A function of the arguments alone: two models of one set are compared on the same resampled sets.
    """
    rng = np.random.default_rng([seed, num_images])
    return rng.multinomial(num_images, np.full(num_images, 1 / num_images), size=count).astype(np.float64)


def draw_blocks(
    num_images: int, count: int = NUM_RESAMPLES, seed: int = SEED
) -> Iterator[Float64[np.ndarray, "B R"]]:
    """Yield the weights of `draw_weights` some at a time, which bounds memory."""
    weights = draw_weights(num_images, count, seed)
    for begin in range(0, count, _BLOCK):
        yield weights[begin : begin + _BLOCK]


def resample(
    statistic: Statistic, num_images: int, *, count: int = NUM_RESAMPLES, seed: int = SEED
) -> Float64[np.ndarray, " B"]:
    """Return the metric of each resampled set."""
    return np.concatenate([statistic(weights) for weights in draw_blocks(num_images, count, seed)])


def interval_of(values: Float64[np.ndarray, " B"], level: float = LEVEL) -> tuple[float, float] | None:
    """Return the central interval that holds `level` of the values without NaN; None for fewer than 20.

    Source: percentile interval, Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    values = values[~np.isnan(values)]
    if values.size < 20:
        return None
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bootstrap_interval(
    statistic: Statistic, num_images: int, *, count: int = NUM_RESAMPLES, seed: int = SEED
) -> tuple[float, float] | None:
    """Return the 95 % interval of a metric; None for one image, which says nothing about others."""
    if num_images < 2:
        return None
    return interval_of(resample(statistic, num_images, count=count, seed=seed))


def judge_differences(difference: float, differences: Float64[np.ndarray, " B"]) -> PairedTest:
    """Judge a difference by those of the resampled sets.

    The p-value is twice the smaller share of resampled differences on either side of 0, with one added to
    both counts, as a share of 0 of finitely many is no proof of impossibility.

    Args:
        difference: on the set as it is.
        differences: on the same resampled sets for both models; NaN where a metric does not exist.

    Source: Efron and Tibshirani, chapter 16; Phipson and Smyth, 2010, for the added one.
    """
    differences = differences[~np.isnan(differences)]
    ends = interval_of(differences) or (math.nan, math.nan)
    above, below = int((differences >= 0).sum()), int((differences <= 0).sum())
    p_value = min(1.0, 2 * (min(above, below) + 1) / (differences.size + 1))
    return PairedTest(difference, *ends, p_value)
