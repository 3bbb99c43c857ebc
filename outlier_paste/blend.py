"""Opacity of an object and its blending into a scene; only the part under the object is touched."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import UInt8

from shards.schema import OUTLIER_ID

OUTLIER_OPACITY = 128
"""Half of 255: from here on a pixel is outlier, so that a feathered rim does not enlarge the object."""

_CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
_SQUARE = cv2.getStructuringElement(cv2.MORPH_RECT, (3, 3))
_RAMP = np.full(256, 255, np.uint8)
_RAMP[:2] = 128, round(255 * np.sqrt(2) / 2)
"""Half the distance to the background of a pixel that survives none, one or both of the erosions."""

Blend = Callable[[UInt8[np.ndarray, "h w"]], UInt8[np.ndarray, "h w"]]
"""Turns an object's mask, at the size at which it is pasted, into opacity: 0 is scene, 255 is object."""


def hard_opacity(mask: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    """Return 255 where mask or opacity are 128 or more: there a pixel becomes outlier; 0 elsewhere."""
    return cv2.threshold(mask, OUTLIER_OPACITY - 1, 255, cv2.THRESH_BINARY)[1]


def feathered_opacity(mask: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    """Return opacity that rises from a half at the object's outermost pixels to 255 further inside.

    opacity = min(mask, 255 * distance / 2), with the distance in pixels to the nearest pixel that is not
    object. The rim lies inside of the object, because outside of it a cut-out shows the surroundings it
    was cut from, which would become a halo. Every pixel whose mask is 128 or more keeps an opacity of 128
    or more: feathering changes no label, and thin objects do not vanish.
    """
    solid = cv2.threshold(mask, 127, 1, cv2.THRESH_BINARY)[1]
    away_from_sides = cv2.erode(solid, _CROSS, borderType=cv2.BORDER_CONSTANT, borderValue=(0,))
    away_from_corners = cv2.erode(solid, _SQUARE, borderType=cv2.BORDER_CONSTANT, borderValue=(0,))
    # below a distance of 2 there are only 1 and sqrt(2): two erosions take a tenth of a distance transform
    ramp = cv2.LUT(cv2.add(away_from_sides, away_from_corners), _RAMP)
    return cv2.min(mask, ramp)


BLENDS: dict[str, Blend] = {"hard": hard_opacity, "feather": feathered_opacity}


class Overlap(NamedTuple):
    """The part of an object that falls inside the scene."""

    in_scene: tuple[slice, slice]
    in_object: tuple[slice, slice]


def find_overlap(shape: tuple[int, ...], top_left: tuple[int, int], scene: tuple[int, ...]) -> Overlap | None:
    """Return the visible part of an object of (height, width) pixels; None where nothing of it is inside.

    `top_left` is (row, column) in the scene of its first pixel, and may be negative.
    """
    in_scene, in_object = [], []
    for length, first, limit in zip(shape, top_left, scene, strict=True):
        start, stop = max(0, first), min(limit, first + length)
        if start >= stop:
            return None
        in_scene.append(slice(start, stop))
        in_object.append(slice(start - first, stop - first))
    return Overlap((in_scene[0], in_scene[1]), (in_object[0], in_object[1]))


def blend_into(
    image: UInt8[np.ndarray, "H W 3"],
    label: UInt8[np.ndarray, "H W"],
    cutout: UInt8[np.ndarray, "h w 3"],
    opacity: UInt8[np.ndarray, "_h _w"],
    top_left: tuple[int, int],
) -> None:
    """Blend `cutout` into `image`, and mark its pixels as outlier in `label`; both are changed in place.

    With a = opacity / 255: out = a * cutout + (1 - a) * image, per pixel and channel, rounded. A pixel
    becomes outlier where a >= 0.5. What falls outside the scene is cropped away.

    Args:
        image: scene, sRGB in [0, 255], as the cut-out.
        label: train ids of the scene; `OUTLIER_ID` marks an outlier.
        opacity: 0 is scene, 255 is object; another size than the cut-out's is a ValueError.
        top_left: (row, column) in the scene of the cut-out's first pixel; may be negative.

    Source: AnomalyMix, Tian et al., ECCV 2022, https://github.com/tianyu0207/PEBAL.
    We differ: opacity may be feathered (theirs is binary) and objects may be cut by the border.
    """
    if opacity.shape != cutout.shape[:2]:
        raise ValueError(f"opacity is {opacity.shape} but cut-out is {cutout.shape[:2]} (height, width)")
    if (overlap := find_overlap(opacity.shape, top_left, label.shape)) is None:
        return
    shown, pixels = opacity[overlap.in_object], cutout[overlap.in_object]
    _mix(image[overlap.in_scene], pixels, shown)
    # several times as fast as a boolean index
    cv2.copyTo(np.full_like(shown, OUTLIER_ID), hard_opacity(shown), label[overlap.in_scene])


def _mix(
    scene: UInt8[np.ndarray, "h w 3"], pixels: UInt8[np.ndarray, "h w 3"], opacity: UInt8[np.ndarray, "h w"]
) -> None:
    """Blend in place; where the object is opaque, which is nearly everywhere, its pixels are copied."""
    soft = np.flatnonzero(opacity - np.uint8(1) < 254)  # 0 wraps round to 255
    if len(soft):
        pixels = pixels.copy()
        above, below = pixels.reshape(-1, 3), scene.reshape(-1, 3)
        weight = opacity.reshape(-1).take(soft).astype(np.uint16)[:, None]
        mixed = weight * above.take(soft, axis=0) + (255 - weight) * below.take(soft, axis=0) + 128
        above[soft] = (mixed + (mixed >> 8)) >> 8  # divided by 255 and rounded, exact in 16 bits
    cv2.copyTo(pixels, cv2.threshold(opacity, 0, 255, cv2.THRESH_BINARY)[1], scene)
