"""The report of an evaluation: one HTML page without outside resources, and the per-image table."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import jinja2

from eval.protocol import get_protocol
from eval.report.panels import decode_png
from eval.report.plots import plot_curves
from eval.report.record import csv_text
from eval.report.slices import ErrorAnalysis
from eval.report.tables import MISSING, Table, format_interval
from eval.result import Result
from eval.sketch import METRICS

_MOST_CLASSES = 8
"""Classes listed of false alarms."""


def render_page(
    title: str, cells: Sequence[Result], pictures: Mapping[str, bytes], tables: Sequence[Table]
) -> str:
    """Render `report.html` of all results of an evaluation by the template `page.html`, beside this file.

    Args:
        pictures: test set -> PNG of some of its frames with all scores.
        tables: of the results, as they stand in `results.md`.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True,
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "percent": lambda value: MISSING if value is None else f"{100 * value:.2f}",
        "interval": format_interval,
        "thousands": lambda number: f"{number:,}",
        "data_uri": _data_uri,
    }
    records = [cell.record for cell in cells]
    by_dataset: dict[str, list[Result]] = {}
    for cell in cells:
        by_dataset.setdefault(cell.record.dataset, []).append(cell)
    return environment.get_template("page.html").render(
        title=title,
        tables=tables,
        closed=records[0] if records else None,
        sections=[_section(name, of_set, pictures.get(name)) for name, of_set in by_dataset.items()],
        get_protocol=get_protocol,
        slice_tables=_slice_tables,
    )


def _section(dataset: str, cells: Sequence[Result], picture: bytes | None) -> dict[str, Any]:
    """Gather what the page shows of one test set: frames and curves under its first protocol only."""
    protocol = cells[0].record.protocol
    shown = [cell for cell in cells if cell.record.protocol == protocol]
    others: dict[str, list[Result]] = {}
    for cell in cells:
        if cell.record.protocol != protocol and cell.gallery is not None:
            others.setdefault(cell.record.protocol, []).append(cell)
    curves = plot_curves(f"{dataset}, protocol {protocol}", {c.record.score: c.counts for c in shown})
    found = {"dataset": dataset, "cells": cells, "shown": shown, "others": others}
    return found | {"curves": curves, "picture": picture}


def _slice_tables(analysis: ErrorAnalysis) -> Iterator[tuple[Sequence[str], list[tuple[str, float, int]]]]:
    """Yield header and rows (name, share, pixels) of each kind of slice."""
    titles = {
        "found": "Anomalous pixels found",
        "alarm": "Normal pixels called anomalous",
        "alarms by class": "False alarms by predicted class, share of all",
    }
    for kind, title in titles.items():
        rows = [(each.name, share, n) for each, (share, n) in analysis.slices.items() if each.kind == kind]
        if kind == "alarms by class":
            largest = sorted((row for row in rows if row[1] > 0), key=lambda row: -row[1])
            yield (title, "%", "false alarms"), largest[:_MOST_CLASSES]
        else:
            yield (title, "%", "pixels"), rows


def _data_uri(png: bytes) -> str:
    """Return a picture as the address of a WebP, which takes a tenth of the PNG's size."""
    picture = cv2.cvtColor(decode_png(png), cv2.COLOR_RGB2BGR)
    _, packed = cv2.imencode(".webp", picture, [cv2.IMWRITE_WEBP_QUALITY, 82])
    return f"data:image/webp;base64,{base64.b64encode(packed.tobytes()).decode('ascii')}"


def render_per_image(cells: Sequence[Result]) -> str:
    """Render one line per image and result: metrics of its own pixels, empty where none is anomalous."""
    names = ("model", "dataset", "protocol", "score")
    rows = [
        [
            *(getattr(cell.record, name) for name in names),
            *(cell.stems[row.image], row.num_normal, row.num_anomalous),
            *(getattr(row.metrics, name, None) for name in METRICS),
        ]
        for cell in cells
        for row in cell.images
    ]
    return csv_text([(*names, "image", "num_normal", "num_anomalous", *METRICS), *rows])
