"""Runs that differ only in their seed: mean ± spread, and paired comparisons over seeds."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.stats
import yaml

from eval.metrics.bootstrap import Comparison
from eval.report.record import Record
from eval.report.tables import Column, Estimate, Table, build_table, list_columns
from shards.errors import InputError
from shards.files import read_json
from shards.yaml_file import read_yaml

OWN_SETTINGS = ("name", "out", "seed")
"""Settings in which runs of one group may differ."""
SEED_IN_NAME = re.compile(r"[-_,.]?seed[=_-]?\d+$")


def estimate(values: Sequence[float | None]) -> Estimate | None:
    """Return mean and spread of the values that were measured; None if there are none."""
    measured = [value for value in values if value is not None and not math.isnan(value)]
    if not measured:
        return None
    return Estimate(float(np.mean(measured)), float(np.std(measured, ddof=1)) if len(measured) > 1 else None)


def compare_seeds(first: Sequence[float], second: Sequence[float]) -> Comparison:
    """Compare the numbers of two methods, equally many, of the same seeds in the same order.

    Student's paired 95 % interval: mean ± t(n - 1) · s / √n of the differences. With three seeds t is 4.3: a
    difference has to be 2.5 times its spread to be supported.
    """
    if len(first) != len(second) or not first:
        raise ValueError(f"as many numbers of both methods are needed, got {len(first)} and {len(second)}")
    differences = np.subtract(first, second)
    mean, count = float(differences.mean()), len(differences)
    margin = math.inf
    if count > 1:
        margin = (
            float(scipy.stats.t.ppf(0.975, count - 1)) * float(differences.std(ddof=1)) / math.sqrt(count)
        )
    return Comparison(mean, mean - margin, mean + margin, "seeds", count)


class SeedRun(NamedTuple):
    """The results of one run."""

    records: Sequence[Record]
    seed: int | None = None
    """None where it is not known: the run is paired with no other."""
    folder: Path | None = None
    """Folder of its evaluation, which may hold sketches."""
    settings: str = ""
    """Its configuration without `OWN_SETTINGS`."""


class SeedGroup(NamedTuple):
    """Runs of one setting, and the model as the table prints it."""

    model: str
    runs: Sequence[SeedRun]


def read_run(results: Path) -> SeedRun:
    """Read a run's results.json, and config.yaml of its folder (the parent of eval/) where there is one."""
    records: list[Record] = read_json(list[Record], results)
    folder = results.parent.parent if results.parent.name == "eval" else results.parent
    path = folder / "config.yaml"
    if not path.is_file():
        return SeedRun(records, None, results.parent, f"folder {folder.absolute()}")
    settings: Any = read_yaml(path)
    try:
        kept = {name: value for name, value in settings.items() if name not in OWN_SETTINGS}
        return SeedRun(records, settings.get("seed"), results.parent, yaml.safe_dump(kept, sort_keys=True))
    except AttributeError:
        raise InputError(f"{path}: is no configuration of a run") from None


def group_by_seed(runs: Sequence[SeedRun]) -> list[SeedGroup]:
    """Group runs that differ only in their seed; a second run of one seed, or without settings, is alone."""
    groups: dict[tuple[str, str, int], list[SeedRun]] = {}
    repeats: dict[tuple[str, str, Any], int] = {}
    for run in runs:
        name = SEED_IN_NAME.sub("", _model(run)) or _model(run)
        key = (name, run.settings, run.seed)
        repeats[key] = repeats.get(key, -1) + 1
        groups.setdefault((name, run.settings, repeats[key]), []).append(run)
    return [SeedGroup(key[0] if len(g) > 1 else _model(g[0]), g) for key, g in groups.items()]


def _model(run: SeedRun) -> str:
    return run.records[0].model if run.records else str(run.folder)


class SeedRow(NamedTuple):
    """One method of a group under one protocol: a line of the table."""

    group: SeedGroup
    method: str
    protocol: str

    @property
    def label(self) -> str:
        """The group's name, with the number of runs in this row where there are several."""
        count = sum(any(self._holds(record) for record in run.records) for run in self.group.runs)
        return f"{self.group.model} ({count} seeds)" if count > 1 else self.group.model

    def find(self, column: Column) -> list[tuple[SeedRun, Record]]:
        """Return the records with a number in this column, and their runs; of the mIoU one per run."""
        found = []
        for run in self.group.runs:
            records = [r for r in run.records if self._holds(r) and column.read(r) is not None]
            found += [(run, record) for record in (records[:1] if column.dataset is None else records)]
        return found

    def estimate(self, column: Column) -> Estimate | None:
        """Return mean and spread in this column."""
        return estimate([column.read(record) for _, record in self.find(column)])

    def _holds(self, record: Record) -> bool:
        return record.protocol == self.protocol and record.method == self.method


def lay_out_tables(groups: Sequence[SeedGroup]) -> Iterator[tuple[str, list[SeedRow], list[Column]]]:
    """Yield protocol, rows and columns of each table: per protocol, with a row per group and method."""
    found = [(group, record) for group in groups for run in group.runs for record in run.records]
    for protocol in dict.fromkeys(record.protocol for _, record in found):
        records = [record for _, record in found if record.protocol == protocol]
        rows = [
            SeedRow(group, method, protocol)
            for group in groups
            for method in dict.fromkeys(r.method for g, r in found if g is group and r.protocol == protocol)
        ]
        yield protocol, rows, list_columns(records)


def build_seed_tables(groups: Sequence[SeedGroup]) -> list[Table]:
    """Lay groups out as `build_tables` does records, in one row per group and method."""
    tables = []
    for protocol, rows, columns in lay_out_tables(groups):
        numbers = [(row.label, row.method, [row.estimate(column) for column in columns]) for row in rows]
        tables.append(build_table(protocol, columns, numbers))
    return tables
