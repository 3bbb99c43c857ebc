"""Plots show every frame with what is known of it, also where a class has no pixel."""

from __future__ import annotations

import numpy as np
import pytest

from eval.report.panels import Example, color_scores, decode_png
from eval.report.plots import plot_frames


@pytest.mark.parametrize("classes", [(0, 1), (0,), (1,), ()], ids=["both", "normal", "anomalous", "none"])
def test_every_frame_has_its_photograph_its_scores_and_what_histogram_there_is(classes):
    photograph = np.full((200, 400, 3), (200, 0, 0), np.uint8)
    target = np.full((200, 400), 255, np.uint8)
    for value in classes:
        target[:, 200 * value : 200 * value + 200] = value
    scores = np.linspace(-1, 2, 400, dtype=np.float32) + np.zeros((200, 1), np.float32)
    frame = Example("worst: frame 7", photograph, target, target, {"MSP": scores})
    drawn = [decode_png(plot_frames([frame] * count)) for count in (1, 3)]
    brightest = color_scores(np.ones((1, 1), np.float32), 0.0, 1.0)[0, 0].astype(int)
    for picture, count in zip(drawn, (1, 3), strict=True):
        left, middle, right = np.array_split(picture.astype(int), 3, axis=1)
        photographs = left[..., 0] - left[..., 2] > 30
        bright = abs(middle - brightest).max(axis=2) < 60
        assert photographs.mean() > 0.5
        for shown in (photographs, bright):
            assert (np.diff(shown.any(axis=1).astype(int), prepend=0) == 1).sum() == count
        redder = right[..., 0] - right[..., 2]
        for value, bars in enumerate(((redder < -30).sum(), (redder > 30).sum())):
            assert (bars > 2000 * count) == (value in classes)  # the legend has some 100
    assert drawn[1].shape[0] == pytest.approx(3 * drawn[0].shape[0], abs=3)
