"""Pictures with segment maps, as ADE20K has them, as cut-out objects.

A map is a PNG of its picture's height and width. One channel of 8 or 16 bits, or the entry of a palette,
holds the number of each pixel's segment; three channels hold R + 256 * G + 65536 * B, as COCO's panoptic maps
do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Int32, UInt8

from shards.cutout import Cutout, encode_cutout
from shards.errors import InputError
from shards.picture import COLOUR, GREY, GREY16, PALETTE, Picture, decode_numbers
from shards.prepare.objects import FilterReport, ObjectSize, plan_bank
from shards.prepare.plan import EncodedSample, FolderPlan, split_into_shards
from shards.progress import Progress
from shards.source import Source, list_near, open_source

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True, kw_only=True)
class SegmentFilter:
    """Which segments become cut-outs."""

    only_ids: tuple[int, ...] = ()
    """Take segments of these numbers and no others; empty takes all."""
    ignored_ids: tuple[int, ...] = (0,)
    """Numbers that are no segment, such as ADE20K's 0."""
    connected: bool = True
    """Every connected region of a number is a cut-out; False takes all pixels of a number together."""
    min_side: int = 0
    """Least height and least width of a picture, in pixels."""
    min_area: int = 1024
    """Least number of pixels of a cut-out."""

    def __post_init__(self) -> None:
        for name in ("min_side", "min_area"):
            if getattr(self, name) < 0:
                raise InputError(f"{name}: is {getattr(self, name)}; 0 or more is needed")


class Segment(NamedTuple):
    """One region of a picture."""

    name: str
    """Unique in its picture."""
    number: int
    box: tuple[slice, slice]
    """Rows and columns of the bounding box."""
    mask: UInt8[np.ndarray, "h w"]
    """0 or 255, inside the bounding box."""
    area: int
    """Number of pixels."""

    @property
    def category(self) -> str:
        """Name of the segment's category."""
        return f"segment {self.number}"


class SegmentedPicture(NamedTuple):
    """A picture and its map, by their names in their sources."""

    key: str
    picture: str
    map: str


def plan_segments(
    images: Path, segments: Path, rule: SegmentFilter, samples_per_shard: int = 1000
) -> FolderPlan:
    """Choose segments and distribute them over shards, sorted by name; all of a picture go to one shard.

    Args:
        images: folder or zip file of pictures, directly inside or one folder below.
        segments: the same of maps; a map has its picture's name and ends in `.png`.
        samples_per_shard: about the most cut-outs in a shard.
    """
    pictures, maps = open_source(images, "--images"), open_source(segments, "--segments")
    entries = _pair(pictures, maps)
    sizes: list[ObjectSize] = []
    chosen, counts, total = [], [], 0
    for entry in Progress(entries, desc="reading maps", unit="map"):
        found = find_segments(read_ids(maps.read(entry.map), maps.locate(entry.map)), rule)
        total += len(found)
        if kept := [segment for segment in found if segment.area >= rule.min_area]:
            chosen.append(entry)
            counts.append(len(kept))
        sizes += [(s.category, s.area, s.mask.shape[0], s.mask.shape[1]) for s in kept]
    if not total:
        raise InputError(f"{segments}: holds no segments that only_ids, ignored_ids and min_side leave")
    report = FilterReport(str(segments), "segments", total)
    report.note(sizes, f"smaller than {rule.min_area} pixels (min_area)")
    samples = partial(_cut_segments, pictures, maps, rule)
    shards = split_into_shards(
        chosen, samples_per_shard, samples, name="cutouts", split="train", weights=counts
    )
    lines = [f"pictures: {len(chosen)} kept of {len(entries)} maps", report.line()]
    return plan_bank(shards, rule, samples_per_shard, lines, sizes)


def _cut_segments(
    pictures: Source, maps: Source, rule: SegmentFilter, entries: Sequence[SegmentedPicture]
) -> Iterator[EncodedSample]:
    for entry in entries:
        where, of_map = pictures.locate(entry.picture), maps.locate(entry.map)
        image = Picture(pictures.read(entry.picture), where).decode()
        ids = read_ids(maps.read(entry.map), of_map)
        size = (image.shape[0], image.shape[1])
        if size != ids.shape:
            sizes = f"{size[1]}x{size[0]} pixels, its map {of_map} {ids.shape[1]}x{ids.shape[0]}"
            raise InputError(f"{where}: is {sizes}")
        for segment in find_segments(ids, rule):
            if segment.area >= rule.min_area:
                part = np.ascontiguousarray(image[segment.box])
                cutout = Cutout(f"{entry.key}-{segment.name}", part, segment.mask, segment.category, size)
                yield cutout.key, encode_cutout(cutout)


def read_ids(content: bytes, where: str) -> Int32[np.ndarray, "H W"]:
    """Decode a map."""
    coded = decode_numbers(content, where, (GREY, GREY16, COLOUR, PALETTE))
    if coded.ndim == 2:
        return coded.astype(np.int32)
    blue, green, red = (coded[..., i].astype(np.int32) for i in range(3))  # OpenCV's order
    return red + 256 * green + 65536 * blue


def find_segments(ids: Int32[np.ndarray, "H W"], rule: SegmentFilter) -> list[Segment]:
    """List the segments of a map, by number, then from top to bottom."""
    if min(ids.shape) < rule.min_side:
        return []
    found = []
    for number in np.unique(ids).tolist():
        if number in rule.ignored_ids or (rule.only_ids and number not in rule.only_ids):
            continue
        mask = (ids == number).astype(np.uint8)
        count, parts = cv2.connectedComponents(mask) if rule.connected else (2, mask)
        for part in range(1, count):
            region = (parts == part).astype(np.uint8) * np.uint8(255)
            left, top, width, height = cv2.boundingRect(region)
            box = (slice(top, top + height), slice(left, left + width))
            cropped = np.ascontiguousarray(region[box])
            name = f"{number}p{part}" if rule.connected else f"{number}"
            found.append(Segment(name, number, box, cropped, cv2.countNonZero(cropped)))
    return found


def _pair(pictures: Source, maps: Source) -> list[SegmentedPicture]:
    by_stem: dict[str, str] = {}
    for name in list_near(pictures):
        if PurePosixPath(name).suffix.lower() in PICTURE_SUFFIXES:
            stem = PurePosixPath(name).stem
            if stem in by_stem:
                twice = f"two pictures of one name; the other is {by_stem[stem]}"
                raise InputError(f"{pictures.locate(name)}: {twice}")
            by_stem[stem] = name
    entries = []
    for name in (name for name in list_near(maps) if name.lower().endswith(".png")):
        stem = PurePosixPath(name).stem
        if stem not in by_stem:
            raise InputError(f"{maps.locate(name)}: map without picture; no {stem}.jpg or .png is there")
        entries.append(SegmentedPicture(stem.replace(".", "_"), by_stem[stem], name))
    if not entries:
        raise InputError(f"--segments {maps.path}: holds no .png files")
    return entries
