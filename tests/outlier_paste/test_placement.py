from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outlier_paste.placement import (
    MAX_ENLARGEMENT,
    PLACEMENTS,
    REAL_SIZE_SPREAD,
    SizeRange,
    place_anywhere,
    place_on_road,
    scale_object,
)
from shards.schema import ROAD_ID, VOID_ID

sides = st.integers(1, 500)


@given(
    scene=st.tuples(sides, sides),
    shape=st.tuples(sides, sides),
    placement=st.sampled_from(sorted(PLACEMENTS)),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=150, deadline=None)
def test_an_object_is_never_larger_than_the_scene_and_always_touches_it(
    scene: tuple[int, int], shape: tuple[int, int], placement: str, seed: int
) -> None:
    label = np.full(scene, ROAD_ID, np.uint8)
    place = PLACEMENTS[placement](label, shape, SizeRange(0.05, 1.0), np.random.default_rng(seed))
    assert place is not None
    assert 1 <= place.height <= scene[0]
    assert 1 <= place.width <= scene[1]
    assert -place.height < place.top < scene[0]
    assert -place.width < place.left < scene[1]


@given(shape=st.tuples(sides, sides), share=st.floats(0.01, 1), seed=st.integers(0, 9))
@settings(max_examples=150, deadline=None)
def test_proportions_are_kept_to_half_a_pixel(shape: tuple[int, int], share: float, seed: int) -> None:
    height, width = scale_object(shape, share, SizeRange(0.01, 1.0), (1024, 2048))
    factor = max(height, width) / max(shape)
    assert height == pytest.approx(max(1, shape[0] * factor), abs=1.01)
    assert width == pytest.approx(max(1, shape[1] * factor), abs=1.01)


@pytest.mark.parametrize(
    ("shape", "share", "smallest", "expected"),
    [
        ((100, 50), 0.2, 0.1, (200, 100)),
        ((100, 50), 0.5, 0.1, (200, 100)),
        ((10, 5), 0.5, 0.1, (100, 50)),
        ((2000, 500), 1.0, 0.1, (1000, 250)),
        ((100, 1000), 1.0, 0.1, (60, 600)),
    ],
    ids=[
        "as asked",
        "enlarged twice at most",
        "more for the smallest size",
        "shrunk",
        "as wide as the scene",
    ],
)
def test_size_rules(shape: tuple[int, int], share: float, smallest: float, expected: tuple[int, int]) -> None:
    assert scale_object(shape, share, SizeRange(smallest, 1.0), (1000, 600)) == expected
    assert MAX_ENLARGEMENT == 2


def test_sizes_anywhere_fill_their_range_and_stay_inside() -> None:
    label, rng = np.zeros((1000, 2000), np.uint8), np.random.default_rng(0)
    sizes = [place_anywhere(label, (400, 300), SizeRange(0.1, 0.4), rng).height for _ in range(500)]
    assert 100 <= min(sizes) < 110
    assert 380 < max(sizes) <= 400
    assert np.median(sizes) == pytest.approx(200, rel=0.1)  # the middle of a log-uniform range


def test_centres_anywhere_cover_the_scene() -> None:
    label, rng = np.zeros((6, 9), np.uint8), np.random.default_rng(0)
    places = [place_anywhere(label, (3, 3), SizeRange(0.5, 0.5), rng) for _ in range(2000)]
    assert {(p.top + p.height // 2, p.left + p.width // 2) for p in places} == set(np.ndindex(6, 9))


def test_an_object_stands_on_the_road_and_is_smaller_far_away() -> None:
    label = np.full((200, 100), VOID_ID, np.uint8)
    label[100:, 30:60] = ROAD_ID
    rng = np.random.default_rng(0)
    for _ in range(300):
        place = place_on_road(label, (500, 250), SizeRange(0.02, 0.5), rng)
        assert place is not None
        foot = place.top + place.height - 1
        assert 100 <= foot < 200
        assert 30 <= place.left + place.width // 2 < 60
        largest = max(0.02, 0.5 * (foot - 99) / 100) * 200
        assert max(0.02 * 200, largest / REAL_SIZE_SPREAD) - 1 <= place.height <= largest + 1


def test_every_road_row_gets_objects() -> None:
    label = np.full((40, 40), VOID_ID, np.uint8)
    label[10, 20], label[30:] = ROAD_ID, ROAD_ID
    rng = np.random.default_rng(0)
    places = [place_on_road(label, (50, 50), SizeRange(0.1, 0.5), rng) for _ in range(400)]
    assert {place.top + place.height - 1 for place in places if place} == {10, *range(30, 40)}


def test_no_road_no_place() -> None:
    label = np.full((40, 40), VOID_ID, np.uint8)
    assert place_on_road(label, (5, 5), SizeRange(0.1, 0.5), np.random.default_rng(0)) is None
