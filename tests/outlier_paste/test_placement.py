from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outlier_paste.placement import (
    MAX_ENLARGEMENT,
    PLACEMENTS,
    REAL_SIZE_SPREAD,
    SIZINGS,
    Place,
    Situation,
    find_horizon,
    scale_object,
    size_as_rpl,
)
from shards.schema import ROAD_ID, VOID_ID

sides = st.integers(1, 500)


def place_object(
    name: str,
    label: np.ndarray,
    shape: tuple[int, int],
    limits: tuple[float, float],
    rng: np.random.Generator,
    sizing: str = "share",
) -> Place | None:
    def size(nearness: float | None) -> tuple[int, int]:
        return SIZINGS[sizing](Situation(shape, label.shape, limits, nearness), rng)

    return PLACEMENTS[name](label, size, rng)


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
    place = place_object(placement, label, shape, (0.05, 1.0), np.random.default_rng(seed))
    assert place is not None
    assert 1 <= place.height <= scene[0]
    assert 1 <= place.width <= scene[1]
    assert -place.height < place.top < scene[0]
    assert -place.width < place.left < scene[1]


def test_sizes_anywhere_fill_their_range_and_stay_inside() -> None:
    label, rng = np.zeros((1000, 2000), np.uint8), np.random.default_rng(0)
    places = [place_object("anywhere", label, (400, 300), (0.1, 0.4), rng) for _ in range(500)]
    sizes = [place.height for place in places if place]
    assert 100 <= min(sizes) < 110
    assert 380 < max(sizes) <= 400
    assert np.median(sizes) == pytest.approx(200, rel=0.1)  # the middle of a log-uniform range


def test_centres_anywhere_cover_the_scene() -> None:
    label, rng = np.zeros((6, 9), np.uint8), np.random.default_rng(0)
    places = [place_object("anywhere", label, (3, 3), (0.5, 0.5), rng) for _ in range(2000)]
    assert {(p.top + p.height // 2, p.left + p.width // 2) for p in places if p} == set(np.ndindex(6, 9))


def test_an_object_stands_on_the_road_and_is_smaller_far_away() -> None:
    label = np.full((200, 100), VOID_ID, np.uint8)
    label[100:, 30:60] = ROAD_ID
    rng = np.random.default_rng(0)
    for _ in range(300):
        place = place_object("road", label, (500, 250), (0.02, 0.5), rng)
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
    places = [place_object("road", label, (50, 50), (0.1, 0.5), rng) for _ in range(400)]
    assert {place.top + place.height - 1 for place in places if place} == {10, *range(30, 40)}


def test_no_road_no_place() -> None:
    label = np.full((40, 40), VOID_ID, np.uint8)
    assert place_object("road", label, (5, 5), (0.1, 0.5), np.random.default_rng(0)) is None


@given(
    scene=st.tuples(sides, sides),
    shape=st.tuples(st.integers(1, 700), st.integers(1, 700)),
    sizing=st.sampled_from(sorted(SIZINGS)),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=150, deadline=None)
def test_inside_is_inside_or_nowhere(
    scene: tuple[int, int], shape: tuple[int, int], sizing: str, seed: int
) -> None:
    label = np.zeros(scene, np.uint8)
    place = place_object("inside", label, shape, (0.05, 1.0), np.random.default_rng(seed), sizing)
    if place is None:
        assert sizing != "share"  # which never makes an object larger than the scene
        return
    assert 0 <= place.top <= place.bottom <= scene[0]
    assert 0 <= place.left <= place.left + place.width <= scene[1]


def test_inside_reaches_every_place_equally_often() -> None:
    label, rng = np.zeros((5, 6), np.uint8), np.random.default_rng(0)
    places = [place_object("inside", label, (3, 4), (1, 1), rng, "original") for _ in range(9000)]
    counts = np.zeros((3, 3))
    for place in places:
        assert place is not None
        counts[place.top, place.left] += 1
    assert counts.min() > 1000 - 4 * 30  # four standard deviations of 30
    assert counts.max() < 1000 + 4 * 30


def test_an_object_larger_than_the_scene_has_no_place_inside() -> None:
    label, rng = np.zeros((5, 6), np.uint8), np.random.default_rng(0)
    assert place_object("inside", label, (6, 2), (1, 1), rng, "original") is None
    assert place_object("inside", label, (2, 7), (1, 1), rng, "original") is None
    assert place_object("inside", label, (5, 6), (1, 1), rng, "original") == Place(0, 0, 5, 6)


def draw_road(horizon: int, shape: tuple[int, int], half_width: float = 0.4) -> np.ndarray:
    """A straight road that narrows to a point at the row `horizon`, which may be negative."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    return abs(columns - shape[1] / 2) < half_width * (rows - horizon)


def test_the_horizon_is_where_the_road_begins() -> None:
    road = draw_road(40, (200, 300))
    assert find_horizon(road, np.flatnonzero(road.any(axis=1))) == pytest.approx(41, abs=1)


@pytest.mark.parametrize("horizon", [-20, -60])
def test_a_horizon_above_the_crop_is_found_from_the_width_of_the_road(horizon: int) -> None:
    road = draw_road(horizon, (200, 300))
    assert find_horizon(road, np.arange(200)) == pytest.approx(horizon, abs=3)


def test_a_crop_full_of_road_has_its_horizon_at_the_top() -> None:
    assert find_horizon(np.ones((50, 40), bool), np.arange(50)) == 0


def test_rectangles_meet_where_they_share_a_pixel() -> None:
    one = Place(10, 10, 5, 5)
    assert one.meets(Place(14, 14, 1, 1))
    assert Place(0, 0, 99, 99).meets(one)
    assert not one.meets(Place(15, 10, 5, 5))
    assert not one.meets(Place(10, 5, 5, 5))


@given(shape=st.tuples(sides, sides), share=st.floats(0.01, 1), seed=st.integers(0, 9))
@settings(max_examples=150, deadline=None)
def test_proportions_are_kept_to_half_a_pixel(shape: tuple[int, int], share: float, seed: int) -> None:
    height, width = scale_object(shape, share, 0.01, (1024, 2048))
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
    ids=["as asked", "twice at most", "more for the smallest size", "shrunk", "as wide as the scene"],
)
def test_size_rules(shape: tuple[int, int], share: float, smallest: float, expected: tuple[int, int]) -> None:
    assert scale_object(shape, share, smallest, (1000, 600)) == expected
    assert MAX_ENLARGEMENT == 2


def test_rpl_draws_its_scales_as_often_as_its_list_says() -> None:
    situation, rng = Situation((400, 800), (700, 700), (0.1, 0.2)), np.random.default_rng(0)
    counts = Counter(size_as_rpl(situation, rng) for _ in range(6000))
    expected = {0.25: 1000, 0.5: 2000, 0.75: 1000, 0.1: 1000, 0.125: 1000}
    assert counts.keys() == {(round(400 * f), round(800 * f)) for f in expected}
    for factor, number in expected.items():
        assert counts[(round(400 * factor), round(800 * factor))] == pytest.approx(number, abs=4 * 37)
