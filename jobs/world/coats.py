"""Surfaces of the pasted objects: fur, stripes, spots and the like. Test anomalies have none of them."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from jobs.world.canvas import Colour
from jobs.world.sprite import Surface, mix_colours, unit_grid
from jobs.world.texture import smooth_noise, to_colour


def draw_stripes(side: int, first: Colour, second: Colour, rng: np.random.Generator) -> Surface:
    """Draw wavy stripes of two colours."""
    rows, columns = unit_grid(side)
    angle, count = rng.uniform(-0.5, 0.5), rng.uniform(9, 16)
    wave = smooth_noise((side, side), 4, rng) * 1.1
    phase = (columns * np.cos(angle) + rows * np.sin(angle)) * count + wave
    return mix_colours(np.sin(2 * np.pi * phase) > 0, first, second)


def draw_spots(side: int, first: Colour, second: Colour, rng: np.random.Generator) -> Surface:
    """Draw round spots of the first colour, on a jittered grid, on the second."""
    rows, columns = unit_grid(side)
    count = int(rng.integers(8, 13))
    cell_row, cell_column = np.floor(rows * count).astype(int), np.floor(columns * count).astype(int)
    jitter = rng.uniform(0.3, 0.7, (count + 1, count + 1, 2))
    centre = jitter[cell_row, cell_column]
    distance = np.hypot(
        rows * count - cell_row - centre[..., 0], columns * count - cell_column - centre[..., 1]
    )
    return mix_colours(distance < 0.29, first, second)


def draw_patches(side: int, first: Colour, second: Colour, rng: np.random.Generator) -> Surface:
    """Draw patches with narrow seams between them, as a giraffe has."""
    small = min(side, 120)  # distances to every seed are costly; they are smooth, so a small grid will do
    rows, columns = unit_grid(small)
    seeds = rng.random((70, 2), dtype=np.float32)
    distance = np.hypot(rows[..., None] - seeds[:, 0], columns[..., None] - seeds[:, 1])
    nearest = np.partition(distance, 1, axis=-1)
    margin = cv2.resize(nearest[..., 1] - nearest[..., 0], (side, side), interpolation=cv2.INTER_LINEAR)
    return mix_colours(margin > 0.022, first, second)


def draw_fur(side: int, first: Colour, second: Colour, rng: np.random.Generator) -> Surface:
    """Draw short hair: a blend of two colours in fine tufts."""
    tufts = smooth_noise((side, side), max(4, side // 6), rng)
    return mix_colours(np.clip(tufts * 1.8 - 0.4, 0, 1), first, second)


def draw_blotches(side: int, first: Colour, second: Colour, rng: np.random.Generator) -> Surface:
    """Draw large smooth blotches, as a cow has."""
    return mix_colours(smooth_noise((side, side), 6, rng) > 0.5, first, second)


def draw_swirl(side: int, first: Colour, second: Colour, rng: np.random.Generator) -> Surface:
    """Draw a spiral of two colours."""
    rows, columns = unit_grid(side)
    y, x = rows - rng.uniform(0.4, 0.6), columns - rng.uniform(0.4, 0.6)
    phase = np.arctan2(y, x) * 2 / np.pi + np.hypot(x, y) * rng.uniform(6, 11)
    return mix_colours(np.mod(phase, 1) > 0.5, first, second)


def draw_sprinkles(side: int, first: Colour, second: Colour, rng: np.random.Generator) -> Surface:
    """Draw icing strewn with coloured sugar."""
    surface = mix_colours(np.ones((side, side)), first, second)
    length = max(2, side // 24)
    for _ in range(90):
        row, column = rng.integers(0, side - length, 2)
        high = rng.random() < 0.5
        part = (
            np.s_[row : row + length, column : column + length // 2 + 1]
            if high
            else np.s_[row : row + length // 2 + 1, column : column + length]
        )
        surface[part] = to_colour(rng.random(), 0.8, 0.95)
    return surface


def draw_plaid(side: int, first: Colour, second: Colour, rng: np.random.Generator) -> Surface:
    """Draw a tartan: crossing translucent bands."""
    rows, columns = unit_grid(side)
    count = rng.uniform(4, 7)
    share = 0.5 * (np.mod(rows * count, 1) > 0.55) + 0.5 * (np.mod(columns * count, 1) > 0.55)
    return mix_colours(share, first, second)


COATS: dict[str, Callable[[int, Colour, Colour, np.random.Generator], Surface]] = {
    "stripes": draw_stripes,
    "spots": draw_spots,
    "patches": draw_patches,
    "fur": draw_fur,
    "blotches": draw_blotches,
    "swirl": draw_swirl,
    "sprinkles": draw_sprinkles,
    "plaid": draw_plaid,
}
"""Every surface that a pasted object may have."""
