"""A user's own test set is three lines, and a mistake in them is named."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from eval.sets.benchmarks import read_own_sets
from eval.sets.registry import Convention, find_test_sets, read_target
from shards.errors import InputError


def test_three_lines_describe_a_set_that_is_then_read(tmp_path):
    (tmp_path / "own.yaml").write_text(
        "night:\n  values: {3: normal, 7: anomaly, 9: void}\n  use: validation\n"
    )
    for name, picture in (
        ("images", np.zeros((2, 3, 3))),
        ("labels_masks", np.array([[3, 7, 9], [3, 3, 3]])),
    ):
        (tmp_path / "night" / name).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / "night" / name / "a.png"), picture.astype(np.uint8))
    own = read_own_sets(tmp_path / "own.yaml")
    assert own == (Convention("night", "night", {3: 0, 7: 1, 9: 255}, is_benchmark=False),)
    (test_set,) = find_test_sets(tmp_path, own=own)
    target = read_target(test_set.frames[0], test_set.convention)
    np.testing.assert_array_equal(target, [[0, 1, 255], [0, 0, 0]])


def test_values_and_use_may_be_left_out(tmp_path):
    (tmp_path / "own.yaml").write_text("day: {name: Day drives}\nnight:\n")
    day, night = read_own_sets(tmp_path / "own.yaml")
    assert (day.name, night.name, day.is_benchmark) == ("Day drives", "night", True)
    assert day.values == {0: 0, 1: 1, 255: 255}
    with pytest.raises(InputError, match="no folder day, which --sets describes"):
        find_test_sets(tmp_path, own=(day,))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: {valeus: 3}", r"a: got valeus; allowed keys are name, values, use"),
        ("a: {use: training}", r"a: use: got 'training'; allowed are benchmark, validation"),
        ("a: {values: {0: normal}}", r"a: values: got .*; expected 0..255 to normal, anomaly, void"),
        ("a: {values: {0: normal, 300: anomaly}}", "a: values: got"),
        ("RoadAnomaly: {}", "RoadAnomaly: is the name of a known test set"),
        ("- a", r"expected folders and what is known of each, got \['a'\]"),
        ("a: [", "cannot be read as YAML"),
    ],
    ids=["key", "use", "no anomaly", "value", "known", "list", "syntax"],
)
def test_a_mistake_is_named(tmp_path, text, message):
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        read_own_sets(tmp_path / "own.yaml")
