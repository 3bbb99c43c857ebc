"""Which query answers for which segment: the Hungarian assignment of least cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from trainer.losses.targets import Segments, sample_logits, sample_membership


@dataclass(frozen=True)
class Matching:
    """Matched pairs, ordered by segment."""

    segment: Int64[Tensor, " n"]
    """Indices into the segments of the batch."""
    query: Int64[Tensor, " n"]


@dataclass(frozen=True, kw_only=True)
class MatchCosts:
    """Weights of the three costs of a pair."""

    mask: float
    dice: float
    class_: float


@torch.no_grad()
def match_queries(
    mask_logits: Float[Tensor, "B Q h w"],
    class_logits: Float[Tensor, "B Q C1"],
    segments: Segments,
    costs: MatchCosts,
    num_points: int,
    generators: Sequence[torch.Generator],
) -> Matching:
    """Assign to each segment the query that fits it best, each query at most once.

    cost = mask · BCE + dice · Dice − class · softmax(class_logits)[class], the first two over `num_points`
    random points of the image, which all its pairs share. Computed in float32; a cost that is not finite
    counts as very high, so that a diverging run fails in its loss and not in here. An image with more
    segments than queries leaves the costliest segments without a query.

    Source: Mask2Former, Cheng et al., CVPR 2022. We draw each image's points from the image's own generator.
    """
    device = mask_logits.device
    matrices = []
    with torch.autocast(device.type, enabled=False):
        for image, count in enumerate(segments.per_image):
            points = torch.rand(1, num_points, 2, generator=generators[image], device=device)
            if count == 0:
                continue
            first = sum(segments.per_image[:image])
            which = torch.arange(first, first + count, device=device)
            target = sample_membership(segments, which, points.expand(count, -1, -1))  # (K, P)
            logits = sample_logits(
                mask_logits[image].float(), points.expand(mask_logits.shape[1], -1, -1)
            )  # (Q, P)
            probability = class_logits[image].float().softmax(-1)[:, segments.class_id[which]]  # (Q, K)
            cost = costs.mask * _pairwise_bce(logits, target) + costs.dice * _pairwise_dice(logits, target)
            matrices.append((first, cost - costs.class_ * probability))
    return _solve(matrices, device)


def _pairwise_bce(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy of every query (Q, P) with every segment (K, P), mean over points: (Q, K)."""
    as_object = F.softplus(-logits) @ target.T
    as_rest = F.softplus(logits) @ (1 - target).T
    return (as_object + as_rest) / logits.shape[1]


def _pairwise_dice(logits: Tensor, target: Tensor) -> Tensor:
    """1 − (2 s·t + 1) / (Σs + Σt + 1) of every query with every segment: (Q, K)."""
    share = logits.sigmoid()
    return 1 - (2 * share @ target.T + 1) / (share.sum(1)[:, None] + target.sum(1)[None] + 1)


def _solve(matrices: list[tuple[int, Tensor]], device: torch.device) -> Matching:
    """Solve each image's assignment on the CPU, after one transfer for the whole batch."""
    if not matrices:
        nothing = torch.zeros(0, dtype=torch.int64, device=device)
        return Matching(nothing, nothing)
    flat = torch.cat([cost.flatten() for _, cost in matrices]).nan_to_num(1e6, 1e6, -1e6).cpu()
    segments, queries, start = [], [], 0
    for first, cost in matrices:
        matrix = flat[start : start + cost.numel()].view(cost.shape).T.numpy()  # (K, Q)
        start += cost.numel()
        segment, query = linear_sum_assignment(matrix)  # ascending in segment
        segments.append(torch.from_numpy(segment) + first)
        queries.append(torch.from_numpy(query))
    return Matching(torch.cat(segments).to(device), torch.cat(queries).to(device))
