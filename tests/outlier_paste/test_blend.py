from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import distance_transform_edt

from outlier_paste.blend import BLENDS, blend_into, feathered_opacity, hard_opacity
from shards.schema import OUTLIER_ID

sides = st.integers(1, 12)


@given(
    scene=st.tuples(sides, sides),
    shape=st.tuples(sides, sides),
    top_left=st.tuples(st.integers(-15, 15), st.integers(-15, 15)),
    blend=st.sampled_from(sorted(BLENDS)),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=200, deadline=None)
def test_blending_equals_a_loop_over_pixels(
    scene: tuple[int, int], shape: tuple[int, int], top_left: tuple[int, int], blend: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (*scene, 3), dtype=np.uint8)
    label = rng.integers(0, 19, scene, dtype=np.uint8)
    cutout = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    opacity = BLENDS[blend](rng.choice(np.array([0, 40, 127, 128, 200, 255], np.uint8), shape))
    expected_image, expected_label = image.copy(), label.copy()
    for i, j in np.ndindex(shape):
        row, column = i + top_left[0], j + top_left[1]
        if 0 <= row < scene[0] and 0 <= column < scene[1]:
            share = float(opacity[i, j]) / 255
            mixed = share * cutout[i, j].astype(float) + (1 - share) * image[row, column]
            expected_image[row, column] = np.clip(np.rint(mixed), 0, 255)
            if share >= 0.5:
                expected_label[row, column] = OUTLIER_ID
    blend_into(image, label, cutout, opacity, top_left)
    np.testing.assert_array_equal(image, expected_image)  # no half is ever rounded: 255 is odd
    np.testing.assert_array_equal(label, expected_label)


def test_hard_opacity_is_zero_or_one() -> None:
    assert hard_opacity(np.array([[0, 127, 128, 255]], np.uint8)).tolist() == [[0, 0, 255, 255]]


def test_feathering_follows_the_distance_to_the_background() -> None:
    mask = np.zeros((12, 15), np.uint8)
    mask[2:12, 1:12] = 255  # touches the lower border, where the object ends too
    distance = distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    expected = 255 * np.minimum(distance / 2, 1) * (mask > 0)
    np.testing.assert_allclose(feathered_opacity(mask), expected, atol=0.5)  # rounded


def test_feathering_changes_no_label() -> None:
    mask = np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8)
    np.testing.assert_array_equal(feathered_opacity(mask) >= 128, hard_opacity(mask) >= 128)
    assert (feathered_opacity(mask) <= mask).all()


def test_different_sizes_are_refused() -> None:
    image = np.zeros((9, 9, 3), np.uint8)
    with pytest.raises(ValueError, match=r"opacity is \(2, 3\) but cut-out is \(3, 3\) \(height, width\)"):
        blend_into(image, image[..., 0].copy(), image[:3, :3], image[:2, :3, 0], (0, 0))
