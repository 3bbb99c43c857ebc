"""The files of an evaluation: tables in four formats, per-image table, page, sketches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from eval.kept_cells import KeptSet
from eval.report.figures import add_title, decode_png, encode_png
from eval.report.page import render_page, render_per_image
from eval.report.record import Record, render_csv, render_json
from eval.report.tables import render_latex, render_markdown
from eval.sketch import Sketch, sketch_path, write_sketch


def write_results(folder: Path, sets: Sequence[KeptSet], model: str) -> None:
    """Write tables, pictures, page and sketches into `folder`."""
    cells = [cell for kept in sets for cell in kept.cells]
    records = [cell.record for cell in cells]
    for name, render in RENDERINGS.items():
        (folder / name).write_text(render(records), encoding="utf-8")
    (folder / "per_image.csv").write_text(render_per_image(cells), encoding="utf-8")
    pictures: dict[str, bytes] = {}
    for kept in sets:
        record, name = kept.cells[0].record, kept.cells[0].folder
        if kept.panels and record.dataset not in pictures:
            picture = add_title(f"{model} on {record.dataset}", decode_png(kept.panels))
            pictures[record.dataset] = encode_png(picture)
            (folder / f"{name}.png").write_bytes(pictures[record.dataset])
    page = render_page(f"{model}: road anomalies", cells, pictures)
    (folder / "report.html").write_text(page, encoding="utf-8")
    for cell in cells:
        record, counts = cell.record, cell.measurement.counts
        stems = tuple(cell.stems[image] for image in counts.images.tolist())
        path = sketch_path(folder, record.dataset, record.protocol, record.score)
        write_sketch(path, Sketch(counts, stems, record.protocol))


RENDERINGS: dict[str, Callable[[Sequence[Record]], str]] = {
    "results.json": render_json,
    "results.csv": render_csv,
    "results.md": render_markdown,
    "results.tex": render_latex,
}
