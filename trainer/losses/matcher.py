"""Which query answers for which segment: the Hungarian assignment of least cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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


def match_depths(
    depths: Sequence[tuple[Float[Tensor, "B Q h w"], Float[Tensor, "B Q C1"]]],
    segments: Segments,
    costs: MatchCosts,
    points: Sequence[Float[Tensor, "B P 2"]],
) -> Iterator[Matching]:
    """Assign, at each depth, to each segment the query that fits it best, each query at most once.

    cost = mask · BCE + dice · Dice − class · softmax(class_logits)[class], the first two over random points
    of the image, which all its pairs share. Computed in float32; a cost that is not finite counts as very
    high, so that a diverging run fails in its loss and not in here. An image with more segments than queries
    leaves the costliest segments without a query.

    The costs of all depths reach the CPU in one transfer. A depth is solved there when its matching is asked
    for: the device meanwhile works on what the caller has launched for the depth before.

    Args:
        depths: mask logits and class logits of each depth.
        points: per depth, (x, y) in [0, 1].

    Source: Mask2Former, Cheng et al., CVPR 2022.
    """
    device = points[0].device
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        matrices = [
            _image_costs(masks, classes, segments, costs, where)
            for (masks, classes), where in zip(depths, points, strict=True)
        ]
        flat = [cost.flatten() for images in matrices for cost in images]
        moved = torch.cat(flat).nan_to_num(1e6, 1e6, -1e6).cpu() if flat else torch.zeros(0)
    start = 0
    for images in matrices:
        size = sum(cost.numel() for cost in images)
        shapes = [tuple(cost.shape) for cost in images]
        yield _solve(moved[start : start + size], shapes, segments.per_image, device)
        start += size


def _image_costs(
    mask_logits: Tensor, class_logits: Tensor, segments: Segments, costs: MatchCosts, points: Tensor
) -> list[Tensor]:
    """Return the cost of every pair, (Q, K), of each image that has segments."""
    matrices, first = [], 0
    for image, count in enumerate(segments.per_image):
        if count == 0:
            continue
        which = torch.arange(first, first + count, device=points.device)
        first += count
        here = points[image, None]  # (1, P, 2)
        target = sample_membership(segments, which, here.expand(count, -1, -1))  # (K, P)
        logits = sample_logits(
            mask_logits[image].float(), here.expand(mask_logits.shape[1], -1, -1)
        )  # (Q, P)
        probability = class_logits[image].float().softmax(-1)[:, segments.class_id[which]]  # (Q, K)
        cost = costs.mask * _pairwise_bce(logits, target) + costs.dice * _pairwise_dice(logits, target)
        matrices.append(cost - costs.class_ * probability)
    return matrices


def _pairwise_bce(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy of every query (Q, P) with every segment (K, P), mean over points: (Q, K)."""
    as_object = F.softplus(-logits) @ target.T
    as_rest = F.softplus(logits) @ (1 - target).T
    return (as_object + as_rest) / logits.shape[1]


def _pairwise_dice(logits: Tensor, target: Tensor) -> Tensor:
    """1 − (2 s·t + 1) / (Σs + Σt + 1) of every query with every segment: (Q, K)."""
    share = logits.sigmoid()
    return 1 - (2 * share @ target.T + 1) / (share.sum(1)[:, None] + target.sum(1)[None] + 1)


def _solve(
    flat: Tensor, shapes: Sequence[tuple[int, ...]], per_image: Sequence[int], device: torch.device
) -> Matching:
    """Solve each image's assignment on the CPU."""
    none = torch.zeros(0, dtype=torch.int64)
    segments, queries, start, first = [none], [none], 0, 0
    occupied = [count for count in per_image if count]
    for shape, count in zip(shapes, occupied, strict=True):
        size = shape[0] * shape[1]
        matrix = flat[start : start + size].view(shape).T.numpy()  # (K, Q)
        segment, query = linear_sum_assignment(matrix)  # ascending in segment
        segments.append(torch.from_numpy(segment) + first)
        queries.append(torch.from_numpy(query))
        start, first = start + size, first + count
    # not waited for: the device gets them in order, and the CPU goes on
    return Matching(*(torch.cat(part).to(device, non_blocking=True) for part in (segments, queries)))
