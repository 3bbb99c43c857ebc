"""Sizes that objects get in a scene."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

MAX_ENLARGEMENT = 2.0
"""An object magnified further is so blurred that a network could tell it by that alone."""
REAL_SIZE_SPREAD = 2.0
"""On the road, objects at one distance differ in size by up to this factor."""
RPL_SCALES = (0.25, 0.5, 0.5, 0.75, 0.1, 0.125)
"""RPL's `ood_train_scale_array`, from which it draws uniformly (0.5 is there twice)."""


class SizeRange(NamedTuple):
    """How long the longer side of an object may be, as shares of the scene's height, 0 to 1."""

    smallest: float
    largest: float


class Situation(NamedTuple):
    """What the size of an object may depend on."""

    shape: tuple[int, int]
    """(height, width) of the cut-out in pixels of its photograph."""
    scene: tuple[int, int]
    """(height, width) of the scene in pixels."""
    limits: SizeRange
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
    shape, scene, limits, nearness = situation
    if nearness is None:
        share = log_uniform(limits.smallest, limits.largest, generator)
    else:
        share = limits.largest * nearness / log_uniform(1.0, REAL_SIZE_SPREAD, generator)
    return scale_object(shape, max(share, limits.smallest), limits, scene)


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


SIZINGS: dict[str, Sizing] = {
    "share": size_by_share,
    "original": keep_size,
    "rpl": size_as_rpl,
}


def scale_object(
    shape: tuple[int, int], share: float, limits: SizeRange, scene: tuple[int, int]
) -> tuple[int, int]:
    """Return the (height, width) that an object gets, its proportions kept.

    Its longer side becomes `share` of the scene's height, except that it is not enlarged more than
    `MAX_ENLARGEMENT` times, unless it would else stay below the smallest size; and that it never gets
    taller or wider than the scene.

    Args:
        shape: (height, width) of the cut-out in pixels.
        share: length of the longer side, as share of the scene's height.
        limits: of `share`.
        scene: (height, width) in pixels.
    """
    longer = max(shape)
    factor = share * scene[0] / longer
    factor = min(factor, max(MAX_ENLARGEMENT, limits.smallest * scene[0] / longer))
    factor = min(factor, scene[0] / shape[0], scene[1] / shape[1])
    return max(1, round(shape[0] * factor)), max(1, round(shape[1] * factor))


def log_uniform(low: float, high: float, generator: np.random.Generator) -> float:
    """Draw a number whose logarithm is uniform between those of `low` and `high`."""
    return math.exp(generator.uniform(math.log(low), math.log(high)))
