"""Properties of sliding-window inference, with networks that are functions of their own pixels."""

from __future__ import annotations

import numpy as np
import PIL.Image
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from eval.predict.windows import (
    SlidingPredictor,
    covering_size,
    predict_in_windows,
    resize_image,
    window_starts,
)


def drawn_image(height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


def pixelwise(windows: torch.Tensor) -> torch.Tensor:
    """Return two classes that depend on nothing but the pixel itself."""
    values = windows.float() / 255
    return torch.stack([values[:, 0] * values[:, 1], values[:, 2].square()], dim=1)


@pytest.mark.parametrize("size", [(32, 64), (32, 80), (77, 32), (45, 60), (100, 150)], ids=str)
@pytest.mark.parametrize("at_once", [1, 3])
def test_a_pixelwise_network_gives_what_one_full_pass_gives(size, at_once):
    image = drawn_image(*size)
    full = pixelwise(resize_image(image, covering_size(size, (32, 32)))[None])
    full = F.interpolate(full, size=size, mode="bilinear", align_corners=False)[0]
    windowed = predict_in_windows(image, pixelwise, (32, 32), at_once)
    torch.testing.assert_close(windowed, full, rtol=0, atol=1e-6)


def test_a_window_as_large_as_the_image_changes_nothing():
    image = drawn_image(16, 24)
    assert torch.equal(predict_in_windows(image, pixelwise, (16, 24)), pixelwise(image[None])[0])


@given(st.integers(1, 300), st.integers(1, 60))
def test_windows_cover_every_pixel_with_as_few_as_possible(extra, window):
    side = window + extra - 1
    starts = window_starts(side, window)
    assert len(starts) == -(-side // window)
    assert starts[0] == 0
    assert starts[-1] == side - window
    steps = np.diff(starts)
    assert (steps <= window).all()
    assert steps.size == 0 or steps.max() - steps.min() <= 1  # evenly spread


@given(st.integers(8, 200), st.integers(8, 200))
def test_the_scaled_image_covers_the_window_and_fits_one_axis(height, width):
    scaled = covering_size((height, width), (64, 48))
    assert scaled[0] >= 64
    assert scaled[1] >= 48
    assert scaled[0] == 64 or scaled[1] == 48


@pytest.mark.parametrize(
    ("native", "shown"), [((32, 64), (32, 64)), ((45, 64), (48, 64)), ((64, 32), (128, 64))]
)
def test_a_convolutional_network_sees_the_whole_image_scaled_to_multiples_of_its_stride(native, shown):
    seen = []
    network = SlidingPredictor(
        lambda images: seen.append(images.shape) or pixelwise(images), (32, 64), stride=8
    )
    found = network(drawn_image(*native).permute(1, 2, 0).numpy())
    assert seen == [(1, 3, *shown)]
    assert found.shape[1:] == native
    assert network.sees == "whole images, scaled to cover 32 x 64"


def test_overlapping_windows_are_averaged():
    order = iter([1.0, 4.0])
    constant = lambda windows: torch.full((1, 1, 4, 4), next(order))  # noqa: E731
    class_scores = predict_in_windows(drawn_image(4, 6), constant, (4, 4), windows_at_once=1)
    np.testing.assert_array_equal(class_scores[0, 0], [1, 1, 2.5, 2.5, 4, 4])


def test_windows_at_once_are_no_more_than_allowed():
    seen = []
    counting = lambda windows: seen.append(len(windows)) or pixelwise(windows)  # noqa: E731
    predict_in_windows(drawn_image(8, 40), counting, (8, 8), 2)
    assert seen == [2, 2, 1]


def test_shrinking_matches_pillow():
    image = drawn_image(60, 90)
    picture = PIL.Image.fromarray(image.permute(1, 2, 0).numpy())
    pillow = np.asarray(picture.resize((30, 20), PIL.Image.Resampling.BILINEAR)).astype(int)
    difference = resize_image(image, (20, 30)).int().permute(1, 2, 0).numpy() - pillow
    assert np.abs(difference).max() <= 1  # Pillow rounds after each axis


@pytest.mark.parametrize("scale", [0.5, 1.0, 1.5, 2.0])
def test_a_scaled_image_is_predicted_at_its_own_size(scale):
    """What does not cover the window is padded, and the padding leaves no trace."""
    image = drawn_image(32, 64)
    full = pixelwise(resize_image(image, (round(32 * scale), round(64 * scale)))[None])
    expected = F.interpolate(full, size=(32, 64), mode="bilinear", align_corners=False)[0]
    found = predict_in_windows(image, pixelwise, (32, 32), scale=scale)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
