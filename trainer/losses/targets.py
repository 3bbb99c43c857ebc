"""What a label map asks of the masks, read off the map itself; no stack of boolean masks is ever built."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from shards.schema import NUM_CLASSES, OUTLIER_ID


@dataclass(frozen=True)
class Segments:
    """The N segments of a batch: one per image and class that occurs in it (semantic segmentation).

    Void and outlier pixels belong to no segment; every mask should leave them out.
    """

    label: UInt8[Tensor, "B H W"]
    image_index: Int64[Tensor, " N"]
    """Ascending."""
    class_id: Int64[Tensor, " N"]
    """Train ids; the values of `label`."""
    per_image: tuple[int, ...]
    """Number of segments of each image."""


@dataclass(frozen=True)
class StepTotals:
    """What one optimizer step holds, over all its micro-batches and all ranks.

    Loss terms are divided by these, so that they add up to the value of one large batch, however it was
    cut. Where a total is 0 the term's sum is 0 too; the divisor is then 1.
    """

    images: float
    masks: float
    inlier_pixels: float
    outlier_pixels: float
    outlier_masks: float
    """Images with an outlier pixel: masks more, where outliers are a class."""


def find_segments(label: UInt8[Tensor, "B H W"], outlier_class: bool = False) -> Segments:
    """List which classes occur in which image.

    Args:
        label: train ids, `OUTLIER_ID` or `VOID_ID`.
        outlier_class: whether outliers are one more class, whose id is `NUM_CLASSES`.
    """
    if outlier_class:
        label = label.masked_fill(label == OUTLIER_ID, NUM_CLASSES)
    present = _count_values(label)[:, : NUM_CLASSES + outlier_class] > 0  # (B, C)
    image_index, class_id = present.nonzero(as_tuple=True)
    return Segments(label, image_index, class_id, tuple(present.sum(dim=1).tolist()))


def count_totals(labels: Sequence[UInt8[Tensor, "_b H W"]]) -> Float[Tensor, " 5"]:
    """Count one rank's share of a step: images, masks, inlier and outlier pixels, outlier masks.

    A float64 tensor, so that ranks can add theirs: `StepTotals(*reduced.tolist())`.
    """
    total = torch.zeros(5, dtype=torch.float64, device=labels[0].device)
    for label in labels:
        counts = _count_values(label)
        inlier, outlier = counts[:, :NUM_CLASSES], counts[:, OUTLIER_ID]
        images = counts.new_tensor(len(label))
        masks, outlier_masks = (inlier > 0).sum(), (outlier > 0).sum()
        total += torch.stack((images, masks, inlier.sum(), outlier.sum(), outlier_masks))
    return total


def sample_membership(
    segments: Segments, which: Int64[Tensor, " n"], points: Float[Tensor, "n P 2"]
) -> Float[Tensor, "n P"]:
    """Read segment masks at points, bilinearly, in [0, 1].

    Equal to `grid_sample` of the boolean mask (align_corners=False, zeros outside), but reads four labels
    per point instead of building the mask.

    Args:
        which: indices of segments.
        points: (x, y) in [0, 1], the image's corners at 0 and 1.
    """
    height, width = segments.label.shape[-2:]
    flat = segments.label.flatten(1)  # (B, H*W)
    image = segments.image_index[which][:, None]
    class_id = segments.class_id[which][:, None]
    x, y = points[..., 0] * width - 0.5, points[..., 1] * height - 0.5
    left, top = x.floor(), y.floor()
    membership = torch.zeros_like(x)
    for row in (top, top + 1):
        for column in (left, left + 1):
            weight = (1 - (x - column).abs()) * (1 - (y - row).abs())
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            position = row.clamp(0, height - 1).long() * width + column.clamp(0, width - 1).long()
            membership += weight * (inside & (flat[image, position] == class_id))
    return membership


def sample_logits(logits: Float[Tensor, "n h w"], points: Float[Tensor, "n P 2"]) -> Float[Tensor, "n P"]:
    """Read maps at points (x, y) in [0, 1], bilinearly, zeros outside, as Mask2Former's point sampling."""
    grid = (2 * points - 1)[:, None]  # (n, 1, P, 2)
    return F.grid_sample(logits[:, None], grid, mode="bilinear", align_corners=False)[:, 0, 0]


def _count_values(label: Tensor) -> Tensor:
    """Count the pixels of each value in each image: (B, 256)."""
    offset = 256 * torch.arange(len(label), device=label.device)[:, None]
    flat = (label.flatten(1).long() + offset).flatten()
    return torch.bincount(flat, minlength=256 * len(label)).view(len(label), 256)
