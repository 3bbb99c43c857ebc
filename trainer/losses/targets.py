"""Segments of a label map, read off the map itself; no stack of boolean masks is ever built."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
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
    """Those of `weigh_outliers`: pixels, where all weigh 1."""
    outlier_masks: float
    """Images with an outlier pixel: masks more, where outliers are a class."""


def find_segments(
    label: UInt8[Tensor, "B H W"], outlier_class: bool = False, num_classes: int = NUM_CLASSES
) -> Segments:
    """List which classes occur in which image; with `outlier_class` outliers are one more, `num_classes`."""
    if outlier_class:
        label = label.masked_fill(label == OUTLIER_ID, num_classes)
    present = _count_values(label)[:, : OUTLIER_ID + outlier_class] > 0  # (B, C)
    image_index, class_id = present.nonzero(as_tuple=True)
    return Segments(label, image_index, class_id, tuple(present.sum(dim=1).tolist()))


def weigh_outliers(label: UInt8[Tensor, "B H W"], exponent: float = 0.0) -> Float[Tensor, "B H W"]:
    """Return the weight of each outlier pixel, area ** -exponent of its object, in pixels; 0 of all others.

    At 0 every pixel weighs 1, and large objects have the say; at 1 every object does. Objects are the regions
    of the label that touch: of pasted ones that overlap, their union.
    """
    outliers = label == OUTLIER_ID
    if not exponent or not outliers.any():
        return outliers.float()
    weights = []
    for each in outliers.to(torch.uint8).cpu().numpy():
        _, regions, stats, _ = cv2.connectedComponentsWithStats(each, connectivity=8)
        of_region = stats[:, cv2.CC_STAT_AREA].astype(np.float32) ** -exponent
        of_region[0] = 0  # what is no outlier
        weights.append(torch.from_numpy(of_region[regions]))
    return torch.stack(weights).to(label.device)


def count_totals(
    labels: Sequence[UInt8[Tensor, "_b H W"]], area_exponent: float = 0.0
) -> Float[Tensor, " 5"]:
    """Count one rank's share of a step: images, masks, inlier and outlier pixels, outlier masks.

    A float64 tensor, so that ranks can add theirs: `StepTotals(*reduced.tolist())`. `area_exponent` as of
    `weigh_outliers`.
    """
    total = torch.zeros(5, dtype=torch.float64, device=labels[0].device)
    for label in labels:
        counts = _count_values(label)
        inlier, outlier = counts[:, :OUTLIER_ID], counts[:, OUTLIER_ID]
        images = counts.new_tensor(len(label))
        masks, outlier_masks = (inlier > 0).sum(), (outlier > 0).sum()
        weight = weigh_outliers(label, area_exponent).double().sum() if area_exponent else outlier.sum()
        total += torch.stack((images, masks, inlier.sum(), weight, outlier_masks))
    return total


def read_shares(
    label: UInt8[Tensor, "B H W"],
    image_index: Int64[Tensor, " n"],
    points: Float[Tensor, "n P 2"],
    class_id: Int64[Tensor, "n K"],
) -> Float[Tensor, "n K P"]:
    """Return how much of each point belongs to each of K classes, bilinearly, in [0, 1].

    Equal to `grid_sample` of the class's boolean mask (align_corners=False, zeros outside), but four labels
    per point are read instead of building masks. Row i of `points`, (x, y) with the image's corners at 0 and
    1, lies in image `image_index[i]`.
    """
    height, width = label.shape[-2:]
    flat = F.pad(label, (1, 1, 1, 1), value=VOID_ID).flatten(1)  # a frame of void, so no point is outside
    x, y = points[..., 0] * width + 0.5, points[..., 1] * height + 0.5
    left, top = x.floor(), y.floor()
    position = (top.long() * (width + 2)).add_(left.long())
    corners = (position, position + 1, position + width + 2, position + width + 3)  # upper two, lower two
    around = [flat[image_index[:, None], corner] for corner in corners]
    is_class = [(labels[:, None] == class_id[..., None]).to(x.dtype) for labels in around]
    right, down = (x - left)[:, None], (y - top)[:, None]
    upper = torch.lerp(is_class[0], is_class[1], right)
    lower = torch.lerp(is_class[2], is_class[3], right)
    return upper.lerp_(lower, down)


def sample_membership(
    segments: Segments, which: Int64[Tensor, " n"], points: Float[Tensor, "n P 2"]
) -> Float[Tensor, "n P"]:
    """Read masks of the segments with the indices `which` at points, as `read_shares`."""
    image_index, class_id = segments.image_index[which], segments.class_id[which]
    return read_shares(segments.label, image_index, points, class_id[:, None])[:, 0]


def sample_logits(logits: Float[Tensor, "n h w"], points: Float[Tensor, "n P 2"]) -> Float[Tensor, "n P"]:
    """Read maps at points of their own, as `sample_maps`."""
    return sample_maps(logits[:, None], points)[:, 0]


def sample_maps(maps: Float[Tensor, "n Q h w"], points: Float[Tensor, "n P 2"]) -> Float[Tensor, "n Q P"]:
    """Read Q maps at the same points (x, y) in [0, 1], bilinearly, zeros outside, as Mask2Former does."""
    grid = (2 * points - 1)[:, None]  # (n, 1, P, 2)
    return F.grid_sample(maps, grid, mode="bilinear", align_corners=False)[:, :, 0]


def read_own_maps(maps: Float[Tensor, "B C h w"], index: Int64[Tensor, "B H W"]) -> Float[Tensor, "B H W"]:
    """Resize, and read at each pixel the map that `index` names: bilinearly, with align_corners=False.

    Equal to `F.interpolate` of all C maps and a gather, in the time and the memory of four gathers.
    """
    (height, width), size = maps.shape[-2:], index.shape[-2:]
    (top, bottom, down), (left, right, along) = (
        _neighbours(*lengths, maps.device) for lengths in ((height, size[0]), (width, size[1]))
    )
    first = index * (height * width)
    corners = [(first + row[:, None] * width + column) for row in (top, bottom) for column in (left, right)]
    values = [maps.flatten(1).gather(1, corner.flatten(1)).view_as(index) for corner in corners]
    upper, lower = values[0].lerp(values[1], along), values[2].lerp(values[3], along)
    return upper.lerp(lower, down[:, None])


def _neighbours(source: int, length: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return which two of `source` values each of `length` values lies between, and its way to the second."""
    position = ((torch.arange(length, device=device) + 0.5) * source / length - 0.5).clamp(min=0)
    first = position.long()
    return first, (first + 1).clamp(max=source - 1), position - first


def _count_values(label: Tensor) -> Tensor:
    """Count the pixels of each value in each image: (B, 256)."""
    offset = 256 * torch.arange(len(label), device=label.device)[:, None]
    flat = (label.flatten(1).long() + offset).flatten()
    return torch.bincount(flat, minlength=256 * len(label)).view(len(label), 256)
