"""Scores in float16, of which only the order matters: monotone forms that keep most of it."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float16, Float32, Shaped

from shards.errors import InputError

LOG_SCORES = ("MSP", "MaxEntropy")
"""Scores in [0, 1] that networks answer near 1, or near 0, by the thousand. float16 has steps of 0.0005 below
1; the logarithm moves 1 to 0, where they are finest, and keeps the ratio of small ones."""
_TINY = float(np.finfo(np.float32).tiny)


def spread(score: str, values: Float32[np.ndarray, "H W"]) -> Float32[np.ndarray, "H W"]:
    """Return `values` in the same order on a scale that half precision resolves.

    log(s) for `LOG_SCORES` (0 becomes -87.3), others as they are. No metric that only compares scores changes
    by it, but for fewer ties.
    """
    if score not in LOG_SCORES:
        return values
    assert np.nanmin(values) >= -1e-4, f"{score} is not in [0, 1], so its logarithm is not its order"
    return np.log(np.maximum(values, np.float32(_TINY)))


def to_half(score: str, values: Float32[np.ndarray, "H W"]) -> Float16[np.ndarray, "H W"]:
    """Return `spread(score, values)` in float16.

    Raises:
        InputError: a value is beyond float16.
    """
    moved = spread(score, values)
    largest = float(np.abs(moved).max())
    if largest > float(np.finfo(np.float16).max):
        raise InputError(
            f"score {score}: {largest:g} does not fit into float16, whose largest number is 65504"
        )
    return moved.astype(np.float16)


def largest_tie(values: Shaped[np.ndarray, "H W"]) -> float:
    """Return the share of pixels that have the most frequent value."""
    counts = np.unique(values, return_counts=True)[1]
    return float(counts.max()) / values.size
