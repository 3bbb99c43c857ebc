"""Softmax scores in the form in which evaluation compares them: the same order, without the ties of rounding.

1 - max p and entropy live in [0, 1] and crowd at its ends: sure logits at 0, and the class scores of a mask
model, about [0, 1] itself, near 1, where float32 has steps of 6e-8 and float16 of 5e-4. Metrics compare
scores only, so a growing function of a score serves as well, and log-odds tell both ends apart:

    MSP          log s - log Σ_c (1 - e^d_c)        log-odds of s / (C - 1)
    MaxEntropy   log H - log(log C - H)             log-odds of the normalised entropy H / log C
    Energy       -(max L + log mean_c e^d_c)        the free energy plus log C, which is about 0 for small L

with d_c = L_c - max L, s = Σ e^d over the classes but the largest, H the entropy of softmax(L);
NormalizedMSP and NormalizedEntropy are MSP and MaxEntropy of log L, whose softmax is L / ΣL. Everything is
computed from one pass of exponentials in float64 (twice the time of float32, and a seventh of expm1's), so
that differences of nearly equal sums keep what float32 class scores say. Where no pixel of a strip is very
sure, s is Σ_c e^d_c - 1; elsewhere the largest class is left out, and exponentials are taken from the second.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from eval.predict.scores import SCORES, log_evidence

_TINY = 1e-300
"""In place of 0 before a logarithm."""
_SURE = 1e-6
"""Least s that is read off 1 + s: its relative error is then below 1e-8, a sixth of float32's."""


class SoftmaxTerms(NamedTuple):
    """How far the classes of a pixel lie below the largest, as all softmax scores read it."""

    num_classes: int
    top: Float[Tensor, "B H W"]
    """max L."""
    others: Float64[Tensor, "B H W"]
    """s, which may be rounded to 0 where a class is very sure."""
    scaled: Float64[Tensor, "B H W"]
    """s less a power of e, as it was summed up."""
    exponent: Float64[Tensor, "B H W"] | None
    """s = scaled · e^exponent; None where `scaled` is s itself."""
    log_total: Float64[Tensor, "B H W"]
    """log(1 + s), which keeps its digits where s is small."""
    gap: Float64[Tensor, "B H W"]
    """Mean of -d over the other classes, weighted by e^d."""
    missing: Float64[Tensor, "B H W"]
    """Σ (1 - e^d) over all classes: 0 where all are equal, C - 1 where one is sure."""


def softmax_terms(class_scores: Float[Tensor, "B C H W"]) -> SoftmaxTerms:
    """Compute what the softmax scores share; needs two classes or more."""
    values = class_scores if class_scores.dtype == torch.float64 else class_scores.float()
    top = values.amax(dim=1, keepdim=True)
    below = values - top
    differences = below.double()
    weights = torch.exp(differences)
    total = weights.sum(dim=1)
    others = total - 1
    if not bool((others > _SURE).all()):
        return _sure_terms(below, top)
    return SoftmaxTerms(
        num_classes=class_scores.shape[1],
        top=top[:, 0],
        others=others,
        scaled=others,
        exponent=None,
        log_total=torch.log(total),  # total - 1 is exact where it is small, and so is this
        gap=-(weights * differences).sum(dim=1) / others,
        missing=class_scores.shape[1] - total,
    )


def _sure_terms(below: Float[Tensor, "B C H W"], top: Float[Tensor, "B 1 H W"]) -> SoftmaxTerms:
    """Compute the same for any pixels, sure ones too, at three times the cost."""
    is_top = below == 0
    rest = below.masked_fill(is_top, -math.inf)
    second = rest.amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).min)  # if all are equal
    weights = torch.exp((rest - second).double())  # of the largest 0; exp(second) smaller than e^d
    total, mean = weights.sum(dim=1), -(weights * below).sum(dim=1)
    ties = is_top.sum(dim=1).double() - 1
    second = second[:, 0].double()
    scale = torch.exp(second)
    others = ties + scale * total
    has_ties = ties > 0
    return SoftmaxTerms(
        num_classes=below.shape[1],
        top=top[:, 0],
        others=others,
        scaled=torch.where(has_ties, others, total),
        exponent=torch.where(has_ties, 0.0, second),
        log_total=torch.log1p(others),
        gap=torch.where(has_ties, scale * mean / others, mean / total),
        missing=below.shape[1] - 1 - others,
    )


