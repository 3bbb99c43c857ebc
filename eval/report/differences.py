"""Paired tests of each number of a table against the best of its column.

Rows of one run each are tested over images, from the sketches of their evaluations (`eval/sketch.py`); rows
with two or more seeds in common over those seeds and the images, or over the seeds alone
(`eval/report/seeds.py`) where a run has no sketch. Nothing else is paired.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from eval.metrics.bootstrap import Comparison
from eval.protocol import find_protocol
from eval.report.record import Record
from eval.report.seeds import SeedGroup, SeedRow, SeedRun, compare_seeds, lay_out_tables
from eval.report.tables import Column, Table, markdown_row
from eval.sketch import METRICS, Resampled, compare_resampled, read_sketch, resample_sketch, sketch_path

NOT_SUPPORTED, NO_TEST = "†", "‡"
MIN_IMAGES = 6
"""If the sign is chance, n images all agree with probability 2^-(n - 1), and the interval then excludes 0:
with five images more often than a test at 95 % may err."""
RULE = (
    "Each number is compared with the best of its column by a paired test at 95 %: rows of one run each over "
    f"images (bootstrap, {MIN_IMAGES} or more), rows with two or more common seeds over images and seeds, or "
    "over the seeds alone where no counts per image are kept (Student's t). "
    f"{NOT_SUPPORTED}: the test does not support that the best is better, its interval does not exclude 0. "
    f"{NO_TEST}: no test was possible; differences.json says why. "
    "Every test stands alone: of many, some pass by chance."
)
_HEAD = """
## Differences

The best of each column minus the others, in percentage points, with 95 % interval.

