"""The per-image table: which frames make a number what it is."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from eval.cell import Cell

FIELDS = (
    "model", "dataset", "protocol", "score", "image", "num_normal", "num_anomalous",
    "ap", "fpr95", "auroc", "best_f1",
)  # fmt: skip


def render_per_image(cells: Sequence[Cell]) -> str:
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
