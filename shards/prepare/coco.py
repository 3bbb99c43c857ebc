"""COCO's pictures and annotations, as cut-out objects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from shards.cutout import Cutout, crop_to_mask, encode_cutout
from shards.errors import InputError
from shards.picture import Picture
from shards.prepare.annotations import decode_mask, read_instances
from shards.prepare.objects import (
    CocoObject,
    ObjectFilter,
    group_by_image,
    plan_bank,
    select_images,
    select_objects,
)
from shards.prepare.plan import EncodedSample, FolderPlan, split_into_shards
from shards.source import Source, list_near, open_source


class Photo(NamedTuple):
    """One picture and the objects to be cut from it."""

    file: str
    """Name in the source of the pictures."""
    size: tuple[int, int]
    """(height, width) in pixels, as the annotations say."""
    objects: tuple[CocoObject, ...]


def plan_cutouts(
    images: Path, annotations: Path, rule: ObjectFilter, samples_per_shard: int = 1000
) -> FolderPlan:
    """Choose objects and distribute them over shards, sorted by image id, then by annotation id.

    All objects of a picture go to one shard, so that it is decoded once.

    Args:
        images: folder or zip file of pictures: under their `file_name`, or one folder below.
        annotations: `instances_train2017.json`, or a folder or zip file that holds it.
        samples_per_shard: about the most objects in a shard.
    """
    source = open_source(images, "--images")
    dataset = read_instances(annotations)
    pictures, image_report = select_images(dataset, rule)
    objects, object_report = select_objects(dataset, pictures, rule)
    groups = group_by_image(objects)
    pictures = image_report.keep(pictures, lambda image: image["id"] in groups, "no object left")
    files = _find_pictures(source, [image["file_name"] for image in pictures], dataset.where)
    photos = [
        Photo(file, (image["height"], image["width"]), tuple(groups[image["id"]]))
        for file, image in zip(files, pictures, strict=True)
    ]
    weights, cut = [len(photo.objects) for photo in photos], partial(_cut_objects, source)
    shards = split_into_shards(photos, samples_per_shard, cut, name="cutouts", split="train", weights=weights)
    sizes = [(item.category, item.area, item.box[3], item.box[2]) for item in objects]
    return plan_bank(shards, rule, samples_per_shard, [image_report.line(), object_report.line()], sizes)


def _cut_objects(images: Source, photos: Sequence[Photo]) -> Iterator[EncodedSample]:
    for photo in photos:
        where = images.locate(photo.file)
        picture = Picture(images.read(photo.file), where).decode()
        height, width = picture.shape[:2]
        if (height, width) != photo.size:
            said = f"but the annotations say {photo.size[1]}x{photo.size[0]}"
            raise InputError(f"{where}: is {width}x{height} pixels, {said}")
        for item in photo.objects:
            cropped = crop_to_mask(picture, np.ascontiguousarray(decode_mask(item.mask)) * np.uint8(255))
            assert cropped is not None, "empty masks were dropped"
            cutout = Cutout(f"{item.image_id:012d}-{item.name}", *cropped, item.category, photo.size)
            yield cutout.key, encode_cutout(cutout)


def find_picture(source: Source, name: str) -> list[str]:
    """Return the files that an annotation's `file_name` may mean; only names that the source lists.

    `sub/a.jpg` is that below the source; where there is none, one folder below, or in the source itself if
    it is the folder `sub`.
    """
    if (exact := source.find(name)) is not None:
        return [exact]
    near = _near_by_base(source).get(name.rpartition("/")[2], [])
    return [file for file in near if f"/{file}".endswith(f"/{name}") or f"/{name}".endswith(f"/{file}")]


@lru_cache(maxsize=4)
def _near_by_base(source: Source) -> dict[str, list[str]]:
    files: dict[str, list[str]] = {}
    for name in list_near(source):
        files.setdefault(name.rpartition("/")[2], []).append(name)
    return files


def _find_pictures(source: Source, file_names: Sequence[str], where: str) -> Iterator[str]:
    """Yield the source's names of pictures."""
    for name in file_names:
        found = find_picture(source, name)
        if not found:
            raise InputError(f"{where}: names the picture {name!r}, but there is no {source.locate(name)}")
        if len(found) > 1:
            raise InputError(f"{where}: the picture {name!r} is there twice, as {' and '.join(found[:2])}")
        yield found[0]
