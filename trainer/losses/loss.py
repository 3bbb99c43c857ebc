"""Losses: the mask objective of EoMT and Mask2Former with its random points, and outlier terms.

A loss turns a prediction and a batch into unweighted scalar terms; weights are configuration. To add an
outlier term: its options in `options.py`, and a subclass of them and of `OutlierTerm` in `outlier.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from models.eomt import Prediction
from shards.batch import Batch
from trainer.losses.classification import CLASS_TERMS, CrossEntropy
from trainer.losses.matcher import MatchCosts, Matching, match_depths
from trainer.losses.options import OUTLIER_CLASS_TERM, LossConfig, MaskOptions
from trainer.losses.outlier import OUTLIER_TERMS, LikelihoodRatio, OutlierTerm
from trainer.losses.targets import (
    Segments,
    StepTotals,
    find_segments,
    sample_logits,
    sample_membership,
    weigh_outliers,
)

OVERSAMPLING = 3.0
IMPORTANT_SHARE = 0.75
"""Candidates per point, and share of the points that are chosen among them, as in PointRend."""


class Loss:
    """Outlier terms, one scalar each, under their names; alone, what trains a head that reads the others.

    Shares of all micro-batches and ranks of a step add up to the step's value (see `StepTotals`).
    """

    def __init__(self, outlier_terms: Sequence[OutlierTerm], area_exponent: float = 0.0) -> None:
        """Take terms, and the exponent that `count_totals` counts the step's totals with."""
        self.outlier_terms = outlier_terms
        self.area_exponent = area_exponent

    def __call__(
        self, prediction: Prediction, batch: Batch, totals: StepTotals, generators: Sequence[torch.Generator]
    ) -> dict[str, Float[Tensor, ""]]:
        """Return this batch's share of the step's terms, unweighted."""
        weights = weigh_outliers(batch.label, self.area_exponent) if self.outlier_terms else None
        return {t.name: t(prediction, batch.label, totals, weights) for t in self.outlier_terms}

    def lower_bounds(self, prediction: Prediction) -> dict[str, float]:
        """Return the known lower bounds of terms that are not 0; logged as `lower_bound/NAME`."""
        return {}


class MaskLoss(Loss):
    """Hungarian matching, then per matched mask point-sampled BCE and dice, and a classification loss.

    Terms: `mask`, `dice`, `class`, each summed over the supervised depths, and one per outlier term, under
    its name. They are computed in float32 inside autocast and stay connected to the graph when a batch holds
    no class at all. The matcher reads the plain class logits, whatever the classification loss makes of them.
    `class` is the weighted mean of `class_term`'s losses of all queries. With `outlier_class` outliers are
    segments of class C (UNO); otherwise of none, and masks should leave their pixels out.

    Source: Mask2Former, Cheng et al., CVPR 2022; weights and points as EoMT. We differ: normalisers are the
    totals of the whole step (see `StepTotals`), not of a micro-batch; masks are read off the label map.
    """

    def __init__(
        self,
        options: MaskOptions,
        class_term: CrossEntropy,
        outlier_class: bool = False,
        outlier_terms: Sequence[OutlierTerm] = (),
        area_exponent: float = 0.0,
    ) -> None:
        self.options = options
        self.costs = MatchCosts(mask=options.match_mask, dice=options.match_dice, class_=options.match_class)
        self.class_term = class_term
        self.outlier_class = outlier_class
        super().__init__(outlier_terms, area_exponent)

    def __call__(
        self, prediction: Prediction, batch: Batch, totals: StepTotals, generators: Sequence[torch.Generator]
    ) -> dict[str, Float[Tensor, ""]]:
        segments = find_segments(batch.label, self.outlier_class, prediction.num_classes)
        num_masks = totals.masks + (totals.outlier_masks if self.outlier_class else 0)
        depths = list(zip(prediction.mask_logits, prediction.class_logits, strict=True))
        num_queries, device = depths[0][1].shape[1], depths[0][0].device
        counts = [min(count, num_queries) for count in segments.per_image]
        points = draw_points(len(depths), counts, self.options.num_points, generators, device)
        matching = match_depths(depths, segments, self.costs, points.matching)
        with torch.autocast(device.type, enabled=False):
            bce, dice = self._mask_terms(prediction.mask_logits, segments, matching, points)
            classes = torch.stack(prediction.class_logits)
            class_loss = self._class_loss(classes, segments, matching, totals.images, num_masks)
        divisor = max(num_masks, 1.0)
        terms = {"mask": bce / divisor, "dice": dice / divisor, "class": class_loss}
        return terms | super().__call__(prediction, batch, totals, generators)

    def lower_bounds(self, prediction: Prediction) -> dict[str, float]:
        """Return the lower bound of `class` over all depths of `prediction`; nothing if that is 0.

        A weighted mean of losses has the bound of each. It holds where the divisor is the sum of the weights:
        no image has more segments than queries, and the weights add up to 1 at least.
        """
        bound = sum(self.class_term.lower_bound(classes.shape[-1]) for classes in prediction.class_logits)
        return {"class": bound} if bound else {}

    def _mask_terms(
        self, mask_logits: Sequence[Tensor], segments: Segments, matching: Matching, drawn: DrawnPoints
    ) -> tuple[Tensor, Tensor]:
        """Sum BCE and dice over the matched masks of all depths."""
        image = segments.image_index[matching.segment]  # (L, n); n = 0 keeps the graph
        chosen = zip(mask_logits, image, matching.query, strict=True)
        matched = torch.cat([masks[i, query] for masks, i, query in chosen]).float()  # (L * n, h, w)
        points = choose_points(matched.detach(), drawn)
        target = sample_membership(segments, matching.segment.flatten(), points)  # (L * n, P)
        logits = sample_logits(matched, points)
        bce = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(1).sum()
        share = logits.sigmoid()
        dice = 1 - (2 * (share * target).sum(1) + 1) / (share.sum(1) + target.sum(1) + 1)
        return bce, dice.sum()

    def _class_loss(
        self,
        class_logits: Float[Tensor, "L B Q C1"],
        segments: Segments,
        matching: Matching,
        num_images: float,
        num_masks: float,
    ) -> Tensor:
        """Weighted mean of all queries' losses, summed over depths; unmatched ones should say "no object"."""
        num_queries, no_object = class_logits.shape[2], class_logits.shape[3] - 1
        target = torch.full(class_logits.shape[:3], no_object, device=class_logits.device)  # (L, B, Q)
        depth = torch.arange(len(class_logits), device=class_logits.device)[:, None]
        image, class_id = segments.image_index[matching.segment], segments.class_id[matching.segment]
        target[depth, image, matching.query] = class_id
        weight = torch.ones(no_object + 1, device=class_logits.device)
        weight[no_object] = self.options.no_object_weight
        losses = self.class_term(class_logits.flatten(0, 2), target.flatten(), weight)
        unmatched = max(num_images * num_queries - num_masks, 0.0)
        return losses / max(num_masks + self.options.no_object_weight * unmatched, 1.0)


