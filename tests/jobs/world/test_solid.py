from __future__ import annotations

import numpy as np
import pytest

from jobs.world.camera import Camera
from jobs.world.solid import Box, Pose, visible_sides

CAMERA = Camera(focal=100, column=100, horizon=50, elevation=1.5)


@pytest.mark.parametrize(
    ("pose", "sides"),
    [
        (Pose(0, 10), {"back", "top"}),
        (Pose(5, 10), {"back", "left", "top"}),
        (Pose(-5, 10), {"back", "right", "top"}),
        (Pose(-5, 10, np.pi), {"front", "left", "top"}),
    ],
    ids=["ahead", "on the right", "on the left", "oncoming"],
)
def test_only_the_sides_that_face_the_camera_are_seen(pose: Pose, sides: set[str]) -> None:
    assert set(visible_sides(CAMERA, pose, Box(2, 4, 0, 1))) == sides


def test_the_top_of_a_thing_above_eye_level_is_hidden() -> None:
    assert "top" not in visible_sides(CAMERA, Pose(0, 10), Box(2, 4, 0, 3))


def test_what_reaches_behind_the_camera_is_not_drawn() -> None:
    assert visible_sides(CAMERA, Pose(0, 1), Box(2, 4, 0, 1)).keys() == set()
