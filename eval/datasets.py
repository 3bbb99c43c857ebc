"""The five anomaly test sets, in the layout of the course's archive `Validation_Dataset`:

    ROOT/{folder}/images/{stem}.{png,jpg,jpeg,webp}      ROOT/{folder}/labels_masks/{stem}.png

or, where that folder is missing, as their authors publish four of them:

    dataset_AnomalyTrack, dataset_ObstacleTrack: images/{stem}.*   labels_masks/{stem}_labels_semantic.png
    RoadAnomaly_jpg:                             frames/{stem}.*   frames/{stem}.labels/labels_semantic.png
    fishyscapes_lostandfound:                    {number}_{frame}_labels.png, and beside that folder
                                 LostAndFound/leftImg8bit/{train,test}/{sequence}/{frame}_leftImg8bit.png

Targets are 0 (normal), 1 (anomaly) and 255 (void) after each set's own label values are mapped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from eval.pool import ANOMALY, NORMAL, VOID
from shards.errors import InputError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Frame:
    """One image of a test set and its mask."""

    stem: str
    image: Path
    mask: Path


@dataclass(frozen=True)
class Convention:
    """How a test set is called and what its masks mean."""

    folder: str
    name: str
    """As tables print it."""
    values: Mapping[int, int] = field(default_factory=lambda: {0: NORMAL, 1: ANOMALY, 255: VOID})
    """Mask value -> target; any other value is an error."""
    is_benchmark: bool = True
    """Whether numbers on it are reported as results, so that nothing may be chosen on it."""


TEST_SETS: dict[str, Convention] = {
    convention.folder: convention
    for convention in (
        Convention("RoadAnomaly21", "SMIYC RA-21"),
        Convention("RoadObsticle21", "SMIYC RO-21"),  # misspelt so in the archive
        Convention("FS_LostFound_full", "FS L&F"),
        Convention("fs_static", "FS Static"),
        Convention("RoadAnomaly", "Road Anomaly", {0: NORMAL, 2: ANOMALY}),
    )
}
"""By folder name, in the order of the tables. Folders match exactly: RoadAnomaly is not RoadAnomaly21."""

VALIDATION_SETS: dict[str, Convention] = {"PastedVal": Convention("PastedVal", "Pasted val")}
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
        root: folder that holds the sets' folders.
        limit: use the first frames only, for a quick look; None is all.
        own: the user's own sets, which must be there; in the course's layout.

    Raises:
        InputError: no set is there, or one is empty or has an image or mask without its partner.
    """
    if limit is not None and limit < 1:
        raise InputError(f"--limit: got {limit}; at least 1")
    if not root.is_dir():
        raise InputError(f"{setting} {root}: no such folder")
    found = []
    for name, convention in {**TEST_SETS, **VALIDATION_SETS}.items():
        official, list_official = OFFICIAL_LAYOUTS.get(name, (name, _list_frames))
        if (root / name).is_dir():
            found.append(TestSet(convention, _list_frames(root / name)[:limit]))
        elif (root / official).is_dir():
            found.append(TestSet(convention, list_official(root / official)[:limit]))
    for convention in own:
        if not (root / convention.folder).is_dir():
            raise InputError(f"{setting} {root}: no folder {convention.folder}, which --sets describes")
        found.append(TestSet(convention, _list_frames(root / convention.folder)[:limit]))
    if not found:
        known = [*TEST_SETS, *VALIDATION_SETS, *(folder for folder, _ in OFFICIAL_LAYOUTS.values())]
        hint = "; give the folder above it" if root.resolve().name in known else ""
        raise InputError(
            f"{setting} {root}: no test set in it; expected one or more of {', '.join(known)}{hint}"
        )
    return tuple(found)


def _list_frames(folder: Path) -> tuple[Frame, ...]:
    images = _files_by_stem(folder / "images", IMAGE_SUFFIXES)
    masks = _files_by_stem(folder / "labels_masks", (".png",))
    for stem in sorted(images.keys() ^ masks.keys(), key=_numeric):
        if stem in images:
            raise InputError(
                f"{images[stem]}: image without mask; expected {folder / 'labels_masks' / stem}.png"
            )
        raise InputError(
            f"{masks[stem]}: mask without image; expected {folder / 'images' / stem} with suffix "
            f"{', '.join(IMAGE_SUFFIXES)}"
        )
    if not images:
        raise InputError(f"{folder}: the test set is empty; expected images/*.* and labels_masks/*.png")
    return tuple(Frame(stem, images[stem], masks[stem]) for stem in sorted(images, key=_numeric))


def _list_smiyc(folder: Path) -> tuple[Frame, ...]:
    """List the validation frames; images without mask are the benchmark's hidden test split."""
    images = _files_by_stem(folder / "images", IMAGE_SUFFIXES)
    masks = _by_ending(folder / "labels_masks", "_labels_semantic.png")
    return _pair_masks(folder, masks, images.get)


def _list_road_anomaly(folder: Path) -> tuple[Frame, ...]:
    images = _files_by_stem(folder / "frames", IMAGE_SUFFIXES)
    masks = {
        p.parent.name.removesuffix(".labels"): p for p in folder.glob("frames/*.labels/labels_semantic.png")
    }
    return _pair_masks(folder, masks, images.get)


