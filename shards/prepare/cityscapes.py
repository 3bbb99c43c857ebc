"""The official Cityscapes download, as samples."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
from jaxtyping import UInt8

from shards.errors import InputError, and_more
from shards.picture import PNG_SIGNATURE, decode_picture
from shards.prepare.plan import EncodedSample, FolderPlan, ShardPlan, split_into_shards
from shards.scene import decode_label_ids
from shards.schema import IMAGE_SUFFIXES, LABEL_ENCODING, LABEL_SUFFIX
from shards.source import FolderSource, Source, ZipSource
from shards.tiles import encode_tiles, zstd_version

ImageEncoding = Literal["jpeg", "png", "tiles"]
Split = Literal["train", "val", "test"]

JPEG_QUALITY = 95

_IMAGE_END = "_leftImg8bit.png"
_LABEL_END = "_gtFine_labelIds.png"
_KEY = re.compile(r"[A-Za-z0-9_-]{1,80}")  # no dot: webdataset cuts a key at the first one


class CityscapesFrame(NamedTuple):
    """One scene, by the names of its picture and its labels in their sources."""

    key: str
    """Such as `aachen_000000_000019`."""
    image: str
    label: str


class CityscapesFiles(NamedTuple):
    """The two halves of the download; each is a folder or a zip file."""

    images: Source
    labels: Source


def open_cityscapes(root: Path, setting: str = "--root") -> CityscapesFiles:
    """Find both halves of the download; an unpacked folder is preferred to the zip file beside it."""
    if not root.is_dir():
        raise InputError(f"{setting} {root}: is no folder; one that holds leftImg8bit/ and gtFine/ is needed")
    return CityscapesFiles(_open_half(root, "leftImg8bit", setting), _open_half(root, "gtFine", setting))


def list_frames(files: CityscapesFiles, split: Split) -> list[CityscapesFrame]:
    """Return the frames of one split, sorted by key."""
    images = _by_key(files.images, f"leftImg8bit/{split}/*/*{_IMAGE_END}", _IMAGE_END)
    labels = _by_key(files.labels, f"gtFine/{split}/*/*{_LABEL_END}", _LABEL_END)
    if not images and not labels:
        where = files.images.locate(f"leftImg8bit/{split}/*/*{_IMAGE_END}")
        raise InputError(f"split {split!r} is empty: no file {where}")
    halves = {"image": (files.images, images), "label": (files.labels, labels)}
    places = {"image": ("leftImg8bit", _IMAGE_END), "label": ("gtFine", _LABEL_END)}
    for half, other in (("image", "label"), ("label", "image")):
        (source, names), (folder, end) = halves[half], places[half]
        if missing := sorted(names.keys() - halves[other][1].keys()):
            name = names[missing[0]]
            place = name.removeprefix(folder).removesuffix(end)
            absent = halves[other][0].locate(f"{places[other][0]}{place}{places[other][1]}")
            raise InputError(f"{half} {source.locate(name)} has no {other} {absent}{and_more(missing)}")
    return [CityscapesFrame(key, images[key], labels[key]) for key in sorted(images)]


def plan_cityscapes(
    root: Path,
    *,
    splits: Sequence[Split] = ("train", "val"),
    samples_per_shard: int = 64,
    image_encoding: ImageEncoding = "jpeg",
    val_encoding: ImageEncoding = "png",
    jpeg_quality: int = JPEG_QUALITY,
) -> FolderPlan:
    """Distribute the frames of `splits` over shards, in the order of their keys.

    `val_encoding` is that of split val, on which mIoU is measured.
    """
    files = open_cityscapes(root)
    options: dict[str, Any] = {"splits": splits, "samples_per_shard": samples_per_shard}
    encodings = {split: val_encoding if split == "val" else image_encoding for split in splits}
    options |= {"val_encoding": val_encoding} if "val" in splits else {}
    options |= {"jpeg_quality": jpeg_quality} if "jpeg" in encodings.values() else {}
    options |= {"zstd": zstd_version()} if "tiles" in encodings.values() else {}
    shards: list[ShardPlan] = []
    report = []
    seen: set[str] = set()
    for split in dict.fromkeys(splits):
        frames = list_frames(files, split)
        keys = {frame.key for frame in frames}
        if shared := sorted(seen & keys):
            also = f"frame {shared[0]} is also in another split{and_more(shared)}"
            raise InputError(f"split {split!r}: {also}")
        seen |= keys
        samples = partial(_encode_frames, files, encodings[split], jpeg_quality)
        of_split = split_into_shards(frames, samples_per_shard, samples, name="cityscapes", split=split)
        report.append(f"{split}: {len(frames)} frames in {len(of_split)} shards")
        shards += of_split
    return FolderPlan("cityscapes", LABEL_ENCODING, image_encoding, options, shards, report)


def _encode_frames(
    files: CityscapesFiles, encoding: ImageEncoding, jpeg_quality: int, frames: Sequence[CityscapesFrame]
) -> Iterator[EncodedSample]:
    """Yield the shard samples of `frames`.

    The label file holds train ids. The picture is the original PNG file, untouched, a JPEG without chroma
    subsampling, or lossless tiles (`shards/tiles.py`), of which a crop decodes its part only.
    """
    for frame in frames:
        image_path, label_path = files.images.locate(frame.image), files.labels.locate(frame.label)
        content = files.images.read(frame.image)
        picture = decode_picture(content, image_path)
        label = decode_label_ids(files.labels.read(frame.label), label_path)
        if label.shape != picture.shape[:2]:
            sizes = f"{_size(label)} pixels, but {image_path} is {_size(picture)}"
            raise InputError(f"{label_path} is {sizes}; they must be equal")
        if encoding == "jpeg":
            content = _encode_jpeg(picture, jpeg_quality)
        elif encoding == "tiles":
            content = encode_tiles(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB))
        elif not content.startswith(PNG_SIGNATURE):
            content = cv2.imencode(".png", picture)[1].tobytes()  # a JPEG under another name: its pixels
        yield frame.key, {IMAGE_SUFFIXES[encoding]: content, LABEL_SUFFIX: _encode_label(label)}


def _encode_jpeg(picture: UInt8[np.ndarray, "H W 3"], quality: int) -> bytes:
    options = [cv2.IMWRITE_JPEG_QUALITY, quality]
    options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    return cv2.imencode(".jpg", picture, options)[1].tobytes()


def _encode_label(label: UInt8[np.ndarray, "H W"]) -> bytes:
    # Level 3 without row filters has 32 kB and decodes in 1.3 ms; level 6 has 21 kB and takes 3.4 ms, with
    # filters 4.2 (real frames). Older OpenCV cannot leave the filters out.
    options = [cv2.IMWRITE_PNG_COMPRESSION, 3]
    if hasattr(cv2, "IMWRITE_PNG_FILTER"):
        options += [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE]
    return cv2.imencode(".png", label, options)[1].tobytes()


def _open_half(root: Path, name: str, setting: str) -> Source:
    archive = f"{name}_trainvaltest.zip"
    if (root / name).is_dir():
        return FolderSource(root)
    if (root / archive).is_file():
        return ZipSource(root / archive)
    raise InputError(f"{setting} {root}: holds neither a folder {name}/ nor {archive}")


def _by_key(source: Source, pattern: str, end: str) -> dict[str, str]:
    names: dict[str, str] = {}
    for name in source.match(pattern):
        key = name.rsplit("/", 1)[-1].removesuffix(end)
        if not _KEY.fullmatch(key):
            allowed = f"the part before {end} may hold only letters, digits, _ and -"
            raise InputError(f"{source.locate(name)}: {allowed}")
        if key in names:
            raise InputError(f"{source.locate(name)}: the same frame is also at {source.locate(names[key])}")
        names[key] = name
    return names


def _size(picture: UInt8[np.ndarray, "H W ..."]) -> str:
    return f"{picture.shape[1]}x{picture.shape[0]}"
