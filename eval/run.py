"""An evaluation that survives: images are scored where their files are missing, sets measured when complete.

A file is complete or absent, and has the key of what it was made from; what is there with the key asked for
is not computed again. Ranks and array tasks write the files of every n-th image. The first rank, or whichever
task finds the files of all images, measures.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eval.evaluate import ClosedSetPart, TestSetPart, split_by_size
from eval.folder import CELLS, Earlier, ResultFolder, open_folder
from eval.key import hash_frames, hash_scenes, hash_texts
from eval.metrics.closed_set import ClosedSetCounts, measure_closed_set
from eval.predict.predictions import CLOSED_SET, PredictionCache
from eval.predict.windows import ModelSource, Predictor
from eval.protocol import Protocol
from eval.report.record import Record
from eval.result import unpack_results
from eval.sets.registry import TestSet
from eval.store import ImageStore, Key, Worker, write_cached

logger = logging.getLogger(__name__)
Part = TestSetPart | ClosedSetPart


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What is asked for, looked up and checked."""

    out: Path
    earlier: Earlier
    """What is done with what an earlier evaluation left in `out`."""
    model: ModelSource
    name: str
    """Of the model in tables."""
    checkpoint: str
    """Path of the checkpoint, or of what stands in its place."""
    network: Key
    """What predictions depend on."""
    test_sets: Sequence[TestSet]
    protocols: Sequence[Protocol]
    components: bool
    pictures: int
    """Frames of each set in its picture."""
    closed_set: ClosedSetPart | None
    cache: PredictionCache | None
    """Where predictions are saved, too."""
    worker: Worker


class _Plan:
    """Keys of all images and results of an evaluation."""

    def __init__(self, asked: Evaluation) -> None:
        self.images: dict[str, list[Key]] = {}
        """By folder of the set."""
        self.data: dict[str, str] = {}
        """Hash of all images, by folder of the set."""
        self.results: dict[str, Key] = {}
        """By name of the file."""
        scores = {"scores": " ".join(asked.model.scores)}
        common = {**asked.network, **scores}
        if asked.cache is not None:  # a file that is there says that the predictions are saved, too
            common["cache"] = str(asked.cache.folder.absolute())
        hashes = {test_set.convention.folder: hash_frames(test_set) for test_set in asked.test_sets}
        if asked.closed_set is not None:
            hashes[CLOSED_SET] = hash_scenes(asked.closed_set.reader, asked.closed_set.count)
        for name, of_images in hashes.items():
            self.images[name] = [{**common, "image": of_image} for of_image in of_images]
            self.data[name] = hash_texts(of_images)
            key = {**asked.network, "data": self.data[name]}
            settings = {"components": str(asked.components), "pictures": str(asked.pictures)}
            if name == CLOSED_SET:
                self.results[name] = key
                continue
            for protocol in asked.protocols:
                described = {"protocol": protocol.describe()}
                self.results[f"{name}.{protocol.name}"] = key | described | scores | settings

    def list_parts(self, asked: Evaluation, missing: Collection[str]) -> list[tuple[Part, ImageStore]]:
        """List what has to go through a store for the missing results, the closed set first."""
        parts: list[Part] = [asked.closed_set] if asked.closed_set and CLOSED_SET in missing else []
        for test_set in asked.test_sets:
            folder = test_set.convention.folder
            wanted = [protocol for protocol in asked.protocols if f"{folder}.{protocol.name}" in missing]
            parts += [
                TestSetPart(
                    test_set=test_set,
                    protocols=protocols,
                    scores=asked.model.scores,
                    components=asked.components,
                    num_examples=asked.pictures,
                )
                for protocols in split_by_size(wanted)
            ]
        return [(part, self._open_store(asked.out, part)) for part in parts]

    def _open_store(self, out: Path, part: Part) -> ImageStore:
        size, name = "x".join(map(str, part.size or ["native"])), part.convention.folder
        return ImageStore(out.absolute() / CELLS / name / size, self.images[name])


