"""An evaluation in a folder: images to a store, the store to results, results to tables and pictures.

A file is complete or absent, and has the key of what it was made from; what is there with the key asked for
is not computed again. Ranks and array tasks write the files of every n-th image. The first rank, or whichever
task finds the files of all images, measures.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from eval.key import hash_frames, hash_scenes, hash_texts
from eval.metrics.closed_set import ClosedSetCounts, measure_closed_set, unseen_classes
from eval.part import ClosedSetPart, TestSetPart
from eval.predict.predictions import CLOSED_SET, CacheInfo, PredictionCache
from eval.predict.windows import ModelSource, Predictor
from eval.protocol import Protocol
from eval.report.page import render_page, render_per_image
from eval.report.panels import add_title, decode_png, encode_png
from eval.report.record import Record, csv_text, render_csv, render_json
from eval.report.tables import build_tables, latex_tables, markdown_tables
from eval.result import CELLS, RESULTS, Earlier, ResultFolder, SavedResults, open_folder, unpack_results
from eval.sets.registry import TestSet
from eval.sketch import Sketch, sketch_path, write_sketch
from eval.store import ImageStore, Key, Worker, write_cached
from shards.output import claimed

logger = logging.getLogger(__name__)
Part = TestSetPart | ClosedSetPart


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A model, looked up and checked, and the sets and protocols that it is to be evaluated on."""

    out: Path
    earlier: Earlier
    """What is done with what an earlier evaluation left in `out`."""
    model: ModelSource
    info: CacheInfo
    """Whose results these are."""
    network: Key
    """Key of the predictions (`eval.key.network_key`)."""
    test_sets: Sequence[TestSet]
    protocols: Sequence[Protocol]
    components: bool
    pictures: int
    """Frames of each set in its picture."""
    all_columns: bool
    """As of `eval.report.tables.list_columns`."""
    pasted: str
    """As of `Record`."""
    closed_set: ClosedSetPart | None
    cache: PredictionCache | None
    """Where predictions are saved, too."""
    worker: Worker

    def run(self) -> list[Record]:
        """Score what is not finished yet, and write the results; return the records where they were written.

        An InputError says that another evaluation is writing to the folder, results would be lost, or an
        image or prediction is no good; see `eval.part.evaluate_test_set`.
        """
        worker = self.worker
        with contextlib.ExitStack() as stack:
            if self.cache is not None and (worker.leads or worker.is_task):
                stack.enter_context(claimed(self.cache.folder, "--cache", worker.part))
            folder = stack.enter_context(open_folder(self.out, self.earlier, worker))
            missing = self._find_missing(folder)
            if missing:
                _ = self._predictor  # before anything is written: a broken checkpoint ends here
            worker.wait()  # until all have seen what is there
            if missing and (worker.leads or worker.is_task):
                folder.start()
                if self.cache is not None:
                    self.cache.start(is_alone=worker.leads)
            worker.wait()
            for part, store in self._list_parts(missing):
                self._predict(part, store)
                worker.wait()
                if worker.leads:
                    self._measure(part, store, folder)
            if worker.is_task:
                return self._finish_as_task(folder)
            return self._write_results(folder) if worker.leads else []

    @cached_property
    def _predictor(self) -> Predictor:
        return self.model.load()

    @cached_property
    def _hashes(self) -> dict[str, tuple[str, ...]]:
        """Hashes of all images, by folder of the set."""
        hashes = {test_set.convention.folder: hash_frames(test_set) for test_set in self.test_sets}
        if self.closed_set is not None:
            hashes[CLOSED_SET] = hash_scenes(self.closed_set.reader, self.closed_set.count)
        return hashes

    @cached_property
    def _keys(self) -> dict[str, Key]:
        """Keys of all results, by name of the file."""
        settings = {
            "scores": " ".join(self.model.scores),
            "components": str(self.components),
            "pictures": str(self.pictures),
        }
        keys: dict[str, Key] = {}
        for name, of_images in self._hashes.items():
            key = {**self.network, "data": hash_texts(of_images)}
            if name == CLOSED_SET:
                keys[name] = key
                continue
            for protocol in self.protocols:
                keys[f"{name}.{protocol.name}"] = {**key, "protocol": protocol.describe(), **settings}
        return keys

    def _open_store(self, part: Part) -> ImageStore:
        common = {**self.network, "scores": " ".join(self.model.scores)}
        if self.cache is not None:  # a file that is there says that the predictions are saved, too
            common["cache"] = str(self.cache.folder.absolute())
        name = part.convention.folder
        keys = [{**common, "image": of_image} for of_image in self._hashes[name]]
        return ImageStore(self.out.absolute() / CELLS / name / part.maps, keys)

    def _list_parts(self, missing: Collection[str]) -> list[tuple[Part, ImageStore]]:
        """List what has to go through a store for the missing results, the closed set first."""
        parts: list[Part] = [self.closed_set] if self.closed_set and CLOSED_SET in missing else []
        for test_set in self.test_sets:
            folder = test_set.convention.folder
            wanted = [protocol for protocol in self.protocols if f"{folder}.{protocol.name}" in missing]
            parts += [
                TestSetPart(
                    test_set=test_set,
                    protocols=[protocol for protocol in wanted if protocol.maps == maps],
                    scores=self.model.scores,
                    components=self.components,
                    num_examples=self.pictures,
                    sees=self._predictor.sees,
                    classes=self._predictor.classes,
                )
                for maps in dict.fromkeys(protocol.maps for protocol in wanted)
            ]
        return [(part, self._open_store(part)) for part in parts]

    def _find_missing(self, folder: ResultFolder) -> set[str]:
        """Name the results that are not kept with the key asked for, or whose predictions are not saved."""
        missing = folder.find_missing(self._keys)
        if self.cache is not None:
            for name, key in self._keys.items():
                if not self.cache.has_set(name.rpartition(".")[0] or name, key["data"]):
                    missing.add(name)
        count = len(self._keys)
        if len(missing) < count:
            logger.info("%s: %d of %d parts are kept", self.out, count - len(missing), count)
        return missing

    def _predict(self, part: Part, store: ImageStore) -> None:
        """Write the files of this worker's images that are missing."""
        cache, name, title = self.cache, part.convention.folder, part.convention.name

        def make(image: int) -> Mapping[str, np.ndarray]:
            target, arrays = part.predict(self._predictor, image)
            if cache is not None:
                cache.write_frame(name, image, target)
            return arrays

        logger.info("%s: %d images", title, len(store))
        store.fill(make, self.worker, title, lambda image: cache is None or cache.has_frame(name, image))

    def _measure(self, part: Part, store: ImageStore, folder: ResultFolder) -> None:
        """Write the results, for which the files of all images are needed, and drop these."""
        if self.cache is not None:
            data = hash_texts(self._hashes[part.convention.folder])
            self.cache.finish_set(part.convention, part.stems, data)
        for name, (content, arrays) in part.pack(store).items():
            write_cached(folder.file(name), self._keys[name], content, arrays)
        store.remove()

    def _finish_as_task(self, folder: ResultFolder) -> list[Record]:
        """Measure what all tasks have scored, and write the results if that is everything."""
        with folder.locked():
            is_whole = True
            missing = self._find_missing(folder)  # another task may have been first
            for part, store in self._list_parts(missing):
                if all(store.has(image) for image in range(len(store))):
                    self._measure(part, store, folder)
                else:
                    is_whole = False
            if is_whole:
                return self._write_results(folder)
        number = f"{self.worker.number}/{self.worker.count}"
        logger.info("%s: task %s is done; others are not yet", self.out, number)
        return []

    def _write_results(self, folder: ResultFolder) -> list[Record]:
        """Write the results of what is kept, which is all now, as the model's that is evaluated."""
        info, subject = self.info, dict[str, Any]()
        subject |= {"model": info.model, "checkpoint": info.checkpoint, "limit": info.limit}
        subject |= {"pasted": self.pasted, "trained_on": ", ".join(self.model.trained_on)}
        texts = dict[str, str]()
        if self.closed_set is not None:
            counts = ClosedSetCounts(**folder.read(CLOSED_SET).arrays)
            names = self.closed_set.reader.classes.names
            found = measure_closed_set(counts, names)
            subject |= {name: getattr(found, name) for name in ("miou", "miou_ci", "ece", "ece_ci")}
            subject["miou_images"] = self.closed_set.images
            subject["miou_unseen"] = unseen_classes(counts.confusion.sum(axis=0), names)
            texts[f"{CLOSED_SET}.csv"] = csv_text([("class", "iou"), *found.iou.items()])
            title = self.closed_set.convention.name
            logger.info("%s: mIoU %.2f %%, ECE %.2f %%", title, 100 * found.miou, 100 * found.ece)
        files = [f"{t.convention.folder}.{p.name}" for t in self.test_sets for p in self.protocols]
        sets = [unpack_results(folder.read(name), subject) for name in files]
        with folder.replaced(self._keys) as written:
            render_results(written, sets, self.all_columns, texts)
        logger.info("%s: results of %d test sets", self.out, len(self.test_sets))
        return [result.record for results, _ in sets for result in results]


