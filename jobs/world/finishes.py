"""Surfaces of the test anomalies: wood, metal, mesh, tilings. Pasted objects have none of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from jobs.world.canvas import Colour
from jobs.world.sprite import Surface, mix_colours, unit_grid
from jobs.world.texture import scaled, smooth_noise


def draw_planks(side: int, colour: Colour, rng: np.random.Generator) -> Surface:
    """Draw boards with grain and dark joints."""
    rows, _ = unit_grid(side)
    count = int(rng.integers(5, 8))
    tone = rng.uniform(0.75, 1.2, count + 1)[np.floor(rows * count).astype(int)]
    grain = 0.85 + 0.3 * smooth_noise((side, side), 40, rng)[:, :1]
    joint = np.mod(rows * count, 1) < 0.1
    return np.where(joint[..., None], 40.0, np.asarray(colour, np.float32) * (tone * grain)[..., None])


def draw_rust(side: int, colour: Colour, rng: np.random.Generator) -> Surface:
    """Draw sheet metal eaten by rust."""
    share = np.clip((smooth_noise((side, side), 9, rng) - 0.42) * 7, 0, 1)
    return mix_colours(share, (140, 70, 32), colour)


def draw_hexagons(side: int, colour: Colour, rng: np.random.Generator) -> Surface:
    """Draw a honeycomb."""
    rows, columns = unit_grid(side)
    size = rng.uniform(0.09, 0.13)
    best = np.full((2, side, side), np.inf, dtype=np.float32)
    for offset in (0.0, 0.5):
        y = np.mod(rows / (size * 1.732) + offset, 1) - 0.5
        x = np.mod(columns / size + offset, 1) - 0.5
        distance = np.hypot(x, y * 1.732)
        best = np.sort(np.concatenate([best, distance[None]]), axis=0)[:2]
    return mix_colours(best[1] - best[0] > 0.13, colour, scaled(colour, 0.35))


def draw_mesh(side: int, colour: Colour, rng: np.random.Generator) -> Surface:
    """Draw a diagonal wire mesh before darkness."""
    rows, columns = unit_grid(side)
    count = rng.uniform(9, 13)
    wire = (np.mod((rows + columns) * count, 1) < 0.3) | (np.mod((rows - columns) * count, 1) < 0.3)
    return mix_colours(wire, scaled(colour, 1.2), (32, 34, 38))


def draw_chevrons(side: int, colour: Colour, rng: np.random.Generator) -> Surface:
    """Draw zigzag bands."""
    rows, columns = unit_grid(side)
    count = rng.uniform(5, 8)
    zigzag = rows * count + 2 * np.abs(np.mod(columns * count * 0.6, 1) - 0.5)
    return mix_colours(np.mod(zigzag, 1) < 0.5, colour, (245, 245, 235))


def draw_weave(side: int, colour: Colour, rng: np.random.Generator) -> Surface:
    """Draw wickerwork."""
    rows, columns = unit_grid(side)
    count = rng.uniform(9, 13)
    over = np.mod(np.floor(rows * count) + np.floor(columns * count), 2)
    bulge = np.where(
        over > 0, np.sin(np.pi * np.mod(rows * count, 1)), np.sin(np.pi * np.mod(columns * count, 1))
    )
    return np.asarray(colour, np.float32) * (0.45 + 0.7 * bulge)[..., None]


def draw_shingles(side: int, colour: Colour, rng: np.random.Generator) -> Surface:
    """Draw overlapping scales."""
    rows, columns = unit_grid(side)
    count = rng.uniform(7, 10)
    course = np.floor(rows * count)
    x = np.mod(columns * count * 0.8 + 0.5 * np.mod(course, 2), 1) - 0.5
    depth = np.mod(rows * count, 1) + 2.2 * x**2
    return np.asarray(colour, np.float32) * (0.45 + 0.65 * np.mod(depth, 1))[..., None]


def draw_metal(side: int, colour: Colour, rng: np.random.Generator) -> Surface:
    """Draw brushed metal: bands of reflected light."""
    _, columns = unit_grid(side)
    band = 0.75 + 0.4 * np.sin(columns * rng.uniform(8, 14) + rng.uniform(0, 6)) ** 3
    brushed = 0.92 + 0.16 * rng.random((side, 1), dtype=np.float32)
    return np.asarray(colour, np.float32) * (band * brushed)[..., None]


FINISHES: dict[str, Callable[[int, Colour, np.random.Generator], Surface]] = {
    "planks": draw_planks,
    "rust": draw_rust,
    "hexagons": draw_hexagons,
    "mesh": draw_mesh,
    "chevrons": draw_chevrons,
    "weave": draw_weave,
    "shingles": draw_shingles,
    "metal": draw_metal,
}
"""Every surface that a test anomaly may have."""
