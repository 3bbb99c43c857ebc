"""Tables of results, in Markdown and LaTeX.

Numbers of two protocols do not compare, so each protocol has its own table: Model, Method, mIoU, then AuPRC
and FPR95 of each test set, as far as they were measured, in percent with two decimals. The best of a column
is marked where rows differ.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from eval.predict.score_names import explain_scores
from eval.protocol import find_protocol
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


def list_columns(records: Sequence[Record], all_columns: bool = False) -> list[Column]:
    """Return the columns of numbers in a table of `records`: the mIoU, and two of each test set.

    Args:
        all_columns: the mIoU and the five benchmarks have theirs though nothing of them was measured.
    """
    benchmarks = [convention.name for convention in TEST_SETS.values()]
    measured = dict.fromkeys(record.dataset for record in records)
    names = [name for name in benchmarks if all_columns or name in measured]
    names += [name for name in measured if name not in benchmarks]
    pairs = (("ap", "AuPRC"), ("fpr95", "FPR95"))
    columns = [Column(name, metric, f"{name} {title}") for name in names for metric, title in pairs]
    miou = Column(None, "miou", "mIoU")
    is_measured = any(miou.read(record) is not None for record in records)
    return [miou, *columns] if all_columns or is_measured else columns


def build_tables(records: Sequence[Record], all_columns: bool = False) -> list[Table]:
    """Lay records out as one table per protocol; a row is one checkpoint and score (and temperature).

    Two different records of one entry are an InputError. `all_columns` as of `list_columns`.
    """
    tables = []
    for protocol in dict.fromkeys(record.protocol for record in records):
        grouped: dict[tuple[Any, ...], dict[str, Record]] = {}
        chosen = [record for record in records if record.protocol == protocol]
        for r in chosen:
            key = (r.title, r.checkpoint, r.score, r.temperature, r.temperature_from)
            of_row = grouped.setdefault(key, {})
            if of_row.setdefault(r.dataset, r) != r:
                entry = f"{r.title}, {r.score}, {r.dataset}, protocol {protocol}"
                told = f"two different records for {entry}; their checkpoint is {r.checkpoint}"
                raise InputError(f"results: {told}")
        columns, rows = list_columns(chosen, all_columns), []
        for of_row in grouped.values():
            row = list(of_row.values())
            rows.append((row[0].title, row[0].method, [_estimate(row, column) for column in columns]))
        tables.append(build_table(protocol, columns, rows, chosen))
    return tables


def _estimate(row: Sequence[Record], column: Column) -> Estimate | None:
    for record in row:
        if (value := column.read(record)) is not None:
            return Estimate(value, interval=getattr(record, f"{column.metric}_ci"))
    return None


def build_table(
    protocol: str,
    columns: Sequence[Column],
    rows: Sequence[tuple[str, str, Sequence[Estimate | None]]],
    records: Sequence[Record],
) -> Table:
    """Build a table from rows of (model, method, one number per column or None) and what they are made of."""
    best: list[float | None] = []
    for i, column in enumerate(columns):  # of the numbers as printed, so that equal entries look equal
        printed = {each.percent for row in rows if (each := row[2][i])}
        one = min if column.is_lower_better else max
        best.append(one(printed) if len(printed) > 1 else None)
    estimates = [estimate for row in rows for estimate in row[2] if estimate]
    note = "; mean ± standard deviation over seeds" if any(e.spread is not None for e in estimates) else ""
    note += "; in brackets 95 % over images" if any(e.interval for e in estimates) else ""
    known = find_protocol(protocol)
    rules = known.describe() if known else f"protocol {protocol}"
    rules += explain_scores({method.partition(" ")[0] for _, method, _ in rows})
    return Table(
        protocol,
        header=("Model", "Method", *(column.title for column in columns)),
        rows=tuple((Entry(model), Entry(method), *map(_entry, each, best)) for model, method, each in rows),
        footnote=" ".join([f"Percent{note}; {rules}.", *_notes(records)]),
    )


def _notes(records: Sequence[Record]) -> Iterator[str]:
    """Yield the sentences on what models saw and trained on, and on classes that no label has."""
    models = _group_titles(records, "sees")
    for sees, titles in models.items():
        yield f"{f'Input of {titles}' if len(models) > 1 else 'Model input'}: {sees}."
    for pasted, titles in _group_titles(records, "pasted").items():
        yield f"Objects pasted in training of {titles}: {pasted}."
    for sets, titles in _group_titles(records, "trained_on").items():
        yield f"Scenes that {titles} trained on: {sets}."
    for images in dict.fromkeys(record.miou_images for record in records if record.miou_images):
        yield f"mIoU on {images}."
    for title, names in dict.fromkeys((record.title, record.miou_unseen) for record in records):
        if names:
            yield (
                f"mIoU of {title}: the mean over the classes that are in a label or a prediction; "
                f"{', '.join(names)}: in no label, but predicted, so counted with 0."
            )


def _group_titles(records: Sequence[Record], name: str) -> dict[str, str]:
    """Return the models of each text that the field `name` has, without the empty one."""
    found: dict[str, dict[str, None]] = {}
    for record in records:
        if words := getattr(record, name):
            found.setdefault(words, {})[record.title] = None
    return {words: ", ".join(titles) for words, titles in found.items()}


def _entry(estimate: Estimate | None, best: float | None) -> Entry:
    if estimate is None:
        return Entry(MISSING)
    return Entry(str(estimate), estimate.percent == best, format_interval(estimate.interval))


def format_interval(interval: tuple[float, float] | None) -> str:
    """Return an interval of fractions in percent, as "[low, high]"; nothing for None."""
    return "" if interval is None else f"[{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"


def render_markdown(records: Sequence[Record], all_columns: bool = False) -> str:
    """Render `results.md`: a table per protocol, best values bold, the protocol below."""
    return markdown_tables(build_tables(records, all_columns))


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


def latex_tables(tables: Sequence[Table]) -> str:
    """Mark tables up as LaTeX, one after the other; what is wider than the page is shrunk to it."""
    parts = []
    for table in tables:
        head = [name for name in table.header if not name.endswith((" AuPRC", " FPR95"))]
        names = [name.removesuffix(" AuPRC") for name in table.header if name.endswith(" AuPRC")]
        first = len(head) + 1
        over = " & ".join(rf"\multicolumn{{2}}{{c}}{{{_latex(name)}}}" for name in names)
        rules = " ".join(rf"\cmidrule(lr){{{first + 2 * i}-{first + 1 + 2 * i}}}" for i in range(len(names)))
        lines = [line for row in table.rows for line in _latex_lines(row)]
        rows = "\n".join(rf"{' & '.join(line)} \\" for line in lines)
        parts.append(rf"""% needs \usepackage{{booktabs}} and \usepackage{{graphicx}}
\begin{{table}}
\centering
\small
\resizebox{{\ifdim\width>\linewidth\linewidth\else\width\fi}}{{!}}{{%
\begin{{tabular}}{{ll{"r" * (len(table.header) - 2)}}}
\toprule
{"& " * len(head)}{over} \\
{rules}
{" & ".join([*head, *["AuPRC & FPR95"] * len(names)])} \\
\midrule
{rows}
\bottomrule
\end{{tabular}}%
}}
\caption{{{_latex(table.footnote)}}}
\end{{table}}
""")
    return "\n".join(parts)


def _latex_lines(row: Sequence[Entry]) -> Iterator[list[str]]:
    """Yield the numbers of a row, and its intervals below them, which would be too wide beside them."""
    yield [rf"\textbf{{{_latex(entry.text)}}}" if entry.is_best else _latex(entry.text) for entry in row]
    if any(entry.interval for entry in row):
        yield [rf"{{\tiny {entry.interval}}}" if entry.interval else "" for entry in row]


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)
