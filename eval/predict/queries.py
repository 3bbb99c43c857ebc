"""Claims of a mask model's queries on a pixel: class scores, and anomaly scores that read more than these.

Query q claims a pixel for class c with probability softmax(class_logits_q)[c] · sigmoid(mask_q). Functions
are differentiable, compute in float32 whatever the autocast state, and stay finite for logits up to at least
1e4 in size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.polynomial import Chebyshev, Polynomial
from torch import Tensor


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
    outlier_maps: Mapping[str, Float[Tensor, "B 1 _h _w"]] | None = None
    """What an outlier head says of each pixel, by the score's name."""

    def resized(self, size: tuple[int, int]) -> QueryOutputs:
        """Resize masks and maps to (H, W), before any sigmoid."""
        maps = {name: resize_masks(each, size) for name, each in (self.outlier_maps or {}).items()}
        return self._replace(mask_logits=resize_masks(self.mask_logits, size), outlier_maps=maps)


def mask_energy(queries: QueryOutputs) -> Float[Tensor, "B h w"]:
    """Free energy of the log-class scores: -log Σ_c exp(log L[c]) = -log Σ_c L[c], from -log Q up.

    0 where the queries' claims add up to one, 2.3 where they add up to a tenth. It ranks as -Σ_c L[c] does.
    Computed in logarithms, -log Σ_q exp(log p_q + log sigmoid(mask_q)) with p_q the probability that q shows
    any class, so that it has no upper end and useful gradients where no query claims the pixel.
    """
    with torch.autocast(queries.mask_logits.device.type, enabled=False):
        logits = queries.class_logits.float()
        log_class = logits[..., : queries.num_classes].logsumexp(dim=-1) - logits.logsumexp(dim=-1)  # (B, Q)
        log_mask = F.logsigmoid(queries.mask_logits.float())
        return -(log_class[..., None, None] + log_mask).logsumexp(dim=1)


def eam(queries: QueryOutputs) -> Float[Tensor, "B h w"]:
    """Ensemble over anomaly scores of masks: 1 - Σ_q sigmoid(mask_q) · max_c softmax(class_logits_q)[c].

    Source: Grcić et al., "On Advantages of Mask-level Recognition for Outlier-aware Segmentation", CVPRW
    2023, https://github.com/matejgrcic/Open-set-M2F.
    """
    with torch.autocast(queries.mask_logits.device.type, enabled=False):
        sure = queries.class_logits.float().softmax(dim=-1)[..., : queries.num_classes].amax(dim=-1)
        return 1 - torch.einsum("bq,bqhw->bhw", sure, queries.mask_logits.float().sigmoid())


def uno(queries: QueryOutputs) -> Float[Tensor, "B h w"]:
    """Trained outlier class against the surest class: Σ_q sigmoid(mask_q) · (p_q[outlier] - max_c p_q[c]).

    In (-Q, Q). Needs a model with an outlier class.

    Source: Delić et al., "Outlier Detection by Ensembling Uncertainty with Negative Objectness", BMVC 2024,
    https://github.com/matejgrcic/Open-set-M2F.
    """
    with torch.autocast(queries.mask_logits.device.type, enabled=False):
        p = queries.class_logits.float().softmax(dim=-1)
        balance = p[..., queries.num_classes] - p[..., : queries.num_classes].amax(dim=-1)
        return torch.einsum("bq,bqhw->bhw", balance, queries.mask_logits.float().sigmoid())


def min_distance(queries: QueryOutputs) -> Float[Tensor, "B h w"]:
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
        masks = queries.mask_logits.float().sigmoid()
        return queries.farthest - ((queries.farthest - nearest)[..., None, None] * masks).amax(dim=1)


def outlier_map(queries: QueryOutputs, *, name: str) -> Float[Tensor, "B h w"]:
    """Return a map of the outlier head, which the model must have.

    `LikelihoodRatio` is log p(pixel | outlier) - log p(pixel | inlier), in nats: its sigmoid is the
    probability of an outlier where both are equally likely beforehand. A fitted head also says `Mahalanobis`,
    `NearestNeighbor` and `StandardizedMaxLogit` (`models.token_bank`).
    """
    assert queries.outlier_maps is not None
    return queries.outlier_maps[name][:, 0].float()


