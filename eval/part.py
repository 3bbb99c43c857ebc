"""Parts of an evaluation: one test set at one size for all its protocols, or the closed set.

A part is what goes through one store: its images are predicted one by one, and measured when all are there.
Nothing here knows a model: a predictor takes an image and returns maps of its pixels
(`eval.predict.windows.Predictor`).
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from eval.metrics.closed_set import ClosedSetCounts, MiouResult, count_scene, measure_closed_set
from eval.metrics.curve import ImageScores
from eval.metrics.measure import Measurement, measure_components, measure_images, measure_score
from eval.predict.predictions import CLOSED_SET
from eval.predict.score_names import DEFAULT_SCORES
from eval.predict.strips import predict_image
from eval.predict.windows import Predictor, resize_image, to_tensor
from eval.protocol import Protocol
from eval.report.panels import Example, choose_examples, draw_panels, encode_png
from eval.report.record import Record
from eval.report.slices import FrameMaps, analyse_errors
from eval.result import Packed, Result, SetResults, pack_results
from eval.sets.registry import (
    Convention,
    TestSet,
    read_image,
    read_target,
    require_same_size,
    resize_target,
)
from eval.store import ALONE, ImageStore, Worker, score_arrays
from shards.progress import Progress
from shards.reader import ShardReader
from shards.scene import decode_scene, find_scene_members
from shards.schema import CITYSCAPES, ClassTable

logger = logging.getLogger(__name__)

_MANY_TIES = 0.005
"""Share of normal pixels tied at the threshold of FPR95 from which on a warning says so."""
Predicted = tuple[UInt8[np.ndarray, "H W"], Mapping[str, np.ndarray]]
"""Target of an image, and the arrays that go into the store."""


@dataclass(frozen=True, kw_only=True)
class TestSetPart:
    """A test set at one size: each image is predicted once for all scores and protocols."""

    __test__ = False  # the name starts with Test, but pytest must not collect it
    test_set: TestSet
    protocols: Sequence[Protocol]
    """All of the same score maps (`Protocol.maps`)."""
    scores: tuple[str, ...] = DEFAULT_SCORES
    """The predictor returns maps of those that are not in `eval.predict.scores.SCORES`, in this order."""
    components: bool = True
    """Whether component metrics, slices and pictures of errors are made."""
    num_examples: int = 3
    """Frames in the picture."""
    intervals: bool = True
    """Whether images are resampled for the 95 % intervals."""
    sees: str = ""
    """As of `Record.sees`."""
    classes: ClassTable = CITYSCAPES
    """Those of the model."""

    @property
    def convention(self) -> Convention:
        """Facts about the set."""
        return self.test_set.convention

    @property
    def maps(self) -> str:
        """Name of the score maps."""
        return self.protocols[0].maps

    @property
    def size(self) -> tuple[int, int] | None:
        """(H, W) of images and targets; None: as they are."""
        return self.protocols[0].size

    @property
    def stems(self) -> tuple[str, ...]:
        """Names of the images."""
        return tuple(frame.stem for frame in self.test_set.frames)

    def predict(self, predictor: Predictor, image: int) -> Predicted:
        """Compute score maps and predicted classes of an image."""
        pixels, target = self._read(image)
        predicted = predict_image(predictor, pixels, self.scores, self.protocols[0])
        return target, score_arrays(predicted.scores, target, prediction=predicted.classes)

    def measure(self, store: ImageStore) -> SetResults:
        """Compute the results of all images, by protocol, then score; records name no model yet."""
        results = []
        read_pixels = functools.cache(lambda image: self._read(image)[0])  # all scores show the same few
        for score in Progress(self.scores, desc=f"{self.convention.name}, measuring", unit="score"):
            with store.sorted_scores(score) as images:
                results += [self._measure(store, score, images, p, read_pixels) for p in self.protocols]
        order = [protocol.name for protocol in self.protocols]
        results.sort(key=lambda result: order.index(result.record.protocol))
        examples = []
        for image in sorted(choose_examples(len(self.stems), self.num_examples)):
            pixels, target = self._read(image)
            scores = {name: store.scores(image, name) for name in self.scores}
            prediction = store.read(image, "prediction")
            examples.append(Example(self.stems[image], pixels, target, prediction, scores).shrink())
        return SetResults(results, examples)

    def pack(self, store: ImageStore) -> dict[str, Packed]:
        """Compute the results, and take them apart for their files: one per protocol, by name."""
        results, examples = self.measure(store)
        for record in (result.record for result in results):
            assert record.ap is not None
            assert record.fpr95 is not None
            numbers = (record.protocol, 100 * record.ap, 100 * record.fpr95)
            logger.info("  %-10s %s: AuPRC %6.2f %%  FPR95 %6.2f %%", record.score, *numbers)
        panels = encode_png(draw_panels(examples, self.classes)) if examples else b""
        names = [protocol.name for protocol in self.protocols]
        packed = [pack_results([r for r in results if r.record.protocol == name], panels) for name in names]
        return {f"{self.convention.folder}.{name}": each for name, each in zip(names, packed, strict=True)}

    def _read(self, image: int) -> tuple[UInt8[np.ndarray, "H W 3"], UInt8[np.ndarray, "H W"]]:
        """Return image and target of a frame at the part's size."""
        frame = self.test_set.frames[image]
        pixels, target = read_image(frame), read_target(frame, self.convention)
        require_same_size(frame, pixels, target)
        if self.size is None:
            return pixels, target
        resized = resize_image(to_tensor(pixels), self.size).permute(1, 2, 0).numpy()
        return resized, resize_target(target, self.size)

    def _measure(
        self,
        store: ImageStore,
        score: str,
        images: Sequence[ImageScores],
        protocol: Protocol,
        read_pixels: Callable[[int], UInt8[np.ndarray, "H W 3"]],
    ) -> Result:
        def read_maps(image: int) -> FrameMaps:
            return store.scores(image, score), store.read(image, "target"), store.read(image, "prediction")

        measured = measure_score(images, protocol, intervals=self.intervals)
        rows = measure_images(images, protocol)
        record, errors = self._record(score, protocol, measured), None
        if self.components:
            maps = (read_maps(row.image)[:2] for row in rows)
            threshold, smallest = measured.metrics.f1_threshold, self.convention.smallest
            found: Any = measure_components(maps, threshold, protocol, smallest, intervals=self.intervals)
            record = dataclasses.replace(record, **found)
            shown = (self.stems, read_maps, read_pixels, self.classes)
            errors = analyse_errors(score, measured.fpr95_threshold, protocol, rows, *shown)
        folder = self.convention.folder
        return Result(record, measured.counts, rows, self.stems, folder, errors, measured.distribution)

    def _record(self, score: str, protocol: Protocol, measured: Measurement) -> Record:
        if measured.tied > _MANY_TIES:
            logger.warning(
                "%s, %s, protocol %s: %.1f %% of the normal pixels have exactly the score where FPR95 is "
                "read; FPR95 says little there",
                self.convention.name, score, protocol.name, 100 * measured.tied,
            )  # fmt: skip
        metrics: dict[str, Any] = {name: getattr(measured.metrics, name) for name in measured.intervals}
        metrics |= {f"{name}_ci": interval for name, interval in measured.intervals.items()}
        return Record(
            model="",
            checkpoint="",
            score=score,
            temperature=1.0,
            temperature_from=None,
            dataset=self.convention.name,
            protocol=protocol.name,
            num_images=measured.num_images,
            num_pixels=measured.num_pixels,
            miou=None,
            sees=self.sees,
            **metrics,
        )


