"""Grids become cells with readable names; indices become what sbatch understands, and back."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurm.array import array_expression, combine_settings, parse_array_expression


def test_every_combination_is_a_cell_seeds_innermost() -> None:
    cells = combine_settings({"optim.lr": [1e-3, 1e-4], "data.crop": [[64, 32]]}, [], [0, 7])
    pairs = [("0.001", 0), ("0.001", 7), ("0.0001", 0), ("0.0001", 7)]
    assert [cell.name for cell in cells] == [f"optim.lr={lr},data.crop=64x32,seed={n}" for lr, n in pairs]
    assert cells[3].overrides == {"optim.lr": 1e-4, "data.crop": [64, 32], "seed": 7}


def test_listed_cells_meet_the_whole_grid_and_may_have_names() -> None:
    listed = [{"name": "heads only", "adapt.mode": "heads"}, {"model.weights": "runs/base/"}]
    cells = combine_settings({"optim.lr": [0.1]}, listed, [0])
    names = [f"{name},optim.lr=0.1,seed=0" for name in ("heads_only", "model.weights=base")]
    assert [cell.name for cell in cells] == names
    assert cells[0].overrides == {"adapt.mode": "heads", "optim.lr": 0.1, "seed": 0}


def test_without_grid_there_is_one_cell_per_seed() -> None:
    assert [cell.name for cell in combine_settings({}, [], [3])] == ["seed=3"]


@pytest.mark.parametrize(
    ("grid", "cells", "seeds", "message"),
    [
        ({"a.b": []}, [], [0], "grid.a.b: the list is empty, which makes a grid of zero cells"),
        ({}, [], [], "seeds: the list is empty, which makes a grid of zero cells"),
        ({"a": [0] * 73, "b": [0] * 137}, [], [0], "the grid has 10001 cells; at most 10000 are allowed"),
        ({"a": 3}, [], [0], "grid.a: expected a list of values, got 3"),
        ({"a": "xy"}, [], [0], "grid.a: expected a list of values, got 'xy'"),
        ({"a": [1]}, [{"a": 2}], [0], "cells: a is a setting of the grid or the seeds too"),
        ({}, [{"seed": 2}], [0], "cells: seed is a setting of the grid or the seeds too"),
        ({"w": ["x/a", "y/a"]}, [], [0], "two cells are called w=a,seed=0; put them in `cells` with a name"),
        ({"w": ["x" * 130]}, [], [0], "a name of more than 120 letters; put it in `cells` with a name"),
    ],
)
def test_impossible_grids_are_refused(grid, cells, seeds, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        combine_settings(grid, cells, seeds)


def test_ten_thousand_cells_are_allowed() -> None:
    assert len(combine_settings({"a": list(range(100)), "b": list(range(100))}, [], [0])) == 10_000


def test_indices_as_sbatch_wants_them() -> None:
    assert array_expression([0, 1, 2], 2) == "0-2%2"
    assert array_expression([5, 0, 1, 7, 8, 9, 9]) == "0-1,5,7-9"
    assert parse_array_expression("0-8:4,11%3") == [0, 4, 8, 11]


@given(st.sets(st.integers(0, 300), min_size=1))
def test_indices_survive_the_way_there_and_back(indices: set[int]) -> None:
    assert parse_array_expression(array_expression(indices)) == sorted(indices)
