"""Several runs that differ in their seed become one row: mean ± spread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from eval.datasets import TEST_SETS
from eval.protocol import PROTOCOLS
from eval.report import MISSING, Record, Table, method_name
from eval.spread import Estimate, estimate


@dataclass(frozen=True)
class SeedGroup:
    """Runs of one setting."""

    model: str
    """As the table prints it."""
    runs: Sequence[Sequence[Record]]
    """Records of each run."""


def build_seed_tables(groups: Sequence[SeedGroup]) -> list[Table]:
    """Lay groups out as `eval.report.build_tables` does records: a table per protocol, one row per method.

    A row says over how many runs it is, where that is more than one.
    """
    protocols = list(dict.fromkeys(r.protocol for group in groups for run in group.runs for r in run))
    return [_build_table(protocol, groups) for protocol in protocols]


def _build_table(protocol: str, groups: Sequence[SeedGroup]) -> Table:
    records = [r for group in groups for run in group.runs for r in run if r.protocol == protocol]
    names = [convention.name for convention in TEST_SETS.values()]
    names += [name for name in dict.fromkeys(record.dataset for record in records) if name not in names]
    labels, rows = [], []
    for group in groups:
        runs = [[record for record in run if record.protocol == protocol] for run in group.runs]
        for method in dict.fromkeys(method_name(record) for run in runs for record in run):
            of_method = [[record for record in run if method_name(record) == method] for run in runs]
            count = sum(bool(run) for run in of_method)
            labels.append((f"{group.model} ({count} seeds)" if count > 1 else group.model, method))
            rows.append(_estimates(of_method, names))
    several = any(cell.spread is not None for row in rows for cell in row if cell)
    note = "; mean ± standard deviation over seeds" if several else ""
    footnote = PROTOCOLS[protocol].describe() if protocol in PROTOCOLS else f"protocol {protocol}"
    return Table(
        header=(
            "Model",
            "Method",
            "mIoU",
            *(f"{n} {metric}" for n in names for metric in ("AuPRC", "FPR95")),
        ),
        rows=tuple(
            (*label, *(MISSING if cell is None else str(cell) for cell in row))
            for label, row in zip(labels, rows, strict=True)
        ),
        best=_mark_best(rows),
        footnote=f"Percent{note}; {footnote}.",
    )


def _estimates(runs: Sequence[Sequence[Record]], names: Sequence[str]) -> list[Estimate | None]:
    mious = [next((r.miou for r in run if r.miou is not None), None) for run in runs]
    cells = [estimate(mious)]
    for name in names:
        for metric in ("ap", "fpr95"):
            cells.append(estimate([getattr(r, metric) for run in runs for r in run if r.dataset == name]))
    return cells


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