def sole_claim(queries: QueryOutputs) -> Float[Tensor, "B h w"]:
    """Surprise that not exactly one query claims the pixel: -log P(one), from 0 up.

    Mask classification gives each pixel of a known class to exactly one query. A pixel that no query claims
    is anomalous here, and so is one that several claim, which Σ_c tanh(L[c]) takes for twice as normal.
    Query q claims it with probability c_q = p_q · sigmoid(mask_q), where p_q = Σ_c softmax(class_logits_q)[c]
    over the classes of the closed set, and independently of the others:

        log P(one) = Σ_q log(1 - c_q) + log Σ_q c_q / (1 - c_q)

    Everything is computed in logarithms, 1 - c_q as (1 - p_q) + p_q · sigmoid(-mask_q), so that neither a
    sure claim nor a sure refusal is rounded away. Rounding may leave it a little below 0. Source: ours, see
    docs/sole-claim.md.
    """
    with torch.autocast(queries.mask_logits.device.type, enabled=False):
        logits = queries.class_logits.float()
        everything = logits.logsumexp(dim=-1)
        log_known = (logits[..., : queries.num_classes].logsumexp(dim=-1) - everything)[..., None, None]
        log_other = (logits[..., queries.num_classes :].logsumexp(dim=-1) - everything)[..., None, None]
        masks = queries.mask_logits.float()
        log_claim = log_known + F.logsigmoid(masks)
        log_refusal = torch.logaddexp(log_other, log_known + F.logsigmoid(-masks))
        return -log_refusal.sum(dim=1) - (log_claim - log_refusal).logsumexp(dim=1)


class ClassClaims(NamedTuple):
    """Log-probabilities of which classes claim a pixel, each independently of the others."""

    refused: Float[Tensor, "B C H W"]
    """log(1 - P_c): no query claims the pixel for class c."""
    claimed: Float[Tensor, "B C H W"]
    """log P_c: at least one does."""

    @property
    def none(self) -> Float[Tensor, "B H W"]:
        """Return log Π_c (1 - P_c): no class claims the pixel."""
        return self.refused.sum(dim=1)

    @property
    def sole(self) -> Float[Tensor, "B C H W"]:
        """Return log [P_c Π_{c' ≠ c} (1 - P_c')]: class c claims the pixel, and no other."""
        return self.claimed - self.refused + self.none[:, None]


def class_claims(queries: QueryOutputs) -> ClassClaims:
    """Compute the log-probabilities that each class claims a pixel, by any number of queries, and does not.

        P_c = 1 - Π_q (1 - softmax(class_logits_q)[c] · sigmoid(mask_q))

    the noisy-or of the queries' claims. Relative accuracy holds at both ends: of a claim that is all but
    certain, and of the faint claims that order the pixels which no query wants. Source: ours, see
    docs/sole-claim.md.
    """
    with torch.autocast(queries.mask_logits.device.type, enabled=False):
        logits = queries.class_logits.float()
        itself = torch.eye(logits.shape[-1], dtype=torch.bool, device=logits.device)[: queries.num_classes]
        others = logits[..., None, :].masked_fill(itself, -math.inf).logsumexp(dim=-1)  # (B, Q, C)
        margins = logits[..., : queries.num_classes] - others
        refused = _Refusal.apply(margins, queries.mask_logits.float())
        faint = torch.log(-torch.expm1(refused.clamp(min=-1.0, max=-1e-37)))
        sure = torch.log1p(-torch.exp(refused.clamp(max=-1.0)))
        return ClassClaims(refused, torch.where(refused > -1, faint, sure))


def class_claim(queries: QueryOutputs) -> Float[Tensor, "B h w"]:
    """Surprise that not exactly one class claims the pixel: -log max_c P_c Π_{c' ≠ c} (1 - P_c'), from 0 up.

    As `sole_claim`, but queries that repeat one class agree here, and one that is torn between two does not
    make a sure claim. Source: ours, see `class_claims`.
    """
    return -class_claims(queries).sole.amax(dim=1)


