from __future__ import annotations

import ast
import inspect

import numpy as np
import pytest

from jobs.world import coco_objects, oddities
from jobs.world.coco_json import CATEGORY_IDS
from jobs.world.coco_objects import COCO_OBJECTS
from jobs.world.oddities import ODDITIES
from jobs.world.sprite import draw_sprite


def test_pasted_objects_and_test_anomalies_share_no_shape_and_no_surface():
    assert not set(COCO_OBJECTS) & set(ODDITIES)
    assert not set(COCO_OBJECTS.values()) & set(ODDITIES.values())


@pytest.mark.parametrize(
    ("module", "foreign"),
    [(coco_objects, "jobs.world.oddities"), (oddities, "jobs.world.coco_objects")],
    ids=["pasted", "anomalies"],
)
def test_neither_family_can_use_what_the_other_is_made_of(module, foreign):
    tree = ast.parse(inspect.getsource(module))  # type: ignore[arg-type]
    assert foreign not in {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}


def test_no_anomaly_is_a_coco_category_and_every_object_is_one():
    assert set(COCO_OBJECTS) <= set(CATEGORY_IDS)
    assert not set(ODDITIES) & set(CATEGORY_IDS)


@pytest.mark.parametrize("draw", [*COCO_OBJECTS.values(), *ODDITIES.values()], ids=[*COCO_OBJECTS, *ODDITIES])
@pytest.mark.parametrize("side", [8, 60])
def test_every_object_fills_a_good_part_of_its_square_and_is_no_plain_patch(draw, side):
    sprite = draw_sprite(draw, side, np.random.default_rng(1))
    assert sprite.mask.sum() > 0.12 * (2 * side) ** 2
    assert sprite.picture[sprite.mask].astype(float).std(axis=0).max() > 5
