"""Places and sizes that objects get in a scene."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8

from shards.schema import ROAD_ID

FEWEST_ROWS = 8
"""A line through the road's widths in fewer rows is no estimate."""
MAX_ENLARGEMENT = 2.0
"""An object magnified further is so blurred that a network could tell it by that alone."""
REAL_SIZE_SPREAD = 2.0
"""On the road, objects at one distance differ in size by up to this factor."""
RPL_SCALES = (0.25, 0.5, 0.5, 0.75, 0.1, 0.125)
"""RPL's `ood_train_scale_array`, from which it draws uniformly (0.5 is there twice)."""


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
    top = int(generator.integers(label.shape[0] - height + 1))
    left = int(generator.integers(label.shape[1] - width + 1))
    return Place(top, left, height, width)


def place_on_road(
    label: UInt8[np.ndarray, "H W"], size: Size, generator: np.random.Generator, road_id: int = ROAD_ID
) -> Place | None:
    """Stand the object on a road pixel, the smaller the farther away; None where no road is seen.

    The foot's row is uniform over the rows with road, then its column over that row's road pixels: uniform
    over pixels, most objects would be near. The horizon is that of `find_horizon`.
    """
    road = label == road_id
    rows = np.flatnonzero(road.any(axis=1))
    if not len(rows):
        return None
    row = int(generator.choice(rows))
    column = int(generator.choice(np.flatnonzero(road[row])))
    horizon = find_horizon(road, rows)
    height, width = size((row + 1 - horizon) / (label.shape[0] - horizon))
    return Place(row + 1 - height, column - width // 2, height, width)


PLACEMENTS: dict[str, Placement] = {"anywhere": place_anywhere, "inside": place_inside, "road": place_on_road}


def find_horizon(road: Bool[np.ndarray, "H W"], rows: np.ndarray) -> float:
    """Return the row of the horizon, which is negative where it lies above the picture.

    The topmost row with road, which the road touches wherever it runs into the distance. Where a crop has
    cut that off, the road already is wide there: then the horizon is where a line through its widths
    reaches 0, for a road of constant width narrows in proportion to the distance from the horizon. Only rows
    count in which both of its sides are seen.

    `rows` are those that hold road, in order, at least one.
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


class Situation(NamedTuple):
    """What the size of an object may depend on."""

    shape: tuple[int, int]
    """(height, width) of the cut-out in pixels of its photograph."""
    scene: tuple[int, int]
    """(height, width) of the scene in pixels."""
    limits: tuple[float, float]
    """Shortest and longest longer side that it may get, as shares of the scene's height, 0 to 1."""
    nearness: float | None = None
    """0 at the horizon, 1 in the bottom row; None where the object does not stand on the ground."""


Sizing = Callable[[Situation, np.random.Generator], tuple[int, int]]
"""Returns the (height, width) that an object gets, both at least 1."""


def size_by_share(situation: Situation, generator: np.random.Generator) -> tuple[int, int]:
    """Draw the longer side as a share of the scene's height: log-uniform, or by distance on the ground.

    On flat ground, seen by a level camera, the height of an object in the picture is proportional to how
    far its foot is below the horizon; the largest size belongs to the bottom row, and objects of one
    distance vary by `REAL_SIZE_SPREAD`. The smallest size holds far away too. Proportions are kept.
    """
    shape, scene, (smallest, largest), nearness = situation
    if nearness is None:
        share = log_uniform(smallest, largest, generator)
    else:
        share = largest * nearness / log_uniform(1.0, REAL_SIZE_SPREAD, generator)
    return scale_object(shape, max(share, smallest), smallest, scene)


def keep_size(situation: Situation, generator: np.random.Generator) -> tuple[int, int]:
    """Keep the size in the photograph, even where that is larger than the scene."""
    return situation.shape


def size_as_rpl(situation: Situation, generator: np.random.Generator) -> tuple[int, int]:
    """Multiply the photograph by one of `RPL_SCALES`.

    Source: RPL, Liu et al., ICCV 2023, https://github.com/yyliu01/RPL, `config.py`, `dataset/data_loader.py`.
    We differ: they resize the whole photograph, we its object; both round to whole pixels.
    """
    factor = RPL_SCALES[int(generator.integers(len(RPL_SCALES)))]
    return max(1, round(situation.shape[0] * factor)), max(1, round(situation.shape[1] * factor))


SMALL_SIDES = (0.02, 0.25)
"""Shares of the scene's height, around the obstacles of RoadObstacle21 and Lost and Found: their median areas
of 182 and 128 pixels at 256 rows, in boxes that are half filled, have sides of 7 % and 6 %."""


def size_small(situation: Situation, generator: np.random.Generator) -> tuple[int, int]:
    """Draw the longer side log-uniformly between `SMALL_SIDES`, whatever the limits are."""
    share = log_uniform(*SMALL_SIDES, generator)
    return scale_object(situation.shape, share, SMALL_SIDES[0], situation.scene)


SIZINGS: dict[str, Sizing] = {
    "share": size_by_share,
    "original": keep_size,
    "rpl": size_as_rpl,
    "small": size_small,
}


def scale_object(
    shape: tuple[int, int], share: float, smallest: float, scene: tuple[int, int]
) -> tuple[int, int]:
    """Return the (height, width) that an object gets, its proportions kept.

    Its longer side becomes `share` of the scene's height, except that it is not enlarged more than
    `MAX_ENLARGEMENT` times, unless it would else stay below the share `smallest`; and that it never gets
    taller or wider than the scene. `shape` and `scene` are (height, width) in pixels.
    """
    longer = max(shape)
    factor = share * scene[0] / longer
    factor = min(factor, max(MAX_ENLARGEMENT, smallest * scene[0] / longer))
    factor = min(factor, scene[0] / shape[0], scene[1] / shape[1])
    return max(1, round(shape[0] * factor)), max(1, round(shape[1] * factor))


def log_uniform(low: float, high: float, generator: np.random.Generator) -> float:
    """Draw a number whose logarithm is uniform between those of `low` and `high`."""
    return math.exp(generator.uniform(math.log(low), math.log(high)))