_SERIES: Sequence[float] = (
    Chebyshev.interpolate(lambda c: np.log1p(-c) / c, 8, domain=(0, 0.5))
    .convert(kind=Polynomial)
    .coef.tolist()
)
"""log(1 - c) / c as a polynomial of c in (0, 1/2], lowest power first, to 3e-8 of its value."""
_FAINT = 1e-16
"""Squares and fifth powers below it are nothing beside what they are powers of, and would end in denormals,
which are slow."""


class _Refusal(torch.autograd.Function):
    """Σ_q log(1 - p_qc · m_q) of the log-odds of p and m, (B, C, H, W), where Σ_c p_qc is at most 1.

    Only the surest class of a query can be surer than 1/2. It takes a logarithm per pixel; of the others the
    sum over q of powers (p_qc · m_q)^k, whose factors part, is a matrix product.
    """

    @staticmethod
    def forward(ctx: Any, margins: Float[Tensor, "B Q C"], masks: Float[Tensor, "B Q H W"]) -> Tensor:
        ctx.save_for_backward(margins, masks)
        surest, claim, refusal = _surest_claims(margins, masks)
        total = surest.mT @ torch.where(claim < 0.5, (-claim.clamp(max=0.5)).log1p_(), refusal.log_())
        for k, p, m in _powers(margins, masks):
            total.baddbmm_(p.mT, m, alpha=_SERIES[k - 1])
        return total.clamp_(max=0).unflatten(-1, masks.shape[-2:])

    @staticmethod
    def backward(ctx: Any, gradient: Float[Tensor, "B C H W"]) -> tuple[Tensor, Tensor]:
        margins, masks = ctx.saved_tensors
        gradient = gradient.flatten(2)
        surest, claim, refusal = _surest_claims(margins, masks)
        to_masks = claim.div_(refusal).mul_(surest @ gradient).neg_()
        to_classes = surest * to_masks.sum(dim=-1, keepdim=True)
        for k, p, m in _powers(margins, masks):
            to_masks.addcmul_(p @ gradient, m, value=k * _SERIES[k - 1])
            to_classes.addcmul_(m @ gradient.mT, p, value=k * _SERIES[k - 1])
        return to_classes * (-margins).sigmoid(), to_masks.view_as(masks) * (-masks).sigmoid()


def _surest_claims(
    margins: Float[Tensor, "B Q C"], masks: Float[Tensor, "B Q H W"]
) -> tuple[Float[Tensor, "B Q C"], Float[Tensor, "B Q P"], Float[Tensor, "B Q P"]]:
    """Return each query's surest class, as 0 and 1, its claim p · m, and 1 - p · m to its last digit."""
    surest = F.one_hot(margins.argmax(dim=-1), margins.shape[-1]).to(masks.dtype)
    top, masks = margins.amax(dim=-1)[..., None], masks.flatten(2)
    m = masks.sigmoid()
    refusal = (-masks).sigmoid_().addcmul_(m, (-top).sigmoid()).clamp_(min=1e-30)
    return surest, m.mul_(top.sigmoid()), refusal


def _powers(
    margins: Float[Tensor, "B Q C"], masks: Float[Tensor, "B Q H W"]
) -> Iterator[tuple[int, Float[Tensor, "B Q C"], Float[Tensor, "B Q P"]]]:
    """Yield k, p^k of all but the surest class, and m^k; the next one overwrites them."""
    p, m = (
        margins.sigmoid().scatter_(-1, margins.argmax(dim=-1, keepdim=True), 0.0),
        masks.flatten(2).sigmoid(),
    )
    powers = (p.clone(), m.clone())
    for k in range(1, len(_SERIES) + 1):
        yield k, *powers
        for power, base in zip(powers, (p, m), strict=True):
            power.mul_(base)
            if k in (1, 4):
                F.threshold(power, _FAINT, 0.0, inplace=True)
