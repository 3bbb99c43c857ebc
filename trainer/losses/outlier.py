"""Outlier terms: penalties on the pixels of pasted objects and on all others beside them."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from eval.predict.queries import QueryOutputs, class_claims, mask_energy, pixel_class_scores, resize_masks
from eval.predict.score_names import RATIO
from eval.predict.scores import max_logit, rba
from models.eomt import Prediction
from shards.schema import OUTLIER_ID
from trainer.losses.options import (
    HEAD_LOSS,
    ClassClaimOptions,
    EnergyOptions,
    Mask2AnomalyOptions,
    OutlierOptions,
    RbaOptions,
)
from trainer.losses.targets import StepTotals, read_own_maps, weigh_outliers

PixelCosts = tuple[Float[Tensor, "B H W"], Float[Tensor, "B H W"]]
"""What each pixel would cost as an inlier and as an outlier."""


class OutlierTerm(OutlierOptions, ABC):
    """One scalar that reads the outlier pixels of a batch, and its own options.

        term = ½ ( mean over inliers of cost_in + mean over outliers of cost_out )

    summed over the supervised depths. Costs are computed from masks at their own resolution in float32 and
    brought to that of the labels bilinearly; void is left out; both means are over the pixels of the whole
    step, outliers weighted by the area of their object (see `weigh_outliers`), and the half without pixels is
    0. A subclass says what the two costs are.
    """

    def __call__(
        self,
        prediction: Prediction,
        label: UInt8[Tensor, "B H W"],
        totals: StepTotals,
        weights: Float[Tensor, "B H W"] | None = None,
    ) -> Float[Tensor, ""]:
        """Return this batch's share of the step's value (see `StepTotals`), connected to the graph.

        `weights` of outlier pixels, as `weigh_outliers` returns them; None: 1.
        """
        weights = weigh_outliers(label) if weights is None else weights
        depths = list(zip(prediction.mask_logits, prediction.class_logits, strict=True))[-self.layers :]
        maps, num_classes = prediction.outlier_maps, prediction.num_classes
        queries = [QueryOutputs(*depth, num_classes, outlier_maps=maps) for depth in depths]
        return torch.stack([self._at_depth(each, label, totals, weights) for each in queries]).sum()

    def _at_depth(self, queries: QueryOutputs, label: Tensor, totals: StepTotals, weights: Tensor) -> Tensor:
        with torch.autocast(queries.mask_logits.device.type, enabled=False):
            inlier, outlier = self.costs(queries, label)
            inlier = (inlier * (label < OUTLIER_ID)).sum()
            outlier = (outlier * weights).sum()  # of which the step has a sum, or none at all
            return 0.5 * (inlier / max(totals.inlier_pixels, 1.0) + outlier / (totals.outlier_pixels or 1.0))

    @abstractmethod
    def costs(self, queries: QueryOutputs, label: UInt8[Tensor, "B H W"]) -> PixelCosts:
        """Return what each pixel would cost as an inlier, of the class of its label, and as an outlier.

        Finite, and at the size of the labels.
        """


class PixelTerm(OutlierTerm):
    """An anomaly score per pixel, higher where more anomalous, pushed down on inliers and up on outliers.

    Unless a subclass says otherwise by a squared hinge: cost_in = max(0, score - inlier_upper)², cost_out =
    max(0, outlier_lower - score)².
    """

    @property
    @abstractmethod
    def thresholds(self) -> tuple[float, float]:
        """(inlier_upper, outlier_lower) as they hold."""

    @abstractmethod
    def score(self, queries: QueryOutputs) -> Float[Tensor, "B h w"]:
        """Return the score at mask resolution; it is resized before it is penalised."""

    def inlier(self, score: Float[Tensor, "B H W"]) -> Float[Tensor, "B H W"]:
        """Return what a score costs an inlier."""
        return F.relu(score - self.thresholds[0]).square()

    def outlier(self, score: Float[Tensor, "B H W"]) -> Float[Tensor, "B H W"]:
        """Return what a score costs an outlier."""
        return F.relu(self.thresholds[1] - score).square()

    def costs(self, queries: QueryOutputs, label: Tensor) -> PixelCosts:
        score = F.interpolate(self.score(queries)[:, None], size=label.shape[-2:], mode="bilinear")[:, 0]
        return self.inlier(score), self.outlier(score)


class Rba(RbaOptions, PixelTerm):
    """RbA outlier exposure: pixels of outliers should be rejected by all classes.

    A squared hinge on

        RbA = −Σ_c tanh(L[c])  in (−C, 0]

    the very score of the evaluation: about −0.76 where one class is sure (L = 1), −0.92 where two share a
    pixel equally, 0 where no query claims it.

    What the thresholds can do, as the score is never above 0 (see `RBA_PRESETS`). `released` (0, 5): the
    inlier half is identically 0, and outliers can never get there, so they feel a steady pull towards 0
    that never ends; inliers are held by the class and mask terms alone. `code` (−1, −0.1): a sure pixel of
    one class scores −0.76, so inliers are pulled until several queries repeat their class; outliers
    can be satisfied. `reachable` (−0.7, −0.1): both halves can be satisfied, by one sure query and by none.

    Source: Nayal et al., "RbA: Segmenting Unknown Regions Rejected by All", ICCV 2023,
    https://github.com/NazirNayal8/RbA. We differ: always ½ (theirs drops it in batches without outliers);
    means are over the whole step; resized with align_corners=False.
    """

    def score(self, queries: QueryOutputs) -> Float[Tensor, "B h w"]:
        masks, classes, num_classes = queries[:3]
        return rba(pixel_class_scores(masks, classes, num_classes=num_classes))


class Energy(EnergyOptions, PixelTerm):
    """A squared hinge on the free energy of the log-class scores, as PEBAL's energy loss.

        E = −log Σ_c exp(log L[c]) = −log Σ_c L[c]  in [−log Q, ∞)

    (`eval.predict.queries.mask_energy`). PEBAL's −logsumexp reads logits. The class scores of a mask model
    is a sum of probabilities, of which −logsumexp moves between −2.94 and −3.03; its logarithm takes the
    place of the logit. Unlike RbA's, the pull on an inlier that no query claims grows with its energy, and
    does not fade with the sigmoid.

    Source: Tian et al., "Pixel-wise Energy-biased Abstention Learning", ECCV 2022,
    https://github.com/tianyu0207/PEBAL (thresholds −12 and −6 on logits; weight 0.1). We differ: the energy
    of log-class scores and thresholds to match; no abstention class, sparsity or smoothness terms.
    """

    def score(self, queries: QueryOutputs) -> Float[Tensor, "B h w"]:
        return mask_energy(queries)


class Mask2Anomaly(Mask2AnomalyOptions, PixelTerm):
    """Mask2Anomaly's contrastive margin on s = 1 − max_c L[c], about [0, 1]: 0 where one class is sure.

    cost_in = s², cost_out = max(0, margin − s)². Where several queries repeat a class, L exceeds 1 and
    the square holds inliers back from it.

    Source: Rai et al., "Mask2Anomaly: Mask Transformer for Universal Open-set Segmentation", 2023,
    https://github.com/shyam671/Mask2Anomaly-Unmasking-Anomalies-in-Road-Scene-Segmentation. We differ: the
    code's inlier half squares −max L, which pulls inliers' class scores to 0; s is what the paper writes.
    """

    def score(self, queries: QueryOutputs) -> Float[Tensor, "B h w"]:
        masks, classes, num_classes = queries[:3]
        return 1 + max_logit(pixel_class_scores(masks, classes, num_classes=num_classes))

    def inlier(self, score: Float[Tensor, "B H W"]) -> Float[Tensor, "B H W"]:
        return score.square()


class ClassClaim(ClassClaimOptions, OutlierTerm):
    """The likelihood that its class and no other claims an inlier, and that no class claims an outlier.

        cost_in = −log [P_y Π_{c ≠ y} (1 − P_c)],  cost_out = −log Π_c (1 − P_c)

    with P_c the noisy-or of the queries' claims for class c and y the label: the likelihood of independent
    labels, one per class, all 0 for an outlier. A sure claim for a wrong class costs, and two queries of the
    right class cost nothing.

    Why. A hinge on −Σ_c tanh(L[c]) has thresholds to choose, loses its gradient where queries are sure (1 −
    tanh² is 0.42 at L = 1 and 0.07 at 2), and takes a pixel that several classes claim for more normal than
    one with a single sure class. A likelihood has no thresholds, and pulls the harder the surer a wrong claim
    is.

    Source: ours, `eval.predict.queries.class_claims`; motivation and ablation in docs/sole-claim.md.
    """

    def costs(self, queries: QueryOutputs, label: Tensor) -> PixelCosts:
        claims = class_claims(queries)
        known = label.clamp(max=queries.num_classes - 1).long()
        none = F.interpolate(claims.none[:, None], size=label.shape[-2:], mode="bilinear")[:, 0]
        return -read_own_maps(claims.sole, known), -none


class LikelihoodRatio(OutlierTerm):
    """Binary cross-entropy of an outlier head's logit r, which so becomes a log-likelihood ratio.

        cost_in = −log (1 − sigmoid(r)),  cost_out = −log sigmoid(r)

    Both means count half, however few outliers there are: the prior odds are 1, and the best r of a pixel is
    log p(pixel | outlier) − log p(pixel | inlier). Source, and what differs: `models.heads.OutlierHead`.
    """

    name = HEAD_LOSS

    def costs(self, queries: QueryOutputs, label: Tensor) -> PixelCosts:
        assert queries.outlier_maps is not None
        ratio = resize_masks(queries.outlier_maps[RATIO], (label.shape[-2], label.shape[-1]))[:, 0]
        return F.softplus(ratio), F.softplus(-ratio)


OUTLIER_TERMS: dict[str, type[OutlierTerm]] = {
    term.name: term for term in (Rba, Energy, Mask2Anomaly, ClassClaim)
}
