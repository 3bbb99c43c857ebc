"""The files of an evaluation: tables in four formats, per-image table, page, sketches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from eval.cell import Cell
from eval.page import render_page
from eval.report import Record, render_csv, render_json, render_latex, render_markdown
from eval.report_images import render_per_image
from eval.sketch import Sketch, sketch_path, write_sketch


def write_results(folder: Path, cells: Sequence[Cell], title: str) -> None:
    """Write tables, page and sketches into `folder`, which holds the pictures of test sets already."""
    records = [cell.record for cell in cells]
    for name, render in RENDERINGS.items():
        (folder / name).write_text(render(records), encoding="utf-8")
    (folder / "per_image.csv").write_text(render_per_image(cells), encoding="utf-8")
    names = {cell.record.dataset: cell.folder for cell in cells}
    drawn = {name: folder / f"{of_set}.png" for name, of_set in names.items()}
    pictures = {name: path.read_bytes() for name, path in drawn.items() if path.is_file()}
    (folder / "report.html").write_text(render_page(title, cells, pictures), encoding="utf-8")
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
