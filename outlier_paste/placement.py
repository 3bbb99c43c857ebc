"""Where an object goes in a scene, and how large it becomes there."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from shards.schema import ROAD_ID

MAX_ENLARGEMENT = 2.0
"""An object magnified further is so blurred that a network could tell it by that alone."""
REAL_SIZE_SPREAD = 2.0
"""On the road, objects at one distance differ in size by up to this factor."""


class Place(NamedTuple):
    """The rectangle that an object fills, in pixels of the scene; parts of it may lie outside."""

    top: int
    left: int
    height: int
    width: int


class SizeRange(NamedTuple):
    """How long the longer side of an object may be, as shares of the scene's height, 0 to 1."""

    smallest: float
    largest: float


Placement = Callable[
    [UInt8[np.ndarray, "H W"], tuple[int, int], SizeRange, np.random.Generator], Place | None
]
"""Finds a place for an object of (height, width) pixels in a scene with these labels; None: there is none."""


def place_anywhere(
    label: UInt8[np.ndarray, "H W"],
    shape: tuple[int, int],
    sizes: SizeRange,
    generator: np.random.Generator,
) -> Place:
    """Put the object's centre on any pixel, so that the border may cut it; sizes are log-uniform.

    Args:
        label: train ids of the scene; only its size matters here.
        shape: (height, width) of the cut-out in pixels.
        sizes: limits of the longer side.
    """
    scene = (label.shape[0], label.shape[1])
    share = _log_uniform(sizes.smallest, sizes.largest, generator)
    height, width = scale_object(shape, share, sizes, scene)
    row, column = generator.integers(scene[0]), generator.integers(scene[1])
    return Place(int(row) - height // 2, int(column) - width // 2, height, width)


def place_on_road(
    label: UInt8[np.ndarray, "H W"],
    shape: tuple[int, int],
    sizes: SizeRange,
    generator: np.random.Generator,
) -> Place | None:
    """Stand the object on a road pixel, the smaller the farther away; None where no road is seen.

    On flat ground, seen by a level camera, the height of an object in the picture is proportional to how
    far its foot is below the horizon. The topmost road pixel stands for the horizon, which it
    touches wherever the road runs into the distance; the largest size belongs to the bottom row.
    Objects of one distance vary by `REAL_SIZE_SPREAD`. The foot's row is uniform over the rows with road,
    then its column over that row's road pixels: uniform over pixels, most objects would be near.

    Args:
        label: train ids of the scene.
        shape: (height, width) of the cut-out in pixels.
        sizes: limits of the longer side; the lower one holds far away too.
    """
    scene = (label.shape[0], label.shape[1])
    road = label == ROAD_ID
    rows = np.flatnonzero(road.any(axis=1))
    if not len(rows):
        return None
    row = int(generator.choice(rows))
    column = int(generator.choice(np.flatnonzero(road[row])))
    nearness = (row + 1 - rows[0]) / (scene[0] - rows[0])  # 0 at the horizon, 1 in the bottom row
    share = sizes.largest * nearness / _log_uniform(1.0, REAL_SIZE_SPREAD, generator)
    height, width = scale_object(shape, max(share, sizes.smallest), sizes, scene)
    return Place(row + 1 - height, column - width // 2, height, width)


PLACEMENTS: dict[str, Placement] = {
    "anywhere": place_anywhere,
    "road": place_on_road,
}


def scale_object(
    shape: tuple[int, int], share: float, sizes: SizeRange, scene: tuple[int, int]
) -> tuple[int, int]:
    """Return the (height, width) that an object gets, its proportions kept.

    Its longer side becomes `share` of the scene's height, except that it is not enlarged more than
    `MAX_ENLARGEMENT` times, unless it would else stay below the smallest size; and that it never gets
    taller or wider than the scene.

    Args:
        shape: (height, width) of the cut-out in pixels.
        share: length of the longer side, as share of the scene's height.
        sizes: limits of `share`.
        scene: (height, width) in pixels.
    """
    longer = max(shape)
    factor = share * scene[0] / longer
    factor = min(factor, max(MAX_ENLARGEMENT, sizes.smallest * scene[0] / longer))
    factor = min(factor, scene[0] / shape[0], scene[1] / shape[1])
    return max(1, round(shape[0] * factor)), max(1, round(shape[1] * factor))


def _log_uniform(low: float, high: float, generator: np.random.Generator) -> float:
    return math.exp(generator.uniform(math.log(low), math.log(high)))
