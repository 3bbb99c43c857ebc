"""The folder of an evaluation: finished files are kept in it, so that one that was killed goes on.

    OUT/cells/{test set}/{size}/{image}.npz    maps of an image; gone when its set is measured
    OUT/cells/cityscapes/native/{image}.npz    counts of a labelled scene
    OUT/cells/{test set}.{protocol}.npz        results of a set; cityscapes.npz: counts of all scenes
    OUT/results.json, ...                      written when all results are there, results.json last

See `eval/run.py` for who writes what.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from eval.report.figures import add_title, decode_png, encode_png
from eval.report.page import render_page, render_per_image
from eval.report.record import Record, render_csv, render_json
from eval.report.tables import render_latex, render_markdown
from eval.result import SavedResults
from eval.sketch import Sketch, sketch_path, write_sketch
from eval.store import SUFFIX, Cached, Key, read_cached
from shards.errors import InputError
from shards.files import LockTaken, hold_lock, make_folder, require_free, this_process

logger = logging.getLogger(__name__)

CELLS, LOCK, SCRATCH = "cells", ".lock", ".scratch"
RESULTS = "results.json"
Earlier = Literal["continue", "replace", "ignore"]


class ResultFolder:
    """Reads and writes what is kept."""

    def __init__(self, path: Path, earlier: Earlier) -> None:
        self.path, self._earlier = path, earlier

    def file(self, name: str) -> Path:
        """Return the file of a result."""
        return self.path / CELLS / f"{name}{SUFFIX}"

    def find_missing(self, keys: Mapping[str, Key]) -> set[str]:
        """Return the names of the results that are not kept with the key asked for.

        Raises:
            InputError: finished results would lose something that they were made from.
        """
        missing, lost = set(keys), []
        for path in sorted((self.path / CELLS).glob(f"*{SUFFIX}")):
            name = path.name.removesuffix(SUFFIX)
            cached = None if self._earlier == "ignore" else read_cached(path)
            if name not in keys:
                lost.append(f"{name}, which is not asked for now")
            elif cached is not None and (names := _differing(cached.key, keys[name])):
                lost.append(f"{name} with other {' and '.join(names)}")
                if not (self.path / RESULTS).is_file() or self._earlier == "replace":
                    logger.info("%s: kept with other %s; computed anew", name, " and ".join(names))
            elif cached is not None:
                missing.remove(name)
        if lost and self._earlier == "continue" and (self.path / RESULTS).is_file():
            raise InputError(
                f"--out {self.path}: holds results of {lost[0]}; --earlier replace puts the new ones in "
                f"their place"
            )
        return missing

    def start(self) -> None:
        """Remove results that are being replaced: until new ones are there, they would speak for others."""
        if self._earlier != "continue":
            (self.path / RESULTS).unlink(missing_ok=True)
        if self._earlier == "ignore":
            for path in self._list_kept():
                _remove(path)

    @contextmanager
    def locked(self, wait_s: float) -> Iterator[None]:
        """Be the only one to measure and to write results.

        Raises:
            LockTaken: somebody else was, all the time.
        """
        with hold_lock(self.path / CELLS / LOCK, wait_s=wait_s, owner=this_process()):
            _remove(self.path / SCRATCH)  # of one that was killed
            yield

    def read(self, name: str) -> Cached:
        """Read a result that is kept.

        Raises:
            InputError: its file was removed or damaged since it was found.
        """
        cached = read_cached(self.file(name))
        if cached is None:
            raise InputError(f"{self.file(name)}: was removed or damaged meanwhile")
        return cached

    def finish(self, sets: Sequence[SavedResults], model: str, names: set[str]) -> None:
        """Write the files of the results, results.json last, so that it speaks for the others; drop what is
        kept of others than `names`.
        """
        written = self.path / SCRATCH
        written.mkdir()
        try:
            render_results(written, sets, model)
            (self.path / RESULTS).unlink(missing_ok=True)
            for path in self._list_kept():
                name = path.name.removesuffix(SUFFIX)
                if path.is_file() and name not in names:
                    (self.path / f"{name.rpartition('.')[0]}.png").unlink(missing_ok=True)
                if path.is_dir() or name not in names:
                    _remove(path)
            for path in sorted(written.iterdir(), key=lambda path: path.name == RESULTS):
                if path.is_dir():
                    _remove(self.path / path.name)
                path.replace(self.path / path.name)
        finally:
            _remove(written)

    def _list_kept(self) -> list[Path]:
        return [path for path in (self.path / CELLS).iterdir() if path.name != LOCK]


def _differing(kept: Key, asked: Key) -> list[str]:
    """Name what differs between two keys, in the order of `asked`."""
    names = [*asked, *(name for name in kept if name not in asked)]
    return [name for name in names if kept.get(name) != asked.get(name)]


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def require_place(out: Path) -> None:
    """Check that `out` is new, empty or an evaluation's.

    Raises:
        InputError: it holds other files.
    """
    if not (out / CELLS).is_dir():
        require_free(out)


@contextmanager
def open_folder(out: Path, earlier: Earlier, *, is_locked: bool) -> Iterator[ResultFolder]:
    """Open `out`, which `require_place` has checked; its lock is held by the one process that writes results
    if all run at one time.

    Raises:
        InputError: another evaluation is writing to it.
    """
    folder = ResultFolder(out.absolute(), earlier)
    make_folder(folder.path / CELLS)
    if not is_locked:
        yield folder
        return
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(folder.locked(wait_s=0.0))
        except LockTaken:
            raise InputError(f"--out {out}: another evaluation is writing to it") from None
        try:
            yield folder
        finally:  # leave nothing where an evaluation failed before anything was finished
            if not folder._list_kept() and len(list(folder.path.iterdir())) == 1:
                shutil.rmtree(folder.path)


RENDERINGS: dict[str, Callable[[Sequence[Record]], str]] = {
    RESULTS: render_json,
    "results.csv": render_csv,
    "results.md": render_markdown,
    "results.tex": render_latex,
}
"""Name of a file to what writes it."""


def render_results(folder: Path, sets: Sequence[SavedResults], model: str) -> None:
    """Write tables, per-image table, pictures, page and sketches into `folder`.

    Args:
        sets: one per test set and protocol.
        model: name of the model, for titles.
    """
    results = [result for of_set, _ in sets for result in of_set]
    for name, render in RENDERINGS.items():
        (folder / name).write_text(render([result.record for result in results]), encoding="utf-8")
    (folder / "per_image.csv").write_text(render_per_image(results), encoding="utf-8")
    pictures: dict[str, bytes] = {}
    for of_set, panels in sets:
        dataset = of_set[0].record.dataset
        if panels and dataset not in pictures:
            pictures[dataset] = encode_png(add_title(f"{model} on {dataset}", decode_png(panels)))
            (folder / f"{of_set[0].folder}.png").write_bytes(pictures[dataset])
    page = render_page(f"{model}: road anomalies", results, pictures)
    (folder / "report.html").write_text(page, encoding="utf-8")
    for result in results:
        record, counts = result.record, result.counts
        stems = tuple(result.stems[image] for image in counts.images.tolist())
        path = sketch_path(folder, record.dataset, record.protocol, record.score)
        write_sketch(path, Sketch(counts, stems, record.protocol))