| Protocol | Column | Best | Other | Difference | Over | Verdict |
|---|---|---|---|---:|---|---|
"""
Verdict = Literal["supported", "not supported", "no test"]
Resample = Callable[[Path], Resampled]
"""Path of a sketch -> its resampled metrics."""


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
    seeds: int | None
    images: int | None
    """As of `eval.metrics.bootstrap.Comparison`."""
    verdict: Verdict
    reason: str
    """Why there was no test; else empty."""


def find_differences(groups: Sequence[SeedGroup]) -> list[Difference]:
    """Compare every number of `eval.report.seeds.build_seed_tables` with the best of its column.

    The mIoU is the same for all scores of a group and is not compared within one. A damaged sketch is an
    InputError.
    """
    resample = functools.cache(lambda path: resample_sketch(read_sketch(path)))
    return [
        difference
        for table in lay_out_tables(groups)
        for column in table.columns
        for difference in _compare_column(table.rows, column, resample)
    ]


def _compare_column(rows: Sequence[SeedRow], column: Column, resample: Resample) -> list[Difference]:
    means = {i: found.mean for i, row in enumerate(rows) if (found := row.estimate(column))}
    if not means:
        return []
    best = (min if column.is_lower_better else max)(means, key=lambda i: means[i])
    shares_runs = [column.dataset is None and row.group is rows[best].group for row in rows]
    return [
        _judge(rows, best, i, column, _compare_rows(rows[best], rows[i], column, resample))
        for i in means
        if i != best and not shares_runs[i]
    ]


def _compare_rows(best: SeedRow, other: SeedRow, column: Column, resample: Resample) -> Comparison | str:
    """Test two rows of one protocol in one column; return the reason if nothing is paired."""
    sides = [best.find(column), other.find(column)]
    if any(len({id(run) for run, _ in side}) < len(side) for side in sides):
        return "a run has two records of one cell"
    if all(len(side) == 1 for side in sides):
        return _compare_images((best, other), [(sides[0][0], sides[1][0])], column, resample)
    first, second = ({run.seed: (run, r) for run, r in side if run.seed is not None} for side in sides)
    pairs = [(first[seed], second[seed]) for seed in first if seed in second]
    if len(pairs) < 2:
        return f"{len(sides[0])} and {len(sides[1])} runs with {len(pairs)} seeds in common; two are needed"
    tested = _compare_images((best, other), pairs, column, resample)
    if isinstance(tested, Comparison):
        return tested
    values = ([getattr(pair[i][1], column.metric) for pair in pairs] for i in range(2))
    return compare_seeds(*values)


def _compare_images(
    rows: tuple[SeedRow, SeedRow],
    pairs: Sequence[tuple[tuple[SeedRun, Record], tuple[SeedRun, Record]]],
    column: Column,
    resample: Resample,
) -> Comparison | str:
    """Test two rows over images, and over seeds where there are several pairs of runs."""
    if column.metric not in METRICS:
        return f"one run each, and no counts per image are kept of the {column.title}"
    if find_protocol(rows[0].protocol) is None:
        return f"the rules of protocol {rows[0].protocol} are not known"
    sides = [[_resample(row.group.model, *pair[i], resample) for pair in pairs] for i, row in enumerate(rows)]
    if reasons := [each for side in sides for each in side if isinstance(each, str)]:
        return "; ".join(reasons)
    first, second = ([each for each in side if not isinstance(each, str)] for side in sides)
    count = len(first[0].stems)
    if other := [each for each in (*first, *second) if each.stems != first[0].stems]:
        return f"other images: {count} and {len(other[0].stems)} whose names differ"
    if count < MIN_IMAGES:
        return f"{count} images; at least {MIN_IMAGES} are needed"
    tested = compare_resampled([[each] for each in first], [[each] for each in second], column.metric)
    return "too few resampled sets have anomalous and normal pixels" if math.isnan(tested.low) else tested


def _resample(model: str, run: SeedRun, record: Record, resample: Resample) -> Resampled | str:
    """Resample the sketch of a record, or return why there is none."""
    key = (record.dataset, record.protocol, record.score)
    if sum((r.dataset, r.protocol, r.score) == key for r in run.records) > 1:
        return f"{model} has {record.score} at several temperatures, and sketches do not say which"
    path = sketch_path(run.folder, *key) if run.folder else None
    return resample(path) if path and path.is_file() else f"{model} has no sketch of {record.score}"


def _judge(
    rows: Sequence[SeedRow], best: int, other: int, column: Column, tested: Comparison | str
) -> Difference:
    verdict: Verdict = "no test"
    values: dict[str, Any] = dict.fromkeys(field.name for field in dataclasses.fields(Comparison))
    if isinstance(tested, Comparison):
        is_better = tested.high < 0 if column.is_lower_better else tested.low > 0
        verdict, values = ("supported" if is_better else "not supported"), dataclasses.asdict(tested)
    return Difference(
        protocol=rows[best].protocol,
        column=column.title,
        best_row=best + 1,
        row=other + 1,
        best=f"{rows[best].label} / {rows[best].title}",
        other=f"{rows[other].label} / {rows[other].title}",
        **values,
        verdict=verdict,
        reason=tested if isinstance(tested, str) else "",
    )


def mark_tables(tables: Sequence[Table], differences: Sequence[Difference]) -> list[Table]:
    """Put a sign behind every number that no test separates from the best, and the rule below each table."""
    signs = {"not supported": NOT_SUPPORTED, "no test": NO_TEST, "supported": ""}
    marked = []
    for table in tables:
        rows = [list(row) for row in table.rows]
        found = [difference for difference in differences if difference.protocol == table.protocol]
        for d in found:
            row, i = rows[d.row - 1], table.header.index(d.column)
            row[i] = row[i]._replace(text=row[i].text + signs[d.verdict])
        footnote = f"{table.footnote} {RULE}" if found else table.footnote
        marked.append(table._replace(rows=tuple(map(tuple, rows)), footnote=footnote))
    return marked


def list_differences(differences: Sequence[Difference]) -> str:
    """Render the section of `results.md`, in percentage points; nothing where nothing was compared."""
    if not differences:
        return ""
    lines = []
    for d in differences:
        value = over = ""
        if d.difference is not None and d.low is not None and d.high is not None:
            value = f"{100 * d.difference:+.2f} [{100 * d.low:+.2f}, {100 * d.high:+.2f}]"
            counts = ((d.seeds, "seeds"), (d.images, "images"))
            over = ", ".join(f"{count} {name}" for count, name in counts if (count or 0) > 1)
        verdict = f"{d.verdict}: {d.reason}" if d.reason else d.verdict
        names = [f"{name} (row {row})" for name, row in ((d.best, d.best_row), (d.other, d.row))]
        lines.append(markdown_row([d.protocol, d.column, *names, value, over, verdict]))
    return _HEAD + "\n".join(lines) + "\n"
