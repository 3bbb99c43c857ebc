"""COCO's annotation file: masks against pycocotools and by hand, and what is refused."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from shards.prepare.annotations import decode_mask, encode_mask, read_instances, read_runs
from tests.support.refused import refused

# Of pycocotools 2.0.11 with NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SQUARE = [2.0, 1.0, 6.0, 1.0, 6.0, 4.0, 2.0, 4.0]


def example() -> dict[str, Any]:
    return {
        "images": [
            {"id": 9, "file_name": "9.jpg", "height": 8, "width": 10},
            {"id": 4, "file_name": "4.jpg", "height": 8, "width": 10},
        ],
        "annotations": [
            {"id": 22, "image_id": 9, "category_id": 3, "segmentation": [SQUARE], "iscrowd": 0},
            {"id": 21, "image_id": 9, "category_id": 3, "segmentation": [SQUARE], "iscrowd": 0},
        ],
        "categories": [{"id": 3, "name": "zebra"}],
    }


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def test_annotations_are_grouped_by_image_and_sorted(tmp_path: Path) -> None:
    instances = read_instances(write(tmp_path / "a.json", example()))
    assert [image["id"] for image in instances.images] == [4, 9]
    assert [entry["id"] for entry in instances.annotations[9]] == [21, 22]
    assert instances.annotations[4] == []
    assert instances.categories == {3: "zebra"}


@pytest.mark.parametrize("folder", ["", "annotations/"])
def test_json_folder_and_zip_give_the_same(tmp_path: Path, folder: str) -> None:
    path = write(tmp_path / "A" / folder / "instances_train2017.json", example())
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(path, f"{folder}instances_train2017.json")
    read = [read_instances(source) for source in (path, tmp_path / "A", tmp_path / "a.zip")]
    assert read[0].annotations == read[1].annotations == read[2].annotations
    assert read[0].images == read[1].images == read[2].images


def test_a_square_covers_the_pixels_counted_by_hand() -> None:
    rle = encode_mask([SQUARE], 8, 10)
    assert rle is not None
    expected = np.zeros((8, 10), np.uint8)
    expected[1:4, 2:6] = 1
    np.testing.assert_array_equal(decode_mask(rle), expected)


def test_every_form_gives_the_mask_that_pycocotools_gives() -> None:
    polygons = [SQUARE, [5, 3, 9, 3, 9, 7]]
    runs = [8, 8, 64]
    compressed = coco_mask.encode(np.asfortranarray(np.eye(8, 10, dtype=np.uint8)))["counts"].decode()
    coco = COCO()
    coco.imgs = {1: {"height": 8, "width": 10}}
    for segmentation in (
        polygons,
        {"size": [8, 10], "counts": runs},
        {"size": [8, 10], "counts": compressed},
    ):
        rle = encode_mask(segmentation, 8, 10)
        assert rle is not None
        expected = coco.annToMask({"image_id": 1, "segmentation": segmentation})
        np.testing.assert_array_equal(decode_mask(rle), expected)
        assert expected.any()


@pytest.mark.parametrize(
    "segmentation",
    [
        [],
        [[]],
        [[1, 1, 5, 5]],
        [SQUARE, [1, 1, 5, 5]],
        [[1, 1, 5, 1, 5]],
        [[1, 1, 5, 1, 5, "5"]],
        [[1, 1, 5, 1, 5, float("nan")]],
        [[1, 1, 5, 1, 5, 1e9]],
        [[1, 1, 5, 1, 10**400, 5]],
        [[1, 1, 5, 1, -20, 5]],
        [[1, 1, 5, 1, float("-inf"), 5]],
        [[1, 1, 5, 1, 5, True]],
        [[0, 0, 9, 0] * 50_000] * 3,
        {"size": [8, 10], "counts": [40.5, 39.5]},
        {"size": [8, 10], "counts": [79, True]},
        {"size": [8, 10], "counts": [float("nan")]},
        {"size": [8, 10], "counts": {"a": 80}},
        [{"x": 1}],
        {},
        {"size": [8, 11], "counts": [88]},
        {"size": [8, 10], "counts": [79]},
        {"size": [8, 10], "counts": [90, -10]},
        {"size": [8, 10], "counts": []},
        {"size": [8, 10], "counts": ["80"]},
        {"size": [8, 10], "counts": "P0000000000000P"},
        {"size": [8, 10], "counts": "P"},
        {"size": [8, 10], "counts": "é"},
        {"size": [8, 10], "counts": "PP" * 40},
        {"size": [8, 10], "counts": ""},
        {"size": [8, 10], "counts": None},
    ],
)
def test_a_malformed_mask_is_none(segmentation: Any) -> None:
    assert encode_mask(segmentation, 8, 10) is None


def test_compressed_runs_are_read_as_pycocotools_writes_them() -> None:
    """Hundreds of runs, long ones among them: written by pycocotools, read by us."""
    generator = np.random.default_rng(0)
    for density in (0.001, 0.1, 0.9):
        mask = np.asfortranarray(generator.random((97, 301)) < density, np.uint8)
        flat = mask.T.ravel().astype(int)  # columns first, as COCO counts
        edges = np.flatnonzero(np.diff(flat, prepend=0))
        expected = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
        assert read_runs(coco_mask.encode(mask)["counts"].decode()) == expected


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("images",), None, "has no list 'images'; COCO's instance format is needed"),
        (("annotations",), {}, "has no list 'annotations'"),
        (("images", 0), 5, r"images\[0\] is 5; a JSON object is needed"),
        (("images", 0, "height"), float("inf"), r"images\[0\]\.height is inf; an integer is needed"),
        (("images", 0, "height"), True, r"images\[0\]\.height is True; an integer is needed"),
        (("images", 0, "height"), -1, r"image 9: height and width are \(-1, 10\); 1 or more are needed"),
        (("images", 0, "width"), 0, r"image 9: height and width are \(8, 0\); 1 or more are needed"),
        (("images", 0, "width"), 2**31, "image 9: says that it has 2147483648 x 8 pixels; at most"),
        *[
            (
                ("annotations", 1, "iscrowd"),
                value,
                rf"annotations\[1\]\.iscrowd is {value!r}; 0 or 1 is needed",
            )
            for value in ("0", "1", 2, None, 0.0)
        ],
        (("categories", 0, "name"), 3, r"categories\[0\]\.name is 3; a string is needed"),
        (("annotations", 0, "category_id"), [3], r"\.category_id is \[3\]; an integer is needed"),
        (("images", 1, "height"), "8", r"images\[1\]\.height is '8'; an integer is needed"),
        (("images", 1, "file_name"), 4, r"images\[1\]\.file_name is 4; a string is needed"),
        (("annotations", 0, "segmentation"), None, r"\.segmentation is None; a list or an object is needed"),
        (("annotations", 0, "image_id"), 5, "annotation 22 has image_id 5, which is not listed"),
        (("annotations", 0, "category_id"), 5, "annotation 22 has category_id 5, which is not listed"),
        (("annotations", 0, "id"), 21, "two annotations have the id 21"),
        (("images", 0, "id"), 4, "two images have the id 4"),
    ],
)
def test_a_file_in_another_format_is_refused(tmp_path: Path, place: tuple, value: Any, message: str) -> None:
    content = example()
    target: Any = content
    for step in place[:-1]:
        target = target[step]
    target[place[-1]] = value
    with refused(rf"a\.json: .*{message}" if message[0] != "h" else message):
        read_instances(write(tmp_path / "a.json", content))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with refused(r"--annotations .*gone\.json: does not exist; a folder or a zip file"):
        read_instances(tmp_path / "gone.json")
    with refused(r"holds neither instances_train2017\.json nor annotations/instances_train2017\.json"):
        read_instances(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no valid JSON"),
        ("[]", "is a list; a JSON object is needed"),
        ("[" * 100_000, "is no valid JSON"),
        ('{"images": [], "images": []}', "'images' is given twice"),
    ],
)
def test_text_that_is_no_annotation_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with refused(rf"a\.json: {message}"):
        read_instances(tmp_path / "a.json")
