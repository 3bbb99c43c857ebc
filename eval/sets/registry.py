"""The anomaly test sets, in the layout of the course's archive `Validation_Dataset`:

    ROOT/{folder}/images/{stem}.{png,jpg,jpeg,webp}      ROOT/{folder}/labels_masks/{stem}.png

or, where that folder is missing, as their authors publish them (`eval/sets/layouts.py`). Images without
published labels are no test set: `eval/submissions` predicts them.

Targets are 0 (normal), 1 (anomaly) and 255 (void) after each set's own label values are mapped.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from eval.sets.frames import (
    IMAGE_SUFFIXES,
    Frame,
    HiddenLabelsError,
    files_by_stem,
    numeric_key,
    read_file,
    read_picture,
)
from eval.sets.layouts import (
    LOST_AND_FOUND,
    OfficialLayout,
    fishyscapes_static,
    list_fishyscapes_lost_and_found,
    list_lost_and_found,
    list_road_anomaly,
    list_smiyc,
)
from shards.errors import InputError
from shards.picture import COLOUR, COLOUR_ALPHA, GREY, GREY_ALPHA, decode_numbers
from shards.schema import ANOMALY, NORMAL, VOID

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Known:
    """Measures of a complete test set; the shares have three digits."""

    num_frames: int
    size: tuple[int, int] = (1024, 2048)
    """(height, width) of most frames; Cityscapes' own where nothing else is said."""
    anomalous: float | None = None
    """Share of all pixels, and the share of normal ones; the rest is void."""
    normal: float | None = None
    md5: str = ""
    """MD5 of the zip file of a version of Fishyscapes Static, as pytorch-ood checks it."""


@dataclass(frozen=True)
class Convention:
    """All facts about a test set: its names, what its masks mean, where it lies, who evaluates it."""

    folder: str
    """Name in the course's layout; folders match exactly: RoadAnomaly is not RoadAnomaly21."""
    name: str
    """Title in tables."""
    values: Mapping[int, int] = field(default_factory=lambda: {0: NORMAL, 1: ANOMALY, 255: VOID})
    """Mask value -> target; any other value is an error."""
    is_benchmark: bool = True
    """Whether numbers on it are reported as results, so that nothing may be chosen on it."""
    own_images: bool = False
    """Whether its images are in no data set that validation may use, so that one of them gives it away."""
    official: OfficialLayout | None = None
    """Layout in which its authors publish it; the course's layout goes first."""
    smallest: tuple[int, int] = (500, 100)
    """Fewest pixels of a predicted and of a true segment in component metrics; (500, 100) is the
    default of SMIYC's toolkit."""
    smiyc: str = ""
    """Split of SMIYC's toolkit that holds these images, hidden ones too."""
    known: Known | None = None


_LAF_VALUES = {0: VOID, 1: NORMAL, **dict.fromkeys(range(2, 201), ANOMALY)}


def _by_folder(*rows: Convention) -> dict[str, Convention]:
    return {row.folder: row for row in rows}


TEST_SETS = _by_folder(
    Convention(
        "RoadAnomaly21",
        "SMIYC RA-21",
        own_images=True,
        official=OfficialLayout(("dataset_AnomalyTrack",), list_smiyc),
        smiyc="AnomalyTrack-all",
        known=Known(10, (720, 1280), 0.143, 0.822),
    ),
    Convention(
        "RoadObsticle21",  # misspelt so in the archive
        "SMIYC RO-21",
        own_images=True,
        official=OfficialLayout(("dataset_ObstacleTrack",), list_smiyc),
        smallest=(50, 10),
        smiyc="ObstacleTrack-all",
        known=Known(30, (1080, 1920), 0.002, 0.307),
    ),
    Convention(
        "FS_LostFound_full",
        "FS L&F",
        own_images=True,
        official=OfficialLayout(("fishyscapes_lostandfound",), list_fishyscapes_lost_and_found),
        known=Known(100, anomalous=0.002, normal=0.811),
    ),
    Convention(
        "fs_static",
        "FS Static",
        official=fishyscapes_static(3),
        known=Known(30, anomalous=0.012, normal=0.836, md5="0dc11db9e57088c5bb18de4c55a53f3a"),
    ),
    Convention(
        "RoadAnomaly",
        "Road Anomaly",
        {0: NORMAL, 2: ANOMALY},
        own_images=True,
        official=OfficialLayout(("RoadAnomaly_jpg",), list_road_anomaly),
        known=Known(60, (720, 1280), 0.098, 0.902),
    ),
)
"""The five sets of the tables, in their order, by folder."""

