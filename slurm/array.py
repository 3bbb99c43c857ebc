"""A grid of settings becomes cells, and cells become indices of an array."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

MOST_CELLS = 10_000
LONGEST_NAME = 120
LABEL = "name"
"""Key of an entry of `cells` that names it instead of its settings."""


@dataclass(frozen=True)
class Cell:
    """One combination of settings."""

    name: str
    """Says the settings, such as `optim.lr=0.0001,seed=0`; good for a folder."""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Dotted setting -> value, the seed included."""


def expand_cells(
    grid: Mapping[str, Sequence[Any]], cells: Sequence[Mapping[str, Any]], seeds: Sequence[int]
) -> list[Cell]:
    """List every combination: entries of `cells` (or one without settings) × grid × seeds, seeds innermost.

    Args:
        grid: dotted setting -> its values.
        cells: settings that go together; the key `name` labels an entry.
        seeds: each cell runs once with each.

    Raises:
        ValueError: no cell or more than 10,000, a setting that grid and cells both have, or two equal cells.
    """
    for name, values in grid.items():
        if isinstance(values, str) or not isinstance(values, Sequence):
            raise ValueError(f"grid.{name}: expected a list of values, got {values!r}")
        if not values:
            raise ValueError(f"grid.{name}: the list is empty, which makes a grid of zero cells")
    if not seeds:
        raise ValueError("seeds: the list is empty, which makes a grid of zero cells")
    count = max(len(cells), 1) * len(seeds)
    for values in grid.values():
        count *= len(values)
    if count > MOST_CELLS:
        raise ValueError(f"the grid has {count} cells; at most {MOST_CELLS} are allowed")
    found = []
    for entry in cells or [{}]:
        twice = sorted({"seed", *grid} & entry.keys())
        if twice:
            raise ValueError(f"cells: {twice[0]} is a setting of the grid or the seeds too")
        settings = {key: value for key, value in entry.items() if key != LABEL}
        shown = _describe(settings) if LABEL not in entry else [_safe(entry[LABEL])]
        for values in itertools.product(*grid.values()):
            chosen = dict(zip(grid, values, strict=True))
            name = ",".join([*shown, *_describe(chosen)]).lstrip("-")
            found += [_make_cell(name, {**settings, **chosen}, seed) for seed in seeds]
    _require_different([cell.name for cell in found])
    return found


def _make_cell(name: str, settings: Mapping[str, Any], seed: int) -> Cell:
    parts = [name, f"seed={seed}"] if name else [f"seed={seed}"]
    return Cell(",".join(parts), {**settings, "seed": seed})


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


def _require_different(names: Sequence[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if len(name) > LONGEST_NAME:
            raise ValueError(
                f"cell {name}: a name of more than {LONGEST_NAME} letters; put it in `cells` with a name"
            )
        if name in seen:
            raise ValueError(f"two cells are called {name}; put them in `cells` with a name each")
        seen.add(name)


def array_expression(indices: Iterable[int], throttle: int = 0) -> str:
    """Write indices as `sbatch --array` wants them: `0-3,7%2`.

    Args:
        throttle: at most so many run at once; 0: no limit.
    """
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
