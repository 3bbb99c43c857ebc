"""COCO's pictures and annotations, as cut-out objects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from shards.cutout import Cutout, crop_to_mask, encode_cutout
from shards.errors import InputError
from shards.prepare.annotations import decode_mask, read_instances
from shards.prepare.objects import (
    CocoObject,
    ObjectFilter,
    ObjectSize,
    group_by_image,
    plan_bank,
    select_images,
    select_objects,
)
from shards.prepare.plan import EncodedSample, FolderPlan, split_into_shards
from shards.source import Source, decode_bgr, open_source


@dataclass(frozen=True)
class Photo:
    """One picture and the objects to be cut from it."""

    file: str
    """Name in the source of the pictures."""
    size: tuple[int, int]
    """(height, width) in pixels, as the annotations say."""
    objects: tuple[CocoObject, ...]


def plan_cutouts(
    images: Path, annotations: Path, *, rule: ObjectFilter | None = None, samples_per_shard: int = 1000
) -> FolderPlan:
    """Choose objects and distribute them over shards, sorted by image id, then by annotation id.

    All objects of a picture go to one shard, so that it is decoded once.

    Args:
        images: folder or zip file of pictures, directly inside or one folder below.
        annotations: `instances_train2017.json`, or a folder or zip file that holds it.
        rule: which objects qualify.
        samples_per_shard: about the most objects in a shard.

    Raises:
        InputError: a file is missing or malformed, the picture of a chosen object is missing, or no object is
            left; the message then names the filter that dropped the last ones.
    """
    rule = rule or ObjectFilter()
    source = open_source(images, "--images")
    dataset = read_instances(annotations)
    pictures, image_report = select_images(dataset, rule)
    files: dict[str, list[str]] = {}
    for name in [*source.match("*"), *source.match("*/*")]:
        files.setdefault(name.rsplit("/", 1)[-1], []).append(name)
    objects, object_report = select_objects(dataset, pictures, rule)
    groups = group_by_image(objects)
    photos = [
        Photo(
            file=_find_picture(files, image["file_name"], source, dataset.where),
            size=(image["height"], image["width"]),
            objects=tuple(groups[image["id"]]),
        )
        for image in image_report.keep(pictures, lambda image: image["id"] in groups, "no object left")
    ]
    shards = split_into_shards(
        photos,
        samples_per_shard,
        partial(cut_objects, source),
        name="cutouts",
        split="train",
        weights=[len(photo.objects) for photo in photos],
    )
    sizes = [
        ObjectSize(item.category, item.area, item.box[3], item.box[2])
        for photo in photos
        for item in photo.objects
    ]
    return plan_bank(shards, rule, samples_per_shard, [image_report.line(), object_report.line()], sizes)


def cut_objects(images: Source, photos: Sequence[Photo]) -> Iterator[EncodedSample]:
    """Yield the shard samples of all objects of `photos`."""
    for photo in photos:
        where = images.locate(photo.file)
        picture = decode_bgr(images.read(photo.file), where)[..., ::-1]
        height, width = picture.shape[:2]
        if (height, width) != photo.size:
            said = f"but the annotations say {photo.size[1]}x{photo.size[0]}"
            raise InputError(f"{where}: is {width}x{height} pixels, {said}")
        for item in photo.objects:
            mask = np.ascontiguousarray(decode_mask(item.mask)) * np.uint8(255)
            cropped = crop_to_mask(picture, mask)
            assert cropped is not None, "empty masks were dropped"
            cutout = Cutout(f"{item.image_id:012d}-{item.name}", *cropped, item.category, photo.size)
            yield cutout.key, encode_cutout(cutout)


def _find_picture(files: dict[str, list[str]], file_name: str, source: Source, where: str) -> str:
    """Return the source's name of a picture; only names that the source lists are opened."""
    base = file_name.rsplit("/", 1)[-1]
    found = files.get(base, [])
    if not found:
        raise InputError(f"{where}: names the picture {file_name!r}, but there is no {source.locate(base)}")
    if len(found) > 1:
        raise InputError(f"{where}: the picture {file_name!r} is there twice, as {' and '.join(found[:2])}")
    return found[0]
