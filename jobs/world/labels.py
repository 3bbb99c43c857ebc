"""Label ids of Cityscapes that the world draws, evaluated or not, with their colours.

Source: Cordts et al., CVPR 2016, `cityscapesscripts/helpers/labels.py`. `shards.schema` lists the 19
evaluated classes only; label files also hold the others, so a writer of label files needs them all.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from jaxtyping import Integer, UInt8

from shards.schema import CITYSCAPES_CLASSES


class LabelId(IntEnum):
    """Cityscapes' own number of a class, as `gtFine_labelIds` files hold it."""

    UNLABELED = 0
    EGO_VEHICLE = 1
    OUT_OF_ROI = 3
    DYNAMIC = 5
    GROUND = 6
    ROAD = 7
    SIDEWALK = 8
    PARKING = 9
    RAIL_TRACK = 10
    BUILDING = 11
    WALL = 12
    FENCE = 13
    POLE = 17
    TRAFFIC_LIGHT = 19
    TRAFFIC_SIGN = 20
    VEGETATION = 21
    TERRAIN = 22
    SKY = 23
    PERSON = 24
    RIDER = 25
    CAR = 26
    TRUCK = 27
    BUS = 28
    TRAIN = 31
    MOTORCYCLE = 32
    BICYCLE = 33


EVALUATED = tuple(LabelId(*entry.ids) for entry in CITYSCAPES_CLASSES)
"""The 19 classes that Cityscapes scores."""

OBJECT_ID = 60_000
"""From here on, an identity on a canvas is an object of no Cityscapes class."""

_OTHER_COLOURS = {
    LabelId.DYNAMIC: (111, 74, 0),
    LabelId.GROUND: (81, 0, 81),
    LabelId.PARKING: (250, 170, 160),
    LabelId.RAIL_TRACK: (230, 150, 140),
}
"""Official colours of what is not scored; the rest is black."""


def label_ids(identities: Integer[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W"]:
    """Turn instance ids (label id, or label id * 1000 + n for countable classes) into label ids."""
    assert int(identities.max(initial=0)) < OBJECT_ID, "an object of no class has no label id"
    return np.where(identities >= 1000, identities // 1000, identities).astype(np.uint8)


def colour_labels(labels: UInt8[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W 3"]:
    """Paint label ids in the official palette."""
    palette = np.zeros((256, 3), dtype=np.uint8)
    colours = {entry.ids[0]: entry.color for entry in CITYSCAPES_CLASSES} | _OTHER_COLOURS
    palette[list(colours)] = list(colours.values())
    return palette[labels]
