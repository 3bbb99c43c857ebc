"""Hungarian matching of queries to segments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from trainer.losses.targets import Segments, read_shares, sample_maps

_NO_CLASS = -1
"""Fills the rows of images that have fewer segments than others."""


@dataclass(frozen=True)
class Matching:
    """Matched pairs of each depth, ordered by segment; every depth has as many."""

    segment: Int64[Tensor, "L n"]
    """Indices into the segments of the batch."""
    query: Int64[Tensor, "L n"]


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
    points: Float[Tensor, "L B P 2"],
) -> Matching:
    """Assign, at each depth, to each segment the query that fits it best, each query at most once.

    cost = mask · BCE + dice · Dice − class · softmax(class_logits)[class], the first two over random `points`
    of the image, (x, y) in [0, 1], which all its pairs share. Computed in float32; a cost that is not finite
    counts as very high, so that a diverging run fails in its loss and not in here. An image with more
    segments than queries leaves the costliest segments without a query.

    All images of a depth are computed at once, those with fewer segments filled up, and the costs of all
    depths reach the CPU in one transfer: a GPU would else wait for the CPU to name each small operation.

    Source: Mask2Former, Cheng et al., CVPR 2022.
    """
    device = points.device
    class_ids = _list_classes(segments)
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        matrices = [
            _depth_costs(masks, classes, segments, class_ids, costs, where)
            for (masks, classes), where in zip(depths, points, strict=True)
        ]
        moved = torch.stack(matrices).nan_to_num(1e6, 1e6, -1e6).cpu()  # (L, B, Q, K)
    pairs = np.stack([_solve(matrix, segments.per_image) for matrix in moved.numpy()])  # (L, 2, n)
    # not waited for: the device gets them in order, and the CPU goes on
    segment, query = torch.from_numpy(pairs).to(device, non_blocking=True).unbind(dim=1)
    return Matching(segment, query)


def _list_classes(segments: Segments) -> Int64[Tensor, "B K"]:
    """Put the class ids of each image into a row, in the order of its segments."""
    device = segments.class_id.device
    first = np.cumsum((0, *segments.per_image[:-1]))
    place = torch.arange(len(segments.class_id), device=device)
    place = place - torch.from_numpy(first).to(device, non_blocking=True)[segments.image_index]
    shape = (len(segments.per_image), max(segments.per_image))
    class_ids = torch.full(shape, _NO_CLASS, device=device)
    class_ids[segments.image_index, place] = segments.class_id
    return class_ids


def _depth_costs(
    mask_logits: Tensor,
    class_logits: Tensor,
    segments: Segments,
    class_ids: Int64[Tensor, "B K"],
    costs: MatchCosts,
    points: Tensor,
) -> Float[Tensor, "B Q K"]:
    """Return the cost of every pair of each image; columns behind an image's last segment mean nothing."""
    images = torch.arange(len(class_ids), device=points.device)
    target = read_shares(segments.label, images, points, class_ids)  # (B, K, P)
    logits = sample_maps(mask_logits.float(), points)  # (B, Q, P)
    probability = class_logits.float().softmax(-1)
    which = class_ids.clamp(min=0)[:, None].expand(-1, probability.shape[1], -1)  # (B, Q, K)
    cost = costs.mask * _pairwise_bce(logits, target) + costs.dice * _pairwise_dice(logits, target)
    return cost - costs.class_ * probability.gather(2, which)


def _pairwise_bce(
    logits: Float[Tensor, "*B Q P"], target: Float[Tensor, "*B K P"]
) -> Float[Tensor, "*B Q K"]:
    """Binary cross-entropy of every query with every segment, mean over points.

    −log σ(x) = softplus(x) − x and −log(1 − σ(x)) = softplus(x): one sum for all segments, and one product.
    """
    return (F.softplus(logits).sum(-1, keepdim=True) - logits @ target.mT) / logits.shape[-1]


def _pairwise_dice(
    logits: Float[Tensor, "*B Q P"], target: Float[Tensor, "*B K P"]
) -> Float[Tensor, "*B Q K"]:
    """1 − (2 s·t + 1) / (Σs + Σt + 1) of every query with every segment."""
    share = logits.sigmoid()
    return 1 - (2 * share @ target.mT + 1) / (share.sum(-1)[..., None] + target.sum(-1)[..., None, :] + 1)


def _solve(matrices: np.ndarray, per_image: Sequence[int]) -> np.ndarray:
    """Solve each image's assignment: segments and queries, (2, n)."""
    pairs, first = [np.zeros((2, 0), dtype=np.int64)], 0
    for matrix, count in zip(matrices, per_image, strict=True):
        segment, query = linear_sum_assignment(matrix[:, :count].T)  # ascending in segment
        pairs.append(np.stack((segment + first, query)))
        first += count
    return np.concatenate(pairs, axis=1)
