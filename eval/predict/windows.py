"""Sliding windows: a network that knows one input size sees a whole image at the image's own scale."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from shards.errors import InputError


@runtime_checkable
class WholeImages(Protocol):
    """What answers for images of any size, where a network cut into windows is not at hand."""

    def segment_image(self, image: UInt8[Tensor, "3 H W"]) -> Float[Tensor, "C H W"]:
        """Return the maps of an image at its own resolution, as a `Segment` does for windows."""


Segment = Callable[[Tensor], Tensor] | WholeImages
"""Windows, UInt8 (B, 3, h, w), to maps at the same resolution, Float (B, C + S, h, w): evidence of the C
classes, and one map for each of S scores (`eval.predict.scores.QUERY_SCORES`) that it was built for. Or the
same of whole images."""


def to_tensor(image: UInt8[np.ndarray, "H W 3"]) -> UInt8[Tensor, "3 H W"]:
    """View an image as PyTorch orders it."""
    return torch.from_numpy(image).permute(2, 0, 1)


def covering_size(size: tuple[int, int], window: tuple[int, int]) -> tuple[int, int]:
    """Return the (H, W) to which an image of `size` is scaled so that it covers the window.

    The factor is the larger of window / image side over both axes: one axis fits the window exactly, the
    other is at least as long, and the aspect ratio is kept.
    """
    factor = max(window[0] / size[0], window[1] / size[1])
    return max(window[0], round(size[0] * factor)), max(window[1], round(size[1] * factor))


def window_starts(side: int, window: int) -> list[int]:
    """Return where windows begin on one axis: as few as cover it, evenly spread, so with least overlap.

    Args:
        side: pixels of the axis, at least `window`.
        window: pixels of a window.
    """
    count = math.ceil(side / window)
    if count == 1:
        return [0]
    return [round(i * (side - window) / (count - 1)) for i in range(count)]


def resize_image(image: UInt8[Tensor, "3 _H _W"], size: tuple[int, int]) -> UInt8[Tensor, "3 _h _w"]:
    """Resize bilinearly (align_corners=False), with a low-pass filter where it shrinks, as Pillow does."""
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    resized = F.interpolate(image[None].float(), size=size, mode="bilinear", antialias=True)[0]
    return resized.round().clamp(0, 255).to(torch.uint8)


@torch.no_grad()
def segment_in_windows(
    image: UInt8[Tensor, "3 H W"],
    segment: Segment,
    window: tuple[int, int],
    windows_at_once: int = 4,
) -> Float[Tensor, "C H W"]:
    """Return the evidence of an image at its own resolution.

    The image is scaled to cover the window, windows are spread evenly along the axis that sticks out,
    evidence is averaged where they overlap and resized bilinearly (align_corners=False) back.

    Args:
        image: sRGB in [0, 255].
        segment: windows to evidence at window resolution; may answer on another device. `WholeImages` are
            asked once, for the image as it is.
        window: (h, w), the input size of the network.
        windows_at_once: windows per call of `segment`; bounds its memory.

    Source: the semantic inference of EoMT, Kerssies et al., CVPR 2025. It truncates window positions; we
    round them, so the last window ends exactly at the border.
    """
    if windows_at_once < 1:
        raise InputError(f"windows at once: got {windows_at_once}; at least 1")
    if isinstance(segment, WholeImages):
        return segment.segment_image(image)
    native = (image.shape[-2], image.shape[-1])
    scaled = resize_image(image, covering_size(native, window))
    height, width = scaled.shape[-2:]
    corners = [(y, x) for y in window_starts(height, window[0]) for x in window_starts(width, window[1])]
    sums: Tensor | None = None
    counts = torch.zeros(height, width)
    for begin in range(0, len(corners), windows_at_once):
        group = corners[begin : begin + windows_at_once]
        crops = torch.stack([scaled[:, y : y + window[0], x : x + window[1]] for y, x in group])
        evidence = segment(crops).float()
        if sums is None:
            sums = evidence.new_zeros(evidence.shape[1], height, width)  # on the network's device
        for (y, x), part in zip(group, evidence, strict=True):
            sums[:, y : y + window[0], x : x + window[1]] += part
            counts[y : y + window[0], x : x + window[1]] += 1
    assert sums is not None
    sums /= counts.to(sums.device)
    if (height, width) == native:
        return sums
    return F.interpolate(sums[None], size=native, mode="bilinear", align_corners=False)[0]
