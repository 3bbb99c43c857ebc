"""Colours, noise, and the small flat pictures that are stretched over walls, fences and façades."""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Float

from jobs.world.canvas import Colour, Pair, Picture

PIXELS_PER_METRE = 20


def to_colour(hue: float, saturation: float, value: float) -> Colour:
    """Convert hue in turns, saturation and value in [0, 1] to sRGB in [0, 255]."""
    section = (hue % 1.0) * 6
    channels = [(section + shift) % 6 for shift in (5, 3, 1)]
    red, green, blue = (value - value * saturation * max(0.0, min(k, 4 - k, 1.0)) for k in channels)
    return 255 * red, 255 * green, 255 * blue


def draw_colour(rng: np.random.Generator, hue: Pair, saturation: Pair, value: Pair) -> Colour:
    """Draw a colour from ranges, in the units of `to_colour`."""
    return to_colour(*(rng.uniform(*limits) for limits in (hue, saturation, value)))


def scaled(colour: Colour, factor: float) -> Colour:
    """Return a brighter (factor > 1) or darker colour."""
    red, green, blue = (min(255.0, channel * factor) for channel in colour)
    return red, green, blue


def smooth_noise(shape: tuple[int, int], cells: int, rng: np.random.Generator) -> Float[np.ndarray, "H W"]:
    """Noise in [0, 1] with about `cells` bumps across the longer side, and finer ones on top."""
    total = np.zeros(shape, dtype=np.float32)
    for octave in range(3):
        across = max(2, cells * 2**octave)
        rows, columns = (max(2, round(across * side / max(shape))) for side in shape)
        grid = rng.random((rows + 1, columns + 1), dtype=np.float32)
        total += cv2.resize(grid, shape[::-1], interpolation=cv2.INTER_CUBIC) / 2**octave
    return np.clip(total / 1.75, 0, 1)


def plain(metres: tuple[float, float], colour: Colour) -> Picture:
    """Return a texture of one colour for a surface of (height, width) metres."""
    shape = (max(2, round(metres[0] * PIXELS_PER_METRE)), max(2, round(metres[1] * PIXELS_PER_METRE)))
    return np.full((*shape, 3), np.asarray(colour).astype(np.uint8), dtype=np.uint8)


def fill_box(texture: Picture, left: int, top: int, right: int, bottom: int, colour: Colour) -> None:
    """Fill a rectangle of pixels, `right` and `bottom` included."""
    cv2.rectangle(texture, (left, top), (right, bottom), colour, -1)


def _speckle(texture: Picture, amount: float, rng: np.random.Generator) -> Picture:
    noise = rng.standard_normal(texture.shape[:2], dtype=np.float32)[..., None]
    return np.clip(texture * (1 + amount * noise), 0, 255).astype(np.uint8)


def draw_wall(metres: tuple[float, float], rng: np.random.Generator) -> Picture:
    """Draw a garden wall: courses of large stones under a light coping."""
    colour = draw_colour(rng, (0.03, 0.1), (0.1, 0.45), (0.4, 0.65))
    texture = plain(metres, colour)
    height, width = texture.shape[:2]
    course, stone = 7, int(rng.integers(14, 22))
    for row, top in enumerate(range(0, height, course)):
        for left in range(-(row % 2) * stone // 2, width, stone):
            tone = scaled(colour, rng.uniform(0.75, 1.2))
            fill_box(texture, left + 1, top + 1, left + stone - 1, top + course - 1, tone)
    texture[: max(2, height // 12)] = scaled(colour, 1.45)
    return _speckle(texture, 0.05, rng)


def draw_fence(metres: tuple[float, float], rng: np.random.Generator) -> Picture:
    """Draw a fence: upright slats between two rails, before a dark background."""
    colour = draw_colour(rng, (0.05, 0.12), (0.05, 0.5), (0.55, 0.9))
    texture = plain(metres, scaled(to_colour(0.28, 0.35, 0.28), rng.uniform(0.8, 1.2)))
    height, width = texture.shape[:2]
    step = int(rng.integers(7, 10))
    for left in range(0, width, step):
        fill_box(texture, left, 0, left + step // 2, height, scaled(colour, rng.uniform(0.85, 1.1)))
    for row in (height // 5, height * 4 // 5):
        fill_box(texture, 0, row - 2, width, row + 1, scaled(colour, 0.8))
    return texture


def draw_facade(metres: tuple[float, float], colour: Colour, rng: np.random.Generator) -> Picture:
    """Draw the front of a house: plaster, rows of framed windows, a cornice, a ground floor with doors."""
    texture = plain(metres, colour)
    height, width = texture.shape[:2]
    storey = round(3.0 * PIXELS_PER_METRE * rng.uniform(0.95, 1.15))
    bay = max(20, round(rng.uniform(1.9, 3.0) * PIXELS_PER_METRE))
    frame = scaled(colour, rng.choice([0.7, 1.35]))
    glass = draw_colour(rng, (0.52, 0.62), (0.15, 0.4), (0.2, 0.4))
    tall = round(storey * rng.uniform(0.5, 0.68))
    for floor in range(height - storey, storey // 3, -storey):
        cv2.line(texture, (0, floor), (width, floor), scaled(colour, 0.85), 1)
        bottom = floor - storey // 6
        top = bottom - tall
        for start in range((width % bay) // 2, width - bay + 1, bay):
            left = start + bay // 4
            right = left + bay // 2
            fill_box(texture, left - 2, top - 2, right + 2, bottom + 2, frame)
            fill_box(texture, left, top, right, bottom, scaled(glass, rng.uniform(0.7, 1.5)))
            middle, bar = (left + right) // 2, top + tall // 3
            cv2.line(texture, (middle, top), (middle, bottom), frame, 1)
            cv2.line(texture, (left, bar), (right, bar), frame, 1)
    _draw_ground_floor(texture, storey, bay, colour, rng)
    texture[: max(3, storey // 10)] = scaled(colour, 0.7)
    return _speckle(texture, 0.025, rng)


def _draw_ground_floor(
    texture: Picture, storey: int, bay: int, colour: Colour, rng: np.random.Generator
) -> None:
    height, width = texture.shape[:2]
    top = height - storey + 2
    shop = rng.random() < 0.45
    texture[top:] = scaled(colour, 0.6 if shop else 0.8)
    inset, bottom = (bay // 8, height - 2) if shop else (bay // 3, height - 1)
    for left in range(0, width - bay + 1, bay):
        dark = to_colour(rng.uniform(0, 1), 0.2, rng.uniform(0.12, 0.3))
        fill_box(texture, left + inset, top + storey // 4, left + bay - inset, bottom, dark)
    if shop:  # a coloured awning over the shop windows
        fill_box(texture, 0, top + storey // 12, width, top + storey // 4, to_colour(rng.random(), 0.6, 0.6))
