"""Anomaly scores of a pixel, as pure functions: what training pushes apart is what the tests measure.

A score is higher where the pixel is more anomalous. The scale is free: metrics only compare. There are two
kinds. `SCORES` read the class scores L, one number per class and pixel, which every network has: EoMT's are
sums of probabilities (see `pixel_class_scores`) of about [0, 1], no logits; per-pixel networks hand in
their logits. `QUERY_SCORES` read what a mask model's queries say (`QueryOutputs`), which is gone in L.

All functions are differentiable, compute in float32 whatever the autocast state, and stay finite for
logits up to at least 1e4 in size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from shards.errors import InputError


def pixel_class_scores(
    mask_logits: Float[Tensor, "B Q _h _w"],
    class_logits: Float[Tensor, "B Q C1"],
    size: tuple[int, int] | None = None,
    num_classes: int | None = None,
) -> Float[Tensor, "B _C _H _W"]:
    """Turn mask predictions into class scores per class and pixel.

    L[c] = Σ_q softmax(class_logits_q)[c] · sigmoid(mask_logits_q), c without "no object". The last class is
    "no object": it takes its share of the softmax and is dropped afterwards, so a query that sees nothing
    speaks for no class.

    Args:
        mask_logits: one map per query, at any resolution.
        class_logits: C classes and, last, "no object".
        size: (H, W) to resize the mask logits to, bilinearly with align_corners=False and before the
            sigmoid (the sigmoid of a mean is not the mean of sigmoids); None keeps their resolution.
        num_classes: how many of the first classes are returned; None: all but "no object". Those between,
            such as a trained outlier class, are treated like "no object".

    Source: Mask2Former, Cheng et al., CVPR 2022, and RbA, Nayal et al., ICCV 2023. RbA resizes with
    align_corners=True; EoMT, whose masks we read, does not.
    """
    with torch.autocast(mask_logits.device.type, enabled=False):
        classes = class_logits.float().softmax(dim=-1)[..., : -1 if num_classes is None else num_classes]
        return torch.einsum("bqc,bqhw->bchw", classes, resize_masks(mask_logits, size).sigmoid())


def resize_masks(mask_logits: Tensor, size: tuple[int, int] | None) -> Tensor:
    """Resize (..., h, w) bilinearly with align_corners=False, in float32; None keeps the size."""
    masks = mask_logits.float()
    if size is None or tuple(masks.shape[-2:]) == tuple(size):
        return masks
    return F.interpolate(masks, size=tuple(size), mode="bilinear", align_corners=False)


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


class QueryOutputs(NamedTuple):
    """Predictions of a mask model's queries, as far as a score reads them."""

    mask_logits: Float[Tensor, "B Q _h _w"]
    class_logits: Float[Tensor, "B Q C1"]
    """Ready for softmax; "no object" is the last column."""
    num_classes: int
    """The first columns are classes of the closed set; one between them and "no object" is a trained outlier
    class."""
    class_distances: Float[Tensor, "B Q C1"] | None = None
    """Distance to each class's prototype, where the model has prototypes."""
    farthest: Float[Tensor, ""] | float = 2.0
    """The largest distance there can be."""


def mask_energy(queries: QueryOutputs, size: tuple[int, int] | None = None) -> Float[Tensor, "B _H _W"]:
    """Free energy of the log-class scores: -log Σ_c exp(log L[c]) = -log Σ_c L[c], from -log Q up.

    0 where the queries' claims add up to one, 2.3 where they add up to a tenth. It ranks as -Σ_c L[c] does.
    Computed in logarithms, -log Σ_q exp(log p_q + log sigmoid(mask_q)) with p_q the probability that q shows
    any class, so that it has no upper end and useful gradients where no query claims the pixel.
    """
    with torch.autocast(queries.mask_logits.device.type, enabled=False):
        logits = queries.class_logits.float()
        log_class = logits[..., : queries.num_classes].logsumexp(dim=-1) - logits.logsumexp(dim=-1)  # (B, Q)
        log_mask = F.logsigmoid(resize_masks(queries.mask_logits, size))
        return -(log_class[..., None, None] + log_mask).logsumexp(dim=1)


def eam(queries: QueryOutputs, size: tuple[int, int] | None = None) -> Float[Tensor, "B _H _W"]:
    """Ensemble over anomaly scores of masks: 1 - Σ_q sigmoid(mask_q) · max_c softmax(class_logits_q)[c].

    Source: Grcić et al., "On Advantages of Mask-level Recognition for Outlier-aware Segmentation", CVPRW
    2023, https://github.com/matejgrcic/Open-set-M2F.
    """
    with torch.autocast(queries.mask_logits.device.type, enabled=False):
        sure = queries.class_logits.float().softmax(dim=-1)[..., : queries.num_classes].amax(dim=-1)
        return 1 - torch.einsum("bq,bqhw->bhw", sure, resize_masks(queries.mask_logits, size).sigmoid())


