"""Every label id of Cityscapes that the world draws, evaluated or not, with its official colour.

Source: Cordts et al., CVPR 2016, `cityscapesscripts/helpers/labels.py`. `shards.schema` lists the 19
evaluated classes only; label files also hold the others, so a writer of label files needs them all.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from jaxtyping import Integer, UInt8


class LabelId(IntEnum):
    """Cityscapes' own number of a class, as `gtFine_labelIds` files hold it."""

    UNLABELED = 0
    EGO_VEHICLE = 1
    OUT_OF_ROI = 3
    STATIC = 4
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


EVALUATED = frozenset(label for label in LabelId if label in {7, 8, 11, 12, 13, 17} or label >= 19)
"""The 19 classes that Cityscapes scores."""

THINGS = frozenset(label for label in LabelId if label >= LabelId.PERSON)
"""Classes whose instances are counted: their value in `gtFine_instanceIds` is label id * 1000 + n."""

OBJECT_ID = 60_000
"""From here on, an identity on a canvas is an object of no Cityscapes class."""

COLOURS: dict[LabelId, tuple[int, int, int]] = {
    LabelId.UNLABELED: (0, 0, 0),
    LabelId.EGO_VEHICLE: (0, 0, 0),
    LabelId.OUT_OF_ROI: (0, 0, 0),
    LabelId.STATIC: (0, 0, 0),
    LabelId.DYNAMIC: (111, 74, 0),
    LabelId.GROUND: (81, 0, 81),
    LabelId.ROAD: (128, 64, 128),
    LabelId.SIDEWALK: (244, 35, 232),
    LabelId.PARKING: (250, 170, 160),
    LabelId.RAIL_TRACK: (230, 150, 140),
    LabelId.BUILDING: (70, 70, 70),
    LabelId.WALL: (102, 102, 156),
    LabelId.FENCE: (190, 153, 153),
    LabelId.POLE: (153, 153, 153),
    LabelId.TRAFFIC_LIGHT: (250, 170, 30),
    LabelId.TRAFFIC_SIGN: (220, 220, 0),
    LabelId.VEGETATION: (107, 142, 35),
    LabelId.TERRAIN: (152, 251, 152),
    LabelId.SKY: (70, 130, 180),
    LabelId.PERSON: (220, 20, 60),
    LabelId.RIDER: (255, 0, 0),
    LabelId.CAR: (0, 0, 142),
    LabelId.TRUCK: (0, 0, 70),
    LabelId.BUS: (0, 60, 100),
    LabelId.TRAIN: (0, 80, 100),
    LabelId.MOTORCYCLE: (0, 0, 230),
    LabelId.BICYCLE: (119, 11, 32),
}


def label_ids(identities: Integer[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W"]:
    """Turn instance ids (label id, or label id * 1000 + n) into label ids."""
    assert int(identities.max(initial=0)) < OBJECT_ID, "an object of no class has no label id"
    return np.where(identities >= 1000, identities // 1000, identities).astype(np.uint8)


def colour_labels(labels: UInt8[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W 3"]:
    """Paint label ids in the official palette."""
    palette = np.zeros((256, 3), dtype=np.uint8)
    for label, colour in COLOURS.items():
        palette[label] = colour
    return palette[labels]
