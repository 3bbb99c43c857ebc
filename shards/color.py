"""Random colours of a scene, in uint8: brightness and contrast are one table, hue and saturation another."""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import UInt8


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
        turned = (values + round(hue * 36 / 360 * 256)) % 256
        tables = np.dstack([_as_table(v) for v in (turned, values * (1 + saturation), values)])
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
        image = cv2.cvtColor(cv2.LUT(hsv, tables), cv2.COLOR_HSV2RGB_FULL)
    return image


def jitter_as_upstream(
    image: UInt8[np.ndarray, "H W 3"], strength: float, generator: np.random.Generator
) -> UInt8[np.ndarray, "H W 3"]:
    """Change colours as tue-mps/eomt does, whose ranges are ours at strength 0.5.

    Brightness first; then contrast before saturation and hue, or after them, with equal probability. Each
    happens with probability 0.5. With u uniform in [-1, 1] for each: value * (1 + 64/255 * strength * u);
    blends with the mean grey of the picture and with the grey of the pixel, by 1 + strength * u; hue
    + 36 degrees * strength * u.

    Args:
        image: sRGB in [0, 255]; not modified.
        strength: 0 to 1.
        generator: draws nine numbers, whatever the strength.

    Source: tue-mps/eomt `datasets/transforms.py`, with torchvision's `adjust_*` functions. We differ: each
    step rounds to uint8 by itself, hue is counted in 256 steps, and numbers come from `generator`.
    """
    used, factors = generator.random(4) < 0.5, generator.uniform(-1, 1, 4) * strength
    contrast_first = generator.random() < 0.5
    if used[0]:
        image = scale_brightness(image, 1 + 64 / 255 * float(factors[0]))
    if used[1] and contrast_first:
        image = scale_contrast(image, 1 + float(factors[1]))
    if used[2]:
        image = scale_saturation(image, 1 + float(factors[2]))
    if used[3]:
        image = shift_hue(image, 36 / 360 * float(factors[3]))
    if used[1] and not contrast_first:
        image = scale_contrast(image, 1 + float(factors[1]))
    return image


def scale_brightness(image: UInt8[np.ndarray, "H W 3"], factor: float) -> UInt8[np.ndarray, "H W 3"]:
    """Multiply every value."""
    return cv2.LUT(image, _as_table(np.arange(256) * factor))


def scale_contrast(image: UInt8[np.ndarray, "H W 3"], factor: float) -> UInt8[np.ndarray, "H W 3"]:
    """Multiply every value's distance to the mean grey of the picture."""
    mean = float(cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0])
    return cv2.LUT(image, _as_table(np.arange(256) * factor + mean * (1 - factor)))


def scale_saturation(image: UInt8[np.ndarray, "H W 3"], factor: float) -> UInt8[np.ndarray, "H W 3"]:
    """Multiply every value's distance to the grey of its pixel."""
    gray = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(image, factor, gray, 1 - factor, 0)


def shift_hue(image: UInt8[np.ndarray, "H W 3"], turn: float) -> UInt8[np.ndarray, "H W 3"]:
    """Turn the hue by `turn`, in whole turns."""
    table = np.dstack([(np.arange(256) + round(turn * 256)) % 256, np.arange(256), np.arange(256)])
    hsv = cv2.LUT(cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL), table.astype(np.uint8))
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


def _as_table(values: np.ndarray) -> UInt8[np.ndarray, "256"]:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
