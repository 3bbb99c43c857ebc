"""Results as flat records, and records as JSON, CSV, Markdown and LaTeX."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from eval.protocol import PROTOCOLS
from eval.sets.registry import TEST_SETS
from shards.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Record:
    """One model × score × test set × protocol. Rates are fractions in [0, 1]; None is "not measured"."""

    model: str
    checkpoint: str
    score: str
    temperature: float | None
    """T of softmax(L / T); 1 is the plain score."""
    temperature_from: str | None
    """The data on which the temperature was chosen; None where nothing was chosen."""
    dataset: str
    protocol: str
    num_images: int
    num_pixels: int
    """Scored pixels, normal and anomalous."""
    ap: float | None
    ap_ci: tuple[float, float] | None
    fpr95: float | None
    fpr95_ci: tuple[float, float] | None
    auroc: float | None
    miou: float | None
    auroc_ci: tuple[float, float] | None = None
    miou_ci: tuple[float, float] | None = None
    best_f1: float | None = None
    """Best F1 of pixels."""
    best_f1_ci: tuple[float, float] | None = None
    siou: float | None = None
    """Mean adjusted IoU of true segments; see `eval/metrics/components.py`."""
    siou_ci: tuple[float, float] | None = None
    ppv: float | None = None
    """Mean precision of predicted segments."""
    ppv_ci: tuple[float, float] | None = None
    f1_star: float | None = None
    f1_star_ci: tuple[float, float] | None = None
    ece: float | None = None
    """Calibration error of the closed-set prediction, where the mIoU was measured."""
    ece_ci: tuple[float, float] | None = None


FIELDS = tuple(field.name for field in dataclasses.fields(Record))
_INTERVALS = tuple(name for name in FIELDS if name.endswith("_ci"))
_NEEDED = frozenset(f.name for f in dataclasses.fields(Record) if f.default is dataclasses.MISSING)


def render_json(records: Sequence[Record]) -> str:
    """Render `results.json`: a list of flat objects, missing values null."""
    return json.dumps([dataclasses.asdict(record) for record in records], indent=1, allow_nan=False) + "\n"


def parse_json(text: str, where: str) -> list[Record]:
    """Read `results.json` back.

    Args:
        where: the file's name, for messages.

    Raises:
        InputError: the text is no list of records.
    """
    try:
        entries = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not JSON: {error}") from None
    if not isinstance(entries, list):
        raise InputError(f"{where}: expected a list of records, got {type(entries).__name__}")
    return [parse_record(entry, f"{where}: record {i}") for i, entry in enumerate(entries)]


def parse_record(entry: Any, where: str) -> Record:
    """Read one object of `results.json`.

    Args:
        where: file and place, for messages.

    Raises:
        InputError: it is no record.
    """
    if not isinstance(entry, dict) or not _NEEDED <= set(entry) <= set(FIELDS):
        wrong = (_NEEDED - set(entry)) | (set(entry) - set(FIELDS)) if isinstance(entry, dict) else set()
        given = ", ".join(sorted(wrong)) if isinstance(entry, dict) else repr(entry)
        raise InputError(f"{where}: fields differ from the format ({given}); expected {', '.join(FIELDS)}")
    intervals = {name: tuple(entry[name]) if entry.get(name) else None for name in _INTERVALS}
    return Record(**{**entry, **intervals})


def render_csv(records: Sequence[Record]) -> str:
    """Render one line per record, fractions as they are; an interval becomes two columns."""
    file = io.StringIO()
    writer: csv.DictWriter[str] | None = None
    for record in records:
        row: dict[str, Any] = {}
        for name, value in dataclasses.asdict(record).items():
            if name.endswith("_ci"):
                row[f"{name}_low"], row[f"{name}_high"] = value or (None, None)
            else:
                row[name] = value
        if writer is None:
            writer = csv.DictWriter(file, fieldnames=list(row), lineterminator="\n")
            writer.writeheader()
        writer.writerow(row)
    return file.getvalue()


class Table(NamedTuple):
    """A rendered grid, before any markup."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    best: tuple[frozenset[int], ...]
    """For each row, the columns where it is the best of several."""
    footnote: str
    intervals: tuple[tuple[str, ...], ...] = ()
    """For each row and column "[low, high]", or nothing; empty where there are none at all."""

    def interval(self, row: int, column: int) -> str:
        """Return the interval of a cell; nothing where it has none."""
        return self.intervals[row][column] if self.intervals else ""


