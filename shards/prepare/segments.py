"""Pictures with segment maps, as ADE20K has them, as cut-out objects.

A map is a PNG of its picture's height and width. One channel of 8 or 16 bits holds the number of each pixel's
segment; three channels hold R + 256 * G + 65536 * B, as COCO's panoptic maps do.
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
from tqdm import tqdm

from shards.cutout import Cutout, encode_cutout
from shards.errors import InputError
from shards.prepare.coco import CocoPlan
from shards.prepare.objects import Funnel, ObjectSize
from shards.prepare.writer import EncodedSample, ShardPlan, split_into_shards
from shards.source import Source, decode_bgr, open_source

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png")


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
    left: int
    top: int
    mask: UInt8[np.ndarray, "h w"]
    """Of the bounding box; 0 or 255."""


@dataclass(frozen=True)
class SegmentedPicture:
    """A picture, its map, and how many cut-outs they give."""

    key: str
    picture: str
    map: str
    num_segments: int


def plan_segments(
    images: Path, segments: Path, *, rule: SegmentFilter | None = None, samples_per_shard: int = 1000
) -> CocoPlan:
    """Choose segments and distribute them over shards, sorted by the pictures' names.

    Args:
        images: folder or zip file of pictures, directly inside or one folder below.
        segments: the same of maps; a map has its picture's name and ends in `.png`.
        rule: which segments qualify.
        samples_per_shard: about the most cut-outs in a shard.

    Raises:
        InputError: a map has no picture or is broken, or no cut-out is left; the message then names the
            filter that dropped the last ones.
    """
    rule = rule or SegmentFilter()
    pictures, maps = open_source(images, "--images"), open_source(segments, "--segments")
    pairs = _pair(pictures, maps)
    funnel = Funnel(str(segments), "segments", 1)
    chosen, sizes, dropped = [], list[ObjectSize](), 0
    for key, picture, name in tqdm(pairs, desc="reading maps", unit="map", disable=None):
        ids = read_ids(maps.read(name), maps.locate(name))
        found = find_segments(ids, rule)
        kept = [segment for segment in found if _area(segment) >= rule.min_area]
        dropped += len(found) - len(kept)
        if kept:
            chosen.append(SegmentedPicture(key, picture, name, len(kept)))
        sizes += [ObjectSize(_category(s.number), _area(s), *s.mask.shape) for s in kept]
    funnel.count = len(sizes) + dropped
    if not funnel.count:
        raise InputError(f"{segments}: holds no segments that only_ids, ignored_ids and min_side leave")
    funnel.keep(sizes, f"smaller than {rule.min_area} pixels (min_area)")
    pieces = split_into_shards(chosen, samples_per_shard, [entry.num_segments for entry in chosen])
    shards = [
        ShardPlan(
            name=f"cutouts-train-{i:06d}.tar",
            split="train",
            num_samples=sum(entry.num_segments for entry in piece),
            samples=partial(cut_segments, pictures, maps, rule, tuple(piece)),
        )
        for i, piece in enumerate(pieces)
    ]
    return CocoPlan(shards, [f"pictures: {len(chosen)} kept of {len(pairs)} maps", funnel.line()], sizes)


def cut_segments(
    pictures: Source, maps: Source, rule: SegmentFilter, entries: Sequence[SegmentedPicture]
) -> Iterator[EncodedSample]:
    """Yield the shard samples of all segments of `entries`.

    Raises:
        InputError: a picture or map is broken, or their sizes differ.
    """
    for entry in entries:
        where = pictures.locate(entry.picture)
        image = cv2.cvtColor(decode_bgr(pictures.read(entry.picture), where), cv2.COLOR_BGR2RGB)
        ids = read_ids(maps.read(entry.map), maps.locate(entry.map))
        if image.shape[:2] != ids.shape:
            raise InputError(
                f"{where}: is {image.shape[1]}x{image.shape[0]} pixels, its map {maps.locate(entry.map)} "
                f"{ids.shape[1]}x{ids.shape[0]}"
            )
        for segment in find_segments(ids, rule):
            if _area(segment) < rule.min_area:
                continue
            height, width = segment.mask.shape
            box = (slice(segment.top, segment.top + height), slice(segment.left, segment.left + width))
            cutout = Cutout(
                key=f"{entry.key}-{segment.name}",
                image=np.ascontiguousarray(image[box]),
                mask=segment.mask,
                category=_category(segment.number),
                source_size=(image.shape[0], image.shape[1]),
            )
            yield cutout.key, encode_cutout(cutout)


def read_ids(content: bytes, where: str) -> Int32[np.ndarray, "H W"]:
    """Decode a map.

    Raises:
        InputError: it is no PNG of 1 or 3 channels.
    """
    coded = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED) if content else None
    if coded is None:
        raise InputError(f"{where}: cannot be decoded as a picture ({len(content)} bytes)")
    if coded.ndim == 2:
        return coded.astype(np.int32)
    if coded.ndim == 3 and coded.shape[2] == 3 and coded.dtype == np.uint8:
        blue, green, red = (coded[..., i].astype(np.int32) for i in range(3))  # OpenCV's order
        return red + 256 * green + 65536 * blue
    raise InputError(
        f"{where}: has {coded.shape[2]} channels of {coded.dtype}; a map has one, or three of 8 bits"
    )


def find_segments(ids: Int32[np.ndarray, "H W"], rule: SegmentFilter) -> list[Segment]:
    """List the segments of a map, by number, then from top to bottom."""
    if min(ids.shape) < rule.min_side:
        return []
    numbers = [n for n in np.unique(ids).tolist() if n not in rule.ignored_ids]
    found = []
    for number in numbers:
        if rule.only_ids and number not in rule.only_ids:
            continue
        mask = (ids == number).astype(np.uint8)
        count, parts = cv2.connectedComponents(mask) if rule.connected else (2, mask.astype(np.int32))
        for part in range(1, count):
            region = (parts == part).astype(np.uint8) * np.uint8(255)
            left, top, width, height = cv2.boundingRect(region)
            cropped = np.ascontiguousarray(region[top : top + height, left : left + width])
            name = f"{number}.{part}" if rule.connected else f"{number}"
            found.append(Segment(name.replace(".", "p"), number, left, top, cropped))
    return found


def _pair(pictures: Source, maps: Source) -> list[tuple[str, str, str]]:
    """Return (key, picture, map) of every map."""
    by_stem: dict[str, str] = {}
    for name in [*pictures.match("*"), *pictures.match("*/*")]:
        if PurePosixPath(name).suffix.lower() in PICTURE_SUFFIXES:
            stem = PurePosixPath(name).stem
            if stem in by_stem:
                raise InputError(
                    f"{pictures.locate(name)}: two pictures of one name; the other is {by_stem[stem]}"
                )
            by_stem[stem] = name
    pairs = []
    for name in sorted(n for n in [*maps.match("*"), *maps.match("*/*")] if n.lower().endswith(".png")):
        stem = PurePosixPath(name).stem
        if stem not in by_stem:
            raise InputError(f"{maps.locate(name)}: map without picture; no {stem}.jpg or .png is there")
        pairs.append((stem.replace(".", "_"), by_stem[stem], name))
    if not pairs:
        raise InputError(f"--segments {maps.path}: holds no .png files")
    return pairs


def _area(segment: Segment) -> int:
    return int(np.count_nonzero(segment.mask))


def _category(number: int) -> str:
    return f"segment {number}"
