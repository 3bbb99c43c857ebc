from __future__ import annotations

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from jobs.world.coco_json import CATEGORIES, CATEGORY_IDS, annotate_crowd, annotate_polygons
from jobs.world.coco_objects import COCO_OBJECTS
from jobs.world.sprite import draw_sprite

# pycocotools 2.0 has not caught up with a keyword of NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def test_categories_have_the_official_numbers():
    assert len(CATEGORIES) == len(CATEGORY_IDS) == 80
    # A few on both sides of the gaps in the numbers, from cocodataset.org.
    names = ("fire hydrant", "stop sign", "giraffe", "handbag", "wine glass", "dining table", "tv", "book")
    assert [CATEGORY_IDS[name] for name in names] == [11, 13, 25, 31, 46, 67, 72, 84]
    assert CATEGORIES[-1] == {"supercategory": "indoor", "id": 90, "name": "toothbrush"}


def decode(annotation: dict, shape: tuple[int, int]) -> np.ndarray:
    segmentation = annotation["segmentation"]
    runs = coco_mask.frPyObjects(segmentation, *shape)
    return coco_mask.decode(coco_mask.merge(runs) if isinstance(runs, list) else runs).astype(bool)


@pytest.mark.parametrize("name", COCO_OBJECTS)
def test_polygons_cover_the_object_and_nothing_else(name):
    mask = np.pad(draw_sprite(COCO_OBJECTS[name], 60, np.random.default_rng(3)).mask, 4)
    annotation = annotate_polygons(mask)
    assert annotation is not None
    covered = decode(annotation, mask.shape)
    assert (covered & mask).sum() / (covered | mask).sum() > 0.97


def test_a_hole_that_winds_around_itself_stays_open():
    mask = np.ones((40, 40), dtype=bool)
    mask[8:32, 8:12] = mask[8:12, 8:32] = mask[8:32, 28:32] = False
    annotation = annotate_polygons(mask)
    assert annotation is not None
    covered = decode(annotation, mask.shape)
    assert (covered != mask).mean() < 0.03


def test_nothing_is_annotated_as_nothing():
    assert annotate_polygons(np.zeros((8, 8), dtype=bool)) is None


@pytest.mark.parametrize("corner", [True, False], ids=["starts inside", "starts outside"])
def test_run_lengths_decode_to_the_mask(corner):
    mask = np.random.default_rng(0).random((13, 7)) < 0.4
    mask[0, 0] = corner
    annotation = annotate_crowd(mask)
    np.testing.assert_array_equal(decode(annotation, mask.shape), mask)
    assert annotation["area"] == mask.sum()
    assert annotation["bbox"] == list(cv2.boundingRect(mask.astype(np.uint8)))
