"""Alarms of a score map, and how they are drawn."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from eval.alarms import Alarm, draw_overlay, find_alarms
from shards.schema import VOID_ID


def test_regions_touch_at_corners_and_lie_above_the_threshold():
    scores = np.zeros((8, 12), np.float32)
    scores[1, 1:4] = 1, 2, 3
    scores[2, 4] = 2  # touches at a corner
    scores[5:7, 8:10] = 5
    scores[7, 0] = 0.5  # at the threshold
    alarms = find_alarms(scores, 0.5, smallest=1)
    assert alarms.regions == [Alarm((8, 5, 2, 2), 4, 5.0, 5.0), Alarm((1, 1, 4, 2), 4, 3.0, 2.0)]
    assert alarms.mask.sum() == 8
    assert find_alarms(scores, 2.5, smallest=2).regions == [Alarm((8, 5, 2, 2), 4, 5.0, 5.0)]
    nothing = find_alarms(scores, np.inf, smallest=1)
    assert (nothing.regions, nothing.mask.any()) == ([], False)


def test_a_lower_threshold_takes_no_pixel_out():
    scores = np.random.default_rng(0).normal(size=(40, 60)).astype(np.float32)
    masks = [find_alarms(scores, threshold, smallest=9).mask for threshold in np.linspace(3, -6, 37)]
    assert masks[-1].all()
    for higher, lower in itertools.pairwise(masks):
        assert not (higher & ~lower).any()


@pytest.mark.parametrize("has_classes", [True, False])
def test_an_overlay_has_heat_an_outline_and_classes(has_classes):
    image, scores = np.full((20, 30, 3), 100, np.uint8), np.zeros((20, 30), np.float32)
    scores[5:15, 10:20] = 1
    classes = np.full((20, 30), 0 if has_classes else VOID_ID, np.uint8)
    drawn = draw_overlay(image, scores, classes, scores > 0, (0.0, 1.0))
    assert drawn.shape == (20, 60 if has_classes else 30, 3)
    assert drawn[0, 0].tolist() == [100, 100, 100]  # no heat, no change
    assert drawn[5, 10].tolist() == [255, 0, 160]
    assert drawn[10, 15, 0] > drawn[10, 15, 2] + 50  # yellow
    if has_classes:
        assert drawn[10, 45].tolist() == [114, 82, 114]  # half of road's (128, 64, 128)
