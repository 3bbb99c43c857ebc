from __future__ import annotations

import colorsys
from collections.abc import Iterable

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import tv_tensors
from torchvision.transforms import v2

from shards.augment import choose_crop, find_window, recolor_inside, resize_crop, resize_label
from shards.color import jitter_color
from shards.config import AugmentConfig
from shards.schema import OUTLIER_ID, VOID_ID, Sample


def still(zoom: float = 1.0, **settings: object) -> AugmentConfig:
    """One zoom, no flips and no colours, but for `settings`."""
    return AugmentConfig(**{"scale": (zoom, zoom), "flip": 0.0, "color": 0.0, **settings})  # type: ignore[arg-type]


STILL = still()


def scene(height: int, width: int) -> Sample:
    """Every pixel says where it is: red is the row, green the column, the label the parity of both."""
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([rows % 256, columns % 256, np.full_like(rows, 7)], axis=-1).astype(np.uint8)
    return Sample(key="k", image=image, label=((rows + columns) % 2).astype(np.uint8))


def crop_scene(
    sample: Sample, config: AugmentConfig, size: tuple[int, int], generator: np.random.Generator
) -> Sample:
    crop = choose_crop(sample.label, config, size, generator)
    image = resize_crop(sample.image[crop.rows, crop.columns], crop)
    return Sample(key=sample.key, image=image, label=resize_label(sample.label, crop))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def sides(part: Iterable[slice]) -> tuple[int, ...]:
    return tuple(span.stop - span.start for span in part)


frames = st.tuples(st.integers(1, 300), st.integers(1, 300))


