"""How much of a difference is the seed: mean and spread over repeated runs, and paired comparison.

Seeds change everything that is random in training. Two methods trained from the same seed share initial
weights, data order and crops, so their difference varies less than either number: it is compared pairwise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy.stats

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """One number over runs that differ in their seed alone; a fraction in [0, 1]."""

    mean: float
    spread: float | None
    """Standard deviation between runs, divided by n - 1; None for a single run, which has none to show."""

    def __str__(self) -> str:
        spread = "" if self.spread is None else f" ± {100 * self.spread:.2f}"
        return f"{100 * self.mean:.2f}{spread}"


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


def estimate(values: Sequence[float | None]) -> Estimate | None:
    """Return mean and spread of the values that were measured; None if there are none."""
    measured = [value for value in values if value is not None and not math.isnan(value)]
    if not measured:
        return None
    spread = float(np.std(measured, ddof=1)) if len(measured) > 1 else None
    return Estimate(float(np.mean(measured)), spread)


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
    differences = np.subtract(first, second)
    mean, count = float(differences.mean()), len(differences)
    if count == 1:
        return SeedDifference(mean, -math.inf, math.inf)
    deviation = float(differences.std(ddof=1))
    margin = float(scipy.stats.t.ppf((1 + level) / 2, count - 1)) * deviation / math.sqrt(count)
    return SeedDifference(mean, mean - margin, mean + margin)
