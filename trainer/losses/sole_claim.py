"""Sole-claim outlier exposure: an inlier belongs to exactly one query, an outlier to none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from eval.scores import QueryOutputs, count_claims
from models.eomt import Prediction
from shards.batch import Batch
from shards.schema import NUM_CLASSES
from trainer.losses.outlier_terms import OutlierTerm, mean_of_halves, require_layers
from trainer.losses.targets import StepTotals


@dataclass(frozen=True, kw_only=True)
class SoleClaimOptions:
    """Options of outlier term `sole_claim`."""

    layers: int = 0
    """How many supervised depths, from the last, the term sums over; 0: all."""

    def __post_init__(self) -> None:
        require_layers(self.layers, "sole_claim")


class SoleClaimTerm(OutlierTerm):
    """The likelihood of how many queries claim a pixel (see `eval.scores.count_claims`).

        term = ½ ( mean over inliers of −log P(exactly one query claims it)
                 + mean over outliers of −log P(no query claims it) )

    summed over the supervised depths. Computed at mask resolution in float32 and resized bilinearly to the
    labels; void is left out; both means are over the pixels of the whole step.

    Why. A hinge on −Σ_c tanh(L[c]) has thresholds to choose, loses its gradient where queries are sure (1 −
    tanh² is 0.42 at L = 1 and 0.07 at 2), and takes a pixel that several classes claim for more normal than
    one with a single sure class. A likelihood has no thresholds, pulls the harder the surer a wrong claim is,
    and its optimum is that of mask classification: one query per inlier pixel, all others silent.

    Source: ours; motivation and ablation in docs/sole-claim.md.
    """

    def __init__(self, options: SoleClaimOptions) -> None:
        self.layers = options.layers

    def __call__(
        self, prediction: Prediction, batch: Batch, totals: StepTotals, generators: Sequence[torch.Generator]
    ) -> Float[Tensor, ""]:
        """Return this batch's share of the step's value."""
        depths = list(zip(prediction.mask_logits, prediction.class_logits, strict=True))[-self.layers :]
        return torch.stack([_at_depth(*depth, batch.label, totals) for depth in depths]).sum()


def _at_depth(
    mask_logits: Tensor, class_logits: Tensor, label: UInt8[Tensor, "B H W"], totals: StepTotals
) -> Tensor:
    claims = count_claims(QueryOutputs(mask_logits, class_logits, NUM_CLASSES))
    with torch.autocast(mask_logits.device.type, enabled=False):
        cost = -torch.stack((claims.one, claims.none), dim=1)  # (B, 2, h, w)
        cost = F.interpolate(cost, size=label.shape[-2:], mode="bilinear")
        return mean_of_halves(cost[:, 0], cost[:, 1], label, totals)
