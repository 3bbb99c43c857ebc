"""Rows of frames are drawn, also where one class has no pixel; a warning of matplotlib would be an error."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from eval.report.curves import FrameView, plot_frames

NONE = np.zeros(0, np.float32)
SOME = np.linspace(-1, 2, 400, dtype=np.float32)


@pytest.mark.parametrize(
    ("normal", "anomalous"), [(SOME, SOME + 1), (SOME, NONE), (NONE, SOME), (NONE, NONE)]
)
def test_every_frame_has_its_photograph_its_scores_and_what_histogram_there_is(normal, anomalous):
    photograph, heat = (np.full((32, 64, 3), color, np.uint8) for color in ((200, 0, 0), (0, 0, 200)))
    view = FrameView("worst: frame 7", photograph, heat, normal, anomalous)
    drawn = [
        cv2.imdecode(np.frombuffer(plot_frames([view] * count), np.uint8), cv2.IMREAD_COLOR)
        for count in (1, 3)
    ]
    for picture, count in zip(drawn, (1, 3), strict=True):
        left, middle, right = np.array_split(picture, 3, axis=1)
        reds = (left == (0, 0, 200)).all(axis=2)
        blues = (middle == (200, 0, 0)).all(axis=2)
        assert blues.sum() == pytest.approx(reds.sum(), rel=0.05)
        starts = np.diff(reds.any(axis=1).astype(int))
        assert (starts == 1).sum() == count
        redder = right[..., 2].astype(int) - right[..., 0]
        for bars, scores in (((redder < -30).sum(), normal), ((redder > 30).sum(), anomalous)):
            assert (bars > 2000 * count) == bool(len(scores))  # the legend has some 100
    assert drawn[1].shape[0] == pytest.approx(3 * drawn[0].shape[0], abs=3)
