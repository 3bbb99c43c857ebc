"""Results of an evaluation, one per score, test set and protocol, and the folder that keeps them.

OUT/cells/{test set}/{size}/{image}.npz    maps of an image; gone when its set is measured
OUT/cells/cityscapes/native/{image}.npz    counts of a labelled scene
OUT/cells/{test set}.{protocol}.npz        results of a set; cityscapes.npz: counts of all scenes
OUT/results.json, ...                      written when all results are there, results.json last
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from eval.metrics.binned import ImageCounts, ScoreDistribution
from eval.metrics.curve import PixelMetrics
from eval.metrics.measure import ImageMetrics
from eval.report.panels import Example
from eval.report.record import Record
from eval.report.slices import ErrorAnalysis, Slice
from eval.store import SUFFIX, Cached, Key, Worker, read_cached
from shards.errors import InputError
from shards.files import from_json, hold_lock, remove_partials, this_process
from shards.output import claimed, make_folder, require_free

logger = logging.getLogger(__name__)

CELLS, LOCK, SCRATCH = "cells", ".lock", ".scratch"
RESULTS = "results.json"
Earlier = Literal["continue", "replace", "ignore"]
_COUNTS = ("images", "positives", "negatives", "single")


class Result(NamedTuple):
    """One score of one test set under one protocol, with what its record does not say."""

    record: Record
    """Names no model before it is read back from a file."""
    counts: ImageCounts
    """Counts per image and bin, for curves and paired tests."""
    images: list[ImageMetrics]
    stems: tuple[str, ...]
    """Names of the images, by position in the set."""
    folder: str
    """The test set's, as its convention calls it."""
    gallery: ErrorAnalysis | None = None
    """Pictures and slices, where component metrics were computed."""
    distribution: ScoreDistribution | None = None
    """None where it is read back from a file."""


class SetResults(NamedTuple):
    """All scores of one test set."""

    results: list[Result]
    """One per protocol and score."""
    examples: list[Example]
    """The frames chosen for the picture, shrunk."""


Packed = tuple[Any, dict[str, np.ndarray]]
"""Content of a file for JSON, and its arrays."""
SavedResults = tuple[list[Result], bytes]
"""Results of one test set under one protocol, and a PNG of the frames chosen for the picture, without its
title; empty where none are."""


def pack_results(results: Sequence[Result], panels: bytes) -> Packed:
    """Take results apart."""
    arrays = {"panels": np.frombuffer(panels, np.uint8)}
    heads = []
    for i, result in enumerate(results):
        arrays |= {f"{i}.{name}": getattr(result.counts, name) for name in _COUNTS}
        slices = None
        if result.gallery is not None:
            arrays[f"{i}.frames"] = np.frombuffer(result.gallery.frames, np.uint8)
            slices = [[*of_slice, *found] for of_slice, found in result.gallery.slices.items()]
        record = dataclasses.asdict(result.record)
        heads.append([record, result.images, result.stems, result.folder, slices])
    return heads, arrays


def unpack_results(cached: Cached, subject: Mapping[str, Any]) -> SavedResults:
    """Rebuild the results of a file; `subject` holds the fields of records that name the model."""
    results = []
    for i, (fields, rows, stems, folder, slices) in enumerate(cached.content):
        record: Record = from_json(Record, fields, "cached result")
        counts = ImageCounts(*(cached.arrays[f"{i}.{name}"] for name in _COUNTS))
        images = [
            ImageMetrics(image, normal, anomalous, PixelMetrics(*metrics) if metrics else None)
            for image, normal, anomalous, metrics in rows
        ]
        gallery = None
        if slices is not None:
            found = {Slice(kind, name): (share, number) for kind, name, share, number in slices}
            gallery = ErrorAnalysis(cached.arrays[f"{i}.frames"].tobytes(), found)
        record = dataclasses.replace(record, **subject)
        results.append(Result(record, counts, images, tuple(stems), folder, gallery))
    return results, cached.arrays["panels"].tobytes()


class ResultFolder:
    """Results of an evaluation, finished or not, in OUT."""

    def __init__(self, path: Path, earlier: Earlier) -> None:
        self.path, self._earlier = path, earlier

    def file(self, name: str) -> Path:
        """Return the file of a result."""
        return self.path / CELLS / f"{name}{SUFFIX}"

    def find_missing(self, keys: Mapping[str, Key]) -> set[str]:
        """Return the names of the results that are not kept with the key asked for.

        An InputError says that finished results would lose something that they were made from.
        """
        missing, lost = set(keys), []
        for path in sorted((self.path / CELLS).glob(f"[!.]*{SUFFIX}")):
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
            for path in self.list_kept():
                _remove(path)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Wait to be the only task that measures and writes results."""
        with hold_lock(self.path / CELLS / LOCK, wait_s=math.inf, owner=this_process()):
            _remove(self.path / SCRATCH)  # of one that was killed
            yield

    def read(self, name: str) -> Cached:
        """Read a result that is kept.

        An InputError says that its file was removed or damaged since it was found.
        """
        cached = read_cached(self.file(name))
        if cached is None:
            raise InputError(f"{self.file(name)}: was removed or damaged meanwhile")
        return cached

    @contextmanager
    def replaced(self, names: Collection[str]) -> Iterator[Path]:
        """Yield a folder whose files replace those of OUT when the block ends well.

        results.json goes last, so that it speaks for the others. Results other than `names` are dropped.
        """
        written = self.path / SCRATCH
        written.mkdir()
        try:
            yield written
            (self.path / RESULTS).unlink(missing_ok=True)
            for path in self.list_kept():
                name = path.name.removesuffix(SUFFIX)
                if path.is_file() and name not in names:
                    for of_result in (f"{name.rpartition('.')[0]}.png", f"{name}.csv"):
                        (self.path / of_result).unlink(missing_ok=True)
                if path.is_dir() or name not in names:
                    _remove(path)
            for path in sorted(written.iterdir(), key=lambda path: path.name == RESULTS):
                if path.is_dir():
                    _remove(self.path / path.name)
                path.replace(self.path / path.name)
        finally:
            _remove(written)

    def list_kept(self) -> list[Path]:
        """List files of results, and folders of images."""
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


def require_place(out: Path, names: Collection[str] = ()) -> None:
    """Check that `out` is new, empty or begun by the same program.

    Args:
        names: of what may lie in it and in its cells, beside hidden files; none: anything beside cells.
    """
    cells = out / CELLS
    entries = [*out.iterdir(), *cells.iterdir()] if cells.is_dir() else []
    if not entries or (names and any(e.name not in names and not e.name.startswith(".") for e in entries)):
        require_free(out)


@contextmanager
def open_folder(out: Path, earlier: Earlier, worker: Worker) -> Iterator[ResultFolder]:
    """Open `out`, which `require_place` has checked.

    It is claimed by the one process that writes results where all run at one time; by an array task, its
    share is.

    Raises:
        InputError: another evaluation is writing to it.
        StorageError: it cannot be written, at the beginning or in the block.
    """
    folder, writes = ResultFolder(out.absolute(), earlier), worker.leads or worker.is_task
    with claimed(out, part=worker.part) if writes else contextlib.nullcontext():
        make_folder(folder.path / CELLS)
        if worker.leads:
            remove_partials(folder.path)
            _remove(folder.path / SCRATCH)
        try:
            yield folder
        finally:  # leave nothing where an evaluation failed before anything was finished
            if worker.leads and not folder.list_kept() and len(list(folder.path.iterdir())) == 1:
                shutil.rmtree(folder.path)
