"""The objects of a bank: which annotations become cut-outs, what each filter dropped, and the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from pycocotools import mask as coco_mask

from shards.errors import InputError, printable
from shards.prepare.annotations import Instances, Rle, encode_mask
from shards.prepare.plan import FolderPlan, ShardPlan
from shards.progress import Progress

META_OOD_CATEGORIES = ("person", "bicycle", "car", "motorcycle", "bus", "truck", "traffic light", "stop sign")
"""COCO categories that are Cityscapes classes too, as Meta-OoD lists them; it leaves out `train`."""
TEST_CATEGORIES = (
    *("airplane", "bear", "bird", "boat", "bottle", "cat", "chair", "couch", "cow", "dining table", "dog"),
    *("elephant", "giraffe", "horse", "potted plant", "sheep", "tv", "zebra"),
)
"""COCO categories that are anomalies of a test set: the objects of Pascal VOC that Fishyscapes Static pastes,
and the animals and vehicles of Road Anomaly and RoadAnomaly21, by their papers and the names of images."""
MASK_ENCODING = "object-mask"
"""Name of the values in a cut-out's mask: 0 background, 255 object."""
SEVERAL = "several"
"""Category of the merged objects of a picture, where they are of more than one."""

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class ObjectFilter:
    """Which objects become cut-outs."""

    unit: Literal["object", "image"] = "object"
    """What a cut-out is: one annotated object, or all objects of a picture together, crowds included, as
    Meta-OoD and the methods that follow it have it."""
    excluded_categories: tuple[str, ...] = META_OOD_CATEGORIES
    """A picture that shows any of these is left out whole. The default is Meta-OoD's list, which lacks
    `train`, a class of Cityscapes: add it where trains must not be taught as outliers."""
    test_categories: bool = True
    """Take objects of categories that are anomalies of a test set, such as cow and sheep, too. False excludes
    them like the categories above, for numbers of which one can say "never pasted" (FS Static, Road Anomaly,
    RoadAnomaly21; the obstacles of Lost and Found and RoadObstacle21 are hardly COCO's)."""
    exclude: Literal["image", "object"] = "image"
    """`image` is as said above; `object` leaves out the objects of these categories and takes the others of
    the same picture, so that a zebra is taken from beside a car."""
    only_categories: tuple[str, ...] = ()
    """Take objects of these categories and no others; empty takes all."""
    min_side: int = 480
    """Least height and least width of a picture, in pixels."""
    min_area: int = 1024
    """Least number of pixels of an object; 1024 is COCO's border between small and medium."""
    max_area: int = 0
    """Most pixels of an object; 0 sets no limit."""
    min_fill: float = 0.0
    """Least share of its bounding box that an object covers, 0 to 1: thin and scattered ones fall out."""
    truncated: bool = True
    """Take objects that reach the border of their picture, and so may be cut off there, too."""
    crowd: bool = False
    """Take regions that are marked as a crowd of objects, too."""
    max_objects: int = 0
    """Number of objects drawn at random from those that are left; 0 takes all."""
    seed: int = 0
    """Seed of that draw."""

    @property
    def excluded(self) -> frozenset[str]:
        """All categories that are left out."""
        return frozenset(self.excluded_categories) | frozenset(
            () if self.test_categories else TEST_CATEGORIES
        )

    def __post_init__(self) -> None:
        for name in ("min_side", "min_area", "max_area", "max_objects", "seed"):
            if (value := getattr(self, name)) < 0:
                raise InputError(f"{name}: is {value}; 0 or more is needed")
        if not 0 <= self.min_fill <= 1:
            raise InputError(f"min_fill: is {self.min_fill}; a number in 0..1 is needed")
        if 0 < self.max_area < self.min_area:
            raise InputError(f"max_area: is {self.max_area}, less than min_area {self.min_area}")
        if self.unit == "image":
            for name, neutral in (("exclude", "image"), ("only_categories", ()), ("crowd", False)):
                if (value := getattr(self, name)) != neutral:
                    given = f"is {value!r} with unit image, which takes all objects of a picture"
                    raise InputError(f"{name}: {given}; leave it out, or take unit object")