EXTRA_SETS = _by_folder(
    Convention(
        "fs_static_v1",
        "FS Static v1",
        official=fishyscapes_static(1),
        known=Known(30, md5="79fb134419c83f2f20b575955efa9d20"),
    ),
    Convention(
        "fs_static_v2",
        "FS Static v2",
        official=fishyscapes_static(2),
        known=Known(30, md5="5088c63497927200d935c41d54b1cb23"),
    ),
    Convention(
        "lost_and_found_test",
        "Lost & Found",
        _LAF_VALUES,
        own_images=True,
        official=OfficialLayout(LOST_AND_FOUND, list_lost_and_found, inside="gtCoarse"),
        smallest=(50, 10),
        smiyc="LostAndFound-test",
        known=Known(1043),
    ),
)
"""Benchmarks beside the five; no column where they are absent. Versions of FS Static give other numbers."""

VALIDATION_SETS = _by_folder(Convention("PastedVal", "Pasted val", is_benchmark=False))
"""Sets on which temperature, threshold and checkpoint may be chosen: Cityscapes val with objects that
training never pasted, as `jobs.paste_validation` writes them. No benchmark; no column where it is absent."""


@dataclass(frozen=True)
class TestSet:
    """The frames of one test set, in numeric order of their stems."""

    __test__ = False  # the name starts with Test, but pytest must not collect it
    convention: Convention
    frames: tuple[Frame, ...]

    @property
    def name(self) -> str:
        """Name in tables."""
        return self.convention.name

    def __len__(self) -> int:
        return len(self.frames)


def find_test_sets(
    root: Path, limit: int | None = None, setting: str = "--datasets", own: Sequence[Convention] = ()
) -> tuple[TestSet, ...]:
    """List the test sets that are present below `root`, in the order of the tables.

    Args:
        limit: use the first frames only, for a quick look; None is all.
        own: the user's own sets, which must be there; in the course's layout.
    """
    if limit is not None and limit < 1:
        raise InputError(f"--limit: got {limit}; at least 1")
    if not root.is_dir():
        raise InputError(f"{setting} {root}: no such folder")
    found: list[TestSet] = []
    hidden: list[InputError] = []
    for convention in (*TEST_SETS.values(), *EXTRA_SETS.values(), *VALIDATION_SETS.values(), *own):
        folder, layout = root / convention.folder, convention.official
        try:
            if folder.is_dir():
                found.append(TestSet(convention, _list_frames(folder)[:limit]))
            elif layout is not None and (place := layout.find(root)) is not None:
                found.append(TestSet(convention, layout.list_frames(place)[:limit]))
            elif convention in own:
                raise InputError(f"{setting} {root}: no folder {convention.folder}, which --sets describes")
        except HiddenLabelsError as error:
            hidden.append(error)
    if not found and hidden:
        raise hidden[0]
    for passed_over in hidden:
        logger.info("%s", passed_over)
    if not found:
        known = [*TEST_SETS, *VALIDATION_SETS, *official_places(first=True)]
        hint = "; give the folder above it" if root.resolve().name in known else ""
        expected = f"expected one or more of {', '.join(known)}"
        raise InputError(f"{setting} {root}: no test set in it; {expected}{hint}")
    return tuple(found)