def build_tables(records: Sequence[Record]) -> list[Table]:
    """Lay records out as one table per protocol: numbers of two protocols do not compare.

    Columns are Model, Method, mIoU, then AuPRC and FPR95 of each test set (`list_datasets`); percent with two
    decimals. A row is one checkpoint and score (and temperature). The best of a column is marked where rows
    differ.

    Raises:
        InputError: two different records claim one cell.
    """
    protocols = list(dict.fromkeys(record.protocol for record in records))
    return [_build_table(p, [record for record in records if record.protocol == p]) for p in protocols]


def list_datasets(records: Sequence[Record]) -> list[str]:
    """Return the test sets that have columns in a table of `records`, in order.

    The five benchmarks have theirs, empty or not, where one of them was measured; beside a user's own sets
    alone they would say nothing.
    """
    benchmarks = [convention.name for convention in TEST_SETS.values()]
    measured = list(dict.fromkeys(record.dataset for record in records))
    if not set(measured) & set(benchmarks):
        return measured
    return list(dict.fromkeys([*benchmarks, *measured]))


def _build_table(protocol: str, records: Sequence[Record]) -> Table:
    names = list_datasets(records)
    grouped: dict[tuple[Any, ...], dict[str, Record]] = {}
    for record in records:
        key = (record.model, record.checkpoint, record.score, record.temperature, record.temperature_from)
        row = grouped.setdefault(key, {})
        if row.setdefault(record.dataset, record) != record:
            raise InputError(
                f"results: two different records for {record.model}, {record.score}, {record.dataset}, "
                f"protocol {protocol}; their checkpoint is {record.checkpoint}"
            )
    values, intervals = [], []
    for row in grouped.values():
        closed = next((r for r in row.values() if r.miou is not None), None)
        line: list[float | None] = [closed.miou if closed else None]
        ends: list[tuple[float, float] | None] = [closed.miou_ci if closed else None]
        for name in names:
            line += [row[name].ap, row[name].fpr95] if name in row else [None, None]
            ends += [row[name].ap_ci, row[name].fpr95_ci] if name in row else [None, None]
        values.append([_percent(value) for value in line])
        intervals.append(("", "", *(_interval(pair) for pair in ends)))
    labels = [
        (next(iter(row.values())).model, method_name(next(iter(row.values())))) for row in grouped.values()
    ]
    columns = [f"{name} {metric}" for name in names for metric in ("AuPRC", "FPR95")]
    some = any(any(row) for row in intervals)
    footnote = PROTOCOLS[protocol].describe() if protocol in PROTOCOLS else f"protocol {protocol}"
    return Table(
        header=("Model", "Method", "mIoU", *columns),
        rows=tuple((*label, *line) for label, line in zip(labels, values, strict=True)),
        best=_mark_best(values),
        footnote=f"Percent{'; in brackets 95 % over images' if some else ''}; {footnote}.",
        intervals=tuple(intervals) if some else (),
    )


def method_name(record: Record) -> str:
    """Name a score, and its temperature where it is not the plain one."""
    if record.temperature in (None, 1):
        return record.score
    chosen = f" from {record.temperature_from}" if record.temperature_from else ""
    return f"{record.score} (T = {record.temperature:g}{chosen})"


MISSING = "–"  # noqa: RUF001 (an en dash, as tables print it)


def _percent(value: float | None) -> str:
    return MISSING if value is None or math.isnan(value) else f"{100 * value:.2f}"


