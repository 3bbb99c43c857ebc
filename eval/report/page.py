"""The report of an evaluation as one HTML page without outside resources, and the per-image table."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Mapping, Sequence
from html import escape

import cv2
import numpy as np

from eval.protocol import get_protocol
from eval.report.curves import plot_curves
from eval.report.gallery import curve_lines
from eval.report.record import MISSING, Record, build_tables
from eval.result import Result

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1150px }
body { padding: 0 1rem; color: #1a1a1a }
h1 { font-size: 1.6rem } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ddd } h3 { margin-top: 1.5rem }
table { border-collapse: collapse; margin: .8rem 0; font-size: .85rem; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #e5e5e5; text-align: right }
th { border-bottom: 2px solid #888 } th:first-child, td:first-child, .left { text-align: left }
.best { font-weight: 700 } .wide { overflow-x: auto }
.ci { color: #666; font-size: .8em; font-weight: 400; white-space: nowrap }
.note { color: #555; font-size: .85rem } img { max-width: 100% } nav a { margin-right: 1rem }
summary { cursor: pointer; color: #0645ad }
"""


def render_page(title: str, cells: Sequence[Result], pictures: Mapping[str, bytes]) -> str:
    """Render the report.

    Args:
        title: of the page.
        cells: all cells of an evaluation.
        pictures: test set -> PNG of some of its frames with all scores.
    """
    records = [cell.record for cell in cells]
    datasets = list(dict.fromkeys(record.dataset for record in records))
    links = " ".join(f'<a href="#set{i}">{escape(name)}</a>' for i, name in enumerate(datasets))
    parts = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>',
        f"<style>{_STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1><nav>{links}</nav>",
        _summary(records),
    ]
    for i, dataset in enumerate(datasets):
        of_set = [cell for cell in cells if cell.record.dataset == dataset]
        parts += _section(f"set{i}", dataset, of_set, pictures.get(dataset))
    parts.append("</body></html>\n")
    return "\n".join(parts)


def _summary(records: Sequence[Record]) -> str:
    parts = ["<h2>Results</h2>"]
    for table in build_tables(records):
        rows = [
            [
                (_markup(cell, table.interval(number, i)), "best" if i in best else "")
                for i, cell in enumerate(row)
            ]
            for number, (row, best) in enumerate(zip(table.rows, table.best, strict=True))
        ]
        parts.append(f'<div class="wide">{_table(table.header, rows, is_markup=True)}</div>')
        parts.append(f'<p class="note">{escape(table.footnote)}</p>')
    first = records[0] if records else None
    if first is not None and first.ece is not None:
        parts.append(
            f"<p>Closed set on Cityscapes val: mIoU {_with_interval(first.miou, first.miou_ci)}, "
            f"calibration error {_with_interval(first.ece, first.ece_ci)}.</p>"
        )
    return "\n".join(parts)


def _section(anchor: str, dataset: str, cells: Sequence[Result], picture: bytes | None) -> list[str]:
    parts = [f'<h2 id="{anchor}">{escape(dataset)}</h2>', _numbers(cells)]
    parts.append(
        '<p class="note">Percent; in brackets 95 % intervals over resampled images. sIoU, PPV and F1* at the '
        "threshold where the pixels' F1 is best.</p>"
    )
    protocol = cells[0].record.protocol
    shown = [cell for cell in cells if cell.record.protocol == protocol]
    lines = {cell.record.score: curve_lines(cell.measurement) for cell in shown}
    curves = plot_curves(
        f"{dataset}, protocol {protocol}",
        {n: v[0] for n, v in lines.items()},
        {n: v[1] for n, v in lines.items()},
    )
    parts.append(_image(curves, f"precision-recall and ROC curves on {dataset}"))
    if picture is not None:
        parts.append(_image(picture, f"some frames of {dataset}"))
    for cell in shown:
        if cell.gallery is not None:
            parts.append(
                f"<details><summary>{escape(cell.record.score)}: best and worst frames, slices</summary>"
            )
            if cell.gallery.frames:
                parts.append(_image(cell.gallery.frames, f"best and worst frames of {cell.record.score}"))
            parts += [_slices(cell), "</details>"]
    parts += _other_slices(cells, protocol)
    parts.append("<details><summary>Every image</summary>")
    parts += [_images(cell) for cell in shown]
    parts.append("</details>")
    return parts


def _other_slices(cells: Sequence[Result], shown: str) -> list[str]:
    """Render the slices of the protocols whose frames are not shown; a protocol to a fold."""
    parts = []
    for protocol in dict.fromkeys(cell.record.protocol for cell in cells):
        found = [cell for cell in cells if cell.record.protocol == protocol and cell.gallery is not None]
        if protocol == shown or not found:
            continue
        parts.append(f"<details><summary>Slices under protocol {escape(protocol)}</summary>")
        for cell in found:
            parts += [f"<h3>{escape(cell.record.score)}</h3>", _slices(cell)]
        parts.append("</details>")
    return parts


