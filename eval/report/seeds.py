"""Runs that differ only in their seed: mean ± spread, and paired comparisons over seeds."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy
import yaml

from eval.metrics.bootstrap import Comparison
from eval.report.record import Record
from eval.report.tables import Column, Estimate, Table, build_table, list_columns
from shards.errors import InputError
from shards.files import read_json
from shards.yaml_file import read_yaml

OWN_SETTINGS = ("name", "out", "seed")
"""Settings in which runs of one group may differ."""
_CONFIG = "config.yaml"
SEED_IN_NAME = re.compile(r"[-_,. (]*seed[=_ -]?\d+\)?$")


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
    return Comparison(mean, mean - margin, mean + margin, count, 0)


class SeedRun(NamedTuple):
    """The results of one run."""

    records: Sequence[Record]
    seed: int | None = None
    """None where it is not known: the run is paired with no other."""
    folder: Path | None = None
    """Folder of its evaluation, which may hold sketches."""
    settings: str = ""
    """What repetitions share: the configuration without `OWN_SETTINGS`, whether the best checkpoint or the
    newest was evaluated, and `Record.limit`."""

    @property
    def title(self) -> str:
        """The model, as tables call it."""
        return self.records[0].title if self.records else str(self.folder)

    def repeats(self, other: SeedRun) -> bool:
        """Whether it is the same training with another seed, evaluated on as many images."""
        mine, theirs = ({(r.dataset, r.protocol): r.num_images for r in run.records} for run in (self, other))
        is_same = self.settings == other.settings and self.seed != other.seed
        return is_same and all(mine[key] == theirs[key] for key in mine.keys() & theirs.keys())


class SeedGroup(NamedTuple):
    """Runs of one setting, and the model as the table prints it."""

    model: str
    runs: Sequence[SeedRun]


def read_run(results: Path, name: str = "") -> SeedRun:
    """Read a run's results.json, and the config.yaml of its run folder, where there is one.

    That is looked for around the checkpoint that they are of, then around the results.

    Args:
        name: of the model in tables; empty keeps the one of the results.
    """
    records: list[Record] = read_json(list[Record], results)
    records = [dataclasses.replace(record, model=name or record.model) for record in records]
    checkpoint = Path(records[0].checkpoint if records else results).absolute()
    places = [checkpoint, checkpoint.parent.parent, *results.absolute().parents[:2]]
    folder = next((place for place in places if (place / _CONFIG).is_file()), None)
    if folder is None:
        return SeedRun(records, None, results.parent, f"folder {results.parent.absolute()}")
    settings: Any = read_yaml(folder / _CONFIG)
    try:
        kept = {name: value for name, value in settings.items() if name not in OWN_SETTINGS}
        seed = settings.get("seed")
    except AttributeError:
        raise InputError(f"{folder / _CONFIG}: is no configuration of a run") from None
    evaluated = [checkpoint.parent.name == "best", records[0].limit if records else None]
    return SeedRun(records, seed, results.parent, yaml.safe_dump([kept, evaluated], sort_keys=True))


def group_by_seed(runs: Sequence[SeedRun]) -> list[SeedGroup]:
    """Group runs that repeat each other with other seeds; names decide nothing.

    A run is alone where its configuration is not known, and a second run of one seed starts a group.
    """
    groups: list[list[SeedRun]] = []
    for run in runs:
        fitting = (group for group in groups if all(run.repeats(other) for other in group))
        if (group := next(fitting, None)) is not None:
            group.append(run)
        else:
            groups.append([run])
    return [SeedGroup(_name(group), group) for group in groups]


def _name(group: Sequence[SeedRun]) -> str:
    """Name a group of several after its first run, without the seed."""
    first = group[0]
    if len(group) == 1 or not first.records:
        return first.title
    model = SEED_IN_NAME.sub("", first.records[0].model) or first.records[0].model
    return dataclasses.replace(first.records[0], model=model).title


class SeedRow(NamedTuple):
    """One method of a group under one protocol: a line of the table."""

    group: SeedGroup
    method: str
    """`Record.rule`, which a temperature that each seed chose for itself does not part."""
    protocol: str

    @property
    def label(self) -> str:
        """The group's name, with the number of runs in this row where there are several."""
        count = sum(any(self._holds(record) for record in run.records) for run in self.group.runs)
        return f"{self.group.model} ({count} seeds)" if count > 1 else self.group.model

    @property
    def title(self) -> str:
        """The method, with the temperature that was chosen where it is one."""
        found = {record.method for run in self.group.runs for record in run.records if self._holds(record)}
        return found.pop() if len(found) == 1 else self.method

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
        return record.protocol == self.protocol and record.rule == self.method


class SeedTable(NamedTuple):
    """A table of one protocol, with a row per group and method."""

    protocol: str
    rows: list[SeedRow]
    columns: list[Column]
    records: list[Record]


def lay_out_tables(groups: Sequence[SeedGroup], all_columns: bool = False) -> Iterator[SeedTable]:
    """Yield the tables of groups; `all_columns` as of `eval.report.tables.list_columns`."""
    found = [(group, record) for group in groups for run in group.runs for record in run.records]
    for protocol in dict.fromkeys(record.protocol for _, record in found):
        records = [record for _, record in found if record.protocol == protocol]
        rows = [
            SeedRow(group, method, protocol)
            for group in groups
            for method in dict.fromkeys(r.rule for g, r in found if g is group and r.protocol == protocol)
        ]
        yield SeedTable(protocol, rows, list_columns(records, all_columns), records)


def build_seed_tables(groups: Sequence[SeedGroup], all_columns: bool = False) -> list[Table]:
    """Lay groups out as `build_tables` does records, in one row per group and method."""
    tables = []
    for protocol, rows, columns, records in lay_out_tables(groups, all_columns):
        numbers = [(row.label, row.title, [row.estimate(column) for column in columns]) for row in rows]
        tables.append(build_table(protocol, columns, numbers, records))
    return tables
