"""Runs that differ in their seed as one row: mean ± spread, and paired comparisons over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.stats

from eval.protocol import PROTOCOLS
from eval.report.record import MISSING, Record, Table, list_datasets, method_name

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """One number over runs that differ in their seed alone; a fraction in [0, 1]."""

    mean: float
    spread: float | None
    """Standard deviation between runs, divided by n - 1; None for a single run, which has none to show."""

    def __str__(self) -> str:
        spread = "" if self.spread is None else f" ± {100 * self.spread:.2f}"
        return f"{100 * self.mean:.2f}{spread}"


class SeedDifference(NamedTuple):
    """Method A minus method B, over seeds that both were trained with."""

    mean: float
    low: float
    high: float
    """Interval of the mean difference; infinite for a single seed."""

    @property
    def is_supported(self) -> bool:
        """Whether the interval excludes 0; if not, more seeds may turn the sign around."""
        return self.low > 0 or self.high < 0


def estimate(values: Sequence[float | None]) -> Estimate | None:
    """Return mean and spread of the values that were measured; None if there are none."""
    measured = [value for value in values if value is not None and not math.isnan(value)]
    if not measured:
        return None
    spread = float(np.std(measured, ddof=1)) if len(measured) > 1 else None
    return Estimate(float(np.mean(measured)), spread)


def compare_seeds(first: Sequence[float], second: Sequence[float], level: float = LEVEL) -> SeedDifference:
    """Compare two methods by Student's paired interval: mean ± t(n − 1) · s / √n of the differences.

    With three seeds t is 4.3: a difference has to be 2.5 times its spread to be supported.

    Args:
        first: one number per seed of method A.
        second: of method B, the same seeds in the same order.

    Raises:
        ValueError: the two are not equally many.
    """
    if len(first) != len(second) or not first:
        raise ValueError(f"as many numbers of both methods are needed, got {len(first)} and {len(second)}")
    differences = np.subtract(first, second)
    mean, count = float(differences.mean()), len(differences)
    if count == 1:
        return SeedDifference(mean, -math.inf, math.inf)
    deviation = float(differences.std(ddof=1))
    margin = float(scipy.stats.t.ppf((1 + level) / 2, count - 1)) * deviation / math.sqrt(count)
    return SeedDifference(mean, mean - margin, mean + margin)


class SeedRun(NamedTuple):
    """One run of a setting."""

    records: Sequence[Record]
    seed: int | None = None
    """None where it is not known: the run is paired with no other."""
    folder: Path | None = None
    """Of its evaluation, which may hold sketches."""


@dataclass(frozen=True)
class SeedGroup:
    """Runs of one setting."""

    model: str
    """As the table prints it."""
    runs: Sequence[SeedRun]


class Column(NamedTuple):
    """One column of numbers."""

    dataset: str | None
    """None for the mIoU, which is of no anomaly test set."""
    metric: str
    """As records call it."""
    title: str

    @property
    def is_lower_better(self) -> bool:
        """Whether the smallest number is the best."""
        return self.metric == "fpr95"


class SeedRow(NamedTuple):
    """One method of a group under one protocol: a line of the table."""

    group: SeedGroup
    method: str
    protocol: str

    @property
    def label(self) -> str:
        """The group's name, and over how many runs the row is where that is more than one."""
        count = sum(any(self._holds(record) for record in run.records) for run in self.group.runs)
        return f"{self.group.model} ({count} seeds)" if count > 1 else self.group.model

    def find(self, run: SeedRun, column: Column) -> list[Record]:
        """Return the records of one of the group's runs that hold a number of this column."""
        found = [
            record
            for record in run.records
            if self._holds(record) and column.dataset in (None, record.dataset) and _is_number(record, column)
        ]
        return found[:1] if column.dataset is None else found  # every record repeats the mIoU

    def estimate(self, column: Column) -> Estimate | None:
        """Return mean and spread of a cell."""
        found = [record for run in self.group.runs for record in self.find(run, column)]
        return estimate([getattr(record, column.metric) for record in found])

    def _holds(self, record: Record) -> bool:
        return record.protocol == self.protocol and method_name(record) == self.method


def _is_number(record: Record, column: Column) -> bool:
    value = getattr(record, column.metric)
    return value is not None and not math.isnan(value)


def list_protocols(groups: Sequence[SeedGroup]) -> list[str]:
    """Return all protocols, in the order they occur."""
    return list(dict.fromkeys(r.protocol for group in groups for run in group.runs for r in run.records))


def list_rows(groups: Sequence[SeedGroup], protocol: str) -> list[SeedRow]:
    """Return the lines of a protocol's table."""
    return [
        SeedRow(group, method, protocol)
        for group in groups
        for method in dict.fromkeys(
            method_name(r) for run in group.runs for r in run.records if r.protocol == protocol
        )
    ]


def list_columns(groups: Sequence[SeedGroup], protocol: str) -> list[Column]:
    """Return the columns of numbers of a protocol's table."""
    records = [r for group in groups for run in group.runs for r in run.records if r.protocol == protocol]
    pairs = (("ap", "AuPRC"), ("fpr95", "FPR95"))
    columns = [
        Column(name, metric, f"{name} {title}") for name in list_datasets(records) for metric, title in pairs
    ]
    return [Column(None, "miou", "mIoU"), *columns]


def build_seed_tables(groups: Sequence[SeedGroup]) -> list[Table]:
    """Lay groups out as `build_tables` does records: a table per protocol, one row per method.

    A row says over how many runs it is, where that is more than one.
    """
    return [_build_table(protocol, groups) for protocol in list_protocols(groups)]


def _build_table(protocol: str, groups: Sequence[SeedGroup]) -> Table:
    rows, columns = list_rows(groups, protocol), list_columns(groups, protocol)
    values = [[row.estimate(column) for column in columns] for row in rows]
    several = any(cell.spread is not None for line in values for cell in line if cell)
    note = "; mean ± standard deviation over seeds" if several else ""
    footnote = PROTOCOLS[protocol].describe() if protocol in PROTOCOLS else f"protocol {protocol}"
    return Table(
        header=("Model", "Method", *(column.title for column in columns)),
        rows=tuple(
            (row.label, row.method, *(MISSING if cell is None else str(cell) for cell in line))
            for row, line in zip(rows, values, strict=True)
        ),
        best=_mark_best(values),
        footnote=f"Percent{note}; {footnote}.",
    )


def _mark_best(rows: Sequence[Sequence[Estimate | None]]) -> tuple[frozenset[int], ...]:
    """Mark the best mean of each column, compared as printed; lower is better in every FPR95 column."""
    marked: list[set[int]] = [set() for _ in rows]
    for column in range(len(rows[0]) if rows else 0):
        means: list[Any] = [
            None if (cell := row[column]) is None else round(100 * cell.mean, 2) for row in rows
        ]
        different = {mean for mean in means if mean is not None}
        if len(different) < 2:
            continue
        best = min(different) if column > 0 and column % 2 == 0 else max(different)
        for marks, mean in zip(marked, means, strict=True):
            if mean == best:
                marks.add(column + 2)  # after Model and Method
    return tuple(frozenset(marks) for marks in marked)
