"""An evaluation that survives: images are scored where their files are missing, sets measured when complete.

A file is complete or absent, and has the key of what it was made from; what is there with the key asked for
is not computed again. Ranks and array tasks write the files of every n-th image. The first rank, or whichever
task finds the files of all images, measures.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from eval.evaluate import ClosedSetPart, TestSetPart, split_by_size
from eval.folder import CELLS, Earlier, ResultFolder, open_folder
from eval.key import hash_texts
from eval.metrics.closed_set import ClosedSetCounts, measure_closed_set
from eval.predict.predictions import CLOSED_SET, PredictionCache
from eval.predict.windows import ModelSource, Predictor
from eval.protocol import Protocol
from eval.report.record import Record
from eval.result import Subject, unpack_results
from eval.sets.registry import TestSet
from eval.store import ImageStore, Key, Worker, write_cached

logger = logging.getLogger(__name__)


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
    is_task: bool
    """Whether the other workers are array tasks, which may run at another time."""

    def list_steps(self) -> list[Step]:
        """List what goes through one store each, the closed set first."""
        parts: list[TestSetPart | ClosedSetPart] = [self.closed_set] if self.closed_set else []
        parts += [
            TestSetPart(
                test_set=test_set,
                protocols=protocols,
                scores=self.model.scores,
                components=self.components,
                num_examples=self.pictures,
            )
            for test_set in self.test_sets
            for protocols in split_by_size(self.protocols)
        ]
        return [Step(self, part) for part in parts]


class Step:
    """One part of an evaluation: the store of its images, and the keys of its results."""

    def __init__(self, asked: Evaluation, part: TestSetPart | ClosedSetPart) -> None:
        """Hash the images; nothing is written."""
        self.part, self._cache = part, asked.cache
        hashes = part.hash_images()
        self.data = hash_texts(hashes)
        self.keys = part.result_keys({**asked.network, "data": self.data})
        key = {**asked.network, "scores": " ".join(asked.model.scores)}
        if asked.cache is not None:  # a file that is there says that the predictions are saved, too
            key["cache"] = str(asked.cache.folder.absolute())
        folder = asked.out.absolute() / CELLS / part.place
        self.store = ImageStore(folder, [{**key, "image": of_image} for of_image in hashes])

    def predict(self, predictor: Predictor, worker: Worker) -> None:
        """Write the files of this worker's images that are missing."""
        part, cache = self.part, self._cache

        def make(image: int) -> Mapping[str, np.ndarray]:
            target, arrays = part.predict(predictor, image)
            if cache is not None:
                cache.write_frame(part.name, image, target)
            return arrays

        logger.info("%s: %d images", part.title, len(part))
        self.store.fill(
            make, worker, part.title, lambda image: cache is None or cache.has_frame(part.name, image)
        )

    def measure(self, folder: ResultFolder, missing: set[str]) -> None:
        """Write the missing results, for which the files of all images are needed, and drop these."""
        part = self.part
        if self._cache is not None:
            self._cache.finish_set(
                part.name, part.title, part.stems, self.data, is_benchmark=part.is_benchmark
            )
        for name, (content, arrays) in part.pack(self.store, missing).items():
            write_cached(folder.file(name), self.keys[name], content, arrays)
        self.store.remove()


def run_evaluation(asked: Evaluation) -> list[Record]:
    """Score what is not finished yet, and write the results; return the records where they were written.

    Raises:
        InputError: another evaluation is writing to the folder, or results would be lost; or see
            `eval.evaluate.evaluate_test_set`.
    """
    worker = asked.worker
    with open_folder(asked.out, asked.earlier, is_locked=worker.is_first and not asked.is_task) as folder:
        steps = asked.list_steps()
        missing = _find_missing(asked, folder, steps)
        predictor = asked.model.load() if missing else None
        worker.wait()  # until all have seen what is there
        if missing and (worker.is_first or asked.is_task):
            folder.start()
            if asked.cache is not None:
                asked.cache.start()
        worker.wait()
        for step in steps:
            if predictor is not None and missing & set(step.keys):
                step.predict(predictor, worker)
                worker.wait()
                if worker.is_first and not asked.is_task:
                    step.measure(folder, missing)
        if asked.is_task:
            return _finish_as_task(asked, folder, steps)
        return _write_results(asked, folder, steps) if worker.is_first else []


def _find_missing(asked: Evaluation, folder: ResultFolder, steps: Sequence[Step]) -> set[str]:
    """Name the results that are not kept with the key asked for, or whose predictions are not saved."""
    missing = folder.find_missing({name: key for step in steps for name, key in step.keys.items()})
    for step in steps:
        if asked.cache is not None and not asked.cache.has_set(step.part.name, step.data):
            missing |= set(step.keys)
    count = sum(len(step.keys) for step in steps)
    if len(missing) < count:
        logger.info("%s: %d of %d parts are kept", asked.out, count - len(missing), count)
    return missing


def _finish_as_task(asked: Evaluation, folder: ResultFolder, steps: Sequence[Step]) -> list[Record]:
    """Measure what all tasks have scored, and write the results if that is everything."""
    with folder.locked(wait_s=math.inf):
        missing = _find_missing(asked, folder, steps)  # another task may have been first
        is_whole = True
        for step in steps:
            if missing & set(step.keys):
                if all(step.store.has(image) for image in range(len(step.store))):
                    step.measure(folder, missing)
                else:
                    is_whole = False
        if is_whole:
            return _write_results(asked, folder, steps)
    number = f"{asked.worker.number}/{asked.worker.count}"
    logger.info("%s: task %s is done; others are not yet", asked.out, number)
    return []


def _write_results(asked: Evaluation, folder: ResultFolder, steps: Sequence[Step]) -> list[Record]:
    """Write the results of what is kept, which is all now, as the model's that is evaluated."""
    subject = Subject(model=asked.name, checkpoint=asked.checkpoint)
    if asked.closed_set is not None:
        found = measure_closed_set(ClosedSetCounts(**folder.read(CLOSED_SET).arrays))
        subject = replace(subject, miou=found.miou, miou_ci=found.miou_ci, ece=found.ece, ece_ci=found.ece_ci)
        logger.info("Cityscapes val: mIoU %.2f, ECE %.2f", 100 * found.miou, 100 * found.ece)
    names = [f"{t.convention.folder}.{p.name}" for t in asked.test_sets for p in asked.protocols]
    sets = [unpack_results(folder.read(name), subject) for name in names]
    folder.finish(sets, asked.name, {name for step in steps for name in step.keys})
    logger.info("%s: results of %d test sets", asked.out, len(asked.test_sets))
    return [result.record for saved in sets for result in saved.results]