def find_test_categories(options: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return those of `TEST_CATEGORIES` that a bank made with `options`, of its manifest, may hold.

    None where they do not say, as of a bank that was not made of COCO.
    """
    if "excluded_categories" not in options:
        return None
    lists = ("excluded_categories", "only_categories")
    names: dict[str, Any] = {name: tuple(options[name]) for name in lists if name in options}
    rule = ObjectFilter(**names, test_categories=options.get("test_categories", True))
    wanted = rule.only_categories or TEST_CATEGORIES
    return tuple(name for name in TEST_CATEGORIES if name in wanted and name not in rule.excluded)


@dataclass(frozen=True)
class CocoObject:
    """One annotated object, or all of a picture together."""

    image_id: int
    name: str
    """Number of the annotation, or `all`."""
    category: str
    mask: Rle

    @property
    def area(self) -> int:
        """Number of pixels."""
        return int(coco_mask.area(self.mask))

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, width and height of the bounding box, in pixels."""
        left, top, width, height = (int(value) for value in coco_mask.toBbox(self.mask))
        return left, top, width, height

    @property
    def fill(self) -> float:
        """Share of the bounding box that it covers."""
        return self.area / (self.box[2] * self.box[3])

    @property
    def touches_border(self) -> bool:
        """Whether it reaches the border of its picture."""
        left, top, width, height = self.box
        rows, columns = self.mask["size"]
        return left == 0 or top == 0 or left + width == columns or top + height == rows


class FilterReport:
    """Counts what each filter drops, and complains about the one that leaves nothing."""

    def __init__(self, where: str, unit: str, count: int) -> None:
        self.where, self.unit, self.count = where, unit, count
        self.dropped: list[str] = []
        if not count:
            raise InputError(f"{where}: holds no {unit}")

    def note(self, items: list[Item], reason: str) -> list[Item]:
        """Note that of the items so far only `items` are left, for `reason`."""
        if not items:
            dropped = f"the last {self.count} were dropped: {reason}"
            raise InputError(f"{self.where}: no {self.unit} are left; {dropped}")
        if self.count > len(items):
            self.dropped.append(f"{self.count - len(items)} dropped: {reason}")
        self.count = len(items)
        return items

    def keep(self, items: list[Item], fits: Callable[[Item], bool], reason: str) -> list[Item]:
        """Return the items that fit; `reason` says why the others do not."""
        return self.note([item for item in items if fits(item)], reason)

    def line(self) -> str:
        """Return the report, such as `objects: 3 kept; 2 dropped: crowd`."""
        return f"{self.unit}: " + "; ".join([f"{self.count} kept", *self.dropped])


def select_images(dataset: Instances, rule: ObjectFilter) -> tuple[list[dict[str, Any]], FilterReport]:
    """Return the pictures that qualify, and what dropped the others."""
    names = dataset.categories
    for setting in ("excluded_categories", "only_categories"):
        if unknown := sorted(set(getattr(rule, setting)) - set(names.values()) - set(META_OOD_CATEGORIES)):
            known = ", ".join(sorted(set(names.values())))
            given = f"{unknown[0]!r} is no category of {dataset.where}"
            raise InputError(f"{setting}: {given}; known ones are {known}")
    images, report = dataset.images, FilterReport(dataset.where, "images", len(dataset.images))
    if rule.exclude == "image":
        shown = {i: {names[e["category_id"]] for e in entries} for i, entries in dataset.annotations.items()}
        excluded = rule.excluded
        reason = "an excluded category is in the picture"
        images = report.keep(images, lambda image: not shown[image["id"]] & excluded, reason)
    reason = f"a side is shorter than {rule.min_side} pixels (min_side)"
    return report.keep(images, lambda i: min(i["height"], i["width"]) >= rule.min_side, reason), report


def select_objects(
    dataset: Instances, images: list[dict[str, Any]], rule: ObjectFilter
) -> tuple[list[CocoObject], FilterReport]:
    """Return the objects that qualify in the order of the images, then of the annotation ids."""
    entries = [entry for image in images for entry in dataset.annotations[image["id"]]]
    report = FilterReport(dataset.where, "objects in these images", len(entries))
    names, excluded, asked = dataset.categories, rule.excluded, rule.only_categories
    if rule.exclude == "object":
        reason = "of an excluded category"
        entries = report.keep(entries, lambda e: names[e["category_id"]] not in excluded, reason)
    if asked:
        reason = "of none of the asked categories (only_categories)"
        entries = report.keep(entries, lambda e: names[e["category_id"]] in asked, reason)
    if rule.unit == "object" and not rule.crowd:
        entries = report.keep(entries, lambda e: not e.get("iscrowd"), "a crowd")
    sizes = {image["id"]: (image["height"], image["width"]) for image in images}
    objects = []
    for entry in Progress(entries, desc="reading masks", unit="object"):
        if (mask := encode_mask(entry["segmentation"], *sizes[entry["image_id"]])) is not None:
            category = names[entry["category_id"]]
            objects.append(CocoObject(entry["image_id"], str(entry["id"]), category, mask))
    report.note(objects, "a broken or far too long polygon, or run lengths that do not fit the picture")
    objects = report.keep(objects, lambda item: item.area > 0, "an empty mask")
    if rule.unit == "image":
        objects = report.note(_merge_objects(objects), "merged with the others of its picture (unit image)")
    return _filter_shapes(objects, rule, report), report


def _merge_objects(objects: list[CocoObject]) -> list[CocoObject]:
    """Return one object per picture, whose mask holds the pixels of all."""
    merged = []
    for image_id, items in group_by_image(objects).items():
        categories = {item.category for item in items}
        category = categories.pop() if len(categories) == 1 else SEVERAL
        merged.append(CocoObject(image_id, "all", category, coco_mask.merge([i.mask for i in items])))
    return merged


def group_by_image(objects: list[CocoObject]) -> dict[int, list[CocoObject]]:
    """Group objects by the id of their picture, in the order of their first ones."""
    groups: dict[int, list[CocoObject]] = {}
    for item in objects:
        groups.setdefault(item.image_id, []).append(item)
    return groups


def _filter_shapes(objects: list[CocoObject], rule: ObjectFilter, report: FilterReport) -> list[CocoObject]:
    small = f"smaller than {rule.min_area} pixels (min_area)"
    objects = report.keep(objects, lambda item: item.area >= rule.min_area, small)
    if rule.max_area:
        large = f"larger than {rule.max_area} pixels (max_area)"
        objects = report.keep(objects, lambda item: item.area <= rule.max_area, large)
    if rule.min_fill:
        thin = f"covers less than {rule.min_fill} of its bounding box (min_fill)"
        objects = report.keep(objects, lambda item: item.fill >= rule.min_fill, thin)
    if not rule.truncated:
        cut = "reaches the border of its picture (truncated)"
        objects = report.keep(objects, lambda item: not item.touches_border, cut)
    if 0 < rule.max_objects < len(objects):
        order = np.random.default_rng([rule.seed]).permutation(len(objects))
        drawn = [objects[i] for i in sorted(order[: rule.max_objects])]
        objects = report.note(drawn, f"not drawn (max_objects {rule.max_objects})")
    return objects


REPORT_NAME = "report.md"
QUANTILES = (0, 5, 25, 50, 75, 95, 100)
ObjectSize = tuple[str, int, int, int]
"""Category of a cut-out, pixels of its mask, height and width of its bounding box in pixels."""


def plan_bank(
    shards: Sequence[ShardPlan], rule: Any, largest: int, report: Sequence[str], sizes: Sequence[ObjectSize]
) -> FolderPlan:
    """Plan a bank and its report; `rule`: filter options, a dataclass; `largest`: most per shard, about."""
    options = {**asdict(rule), "samples_per_shard": largest}
    texts = {REPORT_NAME: _render_report(report, sizes)}
    return FolderPlan("cutouts", MASK_ENCODING, "jpeg", options, shards, report, texts)


def _render_report(report: Sequence[str], sizes: Sequence[ObjectSize]) -> str:
    lines = ["# Bank of cut-outs", "", "## What was dropped, and why", ""]
    for line in report:
        unit, _, steps = line.partition(": ")
        lines += [f"- {unit}", *(f"  - {step}" for step in steps.split("; "))]
    lines += ["", "## Sizes in pixels", "", "| quantile | area | height | width | fill |"]
    lines.append("|---:|---:|---:|---:|---:|")
    table = np.array([size[1:] for size in sizes], np.float64)
    table = np.column_stack([table, table[:, 0] / (table[:, 1] * table[:, 2])])
    rows = np.percentile(table, QUANTILES, axis=0)
    for quantile, (area, height, width, fill) in zip(QUANTILES, rows, strict=True):
        lines.append(f"| {quantile} % | {area:.0f} | {height:.0f} | {width:.0f} | {fill:.2f} |")
    counts = Counter(category for category, *_ in sizes)
    lines += ["", f"## Categories: {len(counts)}", "", "| category | cut-outs | share |", "|---|---:|---:|"]
    for name, count in sorted(counts.items(), key=lambda entry: (-entry[1], entry[0])):
        lines.append(f"| {printable(name)} | {count} | {100 * count / len(sizes):.1f} % |")
    return "\n".join(lines) + "\n"