def msp_log_odds(terms: SoftmaxTerms) -> Float[Tensor, "B H W"]:
    """Order pixels as `eval.predict.scores.msp` does."""
    return _log_of(terms.scaled / terms.missing.clamp(min=_TINY), terms)


def entropy_log_odds(terms: SoftmaxTerms) -> Float[Tensor, "B H W"]:
    """Order pixels as `eval.predict.scores.max_entropy` does; its sigmoid is the normalised entropy."""
    others = terms.others
    everything = 1 + others
    is_small = others < _TINY  # also where it is rounded to 0
    log_ratio = torch.where(is_small, 1.0, terms.log_total / others.clamp(min=_TINY))  # log(1 + s) / s
    entropy = terms.scaled * (log_ratio + terms.gap / everything)
    divergence = math.log(terms.num_classes) - terms.log_total - others / everything * terms.gap
    return _log_of(entropy / divergence.clamp(min=_TINY), terms)


def centred_energy(terms: SoftmaxTerms) -> Float[Tensor, "B H W"]:
    """Order pixels as `eval.predict.scores.energy` does, which this is plus log C."""
    return (math.log(terms.num_classes) - terms.log_total - terms.top).float()


def _log_of(scaled: Float64[Tensor, "B H W"], terms: SoftmaxTerms) -> Float[Tensor, "B H W"]:
    """Take the logarithm of what was computed from `terms.scaled` in the place of s."""
    logarithm = torch.log(scaled)
    return (logarithm if terms.exponent is None else logarithm + terms.exponent).float()


FORMS: dict[str, Callable[[SoftmaxTerms], Tensor]] = {
    "MSP": msp_log_odds,
    "MaxEntropy": entropy_log_odds,
    "Energy": centred_energy,
    "NormalizedMSP": msp_log_odds,
    "NormalizedEntropy": entropy_log_odds,
}
"""Name of a score -> the form of it that is compared. Other scores are compared as they are."""
OF_LOGARITHM = ("NormalizedMSP", "NormalizedEntropy")
"""Those that read log L."""


def compared_scores(
    class_scores: Float[Tensor, "B C H W"], names: Sequence[str]
) -> dict[str, Float[Tensor, "B H W"]]:
    """Compute scores of `eval.predict.scores.SCORES` in the form in which they are compared."""
    terms = {
        of_log: softmax_terms(log_evidence(class_scores.double()) if of_log else class_scores)
        for of_log in {name in OF_LOGARITHM for name in names if name in FORMS}
    }
    return {
        name: FORMS[name](terms[name in OF_LOGARITHM]) if name in FORMS else SCORES[name](class_scores)
        for name in names
    }


def to_log_odds(name: str, scores: Float[Tensor, "H W"], num_classes: int) -> Float[Tensor, "H W"]:
    """Turn a score that was averaged, as `eval.predict.scores` defines it, into a form that is compared.

    Log-odds of its share of the largest value; other scores and the energy stay as they are.
    """
    if FORMS.get(name) not in (msp_log_odds, entropy_log_odds):
        return scores
    largest = 1 - 1 / num_classes if FORMS[name] is msp_log_odds else 1.0
    return torch.logit(scores.double() / largest, eps=1e-12).float()


def from_log_odds(name: str, threshold: float, num_classes: int) -> float:
    """Return the value of `eval.predict.scores` that `compared_scores` compares as `threshold`."""
    form = FORMS.get(name)
    if form is centred_energy:
        return threshold - math.log(num_classes)
    if form is None:
        return threshold
    largest = 1 - 1 / num_classes if form is msp_log_odds else 1.0
    return largest / (1 + math.exp(-max(threshold, -700.0)))