def run_evaluation(asked: Evaluation) -> list[Record]:
    """Score what is not finished yet, and write the results; return the records where they were written.

    Raises:
        InputError: another evaluation is writing to the folder, or results would be lost; or see
            `eval.evaluate.evaluate_test_set`.
    """
    worker, plan = asked.worker, _Plan(asked)
    with open_folder(asked.out, asked.earlier, is_locked=worker.leads) as folder:
        missing = _find_missing(asked, folder, plan)
        predictor = asked.model.load() if missing else None
        worker.wait()  # until all have seen what is there
        if missing and (worker.leads or worker.is_task):
            folder.start()
            if asked.cache is not None:
                asked.cache.start()
        worker.wait()
        for part, store in plan.list_parts(asked, missing):
            assert predictor is not None
            _predict(asked, part, store, predictor)
            worker.wait()
            if worker.leads:
                _measure(asked, folder, plan, part, store)
        if worker.is_task:
            return _finish_as_task(asked, folder, plan)
        return _write_results(asked, folder, plan) if worker.leads else []


def _find_missing(asked: Evaluation, folder: ResultFolder, plan: _Plan) -> set[str]:
    """Name the results that are not kept with the key asked for, or whose predictions are not saved."""
    missing = folder.find_missing(plan.results)
    if asked.cache is not None:
        unsaved = {name for name, data in plan.data.items() if not asked.cache.has_set(name, data)}
        missing |= {name for name in plan.results if name in unsaved or name.rpartition(".")[0] in unsaved}
    count = len(plan.results)
    if len(missing) < count:
        logger.info("%s: %d of %d parts are kept", asked.out, count - len(missing), count)
    return missing


def _predict(asked: Evaluation, part: Part, store: ImageStore, predictor: Predictor) -> None:
    """Write the files of this worker's images that are missing."""
    cache, name, title = asked.cache, part.convention.folder, part.convention.name

    def make(image: int) -> Mapping[str, np.ndarray]:
        target, arrays = part.predict(predictor, image)
        if cache is not None:
            cache.write_frame(name, image, target)
        return arrays

    logger.info("%s: %d images", title, len(store))
    store.fill(make, asked.worker, title, lambda image: cache is None or cache.has_frame(name, image))


def _measure(asked: Evaluation, folder: ResultFolder, plan: _Plan, part: Part, store: ImageStore) -> None:
    """Write the results, for which the files of all images are needed, and drop these."""
    convention = part.convention
    if asked.cache is not None:
        asked.cache.finish_set(convention, part.stems, plan.data[convention.folder])
    for name, (content, arrays) in part.pack(store).items():
        write_cached(folder.file(name), plan.results[name], content, arrays)
    store.remove()


def _finish_as_task(asked: Evaluation, folder: ResultFolder, plan: _Plan) -> list[Record]:
    """Measure what all tasks have scored, and write the results if that is everything."""
    with folder.locked(wait_s=math.inf):
        is_whole = True
        missing = _find_missing(asked, folder, plan)  # another task may have been first
        for part, store in plan.list_parts(asked, missing):
            if all(store.has(image) for image in range(len(store))):
                _measure(asked, folder, plan, part, store)
            else:
                is_whole = False
        if is_whole:
            return _write_results(asked, folder, plan)
    number = f"{asked.worker.number}/{asked.worker.count}"
    logger.info("%s: task %s is done; others are not yet", asked.out, number)
    return []


def _write_results(asked: Evaluation, folder: ResultFolder, plan: _Plan) -> list[Record]:
    """Write the results of what is kept, which is all now, as the model's that is evaluated."""
    subject = {"model": asked.name, "checkpoint": asked.checkpoint}
    if asked.closed_set is not None:
        found = measure_closed_set(ClosedSetCounts(**folder.read(CLOSED_SET).arrays))
        subject |= {name: getattr(found, name) for name in ("miou", "miou_ci", "ece", "ece_ci")}
        logger.info("Cityscapes val: mIoU %.2f, ECE %.2f", 100 * found.miou, 100 * found.ece)
    names = [f"{t.convention.folder}.{p.name}" for t in asked.test_sets for p in asked.protocols]
    sets = [unpack_results(folder.read(name), subject) for name in names]
    folder.finish(sets, asked.name, set(plan.results))
    logger.info("%s: results of %d test sets", asked.out, len(asked.test_sets))
    return [result.record for results, _ in sets for result in results]
