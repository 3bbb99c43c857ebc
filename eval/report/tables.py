"""Tables of results, in Markdown and LaTeX.

Numbers of two protocols do not compare, so each protocol has its own table: Model, Method, mIoU, then AuPRC
and FPR95 of each test set, in percent with two decimals. The best of a column is marked where rows differ.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from eval.predict.scores import explain_scores
from eval.protocol import PROTOCOLS
from eval.report.record import Record
from eval.sets.registry import TEST_SETS
from shards.errors import InputError

MISSING = "–"  # noqa: RUF001 (an en dash, as tables print it)


@dataclass(frozen=True)
class Estimate:
    """One number of a table; a fraction in [0, 1]."""

    mean: float
    spread: float | None = None
    """Standard deviation over seeds, divided by n - 1; None for a single run."""
    interval: tuple[float, float] | None = None
    """95 % interval over images."""

    @property
    def percent(self) -> float:
        """The mean as it is printed."""
        return round(100 * self.mean, 2)

    def __str__(self) -> str:
        spread = "" if self.spread is None else f" ± {100 * self.spread:.2f}"
        return f"{100 * self.mean:.2f}{spread}"


class Column(NamedTuple):
    """One column of numbers."""

    dataset: str | None
    """Test set; None for the mIoU, which every record of a model repeats."""
    metric: str
    """Field of `Record`."""
    title: str

    @property
    def is_lower_better(self) -> bool:
        """Whether the smallest number is the best."""
        return self.metric == "fpr95"

    def read(self, record: Record) -> float | None:
        """Return the record's number; None where it was not measured or the record is of another test set."""
        value: float | None = getattr(record, self.metric)
        is_missing = self.dataset not in (None, record.dataset) or value is None or math.isnan(value)
        return None if is_missing else value


class Entry(NamedTuple):
    """The text of one row and column, before any markup."""

    text: str
    is_best: bool = False
    """Whether it is the best of several in its column."""
    interval: str = ""
    """Such as "[low, high]"; empty where there is none."""


class Table(NamedTuple):
    """The results of one protocol, before any markup."""

    protocol: str
    header: tuple[str, ...]
    rows: tuple[tuple[Entry, ...], ...]
    footnote: str


def list_columns(records: Sequence[Record]) -> list[Column]:
    """Return the columns of numbers in a table of `records`.

    All benchmarks have theirs where one of them was measured, and none beside a user's own sets alone.
    """
    benchmarks = [convention.name for convention in TEST_SETS.values()]
    names = list(dict.fromkeys(record.dataset for record in records))
    if set(names) & set(benchmarks):
        names = list(dict.fromkeys([*benchmarks, *names]))
    pairs = (("ap", "AuPRC"), ("fpr95", "FPR95"))
    columns = [Column(name, metric, f"{name} {title}") for name in names for metric, title in pairs]
    return [Column(None, "miou", "mIoU"), *columns]


def build_tables(records: Sequence[Record]) -> list[Table]:
    """Lay records out as one table per protocol; a row is one checkpoint and score (and temperature).

    Two different records of one entry are an InputError.
    """
    tables = []
    for protocol in dict.fromkeys(record.protocol for record in records):
        grouped: dict[tuple[Any, ...], dict[str, Record]] = {}
        chosen = [record for record in records if record.protocol == protocol]
        for r in chosen:
            key = (r.model, r.checkpoint, r.score, r.temperature, r.temperature_from)
            of_row = grouped.setdefault(key, {})
            if of_row.setdefault(r.dataset, r) != r:
                entry = f"{r.model}, {r.score}, {r.dataset}, protocol {protocol}"
                told = f"two different records for {entry}; their checkpoint is {r.checkpoint}"
                raise InputError(f"results: {told}")
        columns, rows = list_columns(chosen), []
        for of_row in grouped.values():
            row = list(of_row.values())
            rows.append((row[0].model, row[0].method, [_estimate(row, column) for column in columns]))
        tables.append(build_table(protocol, columns, rows))
    return tables


def _estimate(row: Sequence[Record], column: Column) -> Estimate | None:
    for record in row:
        if (value := column.read(record)) is not None:
            return Estimate(value, interval=getattr(record, f"{column.metric}_ci"))
    return None


