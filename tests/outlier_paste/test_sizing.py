from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outlier_paste.sizing import (
    MAX_ENLARGEMENT,
    Situation,
    SizeRange,
    keep_size,
    scale_object,
    size_as_rpl,
)

sides = st.integers(1, 500)


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


def test_the_original_size_is_kept_whatever_the_scene() -> None:
    situation = Situation((300, 500), (100, 100), SizeRange(0.1, 0.2))
    assert keep_size(situation, np.random.default_rng(0)) == (300, 500)


def test_rpl_draws_its_scales_as_often_as_its_list_says() -> None:
    situation, rng = Situation((400, 800), (700, 700), SizeRange(0.1, 0.2)), np.random.default_rng(0)
    counts = Counter(size_as_rpl(situation, rng) for _ in range(6000))
    expected = {0.25: 1000, 0.5: 2000, 0.75: 1000, 0.1: 1000, 0.125: 1000}
    assert counts.keys() == {(round(400 * f), round(800 * f)) for f in expected}
    for factor, number in expected.items():
        assert counts[(round(400 * factor), round(800 * factor))] == pytest.approx(number, abs=4 * 37)