def _numbers(cells: Sequence[Result]) -> str:
    header = ("Score", "Protocol", "AuPRC", "FPR95", "AUROC", "best F1", "sIoU", "PPV", "F1*", "images")
    rows = []
    for cell in cells:
        r = cell.record
        protocol = escape(get_protocol(r.protocol).describe())
        rows.append(
            [
                (escape(r.score), ""),
                (f'<span title="{protocol}">{escape(r.protocol)}</span>', ""),
                (_with_interval(r.ap, r.ap_ci), ""),
                (_with_interval(r.fpr95, r.fpr95_ci), ""),
                (_with_interval(r.auroc, r.auroc_ci), ""),
                (_with_interval(r.best_f1, r.best_f1_ci), ""),
                (_with_interval(r.siou, r.siou_ci), ""),
                (_with_interval(r.ppv, r.ppv_ci), ""),
                (_with_interval(r.f1_star, r.f1_star_ci), ""),
                (str(r.num_images), ""),
            ]
        )
    return f'<div class="wide">{_table(header, rows, is_markup=True)}</div>'


def _slices(cell: Result) -> str:
    assert cell.gallery is not None
    titles = {
        "found": "Anomalous pixels found",
        "alarm": "Normal pixels called anomalous",
        "alarms by class": "False alarms by predicted class, share of all",
    }
    parts = ['<p class="note">At the threshold of FPR95.</p>']
    for kind, title in titles.items():
        chosen = [(s.name, share, n) for s, (share, n) in cell.gallery.slices.items() if s.kind == kind]
        if kind == "alarms by class":
            chosen = sorted((row for row in chosen if row[1] > 0), key=lambda row: -row[1])[:8]
        rows = [[(name, ""), (_percent(share), ""), (f"{number:,}", "")] for name, share, number in chosen]
        last = "false alarms" if kind == "alarms by class" else "pixels"
        parts.append(_table((title, "%", last), rows))
    return "\n".join(parts)


def _images(cell: Result) -> str:
    header = (cell.record.score, "normal px", "anomalous px", "AuPRC", "FPR95", "AUROC", "best F1")
    rows = []
    for row in cell.images:
        values = row.metrics[:4] if row.metrics else (None,) * 4
        numbers = [f"{row.num_normal:,}", f"{row.num_anomalous:,}", *(_percent(value) for value in values)]
        rows.append([(cell.stems[row.image], ""), *((number, "") for number in numbers)])
    return _table(header, rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[tuple[str, str]]], is_markup: bool = False) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = []
    for row in rows:
        cells = [
            f'<td class="{mark}">{text if is_markup else escape(text)}</td>' if mark
            else f"<td>{text if is_markup else escape(text)}</td>"
            for text, mark in row
        ]  # fmt: skip
        body.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def _percent(value: float | None) -> str:
    return MISSING if value is None else f"{100 * value:.2f}"


def _markup(cell: str, interval: str) -> str:
    """Return a table's cell as HTML."""
    return escape(cell) + (f' <span class="ci">{interval}</span>' if interval else "")


def _with_interval(value: float | None, interval: tuple[float, float] | None) -> str:
    if value is None or interval is None:
        return _percent(value)
    return f'{_percent(value)} <span class="ci">[{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]</span>'


def _image(png: bytes, text: str) -> str:
    """Put a picture into the page, as WebP: a tenth of the PNG's size."""
    picture = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None, text
    _, packed = cv2.imencode(".webp", picture, [cv2.IMWRITE_WEBP_QUALITY, 82])
    data = base64.b64encode(packed.tobytes()).decode("ascii")
    return f'<p><img alt="{escape(text)}" src="data:image/webp;base64,{data}"></p>'


FIELDS = (
    "model", "dataset", "protocol", "score", "image", "num_normal", "num_anomalous",
    "ap", "fpr95", "auroc", "best_f1",
)  # fmt: skip


def render_per_image(cells: Sequence[Result]) -> str:
    """Render one line per image and cell: metrics of its own pixels, empty where none is anomalous."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(FIELDS)
    for cell in cells:
        record = cell.record
        for row in cell.images:
            values = row.metrics[:4] if row.metrics else (None,) * 4
            writer.writerow(
                [record.model, record.dataset, record.protocol, record.score, cell.stems[row.image],
                 row.num_normal, row.num_anomalous, *values]
            )  # fmt: skip
    return file.getvalue()
