"""COCO's pictures and annotations, as cut-out objects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import UInt8
from pycocotools import mask as coco_mask
from tqdm import tqdm

from shards.annotations import Instances, Rle, decode_mask, encode_mask, read_instances
from shards.cutout import Cutout, encode_cutout
from shards.errors import InputError
from shards.source import Source, decode_bgr, open_source
from shards.writer import EncodedSample, ShardPlan, split_into_shards

META_OOD_CATEGORIES = ("person", "bicycle", "car", "motorcycle", "bus", "truck", "traffic light", "stop sign")
"""COCO categories that are Cityscapes classes too, as Meta-OoD lists them; it leaves out `train`."""

MASK_ENCODING = "object-mask"
"""Name of the values in a cut-out's mask: 0 background, 255 object."""

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class ObjectFilter:
    """Which objects become cut-outs."""

    excluded_categories: tuple[str, ...] = META_OOD_CATEGORIES
    """A picture that shows any of these is left out whole. The default is Meta-OoD's list, which lacks
    `train`, a class of Cityscapes: add it where trains must not be taught as outliers."""
    min_side: int = 480
    """Least height and least width of a picture, in pixels."""
    min_area: int = 1024
    """Least number of pixels of an object; 1024 is COCO's border between small and medium."""
    crowd: bool = False
    """Take regions that are marked as a crowd of objects, too."""
    max_objects: int = 0
    """Draw so many objects at random from those that are left; 0 takes all."""
    seed: int = 0
    """Of that draw."""

    def __post_init__(self) -> None:
        for name in ("min_side", "min_area", "max_objects", "seed"):
            if getattr(self, name) < 0:
                raise InputError(f"{name}: is {getattr(self, name)}; 0 or more is needed")


@dataclass(frozen=True)
class CocoObject:
    """One annotated object."""

    annotation_id: int
    category: str
    mask: Rle

    @property
    def area(self) -> int:
        """Number of pixels."""
        return int(coco_mask.area(self.mask))


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
    return CocoPlan(shards, report)


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
            cutout = crop_object(picture, item, f"{photo.image_id:012d}-{item.annotation_id}")
            yield cutout.key, encode_cutout(cutout)


def crop_object(picture: UInt8[np.ndarray, "H W 3"], item: CocoObject, key: str) -> Cutout:
    """Crop a picture (R, G, B) and an object's mask to the mask's bounding box."""
    mask = decode_mask(item.mask)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    return Cutout(
        key=key,
        image=np.ascontiguousarray(picture[box]),
        mask=np.ascontiguousarray(mask[box]) * np.uint8(255),
        category=item.category,
        source_size=(picture.shape[0], picture.shape[1]),
    )


class _Funnel:
    """Counts what each filter drops, and complains about the one that leaves nothing."""

    def __init__(self, where: str, unit: str, count: int) -> None:
        self.where, self.unit, self.count = where, unit, count
        self.dropped: list[str] = []
        if not count:
            raise InputError(f"{where}: holds no {unit}")

    def keep(self, items: list[Item], reason: str) -> list[Item]:
        """Note that of the items so far only `items` are left, for `reason`."""
        if not items:
            raise InputError(
                f"{self.where}: no {self.unit} are left; the last {self.count} were dropped: {reason}"
            )
        if self.count > len(items):
            self.dropped.append(f"{self.count - len(items)} dropped: {reason}")
        self.count = len(items)
        return items

    def line(self) -> str:
        """Return the report, such as `objects: 3 kept; 2 dropped: crowd`."""
        return f"{self.unit}: " + "; ".join([f"{self.count} kept", *self.dropped])


def _select(dataset: Instances, rule: ObjectFilter, source: Source) -> tuple[list[Photo], list[str]]:
    images, image_funnel = _select_images(dataset, rule)
    files = _FileIndex(source)
    chosen, object_funnel = _select_objects(dataset, images, rule)
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


def _select_images(dataset: Instances, rule: ObjectFilter) -> tuple[list[dict[str, Any]], _Funnel]:
    known = set(dataset.categories.values())
    if unknown := sorted(set(rule.excluded_categories) - known - set(META_OOD_CATEGORIES)):
        raise InputError(
            f"excluded_categories: {unknown[0]!r} is no category of {dataset.where}; known "
            f"ones are {', '.join(sorted(known))}"
        )
    excluded = {number for number, name in dataset.categories.items() if name in rule.excluded_categories}
    funnel = _Funnel(dataset.where, "images", len(dataset.images))
    images = [
        image
        for image in dataset.images
        if not any(entry["category_id"] in excluded for entry in dataset.annotations[image["id"]])
    ]
    images = funnel.keep(images, "an excluded category is in the picture")
    large = [image for image in images if min(image["height"], image["width"]) >= rule.min_side]
    return funnel.keep(large, f"a side is shorter than {rule.min_side} pixels (min_side)"), funnel


def _select_objects(
    dataset: Instances, images: list[dict[str, Any]], rule: ObjectFilter
) -> tuple[list[tuple[int, CocoObject]], _Funnel]:
    """Return (image id, object) pairs in the order of the images, then of the annotation ids."""
    pairs = [(image, entry) for image in images for entry in dataset.annotations[image["id"]]]
    funnel = _Funnel(dataset.where, "objects in these images", len(pairs))
    if not rule.crowd:
        pairs = funnel.keep([pair for pair in pairs if not pair[1].get("iscrowd")], "a crowd")
    masks = [
        (image, entry, encode_mask(entry["segmentation"], image["height"], image["width"]))
        for image, entry in tqdm(pairs, desc="reading masks", unit="object", disable=None)
    ]
    objects = [
        (image["id"], CocoObject(entry["id"], dataset.categories[entry["category_id"]], mask))
        for image, entry, mask in masks
        if mask is not None
    ]
    objects = funnel.keep(objects, "a broken polygon or run lengths that do not fit the picture")
    objects = funnel.keep([pair for pair in objects if pair[1].area], "an empty mask")
    large = [pair for pair in objects if pair[1].area >= rule.min_area]
    objects = funnel.keep(large, f"smaller than {rule.min_area} pixels (min_area)")
    if 0 < rule.max_objects < len(objects):
        order = np.random.default_rng([rule.seed]).permutation(len(objects))
        drawn = [objects[i] for i in sorted(order[: rule.max_objects])]
        objects = funnel.keep(drawn, f"not drawn (max_objects {rule.max_objects})")
    return objects, funnel


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
