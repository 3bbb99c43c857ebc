"""Softmax scores in the form in which evaluation compares them: the same order, without the ties of rounding.

1 - max p and entropy live in [0, 1] and crowd at its ends: sure logits at 0, and the evidence of a mask
model, about [0, 1] itself, near 1, where float32 has steps of 6e-8 and float16 of 5e-4. Metrics compare
scores only, so a growing function of a score serves as well, and log-odds tell both ends apart:

    MSP          log s - log Σ_c (1 - e^d_c)        log-odds of s / (C - 1)
    MaxEntropy   log H - log(log C - H)             log-odds of the normalised entropy H / log C
    Energy       -(max L + log mean_c e^d_c)        the free energy plus log C, which is about 0 for small L

with d_c = L_c - max L, s = Σ e^d over the classes but the largest, H the entropy of softmax(L). None of them
subtracts numbers that are nearly equal, but for log C - H where all classes are nearly equal: with a largest
difference |d| its relative error is at most about 1e-5 / |d|, a hundredth of what 1 - H / log C has.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

_TINY = 1e-38
"""In place of 0 before a logarithm."""


class Spread(NamedTuple):
    """How far the classes of a pixel lie below the largest, as all softmax scores read it."""

    num_classes: int
    winner: Int64[Tensor, "B H W"]
    """The first class of largest evidence."""
    top: Float[Tensor, "B H W"]
    """max L."""
    log_others: Float[Tensor, "B H W"]
    """log s."""
    gap: Float[Tensor, "B H W"]
    """Mean of -d over the other classes, weighted by e^d."""
    missing: Float[Tensor, "B H W"]
    """Σ (1 - e^d) over all classes: 0 where all are equal, C - 1 where one is sure."""


def spread_of(evidence: Float[Tensor, "B C H W"]) -> Spread:
    """Compute what the softmax scores share; needs two classes or more."""
    with torch.autocast(evidence.device.type, enabled=False):
        values = evidence.float()
        top, winner = values.max(dim=1, keepdim=True)
        below = values - top
        second = below.scatter(1, winner, -math.inf).amax(dim=1, keepdim=True)
        weights = (below - second).exp_().scatter_(1, winner, 0.0)
        total = weights.sum(dim=1)
        return Spread(
            num_classes=evidence.shape[1],
            winner=winner[:, 0],
            top=top[:, 0],
            log_others=second[:, 0] + total.log(),
            gap=-(weights.mul_(below)).sum(dim=1) / total,
            missing=-below.expm1_().sum(dim=1),
        )


def msp_log_odds(spread: Spread) -> Float[Tensor, "B H W"]:
    """Order pixels as `eval.scores.msp` does."""
    return spread.log_others - spread.missing.clamp(min=_TINY).log()


def entropy_log_odds(spread: Spread) -> Float[Tensor, "B H W"]:
    """Order pixels as `eval.scores.max_entropy` does; its sigmoid is the normalised entropy."""
    others = spread.log_others.exp()
    is_small = others < 1e-30  # also where it is rounded to 0
    log1p_ratio = torch.where(is_small, 1.0, others.log1p() / others.clamp(min=1e-30))  # log(1 + s) / s
    log_entropy = spread.log_others + (log1p_ratio + spread.gap / (1 + others)).log()
    log_mean = torch.log1p(-spread.missing / spread.num_classes)
    divergence = -others / (1 + others) * spread.gap - log_mean
    return log_entropy - divergence.clamp(min=_TINY).log()


def centred_energy(spread: Spread) -> Float[Tensor, "B H W"]:
    """Order pixels as `eval.scores.energy` does, which this is plus log C."""
    return -(spread.top + torch.log1p(-spread.missing / spread.num_classes))


FORMS: dict[str, Callable[[Spread], Tensor]] = {
    "MSP": msp_log_odds,
    "MaxEntropy": entropy_log_odds,
    "Energy": centred_energy,
}
"""Name of a score -> the form of it that is compared. Other scores are compared as they are."""