@dataclass(frozen=True)
class ClosedSetPart:
    """The first `count` labelled scenes of a reader, for mIoU and calibration."""

    reader: ShardReader
    count: int
    maps = "native"

    @property
    def convention(self) -> Convention:
        """Facts about the scenes; without a manifest they are of Cityscapes."""
        title = self.reader.shards[0].title or "Cityscapes"
        return Convention(CLOSED_SET, f"{title} {self.reader.split or 'val'}", is_benchmark=False)

    @property
    def stems(self) -> tuple[str, ...]:
        """Names of the scenes."""
        return tuple(self.reader.keys[: self.count])

    @property
    def images(self) -> str:
        """Encoding and size of the pictures, those of the first."""
        scene, members = decode_scene(self.reader, 0), self.reader.suffixes(0)
        encoding = find_scene_members(scene.key, members)[0].rpartition(".")[2]
        height, width = scene.label.shape
        return f"{encoding} frames of {width} x {height}"

    def predict(self, predictor: Predictor, image: int) -> Predicted:
        """Count the predicted classes (argmax of the class scores at native size) of a scene."""
        scene = decode_scene(self.reader, image)
        confusion, confidence = count_scene(
            predictor(scene.image), scene.label, len(self.reader.classes), has_evidence=predictor.has_evidence
        )
        return scene.label, {"confusion": confusion, "confidence": confidence}

    def measure(self, store: ImageStore) -> ClosedSetCounts:
        """Return the counts of all scenes, a row per scene."""
        rows = {n: [store.read(i, n) for i in range(self.count)] for n in ClosedSetCounts._fields}
        return ClosedSetCounts(**{name: np.stack(arrays) for name, arrays in rows.items()})

    def pack(self, store: ImageStore) -> dict[str, Packed]:
        """Return the counts of all scenes for their file, by its name."""
        return {CLOSED_SET: (None, self.measure(store)._asdict())}


def evaluate_test_set(
    part: TestSetPart, predictor: Predictor, scratch: Path | None = None, worker: Worker = ALONE
) -> SetResults:
    """Predict and measure a test set, and keep nothing.

    An InputError says that a file is broken or breaks the convention, sizes differ, no pixel is anomalous, or
    the model answers NaN.

    Args:
        scratch: folder for the maps (4 bytes per pixel and score, and 4 more per pixel) until this returns;
            None is the system's. All ranks must see it where there are several.
        worker: this rank. All but the first get an empty result.
    """
    with _filled_store(part, predictor, scratch, worker) as store:
        return part.measure(store) if worker.leads else SetResults([], [])


def evaluate_closed_set(
    part: ClosedSetPart, predictor: Predictor, scratch: Path | None = None, worker: Worker = ALONE
) -> MiouResult:
    """Compare predicted classes with labels, without intervals; all ranks get the same result."""
    with _filled_store(part, predictor, scratch, worker) as store:
        return measure_closed_set(part.measure(store), part.reader.classes.names, intervals=False)


@contextmanager
def _filled_store(
    part: TestSetPart | ClosedSetPart, predictor: Predictor, scratch: Path | None, worker: Worker
) -> Iterator[ImageStore]:
    """Yield a store that all ranks have filled, and that is gone afterwards."""
    assert scratch is not None or worker.count == 1, "several ranks need a folder that all of them see"
    folder = (
        Path(tempfile.mkdtemp(dir=scratch)) if scratch is None or worker.count == 1 else scratch / ".images"
    )
    store = ImageStore(folder, [{}] * len(part.stems))
    try:
        if worker.leads:
            store.remove()  # of a run that was killed
        worker.wait()
        store.fill(lambda image: part.predict(predictor, image)[1], worker, part.convention.name)
        worker.wait()
        yield store
        worker.wait()
    finally:
        if worker.leads:
            store.remove()
