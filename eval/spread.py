"""How much of a difference is the seed: mean and spread over repeated runs, and paired comparison.

Seeds change everything that is random in training. Two methods trained from the same seed share initial
weights, data order and crops, so their difference varies less than either number: it is compared pairwise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats

LEVEL = 0.95


class Spread(NamedTuple):
    """Of one number over runs that differ in their seed alone."""

    mean: float
    deviation: float
    """Standard deviation with n - 1; NaN for a single run, which has no spread to show."""
    num_runs: int


class SeedDifference(NamedTuple):
    """Method A minus method B, over seeds that both were trained with."""

    mean: float
    low: float
    high: float
    """Interval of the mean difference; infinite for a single seed."""

    @property
    def is_supported(self) -> bool:
        """Whether the interval excludes 0; if not, more seeds may turn the sign around."""
        return self.low > 0 or self.high < 0


def measure_spread(values: Sequence[float]) -> Spread:
    """Return mean and standard deviation of at least one value."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return Spread(float(np.mean(values)), deviation, len(values))


def compare_seeds(first: Sequence[float], second: Sequence[float], level: float = LEVEL) -> SeedDifference:
    """Compare two methods by Student's paired interval: mean ± t(n − 1) · s / √n of the differences.

    With three seeds t is 4.3: a difference has to be 2.5 times its spread to be supported.

    Args:
        first: one number per seed of method A.
        second: of method B, the same seeds in the same order.

    Raises:
        ValueError: the two are not equally many.
    """
    if len(first) != len(second) or not first:
        raise ValueError(f"as many numbers of both methods are needed, got {len(first)} and {len(second)}")
    mean, deviation, count = measure_spread([a - b for a, b in zip(first, second, strict=True)])
    if count == 1:
        return SeedDifference(mean, -math.inf, math.inf)
    margin = float(scipy.stats.t.ppf((1 + level) / 2, count - 1)) * deviation / math.sqrt(count)
    return SeedDifference(mean, mean - margin, mean + margin)
