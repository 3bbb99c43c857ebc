"""Classes, label values and the sample in memory: the vocabulary of every other package.

Label values. A *label id* is Cityscapes' own number (-1..33), as the official `gtFine_labelIds` files
hold it. A *train id* is what a network learns: 0..18 for the 19 evaluated classes. Two more values live
in train-id label maps: `VOID_ID` (255) is never trained on nor scored; `OUTLIER_ID` (254) marks pixels
of a pasted object, which belong to none of the classes.

Source of the table: Cityscapes, Cordts et al., CVPR 2016, `cityscapesscripts/helpers/labels.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8


class CityscapesClass(NamedTuple):
    """One evaluated class of Cityscapes."""

    name: str
    label_id: int
    color: tuple[int, int, int]
    """sRGB in [0, 255], the official palette."""


CITYSCAPES_CLASSES: tuple[CityscapesClass, ...] = (
    CityscapesClass("road", 7, (128, 64, 128)),
    CityscapesClass("sidewalk", 8, (244, 35, 232)),
    CityscapesClass("building", 11, (70, 70, 70)),
    CityscapesClass("wall", 12, (102, 102, 156)),
    CityscapesClass("fence", 13, (190, 153, 153)),
    CityscapesClass("pole", 17, (153, 153, 153)),
    CityscapesClass("traffic light", 19, (250, 170, 30)),
    CityscapesClass("traffic sign", 20, (220, 220, 0)),
    CityscapesClass("vegetation", 21, (107, 142, 35)),
    CityscapesClass("terrain", 22, (152, 251, 152)),
    CityscapesClass("sky", 23, (70, 130, 180)),
    CityscapesClass("person", 24, (220, 20, 60)),
    CityscapesClass("rider", 25, (255, 0, 0)),
    CityscapesClass("car", 26, (0, 0, 142)),
    CityscapesClass("truck", 27, (0, 0, 70)),
    CityscapesClass("bus", 28, (0, 60, 100)),
    CityscapesClass("train", 31, (0, 80, 100)),
    CityscapesClass("motorcycle", 32, (0, 0, 230)),
    CityscapesClass("bicycle", 33, (119, 11, 32)),
)
"""The index of a class in this tuple is its train id."""

NUM_CLASSES = len(CITYSCAPES_CLASSES)
DEFAULT_SIZE = (1024, 1024)
"""(height, width), in pixels, of crops and of what a model sees, where no setting and no weight says."""
ROAD_ID = 0
OUTLIER_ID = 254
VOID_ID = 255
NORMAL, ANOMALY, VOID = 0, 1, 255
"""Values of the target of a test set: pixels of `VOID` are not scored."""
MAX_LABEL_ID = 33
LABEL_ENCODING = "cityscapes-train-id"
"""Name of the encoding above, as manifests state it."""
IMAGE_SUFFIXES: dict[str, str] = {"jpeg": "image.jpg", "png": "image.png", "tiles": "image.tiles"}
"""Encoding of the pictures -> suffix of a scene's image member in a shard."""
LABEL_SUFFIX = "label.png"
"""Suffix of a scene's label member: PNG always, because JPEG would change its values."""


def train_id_table() -> UInt8[np.ndarray, "256"]:
    """Return the lookup table from label id (uint8) to train id.

    The 15 ids that Cityscapes does not evaluate map to `VOID_ID`; so does 255, which is how -1 (license
    plate) looks in a uint8 file. Ids 34..254 exist nowhere and map to `VOID_ID` too: whoever reads
    files checks them first.
    """
    table = np.full(256, VOID_ID, dtype=np.uint8)
    for train_id, entry in enumerate(CITYSCAPES_CLASSES):
        table[entry.label_id] = train_id
    return table


@dataclass(frozen=True)
class Sample:
    """One scene and its label map."""

    key: str
    """Unique name in the data set, such as `aachen_000000_000019`."""
    image: UInt8[np.ndarray, "H W 3"]
    """sRGB in [0, 255], channels in the order R, G, B."""
    label: UInt8[np.ndarray, "H W"]
    """Train ids, `OUTLIER_ID` or `VOID_ID`."""
