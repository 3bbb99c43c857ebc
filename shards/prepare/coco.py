"""COCO's pictures and annotations, as cut-out objects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from shards.cutout import Cutout, crop_to_mask, encode_cutout
from shards.errors import InputError
from shards.prepare.annotations import Instances, decode_mask, read_instances
from shards.prepare.objects import CocoObject, ObjectFilter, ObjectSize, select_images, select_objects
from shards.prepare.writer import EncodedSample, ShardPlan, split_into_shards
from shards.source import Source, decode_bgr, open_source

MASK_ENCODING = "object-mask"
"""Name of the values in a cut-out's mask: 0 background, 255 object."""


@dataclass(frozen=True)
class Photo:
    """One picture and the objects to be cut from it."""

    image_id: int
    file: str
    """Name in the source of the pictures."""
    size: tuple[int, int]
    """(height, width) in pixels, as the annotations say."""
    objects: tuple[CocoObject, ...]


@dataclass(frozen=True)
class CocoPlan:
    """What to write, and how it came about."""

    shards: list[ShardPlan]
    report: list[str]
    """One line about the pictures, one about the objects: how many were kept, what dropped the rest."""
    sizes: list[ObjectSize]
    """Of every cut-out, in order."""


def plan_cutouts(
    images: Path, annotations: Path, *, rule: ObjectFilter | None = None, samples_per_shard: int = 1000
) -> CocoPlan:
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
    photos, report = _select(dataset, rule, source)
    weights = [len(photo.objects) for photo in photos]
    pieces = split_into_shards(photos, samples_per_shard, weights)
    shards = [
        ShardPlan(
            name=f"cutouts-train-{i:06d}.tar",
            split="train",
            num_samples=sum(len(photo.objects) for photo in piece),
            samples=partial(cut_objects, source, tuple(piece)),
        )
        for i, piece in enumerate(pieces)
    ]
    sizes = [measure_object(item) for photo in photos for item in photo.objects]
    return CocoPlan(shards, report, sizes)


def cut_objects(images: Source, photos: Sequence[Photo]) -> Iterator[EncodedSample]:
    """Yield the shard samples of all objects of `photos`.

    Raises:
        InputError: a picture cannot be decoded, or has another size than the annotations say.
    """
    for photo in photos:
        where = images.locate(photo.file)
        picture = decode_bgr(images.read(photo.file), where)[..., ::-1]
        if picture.shape[:2] != photo.size:
            raise InputError(
                f"{where}: is {picture.shape[1]}x{picture.shape[0]} pixels, but the annotations say "
                f"{photo.size[1]}x{photo.size[0]}"
            )
        for item in photo.objects:
            cutout = crop_object(picture, item, f"{photo.image_id:012d}-{item.name}")
            yield cutout.key, encode_cutout(cutout)


def measure_object(item: CocoObject) -> ObjectSize:
    """Say of which category and how large an object is."""
    _, _, width, height = item.box
    return ObjectSize(item.category, item.area, height, width)


def crop_object(picture: UInt8[np.ndarray, "H W 3"], item: CocoObject, key: str) -> Cutout:
    """Crop a picture (R, G, B) and an object's mask to the mask's bounding box."""
    mask = decode_mask(item.mask)
    cropped = crop_to_mask(picture, np.ascontiguousarray(mask) * np.uint8(255))
    assert cropped is not None, "empty masks were dropped"
    return Cutout(
        key=key,
        image=cropped[0],
        mask=cropped[1],
        category=item.category,
        source_size=(picture.shape[0], picture.shape[1]),
    )


def _select(dataset: Instances, rule: ObjectFilter, source: Source) -> tuple[list[Photo], list[str]]:
    images, image_funnel = select_images(dataset, rule)
    files = _FileIndex(source)
    chosen, object_funnel = select_objects(dataset, images, rule)
    by_image: dict[int, list[CocoObject]] = {}
    for image_id, item in chosen:
        by_image.setdefault(image_id, []).append(item)
    kept = image_funnel.keep([image for image in images if image["id"] in by_image], "no object left")
    photos = [
        Photo(
            image_id=image["id"],
            file=files.find(image["file_name"], dataset.where),
            size=(image["height"], image["width"]),
            objects=tuple(by_image[image["id"]]),
        )
        for image in kept
    ]
    return photos, [image_funnel.line(), object_funnel.line()]


class _FileIndex:
    """Finds pictures by the file name in the annotations; only names that the source lists are opened."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.names: dict[str, list[str]] = {}
        for name in [*source.match("*"), *source.match("*/*")]:
            self.names.setdefault(name.rsplit("/", 1)[-1], []).append(name)

    def find(self, file_name: str, where: str) -> str:
        """Return the source's name of a picture."""
        base = file_name.rsplit("/", 1)[-1]
        found = self.names.get(base, [])
        if not found:
            raise InputError(
                f"{where}: names the picture {file_name!r}, but there is no {self.source.locate(base)}"
            )
        if len(found) > 1:
            raise InputError(
                f"{where}: the picture {file_name!r} is there twice, as {' and '.join(found[:2])}"
            )
        return found[0]
