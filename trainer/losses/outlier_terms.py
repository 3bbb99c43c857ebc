"""Outlier exposure: pixels of pasted objects should be rejected by all classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from eval.scores import pixel_evidence, rba
from models.eomt import Prediction
from shards.batch import Batch
from shards.errors import InputError
from shards.schema import NUM_CLASSES, OUTLIER_ID
from trainer.losses.mask_terms import MaskLoss
from trainer.losses.targets import StepTotals


class MaskRbaLoss:
    """The mask-classification objective plus the RbA squared hinge on pixels; one more term, `outlier`.

        outlier = ½ ( mean over inliers of max(0, RbA − inlier_upper)²
                    + mean over outliers of max(0, outlier_lower − RbA)² )

    with the very score that evaluation uses, RbA = −Σ_c tanh(L[c]) in (−19, 0]: about −0.76 where one class
    is sure (L = 1), 0 where no query claims the pixel. Computed at mask resolution in float32, then
    resized bilinearly to the labels; void is left out; without outlier pixels that half is 0.

    What the published thresholds can do. RbA's code defaults (−1.0, −0.1) ask inliers for more than one
    sure class can give: pixels are pulled until several queries repeat their class. The released
    checkpoints' (−0.0, 5.0) make the inlier half identically 0 and the outlier half out of reach: a steady
    pull of outliers towards 0. Our default (−0.7, −0.1) can be reached on both sides.

    Args:
        inlier_upper: inliers should score below this.
        outlier_lower: outliers should score above this.
        outlier_layers: how many of the supervised depths, from the last, the term sums over; 0 means all.
        **mask_options: options of `MaskLoss`.

    Source: Nayal et al., "RbA: Segmenting Unknown Regions Rejected by All", ICCV 2023,
    https://github.com/NazirNayal8/RbA. We differ: always ½ (theirs drops it in batches without outliers);
    means are over the whole step; resized with align_corners=False.
    """

    terms: tuple[str, ...] = (*MaskLoss.terms, "outlier")

    def __init__(
        self,
        *,
        inlier_upper: float = -0.7,
        outlier_lower: float = -0.1,
        outlier_layers: float = 0,
        **mask_options: float,
    ) -> None:
        if outlier_layers < 0:
            raise InputError(f"loss.options.outlier_layers must be 0 (all) or more, got {outlier_layers}")
        self.inlier_upper = inlier_upper
        self.outlier_lower = outlier_lower
        self.outlier_layers = int(outlier_layers)
        self.mask_loss = MaskLoss(**mask_options)

    def __call__(
        self, prediction: Prediction, batch: Batch, totals: StepTotals, generators: Sequence[torch.Generator]
    ) -> dict[str, Float[Tensor, ""]]:
        """Return this batch's share of the step's terms."""
        terms = self.mask_loss(prediction, batch, totals, generators)
        layers = list(zip(prediction.mask_logits, prediction.class_logits, strict=True))
        halves = [
            rba_hinge(masks, classes, batch.label, totals, self.inlier_upper, self.outlier_lower)
            for masks, classes in layers[-self.outlier_layers :]
        ]
        return {**terms, "outlier": torch.stack(halves).sum()}


def rba_hinge(
    mask_logits: Float[Tensor, "B Q h w"],
    class_logits: Float[Tensor, "B Q C1"],
    label: UInt8[Tensor, "B H W"],
    totals: StepTotals,
    inlier_upper: float,
    outlier_lower: float,
) -> Float[Tensor, ""]:
    """Return one depth's share of the RbA squared hinge; see `MaskRbaLoss`."""
    with torch.autocast(mask_logits.device.type, enabled=False):
        score = rba(pixel_evidence(mask_logits, class_logits))  # (B, h, w)
        score = F.interpolate(score[:, None], size=label.shape[-2:], mode="bilinear")[:, 0]
        inlier = (F.relu(score - inlier_upper).square() * (label < NUM_CLASSES)).sum()
        outlier = (F.relu(outlier_lower - score).square() * (label == OUTLIER_ID)).sum()
        return 0.5 * (inlier / max(totals.inlier_pixels, 1.0) + outlier / max(totals.outlier_pixels, 1.0))
