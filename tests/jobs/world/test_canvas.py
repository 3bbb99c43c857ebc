from __future__ import annotations

import numpy as np
import pytest

from jobs.world.canvas import Canvas, Sprite, ellipse_points


def blank(height: int = 20, width: int = 30) -> Canvas:
    return Canvas(height, width, np.random.default_rng(0))


def test_a_polygon_on_pixel_edges_fills_exactly_its_pixels():
    canvas = blank()
    canvas.fill([(4, 2), (10, 2), (10, 7), (4, 7)], (200, 100, 50), 9)
    image, identities = canvas.finish()
    expected = np.zeros((20, 30), dtype=bool)
    expected[2:7, 4:10] = True
    inner = np.s_[3:6, 5:9]
    np.testing.assert_array_equal(identities[inner], 9)
    # cv2 draws the outline too, so an edge may reach half a pixel further.
    assert abs(int((identities == 9).sum()) - int(expected.sum())) <= 12
    np.testing.assert_array_equal(image[inner], np.broadcast_to((200, 100, 50), image[inner].shape))


def test_the_picture_is_antialiased_and_the_identities_are_not():
    canvas = blank(40, 40)
    canvas.fill(ellipse_points((20.3, 19.8), (13, 9)), (255, 255, 255), 26000)
    image, identities = canvas.finish()
    assert set(np.unique(identities).tolist()) == {0, 26000}
    assert ((image > 0) & (image < 255)).any()


def test_an_ellipse_covers_pi_a_b():
    canvas = blank(100, 100)
    canvas.fill(ellipse_points((50, 50), (40, 25), count=200), (9, 9, 9), 1)
    _, identities = canvas.finish()
    assert (identities == 1).sum() == pytest.approx(np.pi * 40 * 25, rel=0.03)


def test_what_is_painted_without_identity_changes_no_identity():
    canvas = blank()
    canvas.fill([(0, 0), (30, 0), (30, 20), (0, 20)], (90, 90, 90), 7)
    canvas.fill([(5, 5), (15, 5), (15, 15), (5, 15)], (255, 255, 255))
    canvas.shadow([(5, 5), (15, 5), (15, 15), (5, 15)], 0.5, 2.0)
    image, identities = canvas.finish()
    assert (identities == 7).all()
    assert image.max() > 90


def test_far_things_fade_into_the_haze():
    canvas = blank()
    canvas.haze, canvas.haze_per_metre = (200.0, 200.0, 200.0), 0.01
    canvas.fill([(0, 0), (30, 0), (30, 20), (0, 20)], (0, 0, 0), 1, depth=100)
    image, _ = canvas.finish()
    assert image[10, 10, 0] == int(200 * (1 - np.exp(-1)))


def test_what_lies_outside_is_cropped_or_ignored():
    canvas = blank()
    canvas.fill([(-50, -50), (-10, -50), (-10, -10)], (255, 0, 0), 1)
    sprite = Sprite(np.full((6, 6, 3), 77, np.uint8), np.ones((6, 6), bool))
    canvas.stamp(sprite, (-2, -2), 5)
    canvas.stamp(sprite, (500, 500), 6)
    assert (canvas.identities == 5).sum() == 16
    assert set(np.unique(canvas.identities).tolist()) == {0, 5}


def test_a_warped_texture_keeps_its_corners():
    texture = np.zeros((10, 10, 3), dtype=np.uint8)
    texture[:5, :5] = (255, 0, 0)
    texture[5:, 5:] = (0, 0, 255)
    canvas = blank(40, 40)
    canvas.warp(texture, [(4, 4), (36, 8), (36, 32), (4, 36)], 12)
    image, _ = canvas.finish()
    np.testing.assert_array_equal(image[8, 8], (255, 0, 0))
    np.testing.assert_array_equal(image[28, 32], (0, 0, 255))


def test_instances_of_a_class_are_counted():
    canvas = blank()
    assert [canvas.new_instance(label) for label in (26, 24, 26)] == [26000, 24000, 26001]
