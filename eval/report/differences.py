"""Which numbers of a table differ from the best of their column, as far as paired tests can tell.

Rows of one run each are tested over images, from the sketches of their evaluations (`eval/sketch.py`); rows
with two or more seeds in common over those seeds (`eval/report/seeds.py`). Nothing else is paired.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from eval.protocol import PROTOCOLS
from eval.report.record import Record, Table
from eval.report.seeds import (
    Column,
    SeedGroup,
    SeedRow,
    SeedRun,
    compare_seeds,
    list_columns,
    list_protocols,
    list_rows,
)
from eval.sketch import METRICS, Resampled, compare_resampled, read_sketch, resample_sketch, sketch_path

NOT_SUPPORTED, NO_TEST = "†", "‡"
MIN_IMAGES = 6
"""Where the sign is chance, n images all agree once in 2^(n - 1), and the interval then excludes 0: with five
images more often than a test at 95 % may err."""
RULE = (
    "Each number is compared with the best of its column by a paired test at 95 %: rows of one run each over "
    f"images (bootstrap, {MIN_IMAGES} or more), rows with two or more common seeds over those (Student's t). "
    f"{NOT_SUPPORTED}: the test does not support that the best is better, its interval does not exclude 0. "
    f"{NO_TEST}: no test was possible; differences.json says why. "
    "Every test stands alone: of many, some pass by chance."
)

Kept = dict[Path, Resampled]
"""By sketch, as every one is needed for several numbers."""


@dataclass(frozen=True)
class Interval:
    """The best minus another row, as a test finds it."""

    difference: float
    low: float
    high: float
    test: Literal["images", "seeds"]
    count: int
    """Of images, or of seeds in common."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The best of a column minus another row; fractions, None where no test was possible."""

    protocol: str
    column: str
    best_row: int
    """Line in the protocol's table, counted from 1."""
    row: int
    best: str
    other: str
    difference: float | None
    """On the images or seeds tested; sketches hold AP to 1e-3 and FPR95 to 2e-3."""
    low: float | None
    high: float | None
    test: Literal["images", "seeds"] | None
    count: int | None
    verdict: Literal["supported", "not supported", "no test"]
    reason: str
    """Why there was no test; else empty."""


def find_differences(groups: Sequence[SeedGroup]) -> list[Difference]:
    """Compare every number of `eval.report.seeds.build_seed_tables` with the best of its column.

    The mIoU is the same for all scores of a group and is not compared within one.

    Raises:
        InputError: a sketch is damaged.
    """
    kept: Kept = {}
    return [
        difference
        for protocol in list_protocols(groups)
        for column in list_columns(groups, protocol)
        for difference in _of_column(list_rows(groups, protocol), column, kept)
    ]


def _of_column(rows: Sequence[SeedRow], column: Column, kept: Kept) -> list[Difference]:
    cells = [row.estimate(column) for row in rows]
    means = {number: cell.mean for number, cell in enumerate(cells) if cell is not None}
    if len(means) < 2:
        return []
    best = (min if column.is_lower_better else max)(means, key=lambda number: means[number])
    found = []
    for number in means:
        same_runs = column.dataset is None and rows[number].group is rows[best].group
        if number != best and not same_runs:
            tested = _compare_cells(rows[best], rows[number], column, kept)
            found.append(_judge(rows, best, number, column, tested))
    return found


def _compare_cells(best: SeedRow, other: SeedRow, column: Column, kept: Kept) -> Interval | str:
    """Test two rows of one protocol in one column; return why not where nothing is paired."""
    sides = [_runs_with_number(row, column) for row in (best, other)]
    if any(len(row.find(run, column)) > 1 for row in (best, other) for run in row.group.runs):
        return "a run has two records of one cell"
    if all(len(side) == 1 for side in sides):
        (first, second) = (next(iter(side)) for side in sides)
        return _compare_images(best, first, other, second, column, kept)
    first_seeds, second_seeds = (
        {run.seed: getattr(record, column.metric) for run, record in side if run.seed is not None}
        for side in sides
    )
    shared = [seed for seed in first_seeds if seed in second_seeds]
    if len(shared) < 2:
        return f"{len(sides[0])} and {len(sides[1])} runs with {len(shared)} seeds in common; two are needed"
    found = compare_seeds([first_seeds[s] for s in shared], [second_seeds[s] for s in shared])
    return Interval(found.mean, found.low, found.high, "seeds", len(shared))


def _runs_with_number(row: SeedRow, column: Column) -> list[tuple[SeedRun, Record]]:
    return [(run, record) for run in row.group.runs for record in row.find(run, column)[:1]]


