"""Steps that make an object look as if the camera of the scene had taken it: colour, blur, noise.

An object that is brighter, sharper or cleaner than all around it can be told by that alone, and a network
takes what is easiest. Each step changes pixels and perhaps the mask; how the edge is made comes after them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from outlier_paste.blend import find_overlap

COLOR_STRENGTH = 0.5
"""Share of the way of colours to the surroundings', 0 to 1: at 1 every object on a road would be grey."""
MAX_CONTRAST = 2.0
"""Contrast is changed by up to this factor, up or down."""
MIN_MARGIN = 16
"""Least number of pixels that the surroundings reach beyond the object."""
BLURS = (0.6, 0.9, 1.3, 1.9, 2.7)
"""Standard deviations in pixels, from which `defocus` takes the first that is enough."""
MAX_MOTION = 0.06
"""Longest motion blur, as share of the object's longer side."""
MAX_NOISE = 16.0
"""Most noise that is added, as a standard deviation in grey levels."""
MIN_CLONED = 8
"""Shorter sides leave OpenCV's solver no interior: it raises an error in the best case."""
_IMMERKAER = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)


class Patch(NamedTuple):
    """An object at the size and place at which it is pasted."""

    picture: UInt8[np.ndarray, "h w 3"]
    mask: UInt8[np.ndarray, "h w"]
    """0 is background, 255 is object."""
    top: int
    left: int
    """In the scene; may be negative."""


Appearance = Callable[[Patch, UInt8[np.ndarray, "H W 3"], np.random.Generator], Patch]
"""Changes an object (not its arrays) to suit the scene around it; draws from nothing but the generator."""


def match_color(patch: Patch, image: UInt8[np.ndarray, "H W 3"], generator: np.random.Generator) -> Patch:
    """Move mean and contrast of the object's colours half the way to those of its surroundings.

    In CIE Lab, per channel: v -> m + (v - m) * c + s * (m' - m), with m and m' the means of object and
    surroundings, c = (deviation' / deviation)^s limited to `MAX_CONTRAST`, s = `COLOR_STRENGTH`.

    Source: Reinhard et al., "Color Transfer between Images", 2001. We differ: in Lab of 8 bits instead of
    l-alpha-beta; half the way; surroundings instead of a whole picture; limited contrast.
    """
    if (around := surroundings(patch, image)) is None:
        return patch
    lab = cv2.cvtColor(patch.picture, cv2.COLOR_RGB2LAB)
    solid = cv2.threshold(patch.mask, 127, 255, cv2.THRESH_BINARY)[1]
    mean, deviation = cv2.meanStdDev(lab, mask=solid)
    wanted, spread = cv2.meanStdDev(cv2.cvtColor(around, cv2.COLOR_RGB2LAB))
    contrast = (np.maximum(spread, 1) / np.maximum(deviation, 1)) ** COLOR_STRENGTH
    contrast = np.clip(contrast, 1 / MAX_CONTRAST, MAX_CONTRAST)
    values = np.arange(256)
    tables = mean + (values - mean) * contrast + COLOR_STRENGTH * (wanted - mean)  # (3, 256)
    tables = np.clip(np.rint(tables), 0, 255).astype(np.uint8)
    moved = cv2.LUT(lab, np.ascontiguousarray(tables.T)[None])
    return patch._replace(picture=cv2.cvtColor(moved, cv2.COLOR_LAB2RGB))


def match_defocus(patch: Patch, image: UInt8[np.ndarray, "H W 3"], generator: np.random.Generator) -> Patch:
    """Blur an object that is sharper than its surroundings until it is not; a blurred one stays as it is.

    Takes the smallest of `BLURS` at which `sharpness` comes down to that of the surroundings, or the
    largest. The mask is blurred alike, so that the edge is as soft as the rest.
    """
    if (around := surroundings(patch, image)) is None:
        return patch
    wanted = sharpness(cv2.cvtColor(around, cv2.COLOR_RGB2GRAY))
    grey = cv2.cvtColor(patch.picture, cv2.COLOR_RGB2GRAY)
    if wanted == 0 or sharpness(grey) <= wanted:
        return patch
    sigma = next((s for s in BLURS if sharpness(cv2.GaussianBlur(grey, (0, 0), s)) <= wanted), BLURS[-1])
    return patch._replace(
        picture=cv2.GaussianBlur(patch.picture, (0, 0), sigma),
        mask=cv2.GaussianBlur(patch.mask, (0, 0), sigma, borderType=cv2.BORDER_CONSTANT),
    )


def blur_motion(patch: Patch, image: UInt8[np.ndarray, "H W 3"], generator: np.random.Generator) -> Patch:
    """Smear the object along a line of random direction and of up to `MAX_MOTION` of its longer side.

    Picture and mask alike; the patch grows by what is smeared out of it.
    """
    longest = MAX_MOTION * max(patch.mask.shape)
    length, angle = generator.uniform(0, longest), generator.uniform(0, math.pi)
    if length < 1:
        return patch
    reach = math.ceil(length / 2)
    steps = np.linspace(-length / 2, length / 2, 8 * reach + 1)
    rows = np.rint(reach - steps * math.sin(angle)).astype(int)
    columns = np.rint(reach + steps * math.cos(angle)).astype(int)
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1), np.float32)
    np.add.at(kernel, (rows, columns), 1)
    kernel /= kernel.sum()
    border = (reach, reach, reach, reach)
    picture = cv2.copyMakeBorder(patch.picture, *border, cv2.BORDER_REPLICATE)
    mask = cv2.copyMakeBorder(patch.mask, *border, cv2.BORDER_CONSTANT, value=(0,))
    return Patch(
        cv2.filter2D(picture, -1, kernel, borderType=cv2.BORDER_REPLICATE),
        cv2.filter2D(mask, -1, kernel, borderType=cv2.BORDER_CONSTANT),
        patch.top - reach,
        patch.left - reach,
    )


