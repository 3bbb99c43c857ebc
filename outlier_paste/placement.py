"""Placements: the rectangle of a scene that an object fills."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8

from shards.schema import ROAD_ID

FEWEST_ROWS = 8
"""A line through the road's widths in fewer rows is no estimate."""


class Place(NamedTuple):
    """The rectangle that an object fills, in pixels of the scene; parts of it may lie outside."""

    top: int
    left: int
    height: int
    width: int

    @property
    def bottom(self) -> int:
        """The row below the last one: objects that stand nearer reach lower down."""
        return self.top + self.height

    def meets(self, other: Place) -> bool:
        """Say whether two rectangles share a pixel."""
        rows = self.top < other.bottom and other.top < self.bottom
        return rows and self.left < other.left + other.width and other.left < self.left + self.width


Size = Callable[[float | None], tuple[int, int]]
"""Draws the (height, width) of an object, given how near it stands: 0 at the horizon, 1 in the bottom row,
None where it does not stand on the ground."""
Placement = Callable[[UInt8[np.ndarray, "H W"], Size, np.random.Generator], Place | None]
"""Finds a place in a scene of these train ids, None where there is none; draws from the generator alone."""


def place_anywhere(label: UInt8[np.ndarray, "H W"], size: Size, generator: np.random.Generator) -> Place:
    """Put the object's centre on any pixel, so that the border may cut it."""
    height, width = size(None)
    row, column = generator.integers(label.shape[0]), generator.integers(label.shape[1])
    return Place(int(row) - height // 2, int(column) - width // 2, height, width)


def place_inside(label: UInt8[np.ndarray, "H W"], size: Size, generator: np.random.Generator) -> Place | None:
    """Put the object where the whole of it is seen, all such places equally likely; None: it is too large."""
    height, width = size(None)
    if height > label.shape[0] or width > label.shape[1]:
        return None
    top, left = (
        generator.integers(label.shape[0] - height + 1),
        generator.integers(label.shape[1] - width + 1),
    )
    return Place(int(top), int(left), height, width)


def place_on_road(
    label: UInt8[np.ndarray, "H W"], size: Size, generator: np.random.Generator
) -> Place | None:
    """Stand the object on a road pixel, the smaller the farther away; None where no road is seen.

    The foot's row is uniform over the rows with road, then its column over that row's road pixels: uniform
    over pixels, most objects would be near. The horizon is that of `find_horizon`.
    """
    road = label == ROAD_ID
    rows = np.flatnonzero(road.any(axis=1))
    if not len(rows):
        return None
    row = int(generator.choice(rows))
    column = int(generator.choice(np.flatnonzero(road[row])))
    horizon = find_horizon(road, rows)
    height, width = size((row + 1 - horizon) / (label.shape[0] - horizon))
    return Place(row + 1 - height, column - width // 2, height, width)


PLACEMENTS: dict[str, Placement] = {
    "anywhere": place_anywhere,
    "inside": place_inside,
    "road": place_on_road,
}


def find_horizon(road: Bool[np.ndarray, "H W"], rows: np.ndarray) -> float:
    """Return the row of the horizon, which is negative where it lies above the picture.

    The topmost row with road, which the road touches wherever it runs into the distance. Where a crop has
    cut that off, the road already is wide there: then the horizon is where a line through its widths
    reaches 0, for a road of constant width narrows in proportion to the distance from the horizon. Only rows
    count in which both of its sides are seen.

    Args:
        road: which pixels are road.
        rows: those that hold road, in order, at least one.
    """
    topmost = float(rows[0])
    if rows[0] > 0:
        return topmost
    whole = rows[~(road[rows, 0] | road[rows, -1])]
    if len(whole) < FEWEST_ROWS:
        return topmost
    inside = road[whole]
    widths = inside.shape[1] - inside[:, ::-1].argmax(axis=1) - inside.argmax(axis=1)
    slope, offset = np.polyfit(whole, widths, 1)
    if slope <= 0:
        return topmost
    return float(np.clip(-offset / slope, -road.shape[0], topmost))
