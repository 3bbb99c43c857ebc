"""Official layouts of test sets, for what is not in the course's layout:

    dataset_AnomalyTrack, dataset_ObstacleTrack: images/{stem}.*   labels_masks/{stem}_labels_semantic.png
    RoadAnomaly_jpg:                             frames/{stem}.*   frames/{stem}.labels/labels_semantic.png
    fishyscapes_lostandfound:                    {number}_{frame}_labels.png, and beside that folder
                         LostAndFound/leftImg8bit/{train,test}/{sequence}/{frame}_leftImg8bit.png
    fs_val_v1, fs_val_v2, fs_val_v3 (or .zip):   {number}_{frame}_labels.png, {number}_{frame}_rgb.npz, to be
                         added to Cityscapes' leftImg8bit/val/{city}/{frame}_leftImg8bit.png, beside that
                         folder or in cityscapes/ there
    LostAndFound (or dataset_LostAndFound):      leftImg8bit/test/{sequence}/{frame}_leftImg8bit.*
                                                 gtCoarse/test/{sequence}/{frame}_gtCoarse_labelIds.png

Sources: road-anomaly-benchmark (SMIYC's toolkit, also for Lost and Found), Fishyscapes' own builders
(bdl-benchmark) and pytorch-ood's readers of them, Lis et al., ICCV 2019, for Road Anomaly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from eval.sets.frames import IMAGE_SUFFIXES, Frame, files_by_ending, files_by_stem, pair_masks
from shards.errors import InputError
from shards.source import ZipSource, list_near, list_visible

LOST_AND_FOUND = ("LostAndFound", "dataset_LostAndFound")
_LAF_IMAGE = "_leftImg8bit"
_LAF_MASK = "_gtCoarse_labelIds.png"
LAF_TEST_FRAMES = 1203
_LAF_UNLABELLED = (17, 37, 55, 72, 91, 110, 129, 153, 174, 197, 218, 353, 490, 618, 686, 792, 793)
"""Positions in the complete test split, sorted by name, of frames whose labels are empty."""
_LAF_KNOWN = (
    "15_Rechbergstr_Deckenpfronn",  # children
    "01_Hanns_Klemm_Str_45_000006",  # bicycles
    "01_Hanns_Klemm_Str_45_000007",
    "10_Schlossberg_9_000004",
)
"""What frames begin with whose obstacles are classes of Cityscapes."""
_RO21_LEFT_OUT = ("validation_19", *(f"validation_{i}" for i in range(21, 30)))
"""Validation frames of Road Obstacle 21 that SMIYC's toolkit leaves out."""


@dataclass(frozen=True)
class OfficialLayout:
    """Where a test set lies below the root, and how its frames are listed."""

    places: tuple[str, ...]
    """Folders or files, of which the first that is there is taken."""
    list_frames: Callable[[Path], tuple[Frame, ...]]
    inside: str = ""
    """A folder in it without which it is something else."""

    def find(self, root: Path) -> Path | None:
        """Return where the set is; None: it is not there."""
        for place in self.places:
            path = root / place
            if (path / self.inside).is_dir() or (path.suffix == ".zip" and path.is_file()):
                return path
        return None


def list_smiyc(folder: Path) -> tuple[Frame, ...]:
    """List the validation frames of a track; its images without mask are the hidden test split."""
    images = files_by_stem(folder / "images")
    masks = files_by_ending(folder / "labels_masks", "_labels_semantic.png")
    if folder.name == "dataset_ObstacleTrack":
        masks = {stem: path for stem, path in masks.items() if stem not in _RO21_LEFT_OUT}
    return pair_masks(folder, masks, images.get)


def list_road_anomaly(folder: Path) -> tuple[Frame, ...]:
    """List the frames of Road Anomaly."""
    images = files_by_stem(folder / "frames")
    masks = list_visible(folder, "frames/*.labels/labels_semantic.png")
    return pair_masks(folder, {p.parent.name.removesuffix(".labels"): p for p in masks}, images.get)


