"""Frames with labels, as the samples of scene shards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
from jaxtyping import UInt8

from shards.errors import InputError, and_more
from shards.picture import PNG_SIGNATURE, decode_picture
from shards.prepare.plan import EncodedSample, ShardPlan, split_into_shards
from shards.schema import IMAGE_SUFFIXES, LABEL_SUFFIX
from shards.source import Source
from shards.tiles import encode_tiles, require_zstandard, zstd_version

ImageEncoding = Literal["jpeg", "png", "tiles"]
Split = Literal["train", "val", "test"]

ReadLabel = Callable[[bytes, str], UInt8[np.ndarray, "H W"]]
"""Decodes a label file, whose place is the second argument, to train ids."""


class SceneFrame(NamedTuple):
    """One scene, by the names of its picture and its labels in their sources."""

    key: str
    """Such as `aachen_000000_000019`."""
    image: str
    label: str


class SceneFiles(NamedTuple):
    """Where pictures and labels lie; each is a folder or a zip file."""

    images: Source
    labels: Source


@dataclass(frozen=True, kw_only=True)
class SceneEncoding:
    """How scenes are stored."""

    samples_per_shard: int = 64
    """Most frames in one shard. A small split is still cut into 8 shards."""
    image_encoding: ImageEncoding = "jpeg"
    """`jpeg`: without chroma subsampling, a quarter of the size, decodes 4 times faster than PNG; `png`: the
    original file's bytes; `tiles`: lossless, a fifth larger than PNG, and a crop decodes its part only, which
    is faster than JPEG (needs the package zstandard)."""
    val_encoding: ImageEncoding = "png"
    """The same of split val: without loss, as published mIoU is measured."""
    jpeg_quality: int = 95
    """Quality of encoding jpeg, 1 to 100."""

    def __post_init__(self) -> None:
        if not 1 <= self.jpeg_quality <= 100:
            raise InputError(f"jpeg_quality: is {self.jpeg_quality}; 1 to 100 is needed")
        for name in ("image_encoding", "val_encoding"):
            if getattr(self, name) == "tiles":
                require_zstandard(f"--{name}")

    def of(self, split: str) -> ImageEncoding:
        """Return the encoding of the pictures of a split."""
        return self.val_encoding if split == "val" else self.image_encoding

    def options(self, splits: Sequence[str]) -> dict[str, Any]:
        """Return what shards of these splits depend on, for the manifest."""
        encodings = [self.of(split) for split in splits]
        options: dict[str, Any] = {"samples_per_shard": self.samples_per_shard}
        options |= {"val_encoding": self.val_encoding} if "val" in splits else {}
        options |= {"jpeg_quality": self.jpeg_quality} if "jpeg" in encodings else {}
        return options | ({"zstd": zstd_version()} if "tiles" in encodings else {})


def plan_scenes(
    files: SceneFiles,
    frames: Mapping[Split, Sequence[SceneFrame]],
    read_label: ReadLabel,
    encoding: SceneEncoding,
    name: str,
) -> tuple[list[ShardPlan], list[str]]:
    """Distribute the frames of each split over shards; return these, and lines for the log.

    Args:
        frames: by split, sorted by key.
        name: first part of the file names.
    """
    shards, report, seen = list[ShardPlan](), list[str](), set[str]()
    for split, of_split in frames.items():
        keys = {frame.key for frame in of_split}
        if shared := sorted(seen & keys):
            also = f"frame {shared[0]} is also in another split{and_more(shared)}"
            raise InputError(f"split {split!r}: {also}")
        seen |= keys
        samples = partial(_encode_frames, files, read_label, encoding.of(split), encoding.jpeg_quality)
        largest = encoding.samples_per_shard
        planned = split_into_shards(of_split, largest, samples, name=name, split=split)
        report.append(f"{split}: {len(of_split)} frames in {len(planned)} shards")
        shards += planned
    return shards, report


def _encode_frames(
    files: SceneFiles,
    read_label: ReadLabel,
    encoding: ImageEncoding,
    jpeg_quality: int,
    frames: Sequence[SceneFrame],
) -> Iterator[EncodedSample]:
    """Yield the shard samples of `frames`.

    The label file holds train ids. The picture is the original PNG file, untouched, a JPEG without chroma
    subsampling, or lossless tiles (`shards/tiles.py`), of which a crop decodes its part only.
    """
    for frame in frames:
        image_path, label_path = files.images.locate(frame.image), files.labels.locate(frame.label)
        content = files.images.read(frame.image)
        picture = decode_picture(content, image_path)
        label = read_label(files.labels.read(frame.label), label_path)
        if label.shape != picture.shape[:2]:
            sizes = f"{_size(label)} pixels, but {image_path} is {_size(picture)}"
            raise InputError(f"{label_path} is {sizes}; they must be equal")
        if encoding == "jpeg":
            content = _encode_jpeg(picture, jpeg_quality)
        elif encoding == "tiles":
            content = encode_tiles(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB))
        elif not content.startswith(PNG_SIGNATURE):
            content = cv2.imencode(".png", picture)[1].tobytes()  # a JPEG: its pixels
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


def _size(picture: UInt8[np.ndarray, "H W ..."]) -> str:
    return f"{picture.shape[1]}x{picture.shape[0]}"
