"""Panels show the right thing in the right place."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest

from eval.report.panels import (
    PANEL_WIDTH,
    Example,
    add_title,
    choose_examples,
    color_classes,
    color_scores,
    decode_png,
    draw_panels,
    draw_target,
    encode_png,
)


def example(height: int = 40, width: int = 80, level: float = 0.0) -> Example:
    ramp = np.linspace(0, 1, height * width, dtype=np.float32).reshape(height, width) + np.float32(level)
    image = np.full((height, width, 3), (10, 120, 230), dtype=np.uint8)
    target = np.zeros((height, width), dtype=np.uint8)
    target[10:20, 10:20], target[:5] = 1, 255
    prediction = np.full((height, width), 10, dtype=np.uint8)
    return Example("7", image, target, prediction, {"MSP": ramp}).shrink()


def test_chosen_frames_are_spread_and_never_more_than_there_are():
    assert choose_examples(60, 3) == {10, 30, 50}
    assert choose_examples(2, 5) == {0, 1}
    assert choose_examples(5, 0) == set()


def test_a_frame_is_shrunk_to_the_panel_and_labels_keep_their_values():
    shown = example(400, 800)
    assert shown.image.shape == (PANEL_WIDTH // 2, PANEL_WIDTH, 3)
    assert set(np.unique(shown.target)) == {0, 1, 255}
    assert shown.scores["MSP"].shape == shown.target.shape == shown.prediction.shape


def test_a_grid_has_a_row_per_frame_and_a_column_per_view_below_its_title():
    one, two = draw_panels([example()]), draw_panels([example(), example()])
    assert one.shape[1] == two.shape[1] == 4 * PANEL_WIDTH + 3 * 6
    assert two.shape[0] - one.shape[0] == PANEL_WIDTH // 2 + 6
    assert draw_panels([example(40, 80), example(90, 80)]).shape[0] > 600
    titled = add_title("t", one)
    assert (titled[-len(one) :] == one).all()
    assert (titled[: -len(one)] < 100).any()


def test_the_color_scale_is_shared_by_all_frames():
    low, high = example(level=0), example(level=5)
    grid = draw_panels([low, high])
    column = grid[:, 2 * (PANEL_WIDTH + 6) : 3 * PANEL_WIDTH + 2 * 6].astype(int).sum(axis=(1, 2))
    assert column[-100:].min() > 2 * column[32:132].max()  # the second frame lies above the first


def test_scores_run_from_dark_to_bright():
    ramp = np.linspace(-1, 2, 31, dtype=np.float32)[None]
    painted = color_scores(ramp, 0.0, 1.0).astype(int).sum(axis=2)[0]
    assert (np.diff(painted[10:20]) > 0).all()
    assert (painted[:10] == painted[0]).all()
    assert (painted[21:] == painted[30]).all()


@pytest.mark.parametrize("value", [3.0, np.inf, np.nan], ids=str)
def test_a_flat_or_broken_map_can_be_drawn(value):
    shown = example()
    shown.scores["MSP"][:] = value  # type: ignore[index]
    assert draw_panels([shown]).dtype == np.uint8


def test_classes_have_the_cityscapes_colors():
    painted = color_classes(np.array([[0, 13, 255]], dtype=np.uint8))
    np.testing.assert_array_equal(painted[0], [(128, 64, 128), (0, 0, 142), (0, 0, 0)])


def test_anomalies_are_outlined_and_void_is_shaded():
    image = np.full((30, 30, 3), 200, dtype=np.uint8)
    target = np.zeros((30, 30), dtype=np.uint8)
    target[10:20, 10:20], target[0] = 1, 255
    drawn = draw_target(image, target)
    assert (drawn[10, 10:20] == (255, 0, 160)).all()
    assert (drawn[15, 15] == 200).all()
    assert (drawn[25, 25] == 200).all()
    assert (drawn[0, 5] < 200).all()
    assert (image == 200).all()


def test_png_keeps_the_picture():
    picture = example().image
    np.testing.assert_array_equal(decode_png(encode_png(picture)), picture)
    np.testing.assert_array_equal(
        cv2.imdecode(np.frombuffer(encode_png(picture), np.uint8), 1)[..., ::-1], picture
    )


def test_true_classes_stand_where_anomalies_would_be_outlined() -> None:
    truth = np.full((40, 80), 8, dtype=np.uint8)
    shown = dataclasses.replace(example(), truth=cv2.resize(truth, (PANEL_WIDTH, PANEL_WIDTH // 2)))
    grid = draw_panels([shown])
    assert grid.shape[1] == 4 * PANEL_WIDTH + 3 * 6
    assert (grid[72, PANEL_WIDTH + 20] == color_classes(truth)[0, 0]).all()
