from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from outlier_paste.appearance import (
    APPEARANCES,
    COLOR_STRENGTH,
    MAX_CONTRAST,
    Patch,
    blur_motion,
    clone_seamlessly,
    match_color,
    match_defocus,
    match_noise,
    noise_level,
    sharpness,
    surroundings,
)
from outlier_paste.blend import BLENDS, blend_into


def make_disc(side: int, picture: np.ndarray, top: int = 40, left: int = 40) -> Patch:
    rows, columns = np.mgrid[:side, :side] - (side - 1) / 2
    mask = np.where(rows**2 + columns**2 < side**2 / 4, 255, 0).astype(np.uint8)
    return Patch(picture, mask, top, left)


def draw_edges(shape: tuple[int, int], sigma: float, contrast: float = 100) -> np.ndarray:
    """Vertical and horizontal edges, blurred by a Gaussian."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    steps = 100 + contrast * (((rows // 20) + (columns // 20)) % 2)
    return np.rint(gaussian_filter(steps.astype(float), sigma)).astype(np.uint8)


def as_color(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=2)


sides = st.integers(1, 40)


@given(
    step=st.sampled_from(sorted(APPEARANCES)),
    shape=st.tuples(sides, sides),
    scene=st.tuples(sides, sides),
    top_left=st.tuples(st.integers(-45, 45), st.integers(-45, 45)),
    blend=st.sampled_from(sorted(BLENDS)),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=250, deadline=None)
def test_any_object_at_any_place_keeps_its_form_and_can_be_blended(
    step: str,
    shape: tuple[int, int],
    scene: tuple[int, int],
    top_left: tuple[int, int],
    blend: str,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    image, picture = (rng.integers(0, 256, (*s, 3), dtype=np.uint8) for s in (scene, shape))
    mask = rng.choice(np.array([0, 90, 255], np.uint8), shape)
    before = (image.copy(), picture.copy(), mask.copy())
    patch = APPEARANCES[step](Patch(picture, mask, *top_left), image, rng)
    for array, copy in zip((image, picture, mask), before, strict=True):
        np.testing.assert_array_equal(array, copy)
    assert patch.picture.dtype == patch.mask.dtype == np.uint8
    assert patch.picture.shape == (*patch.mask.shape, 3)
    grown = np.array(patch.mask.shape) - shape
    assert (grown == 2 * (np.array(top_left) - (patch.top, patch.left))).all()
    label = np.zeros(scene, np.uint8)
    blend_into(image, label, patch.picture, BLENDS[blend](patch.mask), (patch.top, patch.left))


def test_colours_are_those_of_the_formula() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(60, 120, (100, 120, 3), dtype=np.uint8)
    picture = rng.integers(100, 250, (30, 30, 3), dtype=np.uint8)
    patch = make_disc(30, picture)
    lab = cv2.cvtColor(picture, cv2.COLOR_RGB2LAB).astype(float)
    around = cv2.cvtColor(image[24:86, 24:86], cv2.COLOR_RGB2LAB).astype(float)  # margins of 16 pixels
    expected = np.empty_like(lab)
    for channel in range(3):
        inside = lab[..., channel][patch.mask > 0]
        ratio = max(around[..., channel].std(), 1) / max(inside.std(), 1)
        contrast = min(max(ratio**COLOR_STRENGTH, 1 / MAX_CONTRAST), MAX_CONTRAST)
        shift = COLOR_STRENGTH * (around[..., channel].mean() - inside.mean())
        expected[..., channel] = inside.mean() + (lab[..., channel] - inside.mean()) * contrast + shift
    moved = cv2.cvtColor(np.clip(np.rint(expected), 0, 255).astype(np.uint8), cv2.COLOR_LAB2RGB)
    actual = match_color(patch, image, rng).picture
    np.testing.assert_allclose(actual.astype(int), moved.astype(int), atol=2)  # a half rounds either way


def test_sharpness_falls_with_blur_and_not_with_contrast() -> None:
    values = [sharpness(draw_edges((120, 120), sigma)) for sigma in (0.8, 1.6, 3.2)]
    assert values[0] / values[1] == pytest.approx(2, rel=0.25)
    assert values[1] / values[2] == pytest.approx(2, rel=0.25)
    assert sharpness(draw_edges((120, 120), 1.6, contrast=50)) == pytest.approx(values[1], rel=0.15)
    assert sharpness(np.full((20, 20), 7, np.uint8)) == 0


def test_a_sharp_object_in_a_blurred_scene_is_blurred_and_the_reverse_is_not() -> None:
    rng = np.random.default_rng(0)
    blurred, sharp = as_color(draw_edges((140, 140), 1.5)), as_color(draw_edges((60, 60), 0.3))
    patch = make_disc(60, sharp)
    result = match_defocus(patch, blurred, rng)
    assert sharpness(result.picture[..., 0]) < 1.1 * sharpness(blurred[..., 0]) < sharpness(sharp[..., 0])
    assert len(np.unique(result.mask)) > 2  # its edge is as soft
    patch = make_disc(60, as_color(draw_edges((60, 60), 3)))
    assert match_defocus(patch, as_color(draw_edges((140, 140), 0.3)), rng) is patch


@pytest.mark.parametrize("sigma", [2, 5, 10])
def test_the_noise_level_is_the_deviation_that_was_added(sigma: float) -> None:
    rows, columns = np.mgrid[:200, :200]
    smooth = 60 + rows / 4 + columns / 3 + 20 * (columns > 90)  # slopes and an edge are no noise
    noisy = np.rint(smooth + np.random.default_rng(0).normal(0, sigma, smooth.shape))
    assert noise_level(noisy.clip(0, 255).astype(np.uint8)) == pytest.approx(sigma, rel=0.06)


def test_a_clean_object_gets_the_noise_of_its_surroundings() -> None:
    rng = np.random.default_rng(0)
    image = np.clip(rng.normal(120, 6, (200, 200, 1)).repeat(3, axis=2).round(), 0, 255).astype(np.uint8)
    patch = make_disc(80, np.full((80, 80, 3), 90, np.uint8))
    result = match_noise(patch, image, rng)
    assert result.picture.astype(float).std(axis=(0, 1)).mean() == pytest.approx(6, rel=0.1)
    assert match_noise(make_disc(80, result.picture), np.full_like(image, 90), rng).picture is result.picture


def test_motion_keeps_brightness_and_the_middle_of_the_mask() -> None:
    rng = np.random.default_rng(0)
    patch = make_disc(101, np.full((101, 101, 3), 77, np.uint8))
    lengths = set()
    for _ in range(30):
        moved = blur_motion(patch, np.zeros((9, 9, 3), np.uint8), rng)
        lengths.add(moved.mask.shape)
        assert (moved.picture == 77).all()
        assert moved.mask.astype(float).sum() == pytest.approx(patch.mask.astype(float).sum(), rel=0.01)
        rows, columns = np.mgrid[: moved.mask.shape[0], : moved.mask.shape[1]]
        weight = moved.mask / moved.mask.sum(dtype=float)
        assert (rows * weight).sum() + moved.top == pytest.approx(40 + 50, abs=0.6)
        assert (columns * weight).sum() + moved.left == pytest.approx(40 + 50, abs=0.6)
    assert len(lengths) > 2


def test_seamless_cloning_of_a_flat_object_leaves_the_scene() -> None:
    """Without gradients, the solution of the Poisson equation is the boundary's value everywhere."""
    image = np.full((120, 120, 3), (30, 90, 160), np.uint8)
    patch = make_disc(40, np.full((40, 40, 3), 220, np.uint8))
    result = clone_seamlessly(patch, image, np.random.default_rng(0))
    inside = result.picture[patch.mask > 0].astype(int)
    np.testing.assert_allclose(inside, np.broadcast_to((30, 90, 160), inside.shape), atol=2)


def test_seamless_cloning_does_not_see_an_objects_brightness() -> None:
    rng = np.random.default_rng(0)
    texture = gaussian_filter(rng.normal(0, 60, (40, 40)), 3)
    image = np.full((120, 120, 3), 100, np.uint8)
    results = [
        clone_seamlessly(make_disc(40, as_color(np.rint(texture + level).astype(np.uint8))), image, rng)
        for level in (60, 180)
    ]
    inside = results[0].mask > 0
    dark, bright = (result.picture[inside].astype(int) for result in results)
    np.testing.assert_allclose(dark, bright, atol=3)
    assert dark.std() > 3  # the texture is still there


def test_surroundings_end_at_the_border() -> None:
    image = np.zeros((50, 60, 3), np.uint8)
    mask = np.zeros((40, 10), np.uint8)
    around = surroundings(Patch(np.zeros((40, 10, 3), np.uint8), mask, -30, 55), image)
    assert around is not None
    assert around.shape == (30, 21, 3)  # 20 rows below the object, 16 columns beside it
    assert surroundings(Patch(np.zeros((40, 10, 3), np.uint8), mask, 900, 0), image) is None