def _compare_images(
    best: SeedRow,
    first: tuple[SeedRun, Record],
    other: SeedRow,
    second: tuple[SeedRun, Record],
    column: Column,
    kept: Kept,
) -> Interval | str:
    if column.metric not in METRICS:
        return f"one run each, and no counts per image are kept of the {column.title}"
    if best.protocol not in PROTOCOLS:
        return f"the rules of protocol {best.protocol} are not known"
    a, b = _resample(best, *first, kept), _resample(other, *second, kept)
    if isinstance(a, str) or isinstance(b, str):
        return "; ".join(reason for reason in (a, b) if isinstance(reason, str))
    if a.stems != b.stems:
        return f"other images: {len(a.stems)} and {len(b.stems)} whose names differ"
    if len(a.stems) < MIN_IMAGES:
        return f"{len(a.stems)} images; at least {MIN_IMAGES} are needed"
    found = compare_resampled(a, b, column.metric)
    if math.isnan(found.low):
        return "too few resampled sets have anomalous and normal pixels"
    return Interval(found.difference, found.low, found.high, "images", len(a.stems))


def _resample(row: SeedRow, run: SeedRun, record: Record, kept: Kept) -> Resampled | str:
    """Resample the sketch of a record, or say why there is none."""
    key = (record.dataset, record.protocol, record.score)
    if sum((r.dataset, r.protocol, r.score) == key for r in run.records) > 1:
        return f"{row.group.model} has {record.score} at several temperatures, and sketches do not say which"
    path = sketch_path(run.folder, *key) if run.folder else None
    if path is None or not path.is_file():
        return f"{row.group.model} has no sketch of {record.score}"
    if path not in kept:
        kept[path] = resample_sketch(read_sketch(path))
    return kept[path]


def _judge(
    rows: Sequence[SeedRow], best: int, other: int, column: Column, tested: Interval | str
) -> Difference:
    found = None if isinstance(tested, str) else tested
    names = [f"{rows[number].label} / {rows[number].method}" for number in (best, other)]
    verdict: Literal["supported", "not supported", "no test"] = "no test"
    if found:
        is_better = found.high < 0 if column.is_lower_better else found.low > 0
        verdict = "supported" if is_better else "not supported"
    return Difference(
        protocol=rows[best].protocol,
        column=column.title,
        best_row=best + 1,
        row=other + 1,
        best=names[0],
        other=names[1],
        difference=found.difference if found else None,
        low=found.low if found else None,
        high=found.high if found else None,
        test=found.test if found else None,
        count=found.count if found else None,
        verdict=verdict,
        reason=tested if isinstance(tested, str) else "",
    )


def mark_tables(
    tables: Sequence[Table], protocols: Sequence[str], differences: Sequence[Difference]
) -> list[Table]:
    """Put a sign behind every number that no test separates from the best, and the rule below each table.

    Args:
        tables: one per protocol, in their order.
    """
    return [
        _mark(table, [d for d in differences if d.protocol == protocol])
        for table, protocol in zip(tables, protocols, strict=True)
    ]


def _mark(table: Table, differences: Sequence[Difference]) -> Table:
    if not differences:
        return table
    signs = {"not supported": NOT_SUPPORTED, "no test": NO_TEST, "supported": ""}
    rows = [list(row) for row in table.rows]
    for found in differences:
        rows[found.row - 1][table.header.index(found.column)] += signs[found.verdict]
    return table._replace(rows=tuple(map(tuple, rows)), footnote=f"{table.footnote} {RULE}")


def render_differences(differences: Sequence[Difference]) -> str:
    """Render `differences.json`: a list of flat objects, missing values null."""
    return json.dumps([dataclasses.asdict(d) for d in differences], indent=1, allow_nan=False) + "\n"


def list_differences(differences: Sequence[Difference]) -> str:
    """Render the section of `results.md`, in percentage points; nothing where nothing was compared."""
    if not differences:
        return ""
    lines = [
        "",
        "## Differences",
        "",
        "The best of each column minus the others, in percentage points, with 95 % interval.",
        "",
        "| Protocol | Column | Best | Other | Difference | Over | Verdict |",
        "|---|---|---|---|---:|---|---|",
    ]
    for d in differences:
        value = over = ""
        if d.difference is not None and d.low is not None and d.high is not None:
            value = f"{100 * d.difference:+.2f} [{100 * d.low:+.2f}, {100 * d.high:+.2f}]"
            over = f"{d.count} {d.test}"
        verdict = f"{d.verdict}: {d.reason}" if d.reason else d.verdict
        names = [f"{name} (row {row})" for name, row in ((d.best, d.best_row), (d.other, d.row))]
        cells = [d.protocol, d.column, *names, value, over, verdict]
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"
