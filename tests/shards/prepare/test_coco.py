"""COCO objects: which are chosen, and how they are cut."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from shards.cutout import decode_cutout
from shards.prepare.coco import plan_cutouts
from shards.prepare.objects import META_OOD_CATEGORIES, TEST_CATEGORIES, ObjectFilter, find_test_categories
from shards.prepare.plan import ShardPlan
from tests.support.refused import refused

CATEGORIES = {1: "person", 7: "train", 24: "zebra", 25: "giraffe"}


def rule_of(**settings: Any) -> ObjectFilter:
    """A filter that drops nothing but what `settings` say."""
    return ObjectFilter(**{"excluded_categories": (), "min_side": 0, "min_area": 0, **settings})


ANY = rule_of()


def square(left: int, top: int, side: int) -> list[list[float]]:
    return [[left, top, left + side, top, left + side, top + side, left, top + side]]


class Coco:
    """A small COCO download; pictures of 60 x 40 pixels."""

    def __init__(self, folder: Path) -> None:
        self.pictures = folder / "train2017"
        self.pictures.mkdir(parents=True)
        self.file = folder / "instances_train2017.json"
        categories = [{"id": number, "name": name} for number, name in CATEGORIES.items()]
        self.content: dict[str, Any] = {"images": [], "annotations": [], "categories": categories}

    def add(self, image_id: int, *objects: tuple, size: tuple[int, int] = (40, 60)) -> None:
        """Add a picture and its objects, each a category id, a segmentation and perhaps iscrowd."""
        rows, columns = np.mgrid[0 : size[0], 0 : size[1]]
        picture = np.stack([columns * 4, rows * 6, np.full(size, 90)], axis=-1).astype(np.uint8)  # B, G, R
        cv2.imwrite(str(self.pictures / f"{image_id:012d}.jpg"), picture, [cv2.IMWRITE_JPEG_QUALITY, 100])
        entry = {"id": image_id, "file_name": f"{image_id:012d}.jpg", "height": size[0], "width": size[1]}
        self.content["images"].append(entry)
        for category, segmentation, *crowd in objects:
            number = 100 + len(self.content["annotations"])
            record = {"id": number, "image_id": image_id, "category_id": category, "iscrowd": sum(crowd)}
            self.content["annotations"].append({**record, "segmentation": segmentation})

    def plan(self, rule: ObjectFilter = ANY, **options: Any) -> tuple[Sequence[ShardPlan], Sequence[str]]:
        self.file.write_text(json.dumps(self.content))
        plan = plan_cutouts(self.pictures, self.file, rule=rule, **options)
        return plan.shards, plan.report

    def keys(self, rule: ObjectFilter = ANY) -> list[str]:
        return [key for shard in self.plan(rule)[0] for key, _ in shard.samples()]


@pytest.fixture
def coco(tmp_path: Path) -> Coco:
    return Coco(tmp_path / "coco")


def test_an_object_is_cropped_to_the_box_of_its_mask(coco: Coco) -> None:
    corner = [[10.0, 5.0, 30.0, 5.0, 30.0, 10.0, 15.0, 10.0, 15.0, 25.0, 10.0, 25.0]]
    coco.add(7, (24, corner))
    ((key, members),) = coco.plan()[0][0].samples()
    cutout = decode_cutout(key, members)
    assert (cutout.key, cutout.category, cutout.source_size) == ("000000000007-100", "zebra", (40, 60))
    expected = np.zeros((20, 20), np.uint8)
    expected[:5] = expected[:, :5] = 255
    np.testing.assert_array_equal(cutout.mask, expected)
    # R, G, B of the place it was cut from: 90, 6 * row, 4 * column
    np.testing.assert_allclose(cutout.image[3, 8], [90, 6 * (5 + 3), 4 * (10 + 8)], atol=6)


def test_objects_are_sorted_by_image_id_then_by_annotation_id(coco: Coco) -> None:
    coco.add(20, (24, square(0, 0, 9)))
    coco.add(3, (24, square(0, 0, 9)), (25, square(9, 9, 9)))
    assert coco.keys() == ["000000000003-101", "000000000003-102", "000000000020-100"]


def test_all_objects_of_a_picture_share_a_shard(coco: Coco) -> None:
    for image_id in range(1, 21):
        coco.add(image_id, *[(24, square(i, i, 9)) for i in range(image_id % 4 + 1)])
    shards, _ = coco.plan(samples_per_shard=6)
    photos = [{key.split("-")[0] for key, _ in shard.samples()} for shard in shards]
    assert sum(map(len, photos)) == len(set().union(*photos)) == 20
    assert [shard.name for shard in shards] == [f"cutouts-train-{i:06d}.tar" for i in range(len(shards))]
    assert [shard.num_samples for shard in shards] == [len(list(shard.samples())) for shard in shards]


def test_folder_and_zip_give_the_same_samples(coco: Coco, tmp_path: Path) -> None:
    coco.add(1, (24, square(0, 0, 9)))
    coco.add(2, (25, square(5, 5, 20)))
    shards, _ = coco.plan()
    with zipfile.ZipFile(tmp_path / "train2017.zip", "w") as archive:
        for path in coco.pictures.iterdir():
            archive.write(path, f"train2017/{path.name}")
    zipped = plan_cutouts(tmp_path / "train2017.zip", coco.file, rule=ANY).shards
    assert [list(shard.samples()) for shard in zipped] == [list(shard.samples()) for shard in shards]


CROWD, EMPTY = ({"size": [40, 60], "counts": counts} for counts in ([800, 400, 1200], [2400]))
DEFAULT = {"excluded_categories": ObjectFilter().excluded_categories}
ZEBRA, SHAPES = (
    (24, square(0, 0, 10)),
    (
        *((24, square(0, 0, 20)), (24, [[30.0, 20.0, 40.0, 20.0, 30.0, 30.0]])),
        (25, square(40, 10, 12)),
    ),
)
LARGE = [ZEBRA, (24, square(20, 0, 9))]
Objects = list[tuple[int, Any] | tuple[int, Any, int]]
FILTERS: list[tuple[list[Objects], dict[str, Any], list[int], str]] = [
    (
        [[ZEBRA, (1, square(20, 0, 2))], [ZEBRA], [(1, square(0, 0, 20), 1)]],
        *(DEFAULT, [102], "images: 1 kept; 2 dropped: an excluded category is in the picture"),
    ),
    ([[(7, square(0, 0, 20))], [ZEBRA]], DEFAULT, [100, 101], "images: 2 kept"),
    (
        [[(7, square(0, 0, 20))], [ZEBRA]],
        *({"excluded_categories": (*META_OOD_CATEGORIES, "train")}, [101], "images: 1 kept; 1 dropped"),
    ),
    ([[ZEBRA, (1, square(20, 0, 9))]], {**DEFAULT, "exclude": "object"}, [100], "1 dropped: of an excluded"),
    ([LARGE], {"min_area": 100}, [100], "1 kept; 1 dropped: smaller than 100 pixels (min_area)"),
    ([[ZEBRA], [(24, CROWD, 1)]], {}, [100], "1 dropped: a crowd"),
    ([[ZEBRA], [(24, CROWD, 1)]], {"crowd": True}, [100, 101], "2 kept"),
    (
        [[ZEBRA, (24, [[1, 1, 2, 2]]), (24, []), (24, EMPTY)]],
        *({}, [100], "2 dropped: a broken or far too long polygon, or run lengths that do not fit the pict"),
    ),
    ([[ZEBRA, (24, EMPTY)]], {}, [100], "1 dropped: an empty mask"),
    ([[*SHAPES]], {"only_categories": ("giraffe",)}, [102], "2 dropped: of none of the asked categories (on"),
    ([[*SHAPES]], {"max_area": 100}, [101], "2 dropped: larger than 100 pixels (max_area)"),
    ([[*SHAPES]], {"min_fill": 0.8}, [100, 102], "1 dropped: covers less than 0.8 of its bounding box (min_"),
    ([[*SHAPES]], {"truncated": False}, [101, 102], "1 dropped: reaches the border of its picture (truncat"),
    *(
        ([[(24, square(*edge, 9)), (24, square(20, 15, 9))]], {"truncated": False}, [101], "1 dropped: reach")
        for edge in ((0, 10), (51, 10), (10, 0), (10, 31))
    ),
]


@pytest.mark.parametrize(("pictures", "settings", "kept", "told"), FILTERS)
def test_filters(
    coco: Coco, pictures: list[Objects], settings: dict[str, Any], kept: list[int], told: str
) -> None:
    for image_id, objects in enumerate(pictures, 1):
        coco.add(image_id, *objects)
    rule = rule_of(**settings)
    assert [int(key.rpartition("-")[2]) for key in coco.keys(rule)] == kept
    assert told in "\n".join(coco.plan(rule)[1])


def test_both_sides_must_reach_the_least_side(coco: Coco) -> None:
    coco.add(1, ZEBRA, size=(40, 60))
    coco.add(2, ZEBRA, size=(60, 60))
    assert coco.keys(rule_of(min_side=41)) == ["000000000002-101"]
    assert len(coco.keys(rule_of(min_side=40))) == 2


def test_a_draw_is_of_the_given_size_and_depends_on_the_seed_alone(coco: Coco) -> None:
    for image_id in range(30):
        coco.add(image_id, (24, square(0, 0, 10)))
    draws = [coco.keys(rule_of(max_objects=7, seed=seed)) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] == sorted(draws[0])
    assert draws[0] != draws[2]
    assert len(draws[0]) == len(draws[2]) == 7


NAME = "000000000005.jpg"


@pytest.mark.parametrize(
    ("content", "change", "message"),
    [
        (None, {}, f"names the picture '{NAME}', but there is no .*{NAME}"),
        (b"unchanged", {"file_name": "../secret.jpg"}, "names the picture '../secret.jpg', but there is no"),
        (b"unchanged", {"file_name": "twin.jpg"}, "'twin.jpg' is there twice, as copy/twin.jpg and more"),
        (b"unchanged", {"file_name": "other/twin.jpg"}, "names the picture 'other/twin.jpg', but"),
        (b"BM" + bytes(60), {}, rf"{NAME}: cannot be decoded .*; PNG, JPEG and WebP are read"),
        (b"unchanged", {"height": 65_536, "width": 65_536}, "image 5: says that it has 65536 x 65536 pixels"),
        (b"no picture", {}, rf"{NAME}: cannot be decoded as a picture \(10 bytes\)"),
        (b"unchanged", {"width": 80}, rf"{NAME}: is 60x40 pixels, but the annotations say 80x40"),
    ],
    ids=["missing", "outside", "twice", "elsewhere", "another kind", "bomb", "unreadable", "size"],
)
def test_an_unfit_picture_is_named(coco: Coco, content: bytes | None, change: dict, message: str) -> None:
    coco.add(5, (24, square(0, 0, 9)))
    (coco.pictures.parent / "secret.jpg").write_bytes(b"secret")
    for folder in ("copy", "more"):
        (coco.pictures / folder).mkdir()
        (coco.pictures / folder / "twin.jpg").write_bytes(b"")
    coco.content["images"][0] |= change
    if content is None:
        (coco.pictures / NAME).unlink()
    elif content != b"unchanged":
        (coco.pictures / NAME).write_bytes(content)
    with refused(message):
        coco.keys()


def test_a_whole_picture_is_one_cutout_of_all_masks_crowds_included(coco: Coco) -> None:
    coco.add(1, (24, square(0, 0, 10)), (25, square(20, 20, 8)))
    coco.add(2, (24, square(5, 5, 9)))
    coco.add(3, (24, CROWD, 1))
    rule = rule_of(unit="image")
    (first, second, crowd) = [
        decode_cutout(*sample) for shard in coco.plan(rule)[0] for sample in shard.samples()
    ]
    assert [c.key for c in (first, second, crowd)] == [f"{i:012d}-all" for i in (1, 2, 3)]
    assert [c.category for c in (first, second, crowd)] == ["several", "zebra", "zebra"]
    assert first.mask.shape == (28, 28)
    assert (first.mask == 255).sum() == 100 + 64
    assert "1 dropped: merged with the others of its picture (unit image)" in coco.plan(rule)[1][1]


def test_the_report_says_what_is_there_and_what_was_dropped(coco: Coco) -> None:
    coco.add(1, (24, square(0, 0, 10)), (24, square(20, 0, 20)), (25, square(40, 0, 12)))
    coco.add(2, (1, square(0, 0, 10)))
    rule = ObjectFilter(min_side=0, min_area=101)
    coco.file.write_text(json.dumps(coco.content))
    text = plan_cutouts(coco.pictures, coco.file, rule=rule).texts["report.md"]
    assert "- images\n  - 1 kept\n  - 1 dropped: an excluded category is in the picture" in text
    assert "  - 1 dropped: smaller than 101 pixels (min_area)" in text
    assert "| 50 % | 272 | 16 | 16 | 1.00 |" in text  # of 144 and 400 pixels
    assert "| giraffe | 1 | 50.0 % |" in text
    assert "| zebra | 1 | 50.0 % |" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *[
            ({name: -1}, f"{name}: is -1; 0 or more")
            for name in ("min_side", "min_area", "max_objects", "seed")
        ],
        ({"min_fill": 2.0}, r"min_fill: is 2\.0; a number in 0\.\.1"),
        ({"max_area": 5}, "max_area: is 5, less than min_area 1024"),
        ({"unit": "image", "crowd": True}, "crowd: is True with unit image, which takes all objects"),
        ({"unit": "image", "only_categories": ("zebra",)}, r"only_categories: is .* with unit image"),
    ],
)
def test_filters_that_make_no_sense_are_refused(options: dict, message: str) -> None:
    with refused(message):
        ObjectFilter(**options)


def test_categories_of_test_sets_can_be_left_out() -> None:
    rule = ObjectFilter(test_categories=False, excluded_categories=("car",))
    assert {"car", "cow", "horse", "sheep", "dog", "zebra"} <= rule.excluded
    assert ObjectFilter(excluded_categories=("car",)).excluded == {"car"}


UNKNOWN = ObjectFilter(excluded_categories=("zebar",))


@pytest.mark.parametrize(
    ("objects", "rule", "message"),
    [
        (None, ANY, "json: holds no images"),
        ([], ANY, "json: holds no objects in these images"),
        ([], UNKNOWN, "excluded_categories: 'zebar' is no category of .*giraffe, person, train, z"),
        ([(1, square(0, 0, 9))], ObjectFilter(), "no images are left; the last 1 were dropped: an excluded"),
        ([(24, square(0, 0, 9))], ObjectFilter(), r"json: .*shorter than 480 pixels \(min_side\)"),
        ([(24, [[1, 1]])], ANY, "no objects in these images are left; the last 1 were dropped: a broken"),
        ([(24, EMPTY)], ANY, "json: .*dropped: an empty mask"),
        ([(24, square(0, 0, 9))], rule_of(min_area=1024), r"dropped: smaller than 1024 pixels \(min_area\)"),
        ([(24, square(0, 0, 9), 1)], ANY, "the last 1 were dropped: a crowd"),
    ],
)
def test_the_filter_that_leaves_nothing_is_named(
    coco: Coco, objects: list | None, rule: ObjectFilter, message: str
) -> None:
    if objects is not None:
        coco.add(1, *objects)
    with refused(message):
        coco.plan(rule)


@pytest.mark.parametrize("is_zip", [False, True])
def test_pictures_in_folders_are_told_apart(coco: Coco, tmp_path: Path, is_zip: bool) -> None:
    """By their whole name, however deep; hidden files beside them are none."""
    names = ("a.jpg", "x/a.jpg", "x/y/a.jpg")
    for number, name in enumerate(names):
        coco.add(number + 1, (24, square(0, 0, 9)))
        place = coco.pictures / name
        place.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(place), np.full((40, 60, 3), 80 * number, np.uint8))
        (place.parent / "._a.jpg").write_bytes(b"mac")
        coco.content["images"][number]["file_name"] = name
    source = coco.pictures
    if is_zip:
        source = tmp_path / "images.zip"
        with zipfile.ZipFile(source, "w") as archive:
            for path in sorted(coco.pictures.rglob("*.jpg")):
                archive.write(path, f"images/{path.relative_to(coco.pictures)}")
            archive.writestr("__MACOSX/images/._a.jpg", b"mac")
    coco.file.write_text(json.dumps(coco.content))
    samples = [
        sample for shard in plan_cutouts(source, coco.file, rule=ANY).shards for sample in shard.samples()
    ]
    assert [round(decode_cutout(*sample).image.mean() / 80) for sample in samples] == [0, 1, 2]


def test_a_folder_in_the_name_may_be_the_one_that_is_given(coco: Coco) -> None:
    coco.add(1, (24, square(0, 0, 9)))
    coco.content["images"][0]["file_name"] = "train2017/000000000001.jpg"
    assert coco.keys() == ["000000000001-100"]


@pytest.mark.parametrize(
    ("options", "held"),
    [
        ({"excluded_categories": ["cow"], "only_categories": ["cow", "dog", "kite"]}, ("dog",)),
        ({"excluded_categories": ["car"], "test_categories": False}, ()),
        ({"excluded_categories": []}, TEST_CATEGORIES),
        ({"samples_per_shard": 100}, None),
    ],
)
def test_a_manifest_tells_which_anomalies_of_test_sets_its_bank_may_hold(
    options: dict[str, object], held: tuple[str, ...] | None
) -> None:
    assert find_test_categories(options) == held