def uno(queries: QueryOutputs, size: tuple[int, int] | None = None) -> Float[Tensor, "B _H _W"]:
    """Trained outlier class against the surest class: Σ_q sigmoid(mask_q) · (p_q[outlier] - max_c p_q[c]).

    In (-Q, Q). Needs a model with an outlier class.

    Source: Delić et al., "Outlier Detection by Ensembling Uncertainty with Negative Objectness", BMVC 2024,
    https://github.com/matejgrcic/Open-set-M2F.
    """
    with torch.autocast(queries.mask_logits.device.type, enabled=False):
        p = queries.class_logits.float().softmax(dim=-1)
        balance = p[..., queries.num_classes] - p[..., : queries.num_classes].amax(dim=-1)
        return torch.einsum("bq,bqhw->bhw", balance, resize_masks(queries.mask_logits, size).sigmoid())


def min_distance(queries: QueryOutputs, size: tuple[int, int] | None = None) -> Float[Tensor, "B _H _W"]:
    """Minimum distance to a class's prototype, of those queries that claim the pixel, in [0, farthest].

        min_q [ sigmoid(mask_q) · min_c D_q[c] + (1 - sigmoid(mask_q)) · farthest ]

    over the classes without "no object": IsoMax+'s score of the query where one query surely claims the
    pixel, the largest possible distance where none does. The choice is ours, the published score is of whole
    images. A minimum, not a sum: two queries on one pixel do not make it more known than one. Needs a model
    with prototypes.

    Source: Macêdo and Ludermir, "Enhanced Isotropy Maximization Loss", 2021.
    """
    assert queries.class_distances is not None
    with torch.autocast(queries.mask_logits.device.type, enabled=False):
        nearest = queries.class_distances.float()[..., : queries.num_classes].amin(dim=-1)  # (B, Q)
        masks = resize_masks(queries.mask_logits, size).sigmoid()
        return queries.farthest - ((queries.farthest - nearest)[..., None, None] * masks).amax(dim=1)


class ClaimCount(NamedTuple):
    """Log-probabilities of how many queries claim a pixel."""

    none: Float[Tensor, "B H W"]
    one: Float[Tensor, "B H W"]


def count_claims(queries: QueryOutputs, size: tuple[int, int] | None = None) -> ClaimCount:
    """Compute the log-probabilities that no query, and that exactly one query, claims a pixel for a class.

    Query q claims it with probability c_q = p_q · sigmoid(mask_q), where p_q = Σ_c softmax(class_logits_q)[c]
    over the classes of the closed set, and independently of the others:

        log P(none) = Σ_q log(1 - c_q)        log P(one) = log P(none) + log Σ_q c_q / (1 - c_q)

    Everything is computed in logarithms, 1 - c_q as (1 - p_q) + p_q · sigmoid(-mask_q), so that neither a
    sure claim nor a sure refusal is rounded away. Source: ours, see docs/sole-claim.md.
    """
    with torch.autocast(queries.mask_logits.device.type, enabled=False):
        logits = queries.class_logits.float()
        everything = logits.logsumexp(dim=-1)
        log_known = (logits[..., : queries.num_classes].logsumexp(dim=-1) - everything)[..., None, None]
        log_other = (logits[..., queries.num_classes :].logsumexp(dim=-1) - everything)[..., None, None]
        masks = resize_masks(queries.mask_logits, size)
        log_claim = log_known + F.logsigmoid(masks)
        log_refusal = torch.logaddexp(log_other, log_known + F.logsigmoid(-masks))
        none = log_refusal.sum(dim=1)
        return ClaimCount(none, none + (log_claim - log_refusal).logsumexp(dim=1))


def sole_claim(queries: QueryOutputs, size: tuple[int, int] | None = None) -> Float[Tensor, "B _H _W"]:
    """Surprise that not exactly one query claims the pixel: -log P(one), from 0 up.

    Mask classification gives each pixel of a known class to exactly one query. A pixel that no query claims
    is anomalous here, and so is one that several claim, which Σ_c tanh(L[c]) takes for twice as normal.
    Rounding may leave it a little below 0. Source: ours, see `count_claims`.
    """
    return -count_claims(queries, size).one


SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    "MSP": msp,
    "MaxLogit": max_logit,
    "MaxEntropy": max_entropy,
    "RbA": rba,
    "Energy": energy,
}
"""Name in the tables -> class scores (B, C, H, W) to score (B, H, W)."""
DEFAULT_SCORES = ("MSP", "MaxLogit", "MaxEntropy", "RbA")


class QueryScore(NamedTuple):
    """A score that class scores do not suffice for."""

    read: Callable[[QueryOutputs, tuple[int, int] | None], Tensor]
    """Queries and the size to resize their masks to -> score (B, H, W)."""
    needs: Literal["queries", "class distances", "an outlier class"]
    """Part that a network must have for it."""


QUERY_SCORES: dict[str, QueryScore] = {
    "MaskEnergy": QueryScore(mask_energy, "queries"),
    "EAM": QueryScore(eam, "queries"),
    "SoleClaim": QueryScore(sole_claim, "queries"),
    "MinDistance": QueryScore(min_distance, "class distances"),
    "UNO": QueryScore(uno, "an outlier class"),
}
"""Name in the tables -> how it is computed, and what for."""


def require_scores(names: tuple[str, ...], setting: str = "--scores") -> None:
    """Check that `names` are scores, at least one and each once."""
    known = (*SCORES, *QUERY_SCORES)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InputError(f"{setting}: unknown score {unknown[0]!r}; known scores: {', '.join(known)}")
    if not names or len(set(names)) < len(names):
        given = ", ".join(names) or "nothing"
        raise InputError(f"{setting}: got {given}; at least one score, each once, of {', '.join(known)}")