def _interval(ends: tuple[float, float] | None) -> str:
    return "" if ends is None else f"[{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]"


def _mark_best(values: Sequence[Sequence[str]]) -> tuple[frozenset[int], ...]:
    """Compare as printed, so that equal cells look equal; lower is better in every FPR95 column."""
    marked: list[set[int]] = [set() for _ in values]
    for column in range(len(values[0]) if values else 0):
        printed = {float(row[column]) for row in values if row[column] != MISSING}
        if len(printed) < 2:
            continue
        is_fpr = column > 0 and column % 2 == 0  # mIoU, then AuPRC and FPR95 in turn
        best = min(printed) if is_fpr else max(printed)
        for row, marks in zip(values, marked, strict=True):
            if row[column] != MISSING and float(row[column]) == best:
                marks.add(column + 2)  # after Model and Method
    return tuple(frozenset(marks) for marks in marked)


def render_markdown(records: Sequence[Record]) -> str:
    """Render `results.md`: a table per protocol, best values bold, the protocol below."""
    return markdown_tables(build_tables(records))


def markdown_tables(tables: Sequence[Table]) -> str:
    """Mark tables up as Markdown, one after the other."""
    parts = []
    for table in tables:
        lines = [_pipes(table.header), _pipes(["---", "---", *["---:"] * (len(table.header) - 2)])]
        for number, (row, best) in enumerate(zip(table.rows, table.best, strict=True)):
            cells = [cell.replace("|", r"\|") for cell in row]
            marked = [f"**{cell}**" if i in best else cell for i, cell in enumerate(cells)]
            lines.append(_pipes([f"{c} {table.interval(number, i)}".strip() for i, c in enumerate(marked)]))
        parts.append("\n".join(lines) + f"\n\n{table.footnote}\n")
    return "\n".join(parts)


def _pipes(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


_LATEX = {c: f"\\{c}" for c in "&%$#_{}"} | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}"}
_LATEX |= {"^": r"\textasciicircum{}", MISSING: "--", "†": r"$^{\dagger}$", "‡": r"$^{\ddagger}$"}


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


def _with_interval(cell: str, interval: str) -> str:
    """Set an interval small; a space that LaTeX does not stretch before it."""
    return rf"{cell}\,{{\tiny {interval}}}" if interval else cell


def render_latex(records: Sequence[Record]) -> str:
    """Render `results.tex`: `\\input` it where `booktabs` is loaded."""
    return latex_tables(build_tables(records))


def latex_tables(tables: Sequence[Table]) -> str:
    """Mark tables up as LaTeX, one after the other."""
    return "\n".join(_latex_table(table) for table in tables)


def _latex_table(table: Table) -> str:
    names = [column.removesuffix(" AuPRC") for column in table.header[3::2]]
    over = " & ".join(rf"\multicolumn{{2}}{{c}}{{{_latex(name)}}}" for name in names)
    rules = " ".join(rf"\cmidrule(lr){{{4 + 2 * i}-{5 + 2 * i}}}" for i in range(len(names)))
    lines = [
        "% needs \\usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        rf"\begin{{tabular}}{{ll{'r' * (len(table.header) - 2)}}}",
        r"\toprule",
        rf"& & & {over} \\",
        rules,
        rf"Model & Method & mIoU & {' & '.join(['AuPRC & FPR95'] * len(names))} \\",
        r"\midrule",
    ]
    for number, (row, best) in enumerate(zip(table.rows, table.best, strict=True)):
        cells = [rf"\textbf{{{_latex(c)}}}" if i in best else _latex(c) for i, c in enumerate(row)]
        cells = [_with_interval(cell, table.interval(number, i)) for i, cell in enumerate(cells)]
        lines.append(rf"{' & '.join(cells)} \\")
    lines += [r"\bottomrule", r"\end{tabular}", rf"\caption{{{_latex(table.footnote)}}}", r"\end{table}", ""]
    return "\n".join(lines)
