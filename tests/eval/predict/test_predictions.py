"""Cached predictions give the class scores that the network gave, to half precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from eval.predict.predictions import (
    CachedSet,
    CacheInfo,
    PredictionRecorder,
    read_cache,
    read_frame,
    write_frame,
    write_index,
)
from eval.predict.queries import pixel_class_scores
from eval.predict.windows import predict_in_windows
from tests.support.refused import refused

WINDOW = (16, 16)


def fake_masks(windows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mask and class logits of 3 queries that depend on the pixels."""
    small = windows.float()[:, :, ::4, ::4] / 32 - 4
    classes = windows.float().mean(dim=(2, 3))[:, :, None] / 64 + torch.arange(5.0)
    return small, classes


@pytest.mark.parametrize("kind", ["masks", "pixels"])
def test_class_scores_is_that_of_the_network(tmp_path, kind):
    image = torch.randint(0, 256, (3, 20, 50), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    recorder = PredictionRecorder(num_classes=4)

    def predict(windows: torch.Tensor) -> torch.Tensor:
        masks, classes = fake_masks(windows)
        if kind == "pixels":
            recorder.add(windows.float() / 16)
            return windows.float() / 16
        recorder.add(masks, classes)
        return pixel_class_scores(masks, classes, WINDOW, 4)

    expected = predict_in_windows(image, predict, WINDOW, windows_at_once=2)
    target = np.zeros((20, 50), np.uint8)
    write_frame(tmp_path / "set", 3, target, recorder.take())
    again, predictions = read_frame(tmp_path / "set", 3)
    np.testing.assert_array_equal(again, target)
    found = predictions.class_scores((20, 50), WINDOW)[0]
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=1e-3)  # half precision of logits up to 8


def test_an_unfinished_or_foreign_folder_is_no_cache(tmp_path):
    with refused(r"--cache .*: no cache of jobs.evaluate --cache"):
        read_cache(tmp_path)
    (tmp_path / "cache.json").write_text('{"model": "m", "checkpoint": "c"}')
    with refused("no finished set in it"):
        read_cache(tmp_path)
    (tmp_path / "s").mkdir()
    cached = CachedSet(folder="s", name="S", is_benchmark=True, window=WINDOW, stems=("a",))
    write_index(tmp_path, cached)
    assert read_cache(tmp_path) == (CacheInfo(model="m", checkpoint="c"), (cached,))
    (tmp_path / "s" / "0.npz").write_bytes(b"no")
    with refused(r"0.npz: no cached prediction"):
        read_frame(tmp_path / "s", 0)