def build_table(
    protocol: str, columns: Sequence[Column], rows: Sequence[tuple[str, str, Sequence[Estimate | None]]]
) -> Table:
    """Build a table from rows of (model, method, one number per column or None)."""
    best: list[float | None] = []
    for i, column in enumerate(columns):  # of the numbers as printed, so that equal entries look equal
        printed = {each.percent for row in rows if (each := row[2][i])}
        one = min if column.is_lower_better else max
        best.append(one(printed) if len(printed) > 1 else None)
    estimates = [estimate for row in rows for estimate in row[2] if estimate]
    note = "; mean ± standard deviation over seeds" if any(e.spread is not None for e in estimates) else ""
    note += "; in brackets 95 % over images" if any(e.interval for e in estimates) else ""
    rules = PROTOCOLS[protocol].describe() if protocol in PROTOCOLS else f"protocol {protocol}"
    rules += explain_scores({method.partition(" ")[0] for _, method, _ in rows})
    return Table(
        protocol,
        header=("Model", "Method", *(column.title for column in columns)),
        rows=tuple((Entry(model), Entry(method), *map(_entry, each, best)) for model, method, each in rows),
        footnote=f"Percent{note}; {rules}.",
    )


def _entry(estimate: Estimate | None, best: float | None) -> Entry:
    if estimate is None:
        return Entry(MISSING)
    return Entry(str(estimate), estimate.percent == best, format_interval(estimate.interval))


def format_interval(interval: tuple[float, float] | None) -> str:
    """Return an interval of fractions in percent, as "[low, high]"; nothing for None."""
    return "" if interval is None else f"[{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"


def render_markdown(records: Sequence[Record]) -> str:
    """Render `results.md`: a table per protocol, best values bold, the protocol below."""
    return markdown_tables(build_tables(records))


def markdown_tables(tables: Sequence[Table]) -> str:
    """Mark tables up as Markdown, one after the other."""
    parts = []
    for table in tables:
        rule = ["---", "---", *["---:"] * (len(table.header) - 2)]
        lines = [markdown_row(table.header), markdown_row(rule)]
        for row in table.rows:
            cells = [(f"**{text}**" if is_best else text, interval) for text, is_best, interval in row]
            lines.append(markdown_row([f"{text} {interval}".strip() for text, interval in cells]))
        parts.append("\n".join(lines) + f"\n\n{table.footnote}\n")
    return "\n".join(parts)


def markdown_row(cells: Sequence[str]) -> str:
    """Return one line of a Markdown table."""
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


_LATEX = {c: f"\\{c}" for c in "&%$#_{}"} | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}"}
_LATEX |= {"^": r"\textasciicircum{}", MISSING: "--", "†": r"$^{\dagger}$", "‡": r"$^{\ddagger}$"}


def render_latex(records: Sequence[Record]) -> str:
    """Render `results.tex`: `\\input` it where `booktabs` is loaded."""
    return latex_tables(build_tables(records))


def latex_tables(tables: Sequence[Table]) -> str:
    """Mark tables up as LaTeX, one after the other."""
    parts = []
    for table in tables:
        names = [column.removesuffix(" AuPRC") for column in table.header[3::2]]
        over = " & ".join(rf"\multicolumn{{2}}{{c}}{{{_latex(name)}}}" for name in names)
        rules = " ".join(rf"\cmidrule(lr){{{4 + 2 * i}-{5 + 2 * i}}}" for i in range(len(names)))
        rows = "\n".join(rf"{' & '.join(map(_latex_entry, row))} \\" for row in table.rows)
        parts.append(rf"""% needs \usepackage{{booktabs}}
\begin{{table}}
\centering
\begin{{tabular}}{{ll{"r" * (len(table.header) - 2)}}}
\toprule
& & & {over} \\
{rules}
Model & Method & mIoU & {" & ".join(["AuPRC & FPR95"] * len(names))} \\
\midrule
{rows}
\bottomrule
\end{{tabular}}
\caption{{{_latex(table.footnote)}}}
\end{{table}}
""")
    return "\n".join(parts)


def _latex_entry(entry: Entry) -> str:
    text = rf"\textbf{{{_latex(entry.text)}}}" if entry.is_best else _latex(entry.text)
    return rf"{text}\,{{\tiny {entry.interval}}}" if entry.interval else text  # a space that keeps its width


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)
