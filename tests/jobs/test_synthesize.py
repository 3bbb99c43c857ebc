from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from jobs.synthesize import SynthesizeOptions, main, synthesize
from jobs.world.labels import EVALUATED, LabelId
from tests.support.files import contents
from tests.support.refused import refused

# pycocotools 2.0 has not caught up with a keyword of NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

TINY = {"height": 64, "train": 10, "val": 2, "coco": 16, "coco_height": 96, "anomaly_images": 2}
FEW = {**TINY, **dict.fromkeys(("train", "val", "coco", "anomaly_images"), 1)}
ANOMALY_SUFFIXES = {
    "RoadAnomaly21": ".png",
    "RoadObsticle21": ".webp",
    "FS_LostFound_full": ".png",
    "fs_static": ".jpg",
    "RoadAnomaly": ".jpg",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("synthesize") / "world"
    synthesize(SynthesizeOptions(out=out, workers=1, **TINY))
    return out


@pytest.fixture(scope="module")
def coco(world) -> COCO:
    return COCO(world / "coco" / "annotations" / "instances_train2017.json")


def read(path: Path) -> np.ndarray:
    array = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert array is not None, path
    return array


@pytest.mark.slow
def test_two_workers_write_the_same_bytes_as_one(tmp_path):
    for workers in (1, 2):
        synthesize(SynthesizeOptions(out=tmp_path / str(workers), workers=workers, **FEW))
    assert contents(tmp_path / "2") == contents(tmp_path / "1")


def test_another_seed_draws_another_world(world, tmp_path):
    synthesize(SynthesizeOptions(out=tmp_path / "w", seed=1, workers=1, **FEW))
    first = "cityscapes/leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png"
    assert (tmp_path / "w" / first).read_bytes() != (world / first).read_bytes()


def test_each_scene_is_twice_as_wide_as_high_and_has_two_label_maps(world):
    images = sorted((world / "cityscapes" / "leftImg8bit").rglob("*_leftImg8bit.png"))
    assert [sum(split in path.parts for path in images) for split in ("train", "val")] == [10, 2]
    for path in images:
        split, city, name = path.parts[-3:]
        stem = name.removesuffix("_leftImg8bit.png")
        truth = world / "cityscapes" / "gtFine" / split / city
        assert stem.startswith(f"{city}_")
        assert read(path).shape == (64, 128, 3)
        for kind, dtype in (("labelIds", np.uint8), ("instanceIds", np.uint16)):
            labels = read(truth / f"{stem}_gtFine_{kind}.png")
            assert (labels.shape, labels.dtype) == ((64, 128), dtype)


def test_instance_ids_agree_with_label_ids(world):
    for path in (world / "cityscapes" / "gtFine").rglob("*_labelIds.png"):
        labels = read(path)
        instances = read(path.with_name(path.name.replace("labelIds", "instanceIds")))
        things = labels >= LabelId.PERSON
        np.testing.assert_array_equal(instances[things] // 1000, labels[things])
        np.testing.assert_array_equal(instances[~things], labels[~things])


def test_every_scored_class_occurs_and_only_known_label_ids(world):
    found: set[int] = set()
    for path in (world / "cityscapes" / "gtFine" / "train").rglob("*_labelIds.png"):
        found |= set(np.unique(read(path)).tolist())
    assert set(EVALUATED) <= found <= set(LabelId)
    assert {LabelId.EGO_VEHICLE, LabelId.OUT_OF_ROI} <= found


def test_polygons_and_run_lengths_give_the_stated_area_and_box(coco):
    for annotation in coco.loadAnns(coco.getAnnIds()):
        mask = coco.annToMask(annotation)
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box = [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
        assert annotation["area"] == mask.sum()
        assert annotation["bbox"] == box


def test_coco_has_crowds_street_classes_and_pictures_that_are_too_small(coco):
    annotations = coco.loadAnns(coco.getAnnIds())
    names = {category["name"] for category in coco.loadCats([entry["category_id"] for entry in annotations])}
    assert any(entry["iscrowd"] for entry in annotations)
    assert names & {"person", "car"}
    assert len(names) >= 8
    assert {min(image["height"], image["width"]) for image in coco.loadImgs(coco.getImgIds())} == {67, 96}


def test_coco_pictures_have_the_stated_sizes_and_an_overview_is_there(world, coco):
    assert read(world / "preview.png").ndim == 3
    for image in coco.loadImgs(coco.getImgIds()):
        assert image["file_name"] == f"{image['id']:012d}.jpg"
        picture = read(world / "coco" / "train2017" / image["file_name"])
        assert picture.shape[:2] == (image["height"], image["width"])


@pytest.mark.parametrize(("name", "suffix"), ANOMALY_SUFFIXES.items())
def test_anomaly_sets_have_the_layout_and_label_values_of_the_originals(world, name, suffix):
    folder = world / "anomaly" / name
    assert sorted(path.name for path in (folder / "images").iterdir()) == [f"{i}{suffix}" for i in range(2)]
    assert sorted(path.name for path in (folder / "labels_masks").iterdir()) == [f"{i}.png" for i in range(2)]
    allowed = {0, 2} if name == "RoadAnomaly" else {0, 1, 255}
    for index in range(2):
        labels = read(folder / "labels_masks" / f"{index}.png")
        assert set(np.unique(labels).tolist()) == allowed
        assert labels.shape == read(folder / "images" / f"{index}{suffix}").shape[:2]


@pytest.mark.parametrize(
    ("option", "value", "text"),
    [
        ("height", "65", "got 65; an even number is needed"),
        ("height", "62", "got 62; at least 64"),
        ("train", "0", "got 0; at least 1"),
        ("workers", "0", "got 0; at least 1"),
        ("seed", "-1", "got -1; at least 0"),
        ("anomaly_images", "0", "got 0; at least 1"),
    ],
)
def test_impossible_sizes_are_refused_by_name(tmp_path, option, value, text):
    with refused(f"--{option}: {text}"):
        main(["--out", str(tmp_path / "w"), f"--{option}", value])
    assert not (tmp_path / "w").exists()