@dataclass(frozen=True)
class DrawnPoints:
    """Points of all L depths, (x, y) in [0, 1]."""

    matching: Float[Tensor, "L B P 2"]
    """Per depth and image, where all its pairs of query and segment are compared."""
    candidates: Float[Tensor, "n _ 2"]
    """Per matched mask, depth by depth, three times as many as are needed."""
    anywhere: Float[Tensor, "n _ 2"]
    """Per matched mask, those that are taken wherever they are."""


def draw_points(
    num_depths: int,
    counts: Sequence[int],
    num_points: int,
    generators: Sequence[torch.Generator],
    device: torch.device,
) -> DrawnPoints:
    """Draw the points of all depths, each image's from its own generator.

    Nothing here needs to know the matching, only how many masks of each image it will match (`counts`), so
    nothing has to wait for it; the price is about 0.3 MB per mask and depth with 12544 points.
    """
    num_drawn, num_important = int(OVERSAMPLING * num_points), int(IMPORTANT_SHARE * num_points)

    def draw(count: int, number: int, generator: torch.Generator) -> Tensor:
        return torch.rand(count, number, 2, generator=generator, device=device)

    matching, candidates, anywhere = [], [], []
    for _ in range(num_depths):
        matching.append(torch.cat([draw(1, num_points, generator) for generator in generators]))
        for count, generator in zip(counts, generators, strict=True):
            candidates.append(draw(count, num_drawn, generator))
            anywhere.append(draw(count, num_points - num_important, generator))
    return DrawnPoints(torch.stack(matching), torch.cat(candidates), torch.cat(anywhere))


@torch.no_grad()
def choose_points(mask_logits: Float[Tensor, "n h w"], drawn: DrawnPoints) -> Float[Tensor, "n P 2"]:
    """Take three quarters of a mask's points where it is least certain, the rest anywhere (PointRend).

    Of the candidates, those with the logit nearest to 0 are kept.
    """
    num_important = int(IMPORTANT_SHARE * drawn.matching.shape[2])
    certainty = sample_logits(mask_logits, drawn.candidates).abs()  # (n, 3P)
    keep = certainty.topk(num_important, dim=1, largest=False).indices  # (n, 3P/4)
    important = drawn.candidates.gather(1, keep[..., None].expand(-1, -1, 2))
    return torch.cat((important, drawn.anywhere), dim=1)


def build_loss(config: LossConfig) -> Loss:
    """Build the loss that a configuration names."""
    if config.trains_head:
        return Loss([LikelihoodRatio()], config.area_exponent)
    options: Any = config.options
    given = getattr(options, config.classification, None)
    class_term = CLASS_TERMS[config.classification](**vars(given) if given else {})
    scalars = (name for name in config.outlier if name != OUTLIER_CLASS_TERM)
    outlier_terms = [OUTLIER_TERMS[name](**vars(getattr(options, name))) for name in scalars]
    has_class = OUTLIER_CLASS_TERM in config.outlier
    return MaskLoss(options.mask, class_term, has_class, outlier_terms, config.area_exponent)


def weighted_sum(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Add the terms, each times its weight."""
    return torch.stack([weights[name] * value for name, value in terms.items()]).sum()