def _list_fishyscapes(folder: Path) -> tuple[Frame, ...]:
    """List the frames: the masks are Fishyscapes' own, the images are those of Lost and Found."""
    images = folder.parent / "LostAndFound" / "leftImg8bit"
    if not images.is_dir():
        raise InputError(
            f"{images}: no such folder; {folder.name} holds masks only, Lost and Found the images"
        )

    def find(stem: str) -> Path | None:
        frame = stem.partition("_")[2]
        sequence = frame.rsplit("_", 2)[0]
        return next(images.glob(f"*/{sequence}/{frame}_leftImg8bit.png"), None)

    return _pair_masks(folder, _by_ending(folder, "_labels.png"), find)


def _by_ending(folder: Path, ending: str) -> dict[str, Path]:
    return {path.name.removesuffix(ending): path for path in folder.glob(f"*{ending}")}


def _pair_masks(
    folder: Path, masks: Mapping[str, Path], find_image: Callable[[str], Path | None]
) -> tuple[Frame, ...]:
    if not masks:
        raise InputError(f"{folder}: no mask in it; the labels of a hidden test split are not published")
    frames = []
    for stem in sorted(masks, key=_numeric):
        image = find_image(stem)
        if image is None:
            raise InputError(f"{masks[stem]}: mask without image")
        frames.append(Frame(stem, image, masks[stem]))
    return tuple(frames)


OFFICIAL_LAYOUTS: dict[str, tuple[str, Callable[[Path], tuple[Frame, ...]]]] = {
    "RoadAnomaly21": ("dataset_AnomalyTrack", _list_smiyc),
    "RoadObsticle21": ("dataset_ObstacleTrack", _list_smiyc),
    "FS_LostFound_full": ("fishyscapes_lostandfound", _list_fishyscapes),
    "RoadAnomaly": ("RoadAnomaly_jpg", _list_road_anomaly),
}
"""Folder of the course's archive -> folder of the official download, and what lists its frames. FS Static is
missing: its official form is an overlay on Cityscapes that has to be rendered first."""


def _files_by_stem(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; a test set holds images/ and labels_masks/")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.suffix.lower() not in suffixes:
            continue
        if path.stem in found:
            raise InputError(f"{path}: two files for one frame; the other is {found[path.stem].name}")
        found[path.stem] = path
    return found


def _numeric(stem: str) -> tuple[tuple[int, str], ...]:
    """Sort key: 2 before 10, as frames are numbered."""
    return tuple(
        (int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", stem) if part
    )


def read_image(frame: Frame) -> UInt8[np.ndarray, "H W 3"]:
    """Decode the image to RGB.

    Raises:
        InputError: the file is no image.
    """
    # The mask is not turned by the image's EXIF tag, so the image must not be either.
    image = _decode_file(frame.image, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _decode_file(path: Path, flags: int) -> np.ndarray:
    """Decode from memory, which refuses a truncated JPEG; from a file, OpenCV fills its rest with grey."""
    content = path.read_bytes()
    image = cv2.imdecode(np.frombuffer(content, np.uint8), flags) if content else None
    if image is None:
        raise InputError(f"{path}: cannot be read as an image")
    return image


def read_target(frame: Frame, convention: Convention) -> UInt8[np.ndarray, "H W"]:
    """Decode the mask to `NORMAL`, `ANOMALY` and `VOID`.

    Raises:
        InputError: the file is no 8-bit single-channel image, or holds a value outside the convention.
    """
    mask = _decode_file(frame.mask, cv2.IMREAD_UNCHANGED)
    if mask.ndim == 3 and (mask[..., :3] == mask[..., :1]).all():
        mask = mask[..., 0]  # grey saved as RGB
    if mask.ndim != 2 or mask.dtype != np.uint8:
        raise InputError(
            f"{frame.mask}: a mask of shape {mask.shape}, {mask.dtype}; expected one 8-bit channel"
        )
    present = np.flatnonzero(cv2.calcHist([mask], [0], None, [256], [0, 256]))
    for value in present.tolist():
        if value not in convention.values:
            allowed = ", ".join(map(str, convention.values))
            raise InputError(f"{frame.mask}: label value {value}; allowed in {convention.folder}: {allowed}")
    table = np.full(256, VOID, dtype=np.uint8)
    table[list(convention.values)] = list(convention.values.values())
    return table[mask]


def require_same_size(
    frame: Frame, image: UInt8[np.ndarray, "_H _W 3"], target: UInt8[np.ndarray, "_h _w"]
) -> None:
    """Check that image and mask fit.

    Raises:
        InputError: they differ in height or width.
    """
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

    Raises:
        InputError: a mask breaks the convention, or the set holds no anomalous (or no normal) pixel at all.
    """
    seen = np.zeros(256, dtype=bool)
    for frame in test_set.frames:
        seen[np.unique(read_target(frame, test_set.convention))] = True
    for value, name in ((ANOMALY, "anomalous"), (NORMAL, "normal")):
        if not seen[value]:
            raise InputError(f"{test_set.convention.folder}: no {name} pixel in any of {len(test_set)} masks")
