"""Combinations of settings, and indices of array tasks."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shards.errors import InputError

MOST_CELLS = 10_000
LONGEST_NAME = 120
LABEL = "name"
"""Key of an entry of `cells` that names it instead of its settings."""


@dataclass(frozen=True)
class Combination:
    """Settings of one cell."""

    name: str
    """Says the settings, such as `optim.lr=0.0001,seed=0`; good for a folder."""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Dotted setting -> value, the seed included."""


def combine_settings(
    grid: Mapping[str, Sequence[Any]], cells: Sequence[Mapping[str, Any]], seeds: Sequence[int]
) -> list[Combination]:
    """List every combination: entries of `cells` (or one without settings) × grid × seeds, seeds innermost.

    `grid` maps a dotted setting to its values; `cells` are settings that go together, labelled by their key
    `name`. Refused are no cell, more than 10,000, a setting that grid and cells both have, and equal names.
    """
    for name, values in {**{f"grid.{key}": values for key, values in grid.items()}, "seeds": seeds}.items():
        if isinstance(values, str) or not isinstance(values, Sequence):
            raise InputError(f"{name}: expected a list of values, got {values!r}")
        if not values:
            raise InputError(f"{name}: the list is empty, which makes a grid of zero cells")
    count = max(len(cells), 1) * len(seeds) * math.prod(map(len, grid.values()))
    if count > MOST_CELLS:
        raise InputError(f"the grid has {count} cells; at most {MOST_CELLS} are allowed")
    found: dict[str, Combination] = {}
    for entry in cells or [{}]:
        if twice := sorted({"seed", *grid} & entry.keys()):
            raise InputError(f"cells: {twice[0]} is a setting of the grid or the seeds too")
        own = {key: value for key, value in entry.items() if key != LABEL}
        label = [_safe(entry[LABEL])] if LABEL in entry else _describe(own)
        for values in itertools.product(*grid.values(), seeds):
            settings = dict(zip([*grid, "seed"], values, strict=True))
            shown = ",".join([*label, *_describe(settings)]).lstrip("-")
            if len(shown) > LONGEST_NAME:
                told = f"a name of more than {LONGEST_NAME} letters; put it in `cells` with a name"
                raise InputError(f"cell {shown}: {told}")
            if shown in found:
                raise InputError(f"two cells are called {shown}; put them in `cells` with a name each")
            found[shown] = Combination(shown, {**own, **settings})
    return list(found.values())


def _describe(settings: Mapping[str, Any]) -> list[str]:
    return [f"{_safe(key)}={_safe(value)}" for key, value in settings.items()]


def _safe(value: Any) -> str:
    """Shorten a value to what a folder's name can carry; of a path, the last part."""
    if isinstance(value, Mapping):
        text = "+".join(_describe(value))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        text = "x".join(_safe(inner) for inner in value)
    else:
        text = str(value).rstrip("/").rpartition("/")[2]
    return re.sub(r"[^\w.=+-]", "_", text, flags=re.ASCII).lstrip(".") or "_"


def split_indices(indices: Iterable[int], size: int) -> dict[int, list[int]]:
    """Part the indices of cells into arrays whose task ids, index - offset, stay below `size`, by offset.

    A cell has the same offset whatever the others are. `size` 0: one array.
    """
    parts: dict[int, list[int]] = {}
    for index in sorted(indices):
        parts.setdefault(index - index % size if size else 0, []).append(index)
    return parts


def array_expression(indices: Iterable[int], throttle: int = 0) -> str:
    """Write indices as `sbatch --array` wants them: `0-3,7%2`; at most `throttle` run at once, 0: all."""
    runs: list[list[int]] = []
    for index in sorted(set(indices)):
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    text = ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
    return f"{text}%{throttle}" if throttle else text


def parse_array_expression(text: str) -> list[int]:
    """Read `0-3,7%2` back; steps (`0-8:4`) are understood as well."""
    found: list[int] = []
    for part in text.partition("%")[0].split(","):
        bounds, _, step = part.partition(":")
        first, _, last = bounds.partition("-")
        found += range(int(first), int(last or first) + 1, int(step or 1))
    return found
