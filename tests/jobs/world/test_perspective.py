from __future__ import annotations

import numpy as np
import pytest

from jobs.world.perspective import Box, Camera, Pose, visible_sides


def test_a_point_is_projected_by_similar_triangles():
    camera = Camera(focal=100, column=50, horizon=40, elevation=1.5)
    np.testing.assert_allclose(camera.project([(2.0, 0.5, 10.0)]), [[70.0, 50.0]])


@pytest.mark.parametrize("bend", [0.0, 0.002], ids=["straight", "bent"])
def test_the_ground_seen_in_a_pixel_projects_back_into_it(bend):
    camera = Camera(focal=120, column=64, horizon=30, bend=bend)
    columns, rows = np.array([3.5, 100.5]), np.array([45.5, 60.5])
    x, z = camera.ground(columns, rows)
    world = [(x[i, j], 0.0, z[i, 0]) for i in range(2) for j in range(2)]
    expected = [(column, row) for row in rows for column in columns]
    np.testing.assert_allclose(camera.project(world), expected, atol=1e-3)


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
def test_only_the_sides_that_face_the_camera_are_seen(pose, sides):
    assert set(visible_sides(CAMERA, pose, Box(2, 4, 0, 1))) == sides


def test_the_top_of_a_thing_above_eye_level_is_hidden():
    assert "top" not in visible_sides(CAMERA, Pose(0, 10), Box(2, 4, 0, 3))


def test_what_reaches_behind_the_camera_is_not_drawn():
    assert visible_sides(CAMERA, Pose(0, 1), Box(2, 4, 0, 1)).keys() == set()
