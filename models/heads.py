"""The IsoMax+ class head: distances to prototypes in place of a linear layer on the queries."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

NORM_FLOOR = 1e-3
"""Shorter vectors are divided by this: a gradient of 1 / length has to fit into float16."""
DISTANCE_FLOOR = 1e-6
"""Closer prototypes count as this close: no gradient pulls on a direction that rounding alone decides."""


class IsoMaxHead(nn.Module):
    """Distances to prototypes on the unit sphere instead of a linear layer: Enhanced Isotropy Maximization.

        D_c = |s| · ‖ f/‖f‖ − p_c/‖p_c‖ ‖₂ in [0, 2|s|]        class logits = −E · D

    with one prototype p_c per class and one for "no object", and one learned distance scale s. The entropic
    scale E is no parameter: IsoMax+ trains with it and drops it for its own score, the minimum distance. Here
    the logits carry it always, so that softmax means the same in the loss, the matcher and the evaluation
    (without it no class reaches a probability of 0.3); whoever wants D gets it from `distances`.

    Computed in float32 whatever the autocast state; gradients stay finite where a query meets a prototype.

    Args:
        num_logits: C + 1, or C + 2 with an outlier class.
        entropic_scale: E, above 0; 10 as published.

    Source: Macêdo and Ludermir, "Enhanced Isotropy Maximization Loss", 2021,
    https://github.com/dlmacedo/entropic-out-of-distribution-detection. We differ: prototypes of "no object"
    beside those of the classes; distances have a floor of 1e-6, lengths one of 1e-3 (theirs: none and 1e-12).
    """

    def __init__(self, width: int, num_logits: int, entropic_scale: float = 10.0) -> None:
        super().__init__()
        self.prototypes = nn.Parameter(torch.randn(num_logits, width))
        self.distance_scale = nn.Parameter(torch.ones(()))
        self.entropic_scale = entropic_scale

    def distances(self, queries: Float[Tensor, "B Q D"]) -> Float[Tensor, "B Q C1"]:
        """Return the scaled distance of each query to each prototype."""
        with torch.autocast(queries.device.type, enabled=False):
            features = F.normalize(queries.float(), dim=-1, eps=NORM_FLOOR)
            prototypes = F.normalize(self.prototypes.float(), dim=-1, eps=NORM_FLOOR)
            prototypes = prototypes.expand(features.shape[0], -1, -1)
            # by differences: 2 − 2 cos loses what is left of a small distance
            distance = torch.cdist(features, prototypes, compute_mode="donot_use_mm_for_euclid_dist")
            return self.distance_scale.float().abs() * distance.clamp(min=DISTANCE_FLOOR)

    def to_logits(self, distances: Float[Tensor, "B Q C1"]) -> Float[Tensor, "B Q C1"]:
        """Turn distances into class logits, ready for softmax."""
        return -self.entropic_scale * distances

    def forward(self, queries: Float[Tensor, "B Q D"]) -> Float[Tensor, "B Q C1"]:
        """Return class logits, ready for softmax."""
        return self.to_logits(self.distances(queries))

    @torch.no_grad()
    def start_from(self, linear_weight: Float[Tensor, "C1 D"]) -> str:
        """Point the prototypes where a trained linear head's rows point, and say so.

        A query then is nearest to the class of which its direction had the largest linear logit, up to biases
        and the rows' lengths, which a prototype does not have. The distance scale stays 1.
        """
        self.prototypes.copy_(F.normalize(linear_weight.float(), dim=-1))
        return "class_head.prototypes start as the directions of the linear class head's rows; scale 1"
