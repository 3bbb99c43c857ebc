"""Bounds on a risk, the mean of a loss in [0, 1] over frames, and the threshold that they allow.

Two forms, for frames that are exchangeable with the n calibration frames:

- in the mean over draws of the calibration frames, E[risk] <= α: conformal risk control, which asks that
  (n R + 1) / (n + 1) <= α of the mean loss R (Angelopoulos et al., "Conformal Risk Control", 2022, with the
  bound B = 1 of a loss);
- with confidence, P(risk <= α) >= 1 - δ: risk-controlling prediction sets (Bates et al., "Distribution-Free,
  Risk-Controlling Prediction Sets", JACM 2021), with the p-value of Hoeffding and Bentkus that they give and
  "Learn then Test" (Angelopoulos et al., 2021) uses.

Both need a loss that never falls while the threshold rises. Then the largest allowed threshold is the end of
an interval, so bisection finds it, and any smaller threshold keeps the promise, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from scipy.special import bdtr

_STEPS = 24
"""Halvings of the range of scores."""
_ROUNDING = 1e-9


@dataclass(frozen=True)
class RiskBound:
    """A promise on the risk."""

    alpha: float
    """Largest risk, in (0, 1)."""
    delta: float | None = None
    """Chance that the promise is broken, in (0, 1); None: it is of the mean over draws."""

    def allows(self, mean: float, count: int) -> bool:
        """Whether a mean loss of `count` calibration frames keeps the promise; monotone in `mean`."""
        if self.delta is None:
            return count * mean + 1 <= self.alpha * (count + 1) + _ROUNDING
        return p_value(mean, count, self.alpha) <= self.delta * (1 + _ROUNDING)

    def least_frames(self) -> int:
        """Return the fewest calibration frames that allow a mean loss of 0."""
        about = 1 / self.alpha - 1
        if self.delta is not None:
            about = math.log(self.delta) / math.log1p(-self.alpha)
        count = max(1, math.floor(about))  # which rounding may have moved
        return count if self.allows(0.0, count) else count + 1


def p_value(mean: float, count: int, alpha: float) -> float:
    """Return a p-value of "the risk is above α", given the mean of `count` losses in [0, 1].

    The smaller one of Hoeffding's exp(-n h(R, α)), h the divergence of two Bernoulli variables, and of
    Bentkus' e · P(Binomial(n, α) <= ⌈n R⌉).
    """
    if mean >= alpha:
        return 1.0
    divergence = (1 - mean) * math.log((1 - mean) / (1 - alpha))
    divergence += mean * math.log(mean / alpha) if mean > 0 else 0.0
    hits = math.ceil(count * mean - _ROUNDING)
    return min(1.0, math.exp(-count * divergence), math.e * float(bdtr(hits, count, alpha)))


def choose_threshold(
    mean_loss: Callable[[float], float], count: int, bound: RiskBound, ends: tuple[float, float]
) -> float | None:
    """Return the largest threshold that `bound` allows, up to 2^-24 of the range and never above it.

    Args:
        mean_loss: of the calibration frames at a threshold; never falls while that rises.
        count: of these frames.
        ends: thresholds between which it lies.

    Returns:
        None: not even the lower end is allowed.
    """
    low, high = ends
    if not bound.allows(mean_loss(low), count):
        return None
    if bound.allows(mean_loss(high), count):
        return high
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if bound.allows(mean_loss(middle), count) else (low, middle)
    return low