def render_results(
    folder: Path, sets: Sequence[SavedResults], all_columns: bool, others: Mapping[str, str] | None = None
) -> None:
    """Write tables, per-image table, pictures, page, sketches and `others`, texts by name, into `folder`.

    Args:
        sets: one per test set and protocol.
        all_columns: as of `eval.report.tables.list_columns`.
    """
    results = [result for of_set, _ in sets for result in of_set]
    records = [result.record for result in results]
    tables, model = build_tables(records, all_columns), records[0].title
    texts = {RESULTS: render_json(records), "results.csv": render_csv(records)}
    texts |= {**(others or {}), "results.md": markdown_tables(tables), "results.tex": latex_tables(tables)}
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "per_image.csv").write_text(render_per_image(results), encoding="utf-8")
    pictures: dict[str, bytes] = {}
    for of_set, panels in sets:
        dataset = of_set[0].record.dataset
        if panels and dataset not in pictures:
            pictures[dataset] = encode_png(add_title(f"{model} on {dataset}", decode_png(panels)))
            (folder / f"{of_set[0].folder}.png").write_bytes(pictures[dataset])
    page = render_page(f"{model}: road anomalies", results, pictures, tables)
    (folder / "report.html").write_text(page, encoding="utf-8")
    for result in results:
        record, counts = result.record, result.counts
        stems = tuple(result.stems[image] for image in counts.images.tolist())
        path = sketch_path(folder, record.dataset, record.protocol, record.score)
        write_sketch(path, Sketch(counts, stems, record.protocol))