@given(frame=frames, crop=frames, zoom=st.floats(0.05, 20), seed=st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_a_window_lies_in_the_frame_and_fills_the_crop_at_zoom_one_and_above(
    frame: tuple[int, int], crop: tuple[int, int], zoom: float, seed: int
) -> None:
    window = find_window(frame, crop, zoom, tuple(rng(seed).random(2).tolist()))
    for part, whole in zip((window.rows, window.columns, *window.filled), (*frame, *crop), strict=True):
        assert 0 <= part.start < part.stop <= whole
    if zoom >= 1:
        assert sides(window.filled) == crop


@pytest.mark.parametrize(
    ("zoom", "size", "filled"),
    [(1.0, (1024, 1024), (1024, 1024)), (2.0, (512, 512), (1024, 1024)), (0.5, (1024, 2048), (512, 1024))],
)
def test_zoom_on_a_cityscapes_frame(zoom: float, size: tuple[int, int], filled: tuple[int, int]) -> None:
    window = find_window((1024, 2048), (1024, 1024), zoom, (0.0, 0.0))
    assert sides((window.rows, window.columns)) == size
    assert sides(window.filled) == filled


def test_upstream_scales_leave_forty_percent_void_and_ours_none() -> None:
    def void_share(low: float, high: float) -> float:
        zooms = np.linspace(low, high, 2000)
        windows = [find_window((1024, 2048), (1024, 1024), zoom, (0.5, 0.5)) for zoom in zooms]
        return 1 - float(np.mean([np.prod(sides(w.filled)) / 1024**2 for w in windows]))

    # by hand: the part filled is z * min(1, 2z); its mean over [.25, 1] is (.0729 + .375) / .75 = .597
    assert void_share(0.25, 1.0) == pytest.approx(0.403, abs=0.002)
    assert void_share(*AugmentConfig().scale) == 0


def test_without_zoom_a_crop_is_a_piece_of_the_frame() -> None:
    sample = scene(40, 90)
    crop = crop_scene(sample, STILL, (40, 40), rng())
    left = int(crop.image[0, 0, 1])
    np.testing.assert_array_equal(crop.image, sample.image[:, left : left + 40])
    np.testing.assert_array_equal(crop.label, sample.label[:, left : left + 40])


def test_every_place_of_the_window_occurs() -> None:
    sample = scene(4, 9)
    lefts = {int(crop_scene(sample, STILL, (4, 4), rng(seed)).image[0, 0, 1]) for seed in range(200)}
    assert lefts == set(range(6))


def test_a_mirrored_crop_is_the_crop_mirrored() -> None:
    sample = scene(20, 30)
    plain = crop_scene(sample, STILL, (10, 10), rng())
    mirrored = crop_scene(sample, still(flip=1.0), (10, 10), rng())
    np.testing.assert_array_equal(mirrored.image, plain.image[:, ::-1])
    np.testing.assert_array_equal(mirrored.label, plain.label[:, ::-1])


def test_padding_is_void_and_nothing_else_is() -> None:
    sample = scene(20, 40)
    crop = crop_scene(sample, still(0.5), (20, 20), rng())
    window = choose_crop(sample.label, still(0.5), (20, 20), rng())
    changed = recolor_inside(crop.image, window, lambda part: 255 - part)
    np.testing.assert_array_equal((changed != crop.image).any(axis=2), crop.label != VOID_ID)
    rows = np.flatnonzero((crop.label != VOID_ID).any(axis=1))
    assert crop.label.shape == (20, 20)
    assert (crop.label[rows[0] : rows[0] + 10] != VOID_ID).all()
    assert (crop.label == VOID_ID).sum() == 200
    assert not crop.image[crop.label == VOID_ID].any()


def test_image_and_label_are_enlarged_about_the_same_centre() -> None:
    """An edge at column 8 of 16 stays in the middle of both; OpenCV's plain nearest neighbour fails this."""
    label = np.repeat(np.uint8([[0, 1]]), 8, axis=1).repeat(16, axis=0)
    image = np.repeat(label[..., None] * np.uint8(200), 3, axis=2)
    crop = crop_scene(Sample(key="k", image=image, label=label), STILL, (50, 50), rng())
    np.testing.assert_array_equal(crop.label, crop.image[..., 0] > 100)


def test_labels_are_never_mixed() -> None:
    label = rng().choice(np.array([0, 18, 254, 255], np.uint8), (50, 80))
    sample = Sample(key="k", image=np.zeros((50, 80, 3), np.uint8), label=label)
    for seed in range(20):
        crop = crop_scene(sample, AugmentConfig(scale=(0.3, 4.0)), (33, 47), rng(seed))
        assert crop.label.shape == (33, 47)
        assert set(np.unique(crop.label)) <= {0, 18, 254, 255}


def test_the_input_is_not_modified() -> None:
    sample = scene(30, 60)
    image, label = sample.image.copy(), sample.label.copy()
    crop = crop_scene(sample, AugmentConfig(flip=1.0), (30, 60), rng())
    jitter_color(crop.image, 1.0, rng())
    np.testing.assert_array_equal(sample.image, image)
    np.testing.assert_array_equal(sample.label, label)


def test_colour_zero_changes_nothing() -> None:
    image = scene(20, 20).image
    assert all(jitter_color(image, 0.0, rng(seed)) is image for seed in range(20))


def test_the_number_of_draws_does_not_depend_on_the_settings() -> None:
    sample, after = scene(20, 20), set()
    for config in (STILL, AugmentConfig(flip=1.0, color=1.0)):
        generator = rng()
        jitter_color(crop_scene(sample, config, (8, 8), generator).image, config.color, generator)
        after.add(generator.random())
    assert len(after) == 1


@pytest.mark.parametrize("seed", range(12))
def test_colours_agree_with_the_standard_library(seed: int) -> None:
    """The docstring's formula, pixel by pixel in floats, with colorsys.

    The tolerance is that of hue in 256 steps: its value and its shift are each rounded by 0.7 of the 60
    degrees over which a channel runs from 0 to 255, which is 6; value and saturation add 1 each.
    """
    image = rng(99).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    generator = rng(seed)
    used = generator.random(4) < 0.5
    brightness, contrast, saturation, hue = 0.5 * used * generator.uniform(-1, 1, 4)
    expected = np.clip(np.rint(image * (1 + contrast) + 64 * brightness), 0, 255) / 255
    for pixel in expected.reshape(-1, 3):
        h, s, v = colorsys.rgb_to_hsv(*pixel)
        pixel[:] = colorsys.hsv_to_rgb((h + hue * 36 / 360) % 1, min(1, s * (1 + saturation)), v)
    np.testing.assert_allclose(jitter_color(image, 0.5, rng(seed)), expected * 255, atol=8)


UPSTREAM = AugmentConfig(recipe="upstream")


def test_a_recipe_fills_in_its_own_scale_and_keeps_one_that_is_given() -> None:
    assert AugmentConfig().scale == (1.0, 2.0)
    assert UPSTREAM.scale == (0.5, 2.0)
    assert AugmentConfig(recipe="upstream", scale=(0.7, 0.9)).scale == (0.7, 0.9)


def torchvision_window(seed: int) -> tuple[int, int, int, bool]:
    """Where tue-mps/eomt's own steps look on a quarter-size Cityscapes frame, with torchvision.

    Red is the row and green the column of a pixel, in [0, 1], so that the place can be read from the crop.
    """
    torch.manual_seed(seed)
    rows, columns = torch.meshgrid(torch.linspace(0, 1, 128), torch.linspace(0, 1, 256), indexing="ij")
    image = tv_tensors.Image(torch.stack([rows, columns, torch.ones_like(rows)]))
    image = v2.RandomHorizontalFlip()(image)
    image = v2.ScaleJitter((128, 128), scale_range=(0.5, 2.0))(image)
    missing = [max(0, 128 - side) for side in image.shape[-2:]]
    image = v2.RandomCrop((128, 128))(v2.functional.pad(image, [0, 0, missing[1], missing[0]]))
    filled = image[2] > 0.5
    height, width = int(filled.any(1).sum()), int(filled.any(0).sum())
    mirrored = bool(image[1, 0, 0] > image[1, 0, width - 1])
    left = float(image[1, 0, width - 1 if mirrored else 0]) * 255 - (128 / height - 1) / 2  # of its rim
    return height, width, round(left), mirrored


def test_upstream_s_crops_have_the_distribution_of_torchvision_s() -> None:
    """Scale, place and mirroring over 600 crops each: Kolmogorov-Smirnov, and the share of mirror images."""
    from scipy.stats import ks_2samp

    theirs = np.array([torchvision_window(seed) for seed in range(600)])
    label = np.zeros((128, 256), np.uint8)
    ours = []
    for seed in range(600):
        crop = choose_crop(label, UPSTREAM, (128, 128), rng(seed))
        ours.append((*sides(crop.filled), crop.columns.start, crop.mirrored))
        assert (crop.rows.start, crop.filled[0].start, crop.filled[1].start) == (0, 0, 0)
    for column, name in enumerate(("filled rows", "filled columns", "left")):
        assert ks_2samp(np.array(ours)[:, column], theirs[:, column]).pvalue > 0.01, name
    assert np.mean(ours, axis=0)[3] == pytest.approx(theirs.mean(axis=0)[3], abs=0.08)


def test_upstream_draws_a_crop_without_a_class_anew() -> None:
    """A strip of road in a void frame is in every crop, but where there is none the draws come to an end."""
    label = np.full((128, 256), VOID_ID, np.uint8)
    label[:, 200:204] = 3
    for seed in range(40):
        crop = choose_crop(label, UPSTREAM, (128, 128), rng(seed))
        assert (label[crop.rows, crop.columns] == 3).any(), seed
    label[:, 200:204] = OUTLIER_ID  # no class
    choose_crop(label, UPSTREAM, (128, 128), rng(0))


@pytest.mark.parametrize(("zoom", "largest", "mean"), [(1.0, 0, 0), (1.5, 6, 1.0), (2.0, 6, 1.0)])
def test_a_crop_has_torchvision_s_pixels(zoom: float, largest: float, mean: float) -> None:
    """Resizing the window alone is resizing the whole frame, but for half a pixel of its rim.

    Ours rounds the window to whole pixels of the frame, so a crop is up to half a frame pixel off: the
    difference is that of a smooth picture moved so far. Labels agree but for edges.
    """
    coarse = np.random.default_rng(1).integers(0, 256, (5, 9, 3)).astype(np.float32)
    image = np.clip(cv2.resize(coarse, (256, 128), interpolation=cv2.INTER_CUBIC), 0, 255).astype(np.uint8)
    sample = Sample(key="k", image=image, label=(image[..., 0] // 16).astype(np.uint8))
    crop = crop_scene(sample, still(zoom), (128, 128), rng(4))
    window = choose_crop(sample.label, still(zoom), (128, 128), rng(4))
    size = [round(128 * zoom), round(256 * zoom)]
    whole = v2.functional.resize(torch.from_numpy(image).permute(2, 0, 1), size, antialias=True)
    top, left = round(window.rows.start * zoom), round(window.columns.start * zoom)
    expected = v2.functional.crop(whole, top, left, 128, 128).permute(1, 2, 0).numpy()
    inner = np.s_[2:-2, 2:-2]
    difference = np.abs(crop.image.astype(int) - expected)[inner]
    assert difference.max() <= largest
    assert difference.mean() <= mean


def seen(label: np.ndarray, config: AugmentConfig, size: tuple[int, int], count: int) -> list[np.ndarray]:
    """Parts of a label map that random crops show."""
    crops = [choose_crop(label, config, size, rng(seed)) for seed in range(count)]
    return [label[crop.rows, crop.columns] for crop in crops]


def test_balanced_crops_show_every_class_equally_often() -> None:
    """A class of 1 pixel in 2000 is in a third of all balanced windows, and in almost no uniform one."""
    label = np.full((64, 128), 0, np.uint8)
    label[:, 64:] = 10
    label[20:22, 100:102] = 5
    balanced = seen(label, still(8.0, class_balance=1.0), (64, 64), 600)
    assert np.mean([(part == 5).any() for part in balanced]) > 1 / 3 - 0.05
    assert np.mean([(part == 5).any() for part in seen(label, still(8.0), (64, 64), 600)]) < 0.03


def test_a_balanced_crop_shows_its_pixel_anywhere_in_the_window() -> None:
    label = np.full((60, 60), 0, np.uint8)
    label[30, 30] = 5
    parts = seen(label, still(6.0, class_balance=1.0), (60, 60), 300)
    assert {int(row) for part in parts for row in np.nonzero(part == 5)[0]} == set(range(10))


def test_void_frames_and_void_pixels_attract_no_balanced_crop() -> None:
    label = np.full((40, 80), VOID_ID, np.uint8)
    config = still(2.0, class_balance=1.0)
    assert seen(label, config, (40, 40), 1)[0].shape == (20, 20)
    label[39, 79] = 3
    assert all((part == 3).any() for part in seen(label, config, (40, 40), 20))


def test_a_class_share_limit_prefers_mixed_windows() -> None:
    """Half of the frame is road and half is 4-pixel stripes; windows of road alone become rare."""
    label = np.zeros((64, 256), np.uint8)
    label[:, 128:] = np.arange(128) // 4 % 19

    def road_only(**limit: float) -> float:
        return float(
            np.mean([(part == 0).mean() > 0.8 for part in seen(label, still(2.0, **limit), (64, 64), 300)])
        )

    assert road_only() > 0.3
    assert road_only(max_class_share=0.75) < 0.02
    assert seen(np.zeros((40, 80), np.uint8), still(max_class_share=0.1), (40, 40), 1)[0].shape == (40, 40)
