"""Files of one image of a test set, found by name, and their decoding."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from shards.errors import InputError
from shards.picture import MAX_PIXELS, Picture, read_size
from shards.source import ZipSource, list_visible, read_plain

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


class HiddenLabelsError(InputError):
    """A test set of which only the images are there."""


@dataclass(frozen=True)
class Frame:
    """One image of a test set and its mask. A file may lie in a zip: `fs_val_v3.zip/0000_x_labels.png`."""

    stem: str
    image: Path
    mask: Path
    overlay: Path | None = None
    """What is added to the image before anything else, as Fishyscapes Static publishes it."""

    def __post_init__(self) -> None:
        if not self.stem.isprintable():
            raise InputError(f"{self.image.parent}: {self.stem!r} holds control characters or is not UTF-8")


def files_by_stem(folder: Path, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> dict[str, Path]:
    """List the files of a folder that have one of `suffixes`, hidden ones left out; stems must differ."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; a test set holds images/ and labels_masks/")
    found: dict[str, Path] = {}
    for path in list_visible(folder, "*"):
        if path.suffix.lower() not in suffixes:
            continue
        if path.stem in found:
            raise InputError(f"{path}: two files for one frame; the other is {found[path.stem].name}")
        found[path.stem] = path
    return found


def files_by_ending(folder: Path, ending: str, below: str = "") -> dict[str, Path]:
    """List the files of a folder, or `below` it, with this ending, by what stands before it."""
    return {path.name.removesuffix(ending): path for path in list_visible(folder, f"{below}*{ending}")}


def pair_masks(
    folder: Path, masks: Mapping[str, Path], find_image: Callable[[str], Path | None]
) -> tuple[Frame, ...]:
    """Give each mask its image, in numeric order; a HiddenLabelsError says that there is no mask."""
    if not masks:
        reason = "no mask in it; the labels of a hidden test split are not published"
        raise HiddenLabelsError(f"{folder}: {reason}, so jobs.export predicts it and nothing scores it")
    frames = []
    for stem in sorted(masks, key=numeric_key):
        image = find_image(stem)
        if image is None:
            raise InputError(f"{masks[stem]}: mask without image")
        frames.append(Frame(stem, image, masks[stem]))
    return tuple(frames)


def numeric_key(stem: str) -> tuple[tuple[int, str], ...]:
    """Return a sort key: 2 before 10, as frames are numbered."""
    parts = filter(None, re.split(r"(\d+)", stem))
    return tuple((int(part), "") if part.isdecimal() else (-1, part) for part in parts)


def read_picture(path: Path, overlay: Path | None = None) -> UInt8[np.ndarray, "H W 3"]:
    """Decode an image to RGB and add its overlay, which has the same size, clipped to [0, 255]."""
    # From memory, which refuses a truncated JPEG; from a file, OpenCV fills its rest with grey.
    image = Picture(read_file(path), str(path)).decode()
    if overlay is None:
        return image
    added = _read_overlay(overlay)
    if added.shape != image.shape:
        raise InputError(f"{overlay}: shape {added.shape} of rgb; its image {path.name} is {image.shape}")
    return np.clip(image.astype(np.int32) + added, 0, 255).astype(np.uint8)


def _read_overlay(path: Path) -> np.ndarray:
    """Read array `rgb` of an npz file."""
    content = io.BytesIO(read_file(path))
    try:
        with zipfile.ZipFile(content) as archive:
            num_bytes = archive.getinfo("rgb.npy").file_size
        if num_bytes <= MAX_PIXELS * 3 * 8:
            content.seek(0)
            with np.load(content, allow_pickle=False) as file:
                return file["rgb"].astype(np.int32)
    except Exception as error:  # the parsers of zip, deflate and npy have many
        raise InputError(f"{path}: cannot be read as an overlay, an npz file with rgb: {error}") from None
    raise InputError(f"{path}: says that rgb has {num_bytes:,} bytes; at most 64 million pixels are read")


def read_file(path: Path) -> bytes:
    """Return the content of a file, or of the member of a zip file that `path` goes through."""
    try:
        return read_plain(path)
    except OSError as error:
        archive = next((p for p in path.parents if p.suffix == ".zip" and p.is_file()), None)
        if archive is None:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    return ZipSource(archive).read(path.relative_to(archive).as_posix())


def image_size(path: Path) -> tuple[int, int]:
    """Return (height, width) as the header of an image says."""
    return read_size(read_file(path), str(path))
