"""Palettes of towns, and the light of one picture."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from jobs.world.canvas import Colour, Picture
from jobs.world.texture import draw_colour, to_colour


@dataclass(frozen=True)
class TownStyle:
    """The palette of a town."""

    facades: tuple[Colour, ...]
    foliage_hue: float
    """In turns; about 0.22 (yellowish) to 0.36 (bluish)."""
    road: Colour
    pavement: Colour
    trees: float
    """Probability that a place for a tree has one."""


@dataclass(frozen=True)
class Light:
    """The hour and the weather of one picture."""

    gain: tuple[float, float, float]
    """Factor on red, green, blue."""
    zenith: Colour
    skyline: Colour
    clouds: float
    """Share of the sky under clouds, 0..1."""
    haze_per_metre: float
    sun_side: int
    """-1 where the sun stands on the left, +1 on the right."""
    shadows: float
    """Strength of cast shadows, 0..1."""
    noise: float
    """Standard deviation of the sensor noise, in grey levels."""


def draw_town(rng: np.random.Generator) -> TownStyle:
    """Choose a town's palette: plaster, brick and stone in muted colours."""
    kinds = (  # how many, and the ranges of hue, saturation and value: plaster, brick, other
        (4, (0.06, 0.15), (0.05, 0.45), (0.6, 0.92)),
        (2, (0.0, 0.05), (0.3, 0.55), (0.42, 0.62)),
        (2, (0.0, 1.0), (0.03, 0.2), (0.5, 0.85)),
    )
    facades = tuple(draw_colour(rng, *ranges) for count, *ranges in kinds for _ in range(count))
    grey = rng.uniform(80, 105)
    pale = rng.uniform(140, 170)
    return TownStyle(
        facades=facades,
        foliage_hue=rng.uniform(0.22, 0.34),
        road=(grey, grey, grey + rng.uniform(0, 6)),
        pavement=(pale, pale - rng.uniform(4, 16), pale - rng.uniform(10, 30)),
        trees=rng.uniform(0.35, 0.75),
    )


def draw_light(rng: np.random.Generator, *, unusual: bool = False) -> Light:
    """Choose hour and weather; `unusual` light is warmer or colder, with more haze and noise."""
    warm = rng.uniform(-0.05, 0.05) + (rng.choice([-0.07, 0.09]) if unusual else 0.0)
    bright = rng.uniform(0.85, 1.08) * (rng.uniform(0.8, 1.0) if unusual else 1.0)
    clouds = rng.uniform(0.0, 1.0)
    blue = to_colour(
        rng.uniform(0.55, 0.6), rng.uniform(0.35, 0.6) * (1 - 0.6 * clouds), rng.uniform(0.8, 0.95)
    )
    pale = draw_colour(rng, (0.08, 0.6), (0.02, 0.14), (0.86, 0.96))
    return Light(
        gain=(bright * (1 + warm), bright, bright * (1 - warm)),
        zenith=blue,
        skyline=pale,
        clouds=clouds,
        haze_per_metre=rng.uniform(0.002, 0.006) * (1.7 if unusual else 1.0),
        sun_side=int(rng.choice([-1, 1])),
        shadows=rng.uniform(0.15, 0.45) * (1 - 0.6 * clouds),
        noise=rng.uniform(1.5, 3.5) * (1.4 if unusual else 1.0),
    )


def expose(image: Picture, light: Light, rng: np.random.Generator) -> Picture:
    """Apply the light's colour, the lens's fall-off and slight blur, and the sensor's noise."""
    height, width = image.shape[:2]
    rows = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    columns = np.linspace(-1, 1, width, dtype=np.float32)[None]
    falloff = 1 - 0.12 * (rows**2 + columns**2) / 2
    exposed = image.astype(np.float32) * falloff[..., None] * np.asarray(light.gain, np.float32)
    blurred = cv2.GaussianBlur(exposed, (0, 0), 0.0004 * height + 0.25)
    noisy = blurred + light.noise * rng.standard_normal(exposed.shape, dtype=np.float32)
    return np.clip(noisy, 0, 255).astype(np.uint8)
