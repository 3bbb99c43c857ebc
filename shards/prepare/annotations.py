"""COCO's instance annotations: the file, read once and indexed, and the masks in it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from jaxtyping import UInt8
from pycocotools import mask as coco_mask

from shards.errors import InputError, shorten
from shards.files import from_json
from shards.picture import require_sane_size
from shards.source import open_source

ANNOTATION_FILE = "instances_train2017.json"

MAX_OUTLINE = 2**20
"""Longest outline of an object, in pixels; pycocotools takes 50 to 100 bytes for each."""
_INTEGER, _TEXT, _PARTS, _FLAG = "an integer", "a string", "a list or an object", "0 or 1"
_IMAGE_FIELDS = {"id": _INTEGER, "file_name": _TEXT, "height": _INTEGER, "width": _INTEGER}
_ANNOTATION_FIELDS = {"id": _INTEGER, "image_id": _INTEGER, "category_id": _INTEGER, "segmentation": _PARTS}
_ANNOTATION_FIELDS |= {"iscrowd": _FLAG}
_CATEGORY_FIELDS = {"id": _INTEGER, "name": _TEXT}


class Rle(TypedDict):
    """A mask as pycocotools keeps it: run lengths, compressed."""

    size: list[int]
    """Height and width."""
    counts: bytes


@dataclass(frozen=True)
class Instances:
    """The content of an annotation file, grouped once: the official one has 860,000 objects."""

    where: str
    """The file, for messages."""
    images: list[dict[str, Any]]
    """Each has `id`, `file_name`, `height` and `width`; sorted by id."""
    annotations: dict[int, list[dict[str, Any]]]
    """Objects by image id, an empty list for an image without any, sorted by id; each has `id`,
    `category_id`, `segmentation` and perhaps `iscrowd`."""
    categories: dict[int, str]


def read_instances(path: Path) -> Instances:
    """Read the JSON file `path`, or `instances_train2017.json` out of a folder or zip file.

    There it lies directly inside or in `annotations/`.
    """
    where, data = _find_file(path)
    content = from_json(dict[str, Any], data, where)
    images = _records(content, "images", _IMAGE_FIELDS, where)
    for image in images:
        of_image = f"{where}: image {image['id']}"
        if min(size := (image["height"], image["width"])) < 1:
            raise InputError(f"{of_image}: height and width are {size}; 1 or more are needed")
        require_sane_size(size, of_image)  # pycocotools overruns its memory from 2**32 pixels on
    annotations = _records(content, "annotations", _ANNOTATION_FIELDS, where)
    categories = {e["id"]: e["name"] for e in _records(content, "categories", _CATEGORY_FIELDS, where)}
    by_image: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in images}
    for entry in annotations:
        for field, known in (("image_id", by_image), ("category_id", categories)):
            if entry[field] not in known:
                given = f"annotation {entry['id']} has {field} {entry[field]}"
                raise InputError(f"{where}: {given}, which is not listed")
        by_image[entry["image_id"]].append(entry)
    return Instances(where, images, by_image, categories)


def encode_mask(segmentation: list[Any] | dict[str, Any], height: int, width: int) -> Rle | None:
    """Turn an annotation's `segmentation` (polygons or run lengths) into compressed run lengths.

    Returns:
        None where it is malformed: no polygon, one with fewer than 3 points, an odd number of coordinates, a
        point further outside than the picture is large, outlines longer than `MAX_OUTLINE`, or run lengths
        that do not fit the picture.
    """
    if isinstance(segmentation, list):
        outlines = (_measure_outline(polygon, height, width) for polygon in segmentation)
        if not segmentation or not sum(outlines) <= MAX_OUTLINE:
            return None
        return coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    if segmentation.get("size") != [height, width]:
        return None
    counts = segmentation.get("counts")
    try:
        runs = read_runs(counts) if isinstance(counts, str) else counts
        if not isinstance(runs, list) or not all(type(run) is int and run >= 0 for run in runs):
            return None
        if sum(runs) != height * width:
            return None  # pycocotools writes beyond its memory where runs overflow the picture
        if isinstance(counts, str):
            return Rle(size=[height, width], counts=counts.encode())
        return coco_mask.frPyObjects({"size": [height, width], "counts": runs}, height, width)
    except (TypeError, ValueError):
        return None


def read_runs(counts: str) -> list[int]:
    """Read compressed run lengths, of background and object in turns.

    A character holds 6 bits, counted from "0": five of a number, lowest first, and whether more follow. From
    the fourth run on the number is the difference from the run before the last; its highest bit is a sign.

    Raises:
        ValueError: another character, or the text ends within a number.

    Source: `rleFrString` of https://github.com/cocodataset/cocoapi (common/maskApi.c), which checks nothing.
    """
    runs: list[int] = []
    number = shift = 0
    for character in counts:
        bits = ord(character) - ord("0")
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError(f"compressed run lengths: {character!r} at run {len(runs)} is misplaced")
        number |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        number -= (1 << shift) if bits & 16 else 0
        runs.append(number + (runs[-2] if len(runs) > 2 else 0))
        number = shift = 0
    if shift:
        raise ValueError("compressed run lengths end within a number")
    return runs


def decode_mask(mask: Rle) -> UInt8[np.ndarray, "H W"]:
    """Return a mask of `encode_mask` as an array of 0 and 1."""
    runs = read_runs(mask["counts"].decode())
    flat = np.repeat((np.arange(len(runs)) % 2).astype(np.uint8), runs)
    return flat.reshape(mask["size"][::-1]).T  # by columns, as COCO counts


def _measure_outline(polygon: Any, height: int, width: int) -> float:
    """Return the length of a polygon in pixels, along the longer axis of each side; infinity: it is none."""
    # pycocotools would read a list of 4 numbers as a box, and need memory in proportion to a far point.
    if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
        return math.inf
    if not all(type(value) in (int, float) for value in polygon):
        return math.inf
    is_near = all(-width <= x <= 2 * width for x in polygon[0::2])  # false for NaN
    if not is_near or not all(-height <= y <= 2 * height for y in polygon[1::2]):
        return math.inf
    points = np.array(polygon, np.float64).reshape(-1, 2)
    return float(np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum())


def _find_file(path: Path) -> tuple[str, bytes]:
    if path.suffix == ".json" and path.is_file():
        return str(path), path.read_bytes()
    source = open_source(path, "--annotations")
    names = (ANNOTATION_FILE, f"annotations/{ANNOTATION_FILE}")
    for name in filter(None, map(source.find, names)):
        return source.locate(name), source.read(name)
    raise InputError(f"--annotations {path}: holds neither {' nor '.join(names)}")


def _records(content: dict[str, Any], name: str, fields: dict[str, str], where: str) -> list[dict[str, Any]]:
    """Return a checked list of the file, sorted by id."""
    if not isinstance(content.get(name), list):
        raise InputError(f"{where}: has no list {name!r}; COCO's instance format is needed")
    for i, entry in enumerate(content[name]):
        if not isinstance(entry, dict):
            raise InputError(f"{where}: {name}[{i}] is {shorten(entry)}; a JSON object is needed")
        for field, kind in fields.items():
            if not _IS_OF_KIND[kind](value := entry.get(field, 0 if kind is _FLAG else None)):
                raise InputError(f"{where}: {name}[{i}].{field} is {shorten(value)}; {kind} is needed")
    entries = sorted(content[name], key=lambda entry: entry["id"])
    for before, entry in pairwise(entries):
        if before["id"] == entry["id"]:
            raise InputError(f"{where}: two {name} have the id {entry['id']}")
    return entries


_IS_OF_KIND: dict[str, Callable[[Any], bool]] = {
    _INTEGER: lambda value: type(value) is int,
    _TEXT: lambda value: isinstance(value, str),
    _PARTS: lambda value: isinstance(value, list | dict),
    _FLAG: lambda value: isinstance(value, int) and value in (0, 1),
}
