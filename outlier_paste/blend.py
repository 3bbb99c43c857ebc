"""How an object's pixels replace those of the scene; only the part under the object is touched."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from shards.schema import OUTLIER_ID

OUTLIER_OPACITY = 0.5
"""From here on a pixel counts as outlier, so that a feathered rim does not enlarge the object."""

_CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
_SQUARE = cv2.getStructuringElement(cv2.MORPH_RECT, (3, 3))
_RAMP = np.ones(256, np.float32)
_RAMP[:2] = 1 / 2, np.sqrt(2) / 2
"""Half the distance to the background of a pixel that survives none, one or both of the erosions."""

Blend = Callable[[UInt8[np.ndarray, "h w"]], Float32[np.ndarray, "h w"]]
"""Turns an object's mask, at the size at which it is pasted, into opacity."""


def hard_opacity(mask: UInt8[np.ndarray, "h w"]) -> Float32[np.ndarray, "h w"]:
    """Return 1 where the mask is 128 or more, and 0 elsewhere."""
    return (mask >= 128).astype(np.float32)


def feathered_opacity(mask: UInt8[np.ndarray, "h w"]) -> Float32[np.ndarray, "h w"]:
    """Return opacity that rises from 0.5 at the object's outermost pixels to 1 further inside.

    opacity = min(mask / 255, distance / 2), with the distance in pixels to the nearest pixel that is not
    object. The rim lies inside of the object, because outside of it a cut-out shows the surroundings it
    was cut from, which would become a halo. Every pixel whose mask is 128 or more keeps an opacity of 0.5
    or more: feathering changes no label, and thin objects do not vanish.
    """
    solid = (mask >= 128).astype(np.uint8)
    away_from_sides = cv2.erode(solid, _CROSS, borderType=cv2.BORDER_CONSTANT, borderValue=(0,))
    away_from_corners = cv2.erode(solid, _SQUARE, borderType=cv2.BORDER_CONSTANT, borderValue=(0,))
    # below a distance of 2 there are only 1 and sqrt(2): two erosions take a tenth of a distance transform
    ramp = cv2.LUT(away_from_sides + away_from_corners, _RAMP)
    soft = mask.astype(np.float32) / 255
    return np.where(solid > 0, np.minimum(soft, ramp), soft)


BLENDS: dict[str, Blend] = {
    "hard": hard_opacity,
    "feather": feathered_opacity,
}


def count_visible(
    opacity: Float32[np.ndarray, "h w"], top_left: tuple[int, int], scene: tuple[int, int]
) -> int:
    """Count the outlier pixels of an object that fall inside a scene of (height, width) pixels."""
    _, part = _overlap(opacity.shape, top_left, scene)
    return int((opacity[part] >= OUTLIER_OPACITY).sum())


def blend_into(
    image: UInt8[np.ndarray, "H W 3"],
    label: UInt8[np.ndarray, "H W"],
    cutout: UInt8[np.ndarray, "h w 3"],
    opacity: Float32[np.ndarray, "_h _w"],
    top_left: tuple[int, int],
) -> None:
    """Blend `cutout` into `image`, and mark its pixels as outlier in `label`; both are changed in place.

    out = opacity * cutout + (1 - opacity) * image, per pixel and channel. A pixel becomes outlier where
    opacity >= 0.5. What falls outside the scene is cropped away.

    Args:
        image: scene, sRGB in [0, 255].
        label: train ids of the scene; `OUTLIER_ID` marks an outlier.
        cutout: object, sRGB in [0, 255].
        opacity: 0 is scene, 1 is object.
        top_left: (row, column) in the scene of the cut-out's first pixel; may be negative.

    Raises:
        ValueError: `opacity` and `cutout` differ in height or width.

    Source: AnomalyMix, Tian et al., ECCV 2022, https://github.com/tianyu0207/PEBAL.
    We differ: opacity may be feathered (theirs is binary) and objects may be cut by the border.
    """
    if opacity.shape != cutout.shape[:2]:
        raise ValueError(f"opacity is {opacity.shape} but cut-out is {cutout.shape[:2]} (height, width)")
    place, part = _overlap(opacity.shape, top_left, label.shape)
    scene, weight = image[place], opacity[part][..., None]
    before = scene.astype(np.float32)
    scene[...] = np.rint(before + weight * (cutout[part] - before)).astype(np.uint8)
    label[place][opacity[part] >= OUTLIER_OPACITY] = OUTLIER_ID


def _overlap(
    shape: tuple[int, ...], top_left: tuple[int, int], scene: tuple[int, ...]
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Return the object's visible part as slices of the scene, and as slices of the object."""
    in_scene, in_object = [], []
    for length, first, limit in zip(shape, top_left, scene, strict=True):
        start, stop = max(0, first), max(0, min(limit, first + length))
        stop = max(start, stop)
        in_scene.append(slice(start, stop))
        in_object.append(slice(start - first, stop - first))
    return (in_scene[0], in_scene[1]), (in_object[0], in_object[1])
