from __future__ import annotations

import numpy as np
import pytest

from jobs.world.camera import Camera


def test_a_point_is_projected_by_similar_triangles() -> None:
    camera = Camera(focal=100, column=50, horizon=40, elevation=1.5)
    np.testing.assert_allclose(camera.project([(2.0, 0.5, 10.0)]), [[70.0, 50.0]])


@pytest.mark.parametrize("bend", [0.0, 0.002], ids=["straight", "bent"])
def test_the_ground_seen_in_a_pixel_projects_back_into_it(bend: float) -> None:
    camera = Camera(focal=120, column=64, horizon=30, bend=bend)
    columns, rows = np.array([3.5, 100.5]), np.array([45.5, 60.5])
    x, z = camera.ground(columns, rows)
    world = [(x[i, j], 0.0, z[i, 0]) for i in range(2) for j in range(2)]
    expected = [(column, row) for row in rows for column in columns]
    np.testing.assert_allclose(camera.project(world), expected, atol=1e-3)