def list_fishyscapes_lost_and_found(folder: Path) -> tuple[Frame, ...]:
    """List the frames: the masks are Fishyscapes' own, the images are those of Lost and Found."""
    images = folder.parent / "LostAndFound" / "leftImg8bit"
    if not images.is_dir():
        holds = f"{folder.name} holds masks only, Lost and Found the images"
        raise InputError(f"{images}: no such folder; {holds}")

    def find(stem: str) -> Path | None:
        frame = stem.partition("_")[2]
        return next(iter(list_visible(images, f"*/{frame.rsplit('_', 2)[0]}/{frame}_leftImg8bit.png")), None)

    return pair_masks(folder, files_by_ending(folder, "_labels.png"), find)


def list_fishyscapes_static(place: Path) -> tuple[Frame, ...]:
    """List the frames of one version: overlays, to be added to images of Cityscapes val.

    `place` is the unpacked folder, or the zip file as it came.
    """
    bases = [place.parent / name / "leftImg8bit" / "val" for name in ("", "cityscapes")]
    base = next((folder for folder in bases if folder.is_dir()), None)
    if base is None:
        holds = f"{place.name} holds overlays only, Cityscapes val the images"
        raise InputError(f"{bases[0]}: no such folder; {holds}")
    files = _files_of(place)
    masks = {name.removesuffix("_labels.png"): p for name, p in files.items() if name.endswith("_labels.png")}

    def find(stem: str) -> Path | None:
        frame = stem.partition("_")[2]
        path = base / frame.partition("_")[0] / f"{frame}_leftImg8bit.png"
        return path if path.is_file() else None

    frames = []
    for frame in pair_masks(place, masks, find):
        overlay = files.get(f"{frame.stem}_rgb.npz")
        if overlay is None:
            raise InputError(f"{frame.mask}: mask without overlay; expected {frame.stem}_rgb.npz beside it")
        frames.append(Frame(frame.stem, frame.image, frame.mask, overlay))
    return tuple(frames)


def _files_of(place: Path) -> dict[str, Path]:
    """List the files of a folder or zip file by name; the zip's own top folder, if any, is passed over."""
    if place.is_dir():
        return {path.name: path for path in list_visible(place, "*")}
    return {name.rpartition("/")[2]: place / name for name in list_near(ZipSource(place))}


def list_lost_and_found(folder: Path) -> tuple[Frame, ...]:
    """List the frames of Lost and Found's test split, without those of known classes and empty labels.

    Split `testNoKnown` of SMIYC's toolkit: 1043 frames of the complete download.
    """
    split = folder / "leftImg8bit" / "test"
    if not split.is_dir():
        raise InputError(f"{split}: no such folder; {folder.name} holds leftImg8bit/ and gtCoarse/")
    images = lost_and_found_images(folder, "test")
    masks = lost_and_found_masks(folder, "test")
    stems = sorted(images.keys() | masks.keys())
    skipped = {stems[i] for i in _LAF_UNLABELLED} if len(stems) == LAF_TEST_FRAMES else set()
    kept = [s for s in stems if s not in skipped and not s.startswith(_LAF_KNOWN)]
    if lacking := [stem for stem in kept if stem not in masks]:
        expected = f"expected {lacking[0]}{_LAF_MASK} in gtCoarse/test"
        raise InputError(f"{images[lacking[0]]}: image without mask; {expected}")
    return pair_masks(folder, {stem: masks[stem] for stem in kept}, images.get)


def lost_and_found_images(folder: Path, split: str) -> dict[str, Path]:
    """List the images of a split of Lost and Found by the name of the frame."""
    return {
        path.stem.removesuffix(_LAF_IMAGE): path
        for path in list_visible(folder, f"leftImg8bit/{split}/*/*{_LAF_IMAGE}.*")
        if path.suffix in IMAGE_SUFFIXES
    }


def lost_and_found_masks(folder: Path, split: str) -> dict[str, Path]:
    """List the masks of a split of Lost and Found by the name of the frame."""
    return files_by_ending(folder, _LAF_MASK, f"gtCoarse/{split}/*/")


def fishyscapes_static(version: int) -> OfficialLayout:
    """Return the layout of a version of Fishyscapes Static; pytorch-ood unpacks to the last place."""
    name = f"fs_val_v{version}"
    return OfficialLayout((name, f"{name}.zip", f"fishyscapes-{version}.0.0"), list_fishyscapes_static)
