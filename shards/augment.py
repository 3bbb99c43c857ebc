"""Random crops, flips and colours of a scene, in uint8, touching only the pixels that are kept.

The work is done on one label map and one image. The crop window is found in the coordinates of the frame
and only that part is resized; brightness and contrast are one table, hue and saturation another one in HSV.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import UInt8

from shards.errors import InputError
from shards.schema import VOID_ID, Sample


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How scenes vary. `scale: [1, 1]`, `flip: 0` and `color: 0` leave the window's random place only."""

    scale: tuple[float, float] = (1.0, 2.0)
    """Range of the zoom, drawn uniformly. At 1 the frame is resized until it just covers the crop (Cityscapes
    stays at its own resolution for a crop of 1024 rows); 2 shows half as much, twice as large. Below 1 the
    frame no longer fills the crop and void pixels are added: [0.25, 1.0] is what upstream EoMT's "0.5-2.0"
    amounts to on Cityscapes, with about 40 % of the pixels void."""
    flip: float = 0.5
    """Probability of a mirror image, 0 to 1."""
    color: float = 0.5
    """Strength of the colour jitter, 0 (none) to 1. At 0.5: brightness +-32 of 255, contrast and saturation
    times 0.5 to 1.5, hue +-18 degrees, each with probability 0.5."""

    def __post_init__(self) -> None:
        low, high = self.scale
        if not 0.05 <= low <= high <= 20:
            raise InputError(
                f"data.augment.scale: got {list(self.scale)}; two numbers in 0.05..20, smaller first"
            )
        for name, value in (("flip", self.flip), ("color", self.color)):
            if not 0 <= value <= 1:
                raise InputError(f"data.augment.{name}: got {value}; a number in 0..1 is needed")


class Window(NamedTuple):
    """A part of the frame, and the part of the crop that it fills, in pixels."""

    top: int
    left: int
    height: int
    width: int
    """Of the part of the frame."""
    out_top: int
    out_left: int
    out_height: int
    out_width: int
    """Of the part of the crop; the rest of the crop is void."""


def crop_scene(
    sample: Sample, config: AugmentConfig, crop: tuple[int, int], generator: np.random.Generator
) -> Sample:
    """Cut, resize and perhaps mirror a scene.

    Args:
        crop: (height, width) of the result, in pixels.
        generator: draws the zoom, the window's place and the mirroring: always four numbers, in this order.
    """
    zoom = config.scale[0] + (config.scale[1] - config.scale[0]) * generator.random()
    place, mirrored = (generator.random(), generator.random()), generator.random() < config.flip
    window = find_window((sample.label.shape[0], sample.label.shape[1]), crop, zoom, place)
    image, label = _resize_window(sample, window)
    if mirrored:
        image, label = cv2.flip(image, 1), cv2.flip(label, 1)
    if (window.out_height, window.out_width) != crop:
        rows = (window.out_top, crop[0] - window.out_height - window.out_top)
        columns = (window.out_left, crop[1] - window.out_width - window.out_left)
        image = cv2.copyMakeBorder(image, *rows, *columns, cv2.BORDER_CONSTANT, value=(0, 0, 0))
        label = cv2.copyMakeBorder(label, *rows, *columns, cv2.BORDER_CONSTANT, value=(VOID_ID,))
    return Sample(key=sample.key, image=image, label=label)


def find_window(
    frame: tuple[int, int], crop: tuple[int, int], zoom: float, place: tuple[float, float]
) -> Window:
    """Find the part of a frame that a crop shows.

    The frame is resized by zoom * max(crop height / frame height, crop width / frame width), so that it
    fills the crop for every zoom >= 1. Where it does not, its content lies at a random place in the crop.

    Args:
        frame: (height, width) of the whole picture.
        crop: (height, width) of the result.
        zoom: see `AugmentConfig.scale`.
        place: (row, column) of the window among the possible ones, each in [0, 1).
    """
    factor = zoom * max(crop[0] / frame[0], crop[1] / frame[1])
    sides = []
    for of_frame, of_crop, share in zip(frame, crop, place, strict=True):
        wanted = max(1, round(of_crop / factor))
        if wanted <= of_frame:
            sides.append((int(share * (of_frame - wanted + 1)), wanted, 0, of_crop))
        else:
            filled = min(of_crop, max(1, round(of_frame * factor)))
            sides.append((0, of_frame, int(share * (of_crop - filled + 1)), filled))
    (top, height, out_top, out_height), (left, width, out_left, out_width) = sides
    return Window(top, left, height, width, out_top, out_left, out_height, out_width)


def jitter_color(
    image: UInt8[np.ndarray, "H W 3"], strength: float, generator: np.random.Generator
) -> UInt8[np.ndarray, "H W 3"]:
    """Change brightness, contrast, saturation and hue, each with probability 0.5.

    With u uniform in [-1, 1] for each: value * (1 + strength * u) + 64 * strength * u, then in HSV
    saturation * (1 + strength * u) and hue + 36 degrees * strength * u.

    Args:
        image: sRGB in [0, 255]; not modified, and returned itself where nothing changes.
        strength: 0 to 1.
        generator: draws eight numbers, whatever the strength.

    Source: the photometric distortion of SSD, Liu et al., ECCV 2016, whose ranges are ours at strength
    0.5. We differ: contrast always comes before hue and saturation, hue is counted in 256 steps.
    """
    used = generator.random(4) < 0.5
    brightness, contrast, saturation, hue = strength * used * generator.uniform(-1, 1, 4)
    values = np.arange(256, dtype=np.float64)
    if brightness or contrast:
        image = cv2.LUT(image, _as_table(values * (1 + contrast) + 64 * brightness))
    if saturation or hue:
        tables = np.stack(
            [
                ((values + round(hue * 36 / 360 * 256)) % 256).astype(np.uint8),
                _as_table(values * (1 + saturation)),
                values.astype(np.uint8),
            ],
            axis=-1,
        )
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
        image = cv2.cvtColor(cv2.LUT(hsv, tables[None]), cv2.COLOR_HSV2RGB_FULL)
    return image


def _as_table(values: np.ndarray) -> UInt8[np.ndarray, "256"]:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _resize_window(
    sample: Sample, window: Window
) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"]]:
    rows = slice(window.top, window.top + window.height)
    columns = slice(window.left, window.left + window.width)
    image, label = sample.image[rows, columns], sample.label[rows, columns]
    size = (window.out_width, window.out_height)
    if (window.width, window.height) == size:
        return np.ascontiguousarray(image), np.ascontiguousarray(label)
    # averaging where it shrinks, or thin things flicker; INTER_NEAREST would shift labels by half a pixel
    shrinks = window.height * window.width > window.out_height * window.out_width
    picture = cv2.resize(image, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return picture, cv2.resize(label, size, interpolation=cv2.INTER_NEAREST_EXACT)