def _list_frames(folder: Path) -> tuple[Frame, ...]:
    images = files_by_stem(folder / "images")
    masks = files_by_stem(folder / "labels_masks", (".png",))
    for stem in sorted(images.keys() ^ masks.keys(), key=numeric_key):
        if stem in images:
            expected = f"expected {folder / 'labels_masks' / stem}.png"
            raise InputError(f"{images[stem]}: image without mask; {expected}")
        expected = f"expected {folder / 'images' / stem} with suffix {', '.join(IMAGE_SUFFIXES)}"
        raise InputError(f"{masks[stem]}: mask without image; {expected}")
    if not images:
        raise InputError(f"{folder}: the test set is empty; expected images/*.* and labels_masks/*.png")
    return tuple(Frame(stem, images[stem], masks[stem]) for stem in sorted(images, key=numeric_key))


def read_image(frame: Frame) -> UInt8[np.ndarray, "H W 3"]:
    """Decode the image to RGB, its overlay added."""
    return read_picture(frame.image, frame.overlay)


def read_target(frame: Frame, convention: Convention) -> UInt8[np.ndarray, "H W"]:
    """Decode the mask to `NORMAL`, `ANOMALY` and `VOID`; a value outside the convention is an InputError."""
    mask = decode_numbers(read_file(frame.mask), str(frame.mask), (GREY, COLOUR, GREY_ALPHA, COLOUR_ALPHA))
    if mask.ndim == 3:
        is_gray = (mask[..., :3] == mask[..., :1]).all() and (mask[..., 3:] == 255).all()
        if not is_gray:
            raise InputError(f"{frame.mask}: a mask in colour, or transparent; expected one 8-bit channel")
        mask = mask[..., 0]  # grey saved as RGB
    present = np.flatnonzero(cv2.calcHist([mask], [0], None, [256], [0, 256])).tolist()
    if unknown := [value for value in present if value not in convention.values]:
        allowed = ", ".join(map(str, convention.values))
        raise InputError(f"{frame.mask}: label value {unknown[0]}; allowed in {convention.folder}: {allowed}")
    table = np.full(256, VOID, dtype=np.uint8)
    table[list(convention.values)] = list(convention.values.values())
    return table[mask]


def require_same_size(
    frame: Frame, image: UInt8[np.ndarray, "_H _W 3"], target: UInt8[np.ndarray, "_h _w"]
) -> None:
    """Check that image and mask have the same height and width."""
    if image.shape[:2] != target.shape:
        (height, width), (rows, columns) = image.shape[:2], target.shape
        raise InputError(f"{frame.image}: image is {width} x {height}, its mask {columns} x {rows}")


def resize_target(target: UInt8[np.ndarray, "_H _W"], size: tuple[int, int]) -> UInt8[np.ndarray, "_h _w"]:
    """Resize by the pixel that holds the new pixel's middle, as Pillow does (OpenCV does not)."""
    positions = []
    for new, old in zip(size, target.shape, strict=True):
        steps = np.full(new, old / new)
        steps[0] /= 2
        positions.append(np.cumsum(steps).astype(np.int64))  # added up, as Pillow does: it decides ties
    return target[positions[0][:, None], positions[1]]


def check_masks(test_set: TestSet) -> None:
    """Decode all masks, which takes seconds, before a network runs for an hour.

    An InputError says which mask breaks the convention, or that the set has no anomalous or no normal pixel.
    """
    seen = np.zeros(256, dtype=bool)
    for frame in test_set.frames:
        seen[np.unique(read_target(frame, test_set.convention))] = True
    for value, name in ((ANOMALY, "anomalous"), (NORMAL, "normal")):
        if not seen[value]:
            lacking = f"{test_set.convention.folder}: no {name} pixel in any of {len(test_set)} masks"
            if value == ANOMALY and test_set.convention.values.get(255) == VOID:
                lacking += (
                    "; 255 is void here: where it marks anomalies, describe a folder of your own to --sets"
                )
                lacking += " with values: {0: normal, 255: anomaly}"
            raise InputError(lacking)


def official_places(*, first: bool = False) -> list[str]:
    """List the folders in which benchmarks are published; `first`: one per benchmark."""
    layouts = [row.official for row in (TEST_SETS | EXTRA_SETS).values() if row.official is not None]
    return [place for layout in layouts for place in (layout.places[:1] if first else layout.places)]
