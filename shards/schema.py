"""Classes, label values and the sample in memory: the vocabulary of every other package.

Label values. A *label id* is Cityscapes' own number (-1..33), as the official `gtFine_labelIds` files
hold it. A *train id* is what a network learns: 0..18 for the 19 evaluated classes, or the place of a class in
another `ClassTable`. Two more values live in train-id label maps: `VOID_ID` (255) is never trained on nor
scored; `OUTLIER_ID` (254) marks pixels of a pasted or annotated object of none of the classes.

Source of Cityscapes' table: Cityscapes, Cordts et al., CVPR 2016, `cityscapesscripts/helpers/labels.py`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int32, UInt8

from shards.errors import InputError, and_more

DEFAULT_SIZE = (1024, 1024)
"""(height, width), in pixels, of crops and of what a model sees, where no setting and no weight says."""
ROAD_ID = 0
OUTLIER_ID = 254
VOID_ID = 255
NORMAL, ANOMALY, VOID = 0, 1, 255
"""Values of the target of a test set: pixels of `VOID` are not scored."""
MAX_LABEL_ID = 33
LARGEST_ID = 2**24 - 1
"""Of a pixel with three channels: R + 256 G + 65536 B."""


@dataclass(frozen=True)
class SceneClass:
    """One class of the closed set."""

    name: str
    color: tuple[int, int, int] = field(compare=False)
    """sRGB in [0, 255], for pictures."""
    ids: tuple[int, ...] = field(default=(), compare=False)
    """Its numbers in the label files that shards are made of."""


@dataclass(frozen=True)
class ClassTable:
    """The classes of shards and models; the index of a class is its train id. Equal if the names are."""

    classes: tuple[SceneClass, ...]
    void: tuple[int, ...] = field(default=(), compare=False)
    """Numbers in label files that become `VOID_ID`."""
    outlier: tuple[int, ...] = field(default=(), compare=False)
    """Numbers in label files that become `OUTLIER_ID`."""

    def __post_init__(self) -> None:
        if not 1 <= len(self.classes) <= OUTLIER_ID:
            raise InputError(f"classes: there are {len(self.classes)}; 1 to {OUTLIER_ID} are allowed")
        seen: dict[str | int, str] = {}
        for entry in self.classes:
            if not entry.name.strip() or not entry.name.isprintable() or len(entry.name) > 80:
                raise InputError(f"classes: name is {entry.name!r:.90}; 1 to 80 printable characters needed")
            if not all(0 <= part <= 255 for part in entry.color):
                raise InputError(f"classes: {entry.name}: color is {list(entry.color)}; 0..255 are allowed")
            self._take(entry.name, "classes", entry.name, seen)
        for place, numbers in self._places():
            for number in numbers:
                if not 0 <= number <= LARGEST_ID:
                    raise InputError(f"{place}: id is {number}; 0..{LARGEST_ID} are allowed")
                self._take(number, place, f"id {number}", seen)

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def names(self) -> tuple[str, ...]:
        """Names in the order of train ids."""
        return tuple(entry.name for entry in self.classes)

    @property
    def colors(self) -> dict[str, tuple[int, int, int]]:
        """Colour by name, in the order of train ids."""
        return {entry.name: entry.color for entry in self.classes}

    @property
    def is_named(self) -> bool:
        """Whether the names mean something; see `unnamed_classes`."""
        return self.names != tuple(f"class {i}" for i in range(len(self)))

    def palette(self) -> UInt8[np.ndarray, "256 3"]:
        """Return the colour of each train id; black for all other values."""
        colors = np.zeros((256, 3), dtype=np.uint8)
        colors[: len(self)] = [entry.color for entry in self.classes]
        return colors

    def require_fit(self, other: ClassTable, where: str, other_name: str, advice: str) -> None:
        """Check that train ids of both mean the same, as far as names are known; the rest is for messages."""
        if len(self) != len(other):
            raise InputError(f"{where} has {len(self)} classes, {other_name} {len(other)}; {advice}")
        for i, (own, theirs) in enumerate(zip(self.names, other.names, strict=True)):
            if own != theirs and self.is_named and other.is_named:
                raise InputError(f"{where} has {own!r} as class {i}, {other_name} {theirs!r}; {advice}")

    def find(self, name: str, setting: str) -> int:
        """Return the train id of a class that `setting` needs."""
        if name not in self.names:
            raise InputError(f"{setting}: needs a class {name!r}; there are {self}")
        return self.names.index(name)

    def to_train_ids(self, ids: Int32[np.ndarray, "H W"], where: str) -> UInt8[np.ndarray, "H W"]:
        """Turn the numbers of a label file into train ids, `OUTLIER_ID` and `VOID_ID`; others are refused."""
        found = self._table[np.minimum(ids, len(self._table) - 1)]
        if (unknown := found > VOID_ID).any():
            numbers = np.unique(ids[unknown]).tolist()
            told = ", ".join(map(render_id, numbers[:8])) + and_more(numbers[7:])
            advice = "give each to a class, to void or to outlier"
            raise InputError(f"{where}: holds {told}, which the table of classes does not know; {advice}")
        return found.astype(np.uint8)

    @functools.cached_property
    def _table(self) -> np.ndarray:
        """Train id of each number, and something above `VOID_ID` of those that are unknown."""
        largest = max((number for _, numbers in self._places() for number in numbers), default=0)
        table = np.full(largest + 2, VOID_ID + 1, dtype=np.uint16)
        for train_id, entry in enumerate(self.classes):
            table[list(entry.ids)] = train_id
        table[list(self.outlier)], table[list(self.void)] = OUTLIER_ID, VOID_ID
        return table

    def _places(self) -> list[tuple[str, tuple[int, ...]]]:
        of_classes = [(f"classes: {entry.name}", entry.ids) for entry in self.classes]
        return [*of_classes, ("void", self.void), ("outlier", self.outlier)]

    @staticmethod
    def _take(key: str | int, place: str, told: str, seen: dict[str | int, str]) -> None:
        if key in seen:
            raise InputError(f"{place}: {told} is given twice, before in {seen[key]}; once is allowed")
        seen[key] = place

    def __str__(self) -> str:
        names = self.names if len(self) <= 4 else (*self.names[:3], "...")
        return f"{len(self)} classes ({', '.join(names)})"


def render_id(number: int) -> str:
    """Render a number of a label file; what one byte does not hold is a colour."""
    parts = f"[{number & 255}, {number >> 8 & 255}, {number >> 16}]"
    return f"{number} {parts}" if number > 255 else str(number)


CITYSCAPES_CLASSES: tuple[SceneClass, ...] = (
    SceneClass("road", (128, 64, 128), (7,)),
    SceneClass("sidewalk", (244, 35, 232), (8,)),
    SceneClass("building", (70, 70, 70), (11,)),
    SceneClass("wall", (102, 102, 156), (12,)),
    SceneClass("fence", (190, 153, 153), (13,)),
    SceneClass("pole", (153, 153, 153), (17,)),
    SceneClass("traffic light", (250, 170, 30), (19,)),
    SceneClass("traffic sign", (220, 220, 0), (20,)),
    SceneClass("vegetation", (107, 142, 35), (21,)),
    SceneClass("terrain", (152, 251, 152), (22,)),
    SceneClass("sky", (70, 130, 180), (23,)),
    SceneClass("person", (220, 20, 60), (24,)),
    SceneClass("rider", (255, 0, 0), (25,)),
    SceneClass("car", (0, 0, 142), (26,)),
    SceneClass("truck", (0, 0, 70), (27,)),
    SceneClass("bus", (0, 60, 100), (28,)),
    SceneClass("train", (0, 80, 100), (31,)),
    SceneClass("motorcycle", (0, 0, 230), (32,)),
    SceneClass("bicycle", (119, 11, 32), (33,)),
)
"""The index of a class in this tuple is its train id; colours are the official palette."""
CITYSCAPES = ClassTable(CITYSCAPES_CLASSES)
"""What holds where no manifest and no model says otherwise."""

NUM_CLASSES = len(CITYSCAPES)
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
        table[list(entry.ids)] = train_id
    return table


def unnamed_classes(count: int) -> ClassTable:
    """Return a table for a model of which nothing but the number of classes is known: 19 are Cityscapes'."""
    if count == NUM_CLASSES:
        return CITYSCAPES
    rng = np.random.default_rng(0)
    colors = rng.integers(0, 256, (count, 3)).tolist()
    return ClassTable(tuple(SceneClass(f"class {i}", (r, g, b)) for i, (r, g, b) in enumerate(colors)))


@dataclass(frozen=True)
class Sample:
    """One scene and its label map."""

    key: str
    """Unique name in the data set, such as `aachen_000000_000019`."""
    image: UInt8[np.ndarray, "H W 3"]
    """sRGB in [0, 255], channels in the order R, G, B."""
    label: UInt8[np.ndarray, "H W"]
    """Train ids, `OUTLIER_ID` or `VOID_ID`."""


class Transform:
    """What happens to a scene before its colours change, such as pasting objects; this one does nothing."""

    before_crop = False
    """Whether it wants the whole frame instead of the crop."""

    def __call__(self, sample: Sample, generator: np.random.Generator, epoch: int = 0) -> Sample:
        """Change a scene, whose arrays nobody else has; the result depends on nothing but the arguments."""
        return sample