def match_noise(patch: Patch, image: UInt8[np.ndarray, "H W 3"], generator: np.random.Generator) -> Patch:
    """Add grey noise to an object that is cleaner than its surroundings, so that the variances agree.

    Both are estimated by `noise_level`; at most `MAX_NOISE` is added.
    """
    if (around := surroundings(patch, image)) is None:
        return patch
    wanted = noise_level(cv2.cvtColor(around, cv2.COLOR_RGB2GRAY))
    present = noise_level(cv2.cvtColor(patch.picture, cv2.COLOR_RGB2GRAY))
    missing = min(math.sqrt(max(0.0, wanted**2 - present**2)), MAX_NOISE)
    if missing < 0.3:  # less than rounding adds
        return patch
    grain = generator.standard_normal(patch.mask.shape, dtype=np.float32) * np.float32(missing)
    noisy = patch.picture + grain[..., None]
    return patch._replace(picture=np.clip(np.rint(noisy), 0, 255).astype(np.uint8))


def clone_seamlessly(
    patch: Patch, image: UInt8[np.ndarray, "H W 3"], generator: np.random.Generator
) -> Patch:
    """Keep the object's gradients, and take the colours at its edge from the scene: cv2's `seamlessClone`.

    Costs a hundred times as much as all other steps together. Where the object lies over the border, the
    scene's outermost pixels are continued. Objects smaller than `MIN_CLONED` stay as they are.

    Source: Pérez et al., "Poisson Image Editing", SIGGRAPH 2003.
    """
    overlap = find_overlap(patch.mask.shape, (patch.top, patch.left), image.shape[:2])
    solid = cv2.threshold(patch.mask, 127, 255, cv2.THRESH_BINARY)[1]
    left, top, box_width, box_height = cv2.boundingRect(solid)
    if overlap is None or min(box_width, box_height) < MIN_CLONED:
        return patch
    margin = 3  # the object's outline must not touch the border of what is handed over
    rows, columns = overlap.in_object
    above, below = rows.start + margin, solid.shape[0] - rows.stop + margin
    before, behind = columns.start + margin, solid.shape[1] - columns.stop + margin
    scene = image[overlap.in_scene]
    scene = cv2.copyMakeBorder(scene, above, below, before, behind, cv2.BORDER_REPLICATE)
    framed = (margin, margin, margin, margin)
    source = cv2.copyMakeBorder(patch.picture, *framed, cv2.BORDER_REPLICATE)
    mask = cv2.copyMakeBorder(solid, *framed, cv2.BORDER_CONSTANT, value=(0,))
    # where the middle of the mask's box goes: it stays
    middle = (margin + left + box_width // 2, margin + top + box_height // 2)
    cloned = cv2.seamlessClone(source, scene, mask, middle, cv2.NORMAL_CLONE)
    return patch._replace(picture=np.ascontiguousarray(cloned[margin:-margin, margin:-margin]))


APPEARANCES: dict[str, Appearance] = {
    "color": match_color,
    "defocus": match_defocus,
    "motion": blur_motion,
    "noise": match_noise,
    "seamless": clone_seamlessly,
}


def surroundings(patch: Patch, image: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "_a _b 3"] | None:
    """Return the part of the scene around an object, half its size further on every side.

    None where nothing of it lies inside the scene, or so little that it has no statistics.
    """
    height, width = patch.mask.shape
    above, beside = max(MIN_MARGIN, height // 2), max(MIN_MARGIN, width // 2)
    shape = (height + 2 * above, width + 2 * beside)
    corner = (patch.top - above, patch.left - beside)
    if (overlap := find_overlap(shape, corner, image.shape[:2])) is None:
        return None
    around = image[overlap.in_scene]
    return around if min(around.shape[:2]) >= 3 else None


def sharpness(grey: UInt8[np.ndarray, "h w"]) -> float:
    """Return how narrow edges are: sum of |Laplacian| * |gradient| over sum of |gradient|^2; 0 without edges.

    Independent of contrast, since both grow with it; strong edges count most. An edge blurred by a
    Gaussian of deviation s gives a value in proportion to 1 / s.
    """
    across = cv2.Sobel(grey, cv2.CV_32F, 1, 0, scale=1 / 8)
    down = cv2.Sobel(grey, cv2.CV_32F, 0, 1, scale=1 / 8)
    slope = cv2.magnitude(across, down)
    bend = np.abs(cv2.Laplacian(grey, cv2.CV_32F))
    energy = float((slope * slope).sum())
    return float((bend * slope).sum()) / energy if energy > 0 else 0.0


def noise_level(grey: UInt8[np.ndarray, "h w"]) -> float:
    """Estimate the standard deviation of a picture's noise, in grey levels.

    The difference of two Laplacians is blind to edges and slopes: its deviation is 6 times the noise's. The
    median of its absolute values, over 0.6745, is that deviation for Gaussian noise.

    Source: Immerkær, "Fast Noise Variance Estimation", 1996. We differ: the median instead of the mean, so
    that texture counts less.
    """
    response: Float[np.ndarray, "h w"] = cv2.filter2D(grey, cv2.CV_32F, _IMMERKAER)
    inner = response[1:-1, 1:-1]
    return float(np.median(np.abs(inner))) / 0.6745 / 6 if inner.size else 0.0
