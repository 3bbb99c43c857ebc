"""Colours as upstream changes them, against torchvision's functions, step by step."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional

from shards.color import (
    jitter_as_upstream,
    scale_brightness,
    scale_contrast,
    scale_saturation,
    shift_hue,
)


def picture() -> np.ndarray:
    """Smooth colours of every hue with some grain."""
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (6, 8, 3)).astype(np.float32)
    image = cv2.resize(coarse, (160, 120), interpolation=cv2.INTER_CUBIC)
    return np.clip(image + generator.normal(0, 4, image.shape), 0, 255).astype(np.uint8)


def torchvision_result(function: Callable[..., torch.Tensor], value: float) -> np.ndarray:
    tensor = torch.from_numpy(picture()).permute(2, 0, 1)
    return function(tensor, value).permute(1, 2, 0).numpy()


@pytest.mark.parametrize(
    ("ours", "theirs", "values", "largest", "mean"),
    [
        (scale_brightness, functional.adjust_brightness, (1 - 32 / 255, 1.05, 1 + 32 / 255), 1, 0.6),
        (scale_contrast, functional.adjust_contrast, (0.5, 0.9, 1.5), 1, 1.0),
        (scale_saturation, functional.adjust_saturation, (0.5, 0.9, 1.5), 1, 0.6),
        # hue in 256 steps: value and shift are each off by up to 0.7 of the 43 steps in which a channel runs
        # from 0 to 255, and their grain is not in uint8
        (shift_hue, functional.adjust_hue, (-18 / 360, 0.01, 18 / 360), 12, 1.0),
    ],
    ids=["brightness", "contrast", "saturation", "hue"],
)
def test_each_step_is_torchvision_s_to_a_few_levels(
    ours: Callable[..., np.ndarray],
    theirs: Callable[..., torch.Tensor],
    values: tuple[float, ...],
    largest: int,
    mean: float,
) -> None:
    """Torchvision cuts fractions off, we round; its grey is cut, ours rounded."""
    for value in values:
        difference = np.abs(ours(picture(), value).astype(int) - torchvision_result(theirs, value))
        assert difference.max() <= largest
        assert difference.mean() <= mean


def test_steps_happen_as_often_and_as_strongly_as_upstream_says() -> None:
    """Read off a grey and a coloured pixel: brightness alone moves grey; the four are independent."""
    gray = np.full((2, 2, 3), 128, np.uint8)
    levels = np.array([jitter_as_upstream(gray, 0.5, np.random.default_rng(s))[0, 0, 0] for s in range(3000)])
    moved = levels[levels != 128] / 128
    assert len(moved) / 3000 == pytest.approx(0.5, abs=0.03)  # contrast about the mean leaves it in place
    assert moved.min() == pytest.approx(1 - 32 / 255, abs=0.005)
    assert moved.max() == pytest.approx(1 + 32 / 255, abs=0.005)


def test_strength_zero_moves_a_picture_by_rounding_only() -> None:
    image = picture()
    for seed in range(20):
        changed = jitter_as_upstream(image, 0.0, np.random.default_rng(seed))
        assert np.abs(changed.astype(int) - image).max() <= 8  # a turn through HSV and back
    np.testing.assert_array_equal(image, picture())


def test_the_number_of_draws_does_not_depend_on_the_strength() -> None:
    after = set()
    for strength in (0.0, 1.0):
        generator = np.random.default_rng(5)
        jitter_as_upstream(picture(), strength, generator)
        after.add(generator.random())
    assert len(after) == 1
