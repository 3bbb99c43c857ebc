"""Segments of a label map, read off the map itself; no stack of boolean masks is ever built."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from shards.schema import NUM_CLASSES, OUTLIER_ID, VOID_ID


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
    """Counts of one optimizer step, over all its micro-batches and all ranks.

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


class Corners(NamedTuple):
    """The four labels around each of a number of points, and where between them it lies."""

    labels: tuple[UInt8[Tensor, "n P"], ...]
    """Upper left, upper right, lower left, lower right; void outside of the image."""
    right: Float[Tensor, "n P"]
    """Distance to the left ones, in [0, 1)."""
    down: Float[Tensor, "n P"]
    """Distance to the upper ones, in [0, 1)."""

    def share(self, class_id: Int64[Tensor, "n K"]) -> Float[Tensor, "n K P"]:
        """Return how much of each point belongs to each of K classes, in [0, 1]."""
        right, down = self.right[:, None], self.down[:, None]
        is_class = [(label[:, None] == class_id[..., None]).to(right.dtype) for label in self.labels]
        upper = torch.lerp(is_class[0], is_class[1], right)
        lower = torch.lerp(is_class[2], is_class[3], right)
        return upper.lerp_(lower, down)


def read_corners(
    label: UInt8[Tensor, "B H W"], image_index: Int64[Tensor, " n"], points: Float[Tensor, "n P 2"]
) -> Corners:
    """Read label maps around points.

    Shares of a class are equal to `grid_sample` of its boolean mask (align_corners=False, zeros outside), but
    four labels per point are read instead of building masks.

    Args:
        image_index: which image each row of points lies in.
        points: (x, y) in [0, 1], the image's corners at 0 and 1.
    """
    height, width = label.shape[-2:]
    flat = F.pad(label, (1, 1, 1, 1), value=VOID_ID).flatten(1)  # a frame of void, so no point is outside
    x, y = points[..., 0] * width + 0.5, points[..., 1] * height + 0.5
    left, top = x.floor(), y.floor()
    position = (top.long() * (width + 2)).add_(left.long())
    corners = (position, position + 1, position + width + 2, position + width + 3)
    return Corners(tuple(flat[image_index[:, None], corner] for corner in corners), x - left, y - top)


def sample_membership(
    segments: Segments, which: Int64[Tensor, " n"], points: Float[Tensor, "n P 2"]
) -> Float[Tensor, "n P"]:
    """Read segment masks at points, bilinearly, in [0, 1] (see `read_corners`).

    Args:
        which: indices of segments.
        points: (x, y) in [0, 1].
    """
    corners = read_corners(segments.label, segments.image_index[which], points)
    return corners.share(segments.class_id[which][:, None])[:, 0]


def sample_logits(logits: Float[Tensor, "n h w"], points: Float[Tensor, "n P 2"]) -> Float[Tensor, "n P"]:
    """Read maps at points of their own, as `sample_maps`."""
    return sample_maps(logits[:, None], points)[:, 0]


def sample_maps(maps: Float[Tensor, "n Q h w"], points: Float[Tensor, "n P 2"]) -> Float[Tensor, "n Q P"]:
    """Read Q maps at the same points (x, y) in [0, 1], bilinearly, zeros outside, as Mask2Former does."""
    grid = (2 * points - 1)[:, None]  # (n, 1, P, 2)
    return F.grid_sample(maps, grid, mode="bilinear", align_corners=False)[:, :, 0]


def _count_values(label: Tensor) -> Tensor:
    """Count the pixels of each value in each image: (B, 256)."""
    offset = 256 * torch.arange(len(label), device=label.device)[:, None]
    flat = (label.flatten(1).long() + offset).flatten()
    return torch.bincount(flat, minlength=256 * len(label)).view(len(label), 256)
