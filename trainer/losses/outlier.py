"""Outlier exposure: penalties on the pixels of pasted objects and on all others beside them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from eval.predict.scores import QueryOutputs, count_claims, mask_energy, max_logit, pixel_evidence, rba
from models.eomt import Prediction
from shards.batch import Batch
from shards.errors import InputError
from shards.schema import NUM_CLASSES, OUTLIER_ID
from trainer.losses.targets import StepTotals


class OutlierTerm(ABC):
    """One scalar that reads the outlier pixels of a batch."""

    @abstractmethod
    def __call__(
        self, prediction: Prediction, batch: Batch, totals: StepTotals, generators: Sequence[torch.Generator]
    ) -> Float[Tensor, ""]:
        """Return this batch's share of the step's value (see `StepTotals`), connected to the graph."""


class PixelTerm(OutlierTerm):
    """An anomaly score per pixel, pushed down on inliers and up on outliers.

        term = ½ ( mean over inliers of penalty_in(score) + mean over outliers of penalty_out(score) )

    summed over the supervised depths. The score is computed at mask resolution in float32 and resized
    bilinearly to the labels; void is left out; both means are over the pixels of the whole step, and the half
    without pixels is 0. A subclass says what the score and the two penalties are.

    Args:
        layers: how many of the supervised depths, from the last, the term sums over; 0 means all.
    """

    def __init__(self, layers: int) -> None:
        self.layers = layers

    @abstractmethod
    def score(
        self, mask_logits: Float[Tensor, "B Q h w"], class_logits: Float[Tensor, "B Q C1"]
    ) -> Float[Tensor, "B h w"]:
        """Return the score, higher where more anomalous."""

    @abstractmethod
    def inlier_penalty(self, score: Float[Tensor, "B H W"]) -> Float[Tensor, "B H W"]:
        """Return what a score costs an inlier."""

    @abstractmethod
    def outlier_penalty(self, score: Float[Tensor, "B H W"]) -> Float[Tensor, "B H W"]:
        """Return what a score costs an outlier."""

    def __call__(
        self, prediction: Prediction, batch: Batch, totals: StepTotals, generators: Sequence[torch.Generator]
    ) -> Float[Tensor, ""]:
        """Return this batch's share of the step's value."""
        depths = list(zip(prediction.mask_logits, prediction.class_logits, strict=True))[-self.layers :]
        return torch.stack([self._at_depth(*depth, batch.label, totals) for depth in depths]).sum()

    def _at_depth(
        self, mask_logits: Tensor, class_logits: Tensor, label: UInt8[Tensor, "B H W"], totals: StepTotals
    ) -> Tensor:
        with torch.autocast(mask_logits.device.type, enabled=False):
            score = self.score(mask_logits, class_logits)
            score = F.interpolate(score[:, None], size=label.shape[-2:], mode="bilinear")[:, 0]
            return mean_of_halves(self.inlier_penalty(score), self.outlier_penalty(score), label, totals)


def mean_of_halves(
    inlier_cost: Float[Tensor, "B H W"],
    outlier_cost: Float[Tensor, "B H W"],
    label: UInt8[Tensor, "B H W"],
    totals: StepTotals,
) -> Float[Tensor, ""]:
    """Return this batch's share of ½ (mean over inliers + mean over outliers), both over the whole step.

    Args:
        inlier_cost: what each pixel would cost as an inlier; finite, as in the next.
        outlier_cost: and as an outlier.
        label: train ids; void counts as neither.
    """
    inlier = (inlier_cost * (label < NUM_CLASSES)).sum()
    outlier = (outlier_cost * (label == OUTLIER_ID)).sum()
    return 0.5 * (inlier / max(totals.inlier_pixels, 1.0) + outlier / max(totals.outlier_pixels, 1.0))


def require_layers(layers: int, term: str) -> None:
    """Check the option `layers` of a term.

    Raises:
        InputError: it is negative.
    """
    if layers < 0:
        raise InputError(f"loss.options.{term}.layers must be 0 (all) or more, got {layers}")


RBA_PRESETS: dict[str, tuple[float, float]] = {
    "reachable": (-0.7, -0.1),
    "released": (0.0, 5.0),
    "code": (-1.0, -0.1),
}
"""Name -> (inlier_upper, outlier_lower)."""


@dataclass(frozen=True, kw_only=True)
class RbaOptions:
    """Options of outlier term `rba`."""

    preset: Literal["reachable", "released", "code"] = "reachable"
    """Thresholds by name. reachable: -0.7, -0.1, ours; released: 0.0, 5.0, of RbA's released checkpoints;
    code: -1.0, -0.1, the defaults of its code. What each can do: docs/losses.md."""
    inlier_upper: float | None = None
    """Inliers should score below this; None: as the preset."""
    outlier_lower: float | None = None
    """Outliers should score above this; None: as the preset."""
    layers: int = 0
    """How many supervised depths, from the last, the term sums over; 0: all."""

    def __post_init__(self) -> None:
        require_layers(self.layers, "rba")

    @property
    def thresholds(self) -> tuple[float, float]:
        """(inlier_upper, outlier_lower) as they hold."""
        upper, lower = RBA_PRESETS[self.preset]
        return (
            upper if self.inlier_upper is None else self.inlier_upper,
            lower if self.outlier_lower is None else self.outlier_lower,
        )


class RbaTerm(PixelTerm):
    """RbA outlier exposure: pixels of outliers should be rejected by all classes. A squared hinge on

        RbA = −Σ_c tanh(L[c])  in (−19, 0]

    the very score of the evaluation: about −0.76 where one class is sure (L = 1), −0.92 where two share a
    pixel equally, 0 where no query claims it. penalty_in = max(0, RbA − inlier_upper)², penalty_out =
    max(0, outlier_lower − RbA)².

    What the thresholds can do, as the score is never above 0 (see `RBA_PRESETS`). `released` (0, 5): the
    inlier half is identically 0, and outliers can never get there, so they feel a steady pull towards 0
    that never ends; inliers are held by the class and mask terms alone. `code` (−1, −0.1): a sure pixel of
    one class scores −0.76, so inliers are pulled until several queries repeat their class; outliers
    can be satisfied. `reachable` (−0.7, −0.1): both halves can be satisfied, by one sure query and by none.

    Source: Nayal et al., "RbA: Segmenting Unknown Regions Rejected by All", ICCV 2023,
    https://github.com/NazirNayal8/RbA. We differ: always ½ (theirs drops it in batches without outliers);
    means are over the whole step; resized with align_corners=False.
    """

    def __init__(self, options: RbaOptions) -> None:
        super().__init__(options.layers)
        self.inlier_upper, self.outlier_lower = options.thresholds

    def score(
        self, mask_logits: Float[Tensor, "B Q h w"], class_logits: Float[Tensor, "B Q C1"]
    ) -> Float[Tensor, "B h w"]:
        """Return RbA."""
        return rba(pixel_evidence(mask_logits, class_logits, num_classes=NUM_CLASSES))

    def inlier_penalty(self, score: Float[Tensor, "B H W"]) -> Float[Tensor, "B H W"]:
        """Return the squared excess over `inlier_upper`."""
        return F.relu(score - self.inlier_upper).square()

    def outlier_penalty(self, score: Float[Tensor, "B H W"]) -> Float[Tensor, "B H W"]:
        """Return the squared lack below `outlier_lower`."""
        return F.relu(self.outlier_lower - score).square()


@dataclass(frozen=True, kw_only=True)
class EnergyOptions:
    """Options of outlier term `energy`."""

    inlier_upper: float = 0.15
    """Inliers should have less energy: here, classes should claim exp(-0.15) = 0.86 of a pixel together."""
    outlier_lower: float = 2.3
    """Outliers should have more: no more than exp(-2.3) = 0.1 of a pixel should be claimed."""
    layers: int = 0
    """How many supervised depths, from the last, the term sums over; 0: all."""

    def __post_init__(self) -> None:
        require_layers(self.layers, "energy")


class EnergyTerm(PixelTerm):
    """A squared hinge on the free energy, as PEBAL's energy loss, of the log-evidence:

        E = −log Σ_c exp(log L[c]) = −log Σ_c L[c]  in [−log Q, ∞)

    (`eval.predict.scores.mask_energy`). PEBAL's −logsumexp reads logits. The evidence of a mask model is a
    sum of probabilities, of which −logsumexp moves between −2.94 and −3.03; its logarithm takes the place of
    the logit. penalty_in = max(0, E − inlier_upper)², penalty_out = max(0, outlier_lower − E)². Unlike RbA's,
    the pull on an inlier that no query claims grows with its energy, and does not fade with the sigmoid.

    Source: Tian et al., "Pixel-wise Energy-biased Abstention Learning", ECCV 2022,
    https://github.com/tianyu0207/PEBAL (thresholds −12 and −6 on logits; weight 0.1). We differ: the energy
    of log-evidence and thresholds to match; no abstention class, sparsity or smoothness terms.
    """

    def __init__(self, options: EnergyOptions) -> None:
        super().__init__(options.layers)
        self.inlier_upper, self.outlier_lower = options.inlier_upper, options.outlier_lower

    def score(
        self, mask_logits: Float[Tensor, "B Q h w"], class_logits: Float[Tensor, "B Q C1"]
    ) -> Float[Tensor, "B h w"]:
        """Return the energy."""
        return mask_energy(QueryOutputs(mask_logits, class_logits, NUM_CLASSES))

    def inlier_penalty(self, score: Float[Tensor, "B H W"]) -> Float[Tensor, "B H W"]:
        """Return the squared excess over `inlier_upper`."""
        return F.relu(score - self.inlier_upper).square()

    def outlier_penalty(self, score: Float[Tensor, "B H W"]) -> Float[Tensor, "B H W"]:
        """Return the squared lack below `outlier_lower`."""
        return F.relu(self.outlier_lower - score).square()


@dataclass(frozen=True, kw_only=True)
class Mask2AnomalyOptions:
    """Options of outlier term `mask2anomaly`."""

    margin: float = 0.75
    """Outliers should score above this, in (0, 1]; 0.75 is the paper's, 1.0 the code's."""
    layers: int = 0
    """How many supervised depths, from the last, the term sums over; 0: all."""

    def __post_init__(self) -> None:
        if not 0 < self.margin <= 1:
            raise InputError(f"loss.options.mask2anomaly.margin must be in (0, 1], got {self.margin}")
        require_layers(self.layers, "mask2anomaly")


class Mask2AnomalyTerm(PixelTerm):
    """Mask2Anomaly's contrastive margin on s = 1 − max_c L[c], about [0, 1]: 0 where one class is sure.

    penalty_in = s², penalty_out = max(0, margin − s)². Where several queries repeat a class, L exceeds 1 and
    the square holds inliers back from it.

    Source: Rai et al., "Mask2Anomaly: Mask Transformer for Universal Open-set Segmentation", 2023,
    https://github.com/shyam671/Mask2Anomaly-Unmasking-Anomalies-in-Road-Scene-Segmentation. We differ: the
    code's inlier half squares −max L, which pulls the evidence of inliers to 0; s is what the paper writes.
    """

    def __init__(self, options: Mask2AnomalyOptions) -> None:
        super().__init__(options.layers)
        self.margin = options.margin

    def score(
        self, mask_logits: Float[Tensor, "B Q h w"], class_logits: Float[Tensor, "B Q C1"]
    ) -> Float[Tensor, "B h w"]:
        """Return 1 − max_c L[c]."""
        return 1 + max_logit(pixel_evidence(mask_logits, class_logits, num_classes=NUM_CLASSES))

    def inlier_penalty(self, score: Float[Tensor, "B H W"]) -> Float[Tensor, "B H W"]:
        """Return the squared score."""
        return score.square()

    def outlier_penalty(self, score: Float[Tensor, "B H W"]) -> Float[Tensor, "B H W"]:
        """Return the squared lack below the margin."""
        return F.relu(self.margin - score).square()


@dataclass(frozen=True, kw_only=True)
class SoleClaimOptions:
    """Options of outlier term `sole_claim`."""

    layers: int = 0
    """How many supervised depths, from the last, the term sums over; 0: all."""

    def __post_init__(self) -> None:
        require_layers(self.layers, "sole_claim")


class SoleClaimTerm(OutlierTerm):
    """The likelihood of how many queries claim a pixel (see `eval.predict.scores.count_claims`).

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
