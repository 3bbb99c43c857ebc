"""Slices of a frame that can be counted by hand; best and worst frames."""

from __future__ import annotations

import numpy as np

from eval.metrics.curve import PixelMetrics
from eval.metrics.measure import ImageMetrics
from eval.report.slices import NEAR_PIXELS, Slice, choose_extremes, count_slices, shares


def test_pixels_are_counted_by_size_band_distance_and_class():
    target = np.zeros((90, 60), np.uint8)
    target[0:2, 0:5] = 1  # 10 pixels, upper third
    target[50:90, 10:40] = 1  # 1200 pixels: 300 in the middle third, 900 in the lower
    target[30:40, 50:60] = 255
    scores = np.zeros((90, 60), np.float32)
    scores[0, 0:5] = 1  # half of the small one
    scores[60:90, 10:40] = 1  # what lies in the lower third of the large one
    scores[30:40, 0:60] = 1  # 500 normal pixels, and void
    prediction = np.zeros((90, 60), np.uint8)
    prediction[30:40, 0:10] = 13
    found = shares(count_slices(scores, target, prediction, 1.0))
    assert {each.name: value for each, value in found.items() if each.kind == "found"} == {
        "anomaly below 1,000 px": (0.5, 10),
        "anomaly 1,000 to 10,000 px": (0.75, 1200),
        "upper third (far)": (0.5, 10),
        "middle third": (0, 300),
        "lower third (near)": (1, 900),
    }
    assert found[Slice("alarm", "middle third")] == (500 / 1400, 1400)
    assert found[Slice("alarms by class", "car")] == (0.2, 500)
    near = found[Slice("alarm", f"within {NEAR_PIXELS} px of an anomaly")]
    far = found[Slice("alarm", "elsewhere")]
    assert near[1] + far[1] == int((target == 0).sum())
    # the nearest alarms, row 39, are 11 rows above the large anomaly
    assert near[0] == 0
    assert round(far[0] * far[1]) == 500


def test_frames_add_up():
    rng = np.random.default_rng(0)
    frames = [
        (rng.random((30, 20), np.float32), rng.choice(np.array([0, 1], np.uint8), (30, 20))) for _ in range(2)
    ]
    prediction = np.zeros((30, 20), np.uint8)
    counts = [count_slices(scores, target, prediction, 0.5) for scores, target in frames]
    called = sum(int(((scores >= 0.5) & (target == 0)).sum()) for scores, target in frames)
    both = shares(counts[0] + counts[1])
    assert both[Slice("alarms by class", "road")] == (1.0, called)


def test_extremes_are_the_best_and_the_worst_and_no_frame_twice():
    values = [0.5, None, 0.9, 0.1, 0.6, 0.2]
    rows = [ImageMetrics(i, 1, 1, ap and PixelMetrics(ap, 0, 0, 0, 0)) for i, ap in enumerate(values)]
    assert [(which, r.image) for which, r in choose_extremes(rows)] == [
        ("best", 2), ("best", 4), ("worst", 5), ("worst", 3),
    ]  # fmt: skip
    assert [r.image for _, r in choose_extremes(rows[:3])] == [2, 0]
    assert choose_extremes(rows[1:2]) == []
