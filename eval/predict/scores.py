"""Anomaly scores of a pixel, as pure functions: what training pushes apart is what the tests measure.

A score is higher where the pixel is more anomalous. The scale is free: metrics only compare. There are two
kinds. `SCORES` read the class scores L, one number per class and pixel, which every network has. A mask
model's are evidence, sums of probabilities of about [0, 1] (`eval.predict.queries.pixel_class_scores`);
per-pixel networks hand in their logits. So the probability of a class is L / ΣL of evidence and softmax(L) of
logits. The normalised scores read the first; MSP and MaxEntropy read softmax(L) of both, which of evidence is
nearly uniform: the course's convention, which orders pixels and says no probability. `QUERY_SCORES` read what
a mask model's queries say (`eval.predict.queries.QueryOutputs`), which is gone in L.

All functions are differentiable, compute in float32 whatever the autocast state, and stay finite for
logits up to at least 1e4 in size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from eval.predict.queries import (
    QueryOutputs,
    class_claim,
    eam,
    mask_energy,
    min_distance,
    outlier_map,
    pixel_class_scores,
    sole_claim,
    uno,
)
from eval.predict.score_names import HEAD_SCORES

QueryReader = Callable[[QueryOutputs], Tensor]


def msp(class_scores: Float[Tensor, "B C H W"]) -> Float[Tensor, "B H W"]:
    """Maximum softmax probability, turned around: 1 - max_c softmax(L)[c], in [0, 1 - 1/C].

    Computed as s / (1 + s) with s = Σ exp(L[c] - max L) over the other classes: 1 - p by subtraction keeps
    nothing of a p near 1, and makes thousands of ties of sure pixels.

    Source: Hendrycks and Gimpel, ICLR 2017.
    """
    with torch.autocast(class_scores.device.type, enabled=False):
        values = class_scores.float()
        top, winner = values.max(dim=1, keepdim=True)
        others = (values - top).exp().scatter(1, winner, 0.0).sum(dim=1)
        return others / (1 + others)


def max_logit(class_scores: Float[Tensor, "B C H W"]) -> Float[Tensor, "B H W"]:
    """Largest class scores, turned around: -max_c L[c].

    Of a mask model it orders pixels as 1 - max_c L[c] does, the score of Mask2Anomaly.

    Source: Hendrycks et al., ICML 2022; Rai et al., ICCV 2023.
    """
    return -class_scores.float().amax(dim=1)


def max_entropy(class_scores: Float[Tensor, "B C H W"]) -> Float[Tensor, "B H W"]:
    """Entropy of softmax(L), normalised: -Σ_c p log p / log C, in [0, 1]; 1 where all classes are equal.

    The division by log C is ours; it changes no ranking.

    Source: Chan et al., ICCV 2021 (Meta-OoD).
    """
    with torch.autocast(class_scores.device.type, enabled=False):
        log_p = class_scores.float().log_softmax(dim=1)
        return -(log_p.exp() * log_p).sum(dim=1) / math.log(class_scores.shape[1])


def rba(class_scores: Float[Tensor, "B C H W"]) -> Float[Tensor, "B H W"]:
    """Rejected by all: -Σ_c tanh(L[c]), in (-C, 0] for class scores that is never negative.

    Source: Nayal et al., ICCV 2023, https://github.com/NazirNayal8/RbA.
    """
    with torch.autocast(class_scores.device.type, enabled=False):
        return -class_scores.float().tanh().sum(dim=1)


def energy(class_scores: Float[Tensor, "B C H W"]) -> Float[Tensor, "B H W"]:
    """Free energy: -log Σ_c exp(L[c]).

    Meant for logits. Of a mask model's L, about [0, 1], it moves by 0.1 at most; see `mask_energy`.

    Source: Liu et al., NeurIPS 2020; per pixel as PEBAL, Tian et al., ECCV 2022.
    """
    with torch.autocast(class_scores.device.type, enabled=False):
        return -class_scores.float().logsumexp(dim=1)


_LEAST = 1e-30
"""Of class scores whose logarithm is taken."""


def log_evidence(class_scores: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """Return log L of sums of probabilities: its softmax is L / ΣL, and of a pixel without any, uniform."""
    values = class_scores if class_scores.dtype == torch.float64 else class_scores.float()
    return values.clamp(min=_LEAST).log()


def normalized_msp(class_scores: Float[Tensor, "B C H W"]) -> Float[Tensor, "B H W"]:
    """Largest share of the class scores, turned around: 1 - max_c L[c] / ΣL, in [0, 1 - 1/C].

    What MSP is for a per-pixel network: L[c] / ΣL is the probability of class c, given that the pixel is
    of a class that was trained. 0 where only one class is claimed, however faintly.
    """
    with torch.autocast(class_scores.device.type, enabled=False):
        return msp(log_evidence(class_scores))


def normalized_entropy(class_scores: Float[Tensor, "B C H W"]) -> Float[Tensor, "B H W"]:
    """Entropy of L / ΣL, normalised: -Σ_c p log p / log C, in [0, 1].

    Source: `sum_entropy` in the code of RbA, Nayal et al., ICCV 2023; the division by log C is ours.
    """
    with torch.autocast(class_scores.device.type, enabled=False):
        return max_entropy(log_evidence(class_scores))


def _entropy(class_scores: Float[Tensor, "B C H W"]) -> Float[Tensor, "B H W"]:
    """Entropy of L / ΣL in nats, which -log of a probability may be added to."""
    return math.log(class_scores.shape[1]) * normalized_entropy(class_scores)


def entropy_log_max(class_scores: Float[Tensor, "B C H W"]) -> Float[Tensor, "B H W"]:
    """Conflict and lack of evidence: entropy of L / ΣL, in nats, less log max_c L[c].

    The first is large where several classes share a pixel, the second where none has much of it: dissonance
    and vacuity in subjective logic (Jøsang, 2016). The sum is ours.
    """
    with torch.autocast(class_scores.device.type, enabled=False):
        return _entropy(class_scores) - log_evidence(class_scores).amax(dim=1)


def _add_entropy(read: QueryReader) -> QueryReader:
    """Make the sum of a query score, a -log of a probability, and the entropy of L / ΣL in nats."""

    def read_sum(queries: QueryOutputs) -> Tensor:
        masks, classes, num_classes = queries[:3]
        return read(queries) + _entropy(pixel_class_scores(masks, classes, num_classes=num_classes))

    return read_sum


SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    "MSP": msp,
    "MaxLogit": max_logit,
    "MaxEntropy": max_entropy,
    "RbA": rba,
    "Energy": energy,
    "NormalizedMSP": normalized_msp,
    "NormalizedEntropy": normalized_entropy,
    "EntropyLogMax": entropy_log_max,
}
"""Name in the tables -> class scores (B, C, H, W) to score (B, H, W)."""
QUERY_SCORES: dict[str, QueryReader] = {
    "MaskEnergy": mask_energy,
    "EAM": eam,
    "SoleClaim": sole_claim,
    "ClassClaim": class_claim,
    "ClassClaimEntropy": _add_entropy(class_claim),
    "MinDistance": min_distance,
    "UNO": uno,
    **{name: partial(outlier_map, name=name) for name in HEAD_SCORES},
}
"""Name in the tables -> queries, at the size that is asked for, to score (B, H, W)."""
