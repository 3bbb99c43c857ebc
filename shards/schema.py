"""What a sample is, in memory: the vocabulary every other package shares.

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
import torch
from jaxtyping import UInt8
from torch import Tensor


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
ROAD_ID = 0
OUTLIER_ID = 254
VOID_ID = 255
MAX_LABEL_ID = 33
LABEL_ENCODING = "cityscapes-train-id"
"""Name of the encoding above, as manifests state it."""


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


@dataclass(frozen=True)
class Batch:
    """Several scenes of one size; what a loader yields and a loss reads."""

    image: UInt8[Tensor, "B 3 H W"]
    label: UInt8[Tensor, "B H W"]
    keys: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.keys)

    def to(self, device: torch.device | str) -> Batch:
        """Copy the tensors to `device`; asynchronous where the batch is pinned."""
        return Batch(
            image=self.image.to(device, non_blocking=True),
            label=self.label.to(device, non_blocking=True),
            keys=self.keys,
        )

    def pin_memory(self) -> Batch:
        """Move the tensors to page-locked memory; the DataLoader calls this where a GPU waits."""
        return Batch(image=self.image.pin_memory(), label=self.label.pin_memory(), keys=self.keys)


def stack_samples(samples: list[Sample]) -> Batch:
    """Stack scenes of one size into a batch.

    Args:
        samples: at least one; all of the same height and width.
    """
    images = np.stack([sample.image for sample in samples])  # (B, H, W, 3)
    return Batch(
        image=torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))),
        label=torch.from_numpy(np.stack([sample.label for sample in samples])),
        keys=tuple(sample.key for sample in samples),
    )
