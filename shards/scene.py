"""Scenes: the picture and the label among the members of a sample.

Besides our own names (`KEY.image.jpg`, `KEY.label.png`) those that other people's shards use are understood.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import UInt8

from shards.errors import InputError
from shards.picture import Picture, decode_gray
from shards.reader import ShardReader
from shards.schema import (
    LABEL_SUFFIX,
    MAX_LABEL_ID,
    NUM_CLASSES,
    OUTLIER_ID,
    VOID_ID,
    Sample,
    train_id_table,
)

IMAGE_NAMES = ("image", "img", "rgb", "leftimg8bit", "input", "")
IMAGE_ENDINGS = ("jpg", "jpeg", "png", "webp", "tiles")
TRAIN_ID_NAMES = ("label", "labels", "mask", "seg", "segmentation", "target", "labeltrainids")
LABEL_ID_NAMES = ("labelids", "gtfine_labelids")
"""Labels that hold Cityscapes' own numbers (-1..33); they become train ids on the way in."""
FOREIGN_TRAIN_IDS = ("gtfine_labeltrainids",)

_RARE_LABEL_IDS = (4, 5, 6, 9, 10, 14, 15, 16, 18)

IMAGES = frozenset(f"{name}.{ending}".lstrip(".") for name in IMAGE_NAMES for ending in IMAGE_ENDINGS)
TRAIN_ID_LABELS = frozenset(f"{name}.png" for name in TRAIN_ID_NAMES + FOREIGN_TRAIN_IDS)
LABEL_ID_LABELS = frozenset(f"{name}.png" for name in LABEL_ID_NAMES)


@dataclass(frozen=True)
class EncodedScene:
    """A scene whose label is decoded and whose picture waits until it is known what of it is needed."""

    key: str
    picture: Picture
    label: UInt8[np.ndarray, "H W"]

    def decode(self) -> Sample:
        """Decode the whole picture."""
        return Sample(key=self.key, image=self.picture.decode(), label=self.label)


def find_scene_members(key: str, suffixes: Sequence[str]) -> tuple[str, str]:
    """Return which of the suffixes of a sample are its picture and its label.

    A bare `png` is the label where the picture is a bare `jpg`, `jpeg` or `webp` and no label has a name of
    its own; else it is a picture.
    """
    labels = [suffix for suffix in suffixes if suffix in TRAIN_ID_LABELS | LABEL_ID_LABELS]
    images = [suffix for suffix in suffixes if suffix in IMAGES]
    if not labels and "png" in images and len(images) == 2:
        images.remove("png")
        labels = ["png"]
    wanted = ((images, "image.jpg or image.png"), (labels, LABEL_SUFFIX))
    if missing := [name for found, name in wanted if not found]:
        lacks = " and no ".join(missing)
        raise InputError(f"sample {key}: has no {lacks}; its members are {', '.join(suffixes)}")
    for found, what in ((images, "image"), (labels, "label")):
        if len(found) > 1:
            raise InputError(f"sample {key}: has both {' and '.join(sorted(found))}; one {what} is needed")
    return images[0], labels[0]


def open_scene(key: str, members: Mapping[str, bytes], num_classes: int = NUM_CLASSES) -> EncodedScene:
    """Decode the label of a scene, and the header of its picture.

    The label holds train ids below `num_classes`, `OUTLIER_ID` or `VOID_ID`, or Cityscapes' label ids where
    its name says so; any other value is refused.
    """
    image_name, label_name = find_scene_members(key, tuple(members))
    picture = Picture(members[image_name], f"sample {key}: {image_name}")
    label = _decode_label(f"sample {key}: {label_name}", members[label_name], label_name, num_classes)
    if picture.shape != label.shape:
        raise InputError(f"sample {key}: image is {picture.shape} but label is {label.shape} (height, width)")
    return EncodedScene(key, picture, label)


def require_scenes(reader: ShardReader) -> None:
    """Refuse samples that are no scenes, without reading any of them."""
    for index, key in enumerate(reader.keys):
        find_scene_members(key, reader.suffixes(index))


def read_scene(reader: ShardReader, index: int) -> EncodedScene:
    """Read the two members of a scene, whatever else the sample holds."""
    key = reader.keys[index]
    members = reader.read(index, find_scene_members(key, reader.suffixes(index)))
    return open_scene(key, members, len(reader.classes))


def decode_scene(reader: ShardReader, index: int) -> Sample:
    """Read and decode a whole scene."""
    return read_scene(reader, index).decode()


def _decode_label(where: str, content: bytes, suffix: str, num_classes: int) -> UInt8[np.ndarray, "H W"]:
    is_coded = suffix in LABEL_ID_LABELS
    label = decode_label_ids(content, where) if is_coded else decode_gray(content, where)
    allowed = f"train ids 0..{num_classes - 1}, {OUTLIER_ID} (outlier) and {VOID_ID} (void)"
    if num_classes < OUTLIER_ID:
        _require_values(label, num_classes, OUTLIER_ID - 1, where, allowed)
    return label


def decode_label_ids(content: bytes, where: str) -> UInt8[np.ndarray, "H W"]:
    """Decode a `gtFine_labelIds` file, which holds 0..33 and 255 (-1, the license plate), to train ids.

    A file that holds train ids is refused: most of it would be void, of three kinds or more that are rare in
    Cityscapes (4 to 6, 9, 10, 14 to 16, 18), and nothing a light, sign, plant, person, vehicle or sky
    (19..33), which every one of its frames shows. Withheld labels (split test) hold 0..3 and are none.
    """
    label = decode_gray(content, where)
    allowed = f"label ids 0..{MAX_LABEL_ID} and {VOID_ID} (which stands for -1)"
    _require_values(label, MAX_LABEL_ID + 1, VOID_ID - 1, where, allowed)
    counts = cv2.calcHist([label], [0], None, [256], [0, 256]).ravel()
    void = counts[:VOID_ID][train_id_table()[:VOID_ID] == VOID_ID].sum() / label.size
    shows_rest = counts[NUM_CLASSES : MAX_LABEL_ID + 1].any()
    if void > 0.5 and not shows_rest and np.count_nonzero(counts[list(_RARE_LABEL_IDS)]) >= 3:
        effect = f"read as label ids, {void:.0%} of it would be void"
        raise InputError(f"{where}: holds train ids, not label ids ({effect}); restore the file as published")
    return train_id_table()[label]


def _require_values(label: UInt8[np.ndarray, "H W"], low: int, high: int, where: str, allowed: str) -> None:
    """Check that no value in low..high occurs; a histogram would take ten times as long."""
    strange = cv2.inRange(label, (low,), (high,))
    if cv2.countNonZero(strange):
        unknown = np.unique(label[strange > 0]).tolist()
        raise InputError(f"{where} holds {', '.join(map(str, unknown[:8]))}; allowed are {allowed}")
