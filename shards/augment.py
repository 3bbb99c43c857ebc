"""Random crops and flips of a scene, in uint8, touching only the pixels that are kept.

The work is done on one label map and one image. The crop window is found in the coordinates of the frame,
from the label alone, and only that part of the picture is decoded (where its format can) and resized.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import UInt8

from shards.config import AugmentConfig, Recipe
from shards.schema import OUTLIER_ID, VOID_ID

Size = tuple[int, int]
"""(height, width) in pixels."""
CROP_TRIES = 10
"""Windows that are looked at for one below `max_class_share`; the last is taken as it is."""
LABEL_STRIDE = 4
"""Every fourth row and column of the label is counted for that."""


class Crop(NamedTuple):
    """What is cut out of a frame, before any pixel of its picture is decoded."""

    rows: slice
    columns: slice
    """Of the frame."""
    filled: tuple[slice, slice]
    """Rows and columns of the result that they fill; the rest of it is void."""
    size: Size
    """Of the result."""
    mirrored: bool = False


def choose_crop(
    label: UInt8[np.ndarray, "H W"], config: AugmentConfig, crop: Size, generator: np.random.Generator
) -> Crop:
    """Choose what is cut out of a frame, from its label alone.

    The generator draws the zoom, the window's place and the mirroring: four numbers, in this order. More are
    drawn only where `class_balance` or `max_class_share` ask for them, and by recipe upstream while no class
    is in the window (`CROP_TRIES` at most, where upstream tries for ever).

    Args:
        label: train ids of the whole frame.
        crop: (height, width) of the result, in pixels.

    Source: the share limit is that of mmsegmentation's `RandomCrop(cat_max_ratio)` and detectron2's
    `RandomCrop_CategoryAreaConstraint`. We differ: shares are counted on every fourth row and column.
    """
    drawn = _draw_crop(label, config, crop, generator)
    for _ in range(CROP_TRIES - 1 if config.recipe == "upstream" else 0):
        if (label[drawn.rows, drawn.columns] < OUTLIER_ID).any():
            break
        drawn = _draw_crop(label, config, crop, generator)
    return drawn


def _draw_crop(
    label: UInt8[np.ndarray, "H W"], config: AugmentConfig, crop: Size, generator: np.random.Generator
) -> Crop:
    frame = (label.shape[0], label.shape[1])
    zoom = config.scale[0] + (config.scale[1] - config.scale[0]) * generator.random()
    place, mirrored = (generator.random(), generator.random()), bool(generator.random() < config.flip)
    if config.class_balance and generator.random() < config.class_balance:
        place = _place_on_a_class(label, crop, zoom, config.recipe, generator) or place
    window = find_window(frame, crop, zoom, place, config.recipe)
    for _ in range(CROP_TRIES - 1 if config.max_class_share < 1 else 0):
        if _largest_share(label, window) <= config.max_class_share:
            break
        place = (generator.random(), generator.random())
        window = find_window(frame, crop, zoom, place, config.recipe)
    return window._replace(mirrored=mirrored)


def find_window(
    frame: Size, crop: Size, zoom: float, place: tuple[float, float], recipe: Recipe = "ours"
) -> Crop:
    """Find the part of a frame that a crop shows.

    The frame is resized by zoom * f(crop height / frame height, crop width / frame width). For ours f is the
    larger of the two, so that the frame fills the crop for every zoom >= 1; where it does not, its content
    lies at a random place in the crop. For upstream f is the smaller, and content lies at the upper left.

    Args:
        frame: (height, width) of the whole picture, as `crop` of the result.
        place: (row, column) of the window among the possible ones, each in [0, 1).
    """
    ratios = (crop[0] / frame[0], crop[1] / frame[1])
    factor = zoom * (max(ratios) if recipe == "ours" else min(ratios))
    spans = []
    for of_frame, of_crop, share in zip(frame, crop, place, strict=True):
        wanted = max(1, round(of_crop / factor))
        if wanted <= of_frame:
            first = int(share * (of_frame - wanted + 1))
            spans.append((slice(first, first + wanted), slice(0, of_crop)))
        else:
            filled = min(of_crop, max(1, round(of_frame * factor)))
            first = int(share * (of_crop - filled + 1)) if recipe == "ours" else 0
            spans.append((slice(0, of_frame), slice(first, first + filled)))
    (rows, filled_rows), (columns, filled_columns) = spans
    return Crop(rows, columns, (filled_rows, filled_columns), crop)


def resize_crop(part: UInt8[np.ndarray, "h w 3"], crop: Crop) -> UInt8[np.ndarray, "H W 3"]:
    """Resize the needed part of a picture, mirror it, and add black where the frame does not reach."""
    height, width = (span.stop - span.start for span in crop.filled)
    shrinks = part.shape[0] * part.shape[1] > height * width
    # averaging where it shrinks, or thin things flicker
    return _fit(part, crop, cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR, (0, 0, 0))


def resize_label(label: UInt8[np.ndarray, "H W"], crop: Crop) -> UInt8[np.ndarray, "h w"]:
    """Cut a label map as its picture is cut; what the frame does not reach is void."""
    # INTER_NEAREST would shift labels by half a pixel
    return _fit(label[crop.rows, crop.columns], crop, cv2.INTER_NEAREST_EXACT, (VOID_ID,))


def recolor_inside(
    image: UInt8[np.ndarray, "H W 3"],
    crop: Crop,
    recolor: Callable[[UInt8[np.ndarray, "h w 3"]], UInt8[np.ndarray, "h w 3"]],
) -> UInt8[np.ndarray, "H W 3"]:
    """Change the colours of a crop where it shows the frame; padding stays black."""
    if crop.filled == (slice(0, crop.size[0]), slice(0, crop.size[1])):
        return recolor(image)
    changed = image.copy()
    changed[crop.filled] = recolor(np.ascontiguousarray(image[crop.filled]))
    return changed


def _fit(part: np.ndarray, crop: Crop, method: int, border: tuple[int, ...]) -> np.ndarray:
    (rows, columns), size = crop.filled, crop.size
    filled = (rows.stop - rows.start, columns.stop - columns.start)
    if part.shape[:2] != filled:
        part = cv2.resize(part, filled[::-1], interpolation=method)
    part = cv2.flip(part, 1) if crop.mirrored else np.ascontiguousarray(part)
    if filled == size:
        return part
    edges = (rows.start, size[0] - rows.stop, columns.start, size[1] - columns.stop)
    return cv2.copyMakeBorder(part, *edges, cv2.BORDER_CONSTANT, value=border)


def _place_on_a_class(
    label: UInt8[np.ndarray, "H W"], crop: Size, zoom: float, recipe: Recipe, generator: np.random.Generator
) -> tuple[float, float] | None:
    """Return a place whose window shows a random pixel of a random class; None: all is void.

    The pixel is anywhere in the window: in its middle, small classes would always be seen there.
    """
    counts = cv2.calcHist([label], [0], None, [OUTLIER_ID], [0, OUTLIER_ID])
    present = np.flatnonzero(counts)
    if not len(present):
        return None
    chosen = int(present[int(generator.random() * len(present))])
    pixels = np.flatnonzero(label.reshape(-1) == chosen)
    pixel = divmod(int(pixels[int(generator.random() * len(pixels))]), label.shape[1])
    frame = (label.shape[0], label.shape[1])
    window = find_window(frame, crop, zoom, (0.0, 0.0), recipe)
    shares = []
    for at, side, of_frame in zip(pixel, (window.rows.stop, window.columns.stop), frame, strict=True):
        first, last = max(0, at - side + 1), min(at, of_frame - side)
        start = first + int(generator.random() * (last - first + 1))
        shares.append((start + 0.5) / (of_frame - side + 1))
    return shares[0], shares[1]


def _largest_share(label: UInt8[np.ndarray, "H W"], window: Crop) -> float:
    """Return the share of the largest class among the pixels of a window that are not void."""
    seen = label[window.rows, window.columns][::LABEL_STRIDE, ::LABEL_STRIDE]
    counts = np.bincount(seen.ravel(), minlength=256)[:VOID_ID]
    return float(counts.max() / max(1, counts.sum()))
