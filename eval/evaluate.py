"""Evaluation of test sets and of the closed set: images to a store, the store to results.

Nothing here knows a model: a predictor takes an image and returns maps of its pixels
(`eval.predict.windows.Predictor`). A part is what goes through one store: a test set at one size, for all
protocols of that size, or the closed set.
"""

from __future__ import annotations

import functools
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from eval.key import hash_frames, hash_scenes
from eval.metrics.closed_set import ClosedSetCounts, MiouResult, count_scene, measure_closed_set
from eval.metrics.components import SegmentSizes
from eval.metrics.measure import (
    ComponentMeasurement,
    ImageMetrics,
    Measurement,
    measure_components,
    measure_images,
    measure_score,
)
from eval.predict.predictions import CLOSED_SET
from eval.predict.scores import DEFAULT_SCORES
from eval.predict.strips import answer_pixels
from eval.predict.windows import Predictor, resize_image, to_tensor
from eval.protocol import Protocol
from eval.report.figures import Example, choose_examples, draw_panels, encode_png
from eval.report.record import Record
from eval.report.slices import FrameMaps, analyse_errors
from eval.result import Packed, Result, SavedResults, Subject, TestSetResult, pack_results
from eval.sets.registry import TestSet, read_image, read_target, require_same_size, resize_target
from eval.store import ALONE, ImageStore, Key, Worker, score_arrays
from shards.reader import ShardReader
from shards.scene import decode_scene

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
    protocols: tuple[Protocol, ...]
    """Of one size."""
    scores: tuple[str, ...] = DEFAULT_SCORES
    components: bool = True
    """Whether component metrics, slices and galleries are computed."""
    num_examples: int = 3
    """Frames in the picture."""
    intervals: bool = True
    """Whether images are resampled for the 95 % intervals."""

    def __len__(self) -> int:
        return len(self.test_set)

    @property
    def name(self) -> str:
        """Folder of the test set, as its convention calls it."""
        return self.test_set.convention.folder

    @property
    def title(self) -> str:
        """Name in tables."""
        return self.test_set.name

    @property
    def place(self) -> str:
        """Folder of the store below that of all stores."""
        size = self.protocols[0].size
        return f"{self.name}/{'x'.join(map(str, size)) if size else 'native'}"

    @property
    def stems(self) -> list[str]:
        """Names of the images."""
        return [frame.stem for frame in self.test_set.frames]

    @property
    def is_benchmark(self) -> bool:
        """Whether numbers on it are reported as results."""
        return self.test_set.convention.is_benchmark

    def hash_images(self) -> tuple[str, ...]:
        """Return a hash of each image and its target."""
        return hash_frames(self.test_set)

    def result_keys(self, common: Key) -> dict[str, Key]:
        """Return what the results under each protocol depend on, by name of their file."""
        settings = {"scores": " ".join(self.scores), "components": str(self.components)}
        settings["pictures"] = str(self.num_examples)
        return {
            f"{self.name}.{protocol.name}": {**common, "protocol": protocol.describe(), **settings}
            for protocol in self.protocols
        }

    def read(self, image: int) -> tuple[UInt8[np.ndarray, "H W 3"], UInt8[np.ndarray, "H W"]]:
        """Return image and target of a frame at the part's size."""
        frame, size = self.test_set.frames[image], self.protocols[0].size
        pixels, target = read_image(frame), read_target(frame, self.test_set.convention)
        require_same_size(frame, pixels, target)
        if size is None:
            return pixels, target
        return resize_image(to_tensor(pixels), size).permute(1, 2, 0).numpy(), resize_target(target, size)

    def predict(self, predictor: Predictor, image: int) -> Predicted:
        """Compute score maps and predicted classes of an image."""
        pixels, target = self.read(image)
        predicted = answer_pixels(predictor(pixels), self.scores)
        return target, score_arrays(predicted.scores, target, prediction=predicted.prediction)

    def measure(self, store: ImageStore, subject: Subject) -> list[Result]:
        """Compute the results of all images: by protocol, then score."""
        read = functools.cache(lambda image: self.read(image)[0])  # galleries of all scores show the same few
        results = {}
        for score in self.scores:
            with store.sorted_scores(score) as images:
                measured = [
                    (protocol, measure_score(images, protocol, intervals=self.intervals),
                     measure_images(images, protocol))
                    for protocol in self.protocols
                ]  # fmt: skip
            for protocol, measurement, rows in measured:
                self._warn_of_ties(score, protocol, measurement)
                found, gallery = None, None
                if self.components:
                    found = self._measure_components(store, score, protocol, measurement, rows)
                    threshold, maps = measurement.fpr95_threshold, functools.partial(_read_maps, store, score)
                    gallery = analyse_errors(score, threshold, protocol, rows, self.stems, maps, read)
                record = make_record(subject, score, self.test_set.name, protocol.name, measurement, found)
                results[protocol.name, score] = Result(
                    record, measurement, rows, self.stems, self.name, gallery
                )
        return [results[protocol.name, score] for protocol in self.protocols for score in self.scores]

    def make_examples(self, store: ImageStore) -> list[Example]:
        """Shrink the frames that the picture shows."""
        examples = []
        for image in sorted(choose_examples(len(self), self.num_examples)):
            pixels, target = self.read(image)
            scores = {name: store.scores(image, name) for name in self.scores}
            stem = self.stems[image]
            examples.append(Example(stem, pixels, target, store.prediction(image), scores).shrink())
        return examples

    def pack(self, store: ImageStore, missing: set[str]) -> dict[str, Packed]:
        """Compute the results whose names are in `missing`, and take them apart for their files."""
        protocols = tuple(p for p in self.protocols if f"{self.name}.{p.name}" in missing)
        part = replace(self, protocols=protocols)
        examples = part.make_examples(store)
        panels = encode_png(draw_panels(examples)) if examples else b""
        by_protocol: dict[str, list[Result]] = {protocol.name: [] for protocol in protocols}
        for result in part.measure(store, Subject(model="", checkpoint="")):  # of whom, is filled in on load
            by_protocol[result.record.protocol].append(result)
            ap, fpr95, *_ = result.measurement.metrics
            logger.info("  %-10s AP %6.2f  FPR95 %6.2f", result.record.score, 100 * ap, 100 * fpr95)
        return {
            f"{self.name}.{protocol}": pack_results(SavedResults(results, panels))
            for protocol, results in by_protocol.items()
        }

    def _measure_components(
        self,
        store: ImageStore,
        score: str,
        protocol: Protocol,
        measurement: Measurement,
        rows: Sequence[ImageMetrics],
    ) -> ComponentMeasurement:
        frames = ((store.scores(row.image, score), store.target(row.image)) for row in rows)
        smallest = SegmentSizes(*self.test_set.convention.smallest)
        threshold = measurement.metrics.f1_threshold
        return measure_components(frames, threshold, protocol, smallest, intervals=self.intervals)

    def _warn_of_ties(self, score: str, protocol: Protocol, measurement: Measurement) -> None:
        if measurement.tied > _MANY_TIES:
            logger.warning(
                "%s, %s, protocol %s: %.1f %% of the normal pixels have exactly the score where FPR95 is "
                "read; FPR95 says little there",
                self.test_set.name, score, protocol.name, 100 * measurement.tied,
            )  # fmt: skip


def _read_maps(store: ImageStore, score: str, image: int) -> FrameMaps:
    return store.scores(image, score), store.target(image), store.prediction(image)


def make_record(
    subject: Subject,
    score: str,
    dataset: str,
    protocol: str,
    measurement: Measurement,
    components: ComponentMeasurement | None,
) -> Record:
    """Return the line of `results.json`."""
    metrics: dict[str, Any] = {name: getattr(measurement.metrics, name) for name in measurement.intervals}
    metrics |= {f"{name}_ci": interval for name, interval in measurement.intervals.items()}
    return Record(
        score=score,
        temperature=1.0,
        temperature_from=None,
        dataset=dataset,
        protocol=protocol,
        num_images=measurement.num_images,
        num_pixels=measurement.num_pixels,
        **metrics,
        **(components._asdict() if components else {}),
        **asdict(subject),
    )


@dataclass(frozen=True)
class ClosedSetPart:
    """The first `count` labelled scenes of a reader, for mIoU and calibration."""

    reader: ShardReader
    count: int
    name = CLOSED_SET
    title = "Cityscapes val"
    place = f"{CLOSED_SET}/native"
    is_benchmark = False

    def __len__(self) -> int:
        return self.count

    @property
    def stems(self) -> list[str]:
        """Names of the scenes."""
        return list(self.reader.keys[: self.count])

    def hash_images(self) -> tuple[str, ...]:
        """Return a hash of each scene."""
        return hash_scenes(self.reader, self.count)

    def result_keys(self, common: Key) -> dict[str, Key]:
        """Return what the counts depend on, by name of their file."""
        return {CLOSED_SET: common}

    def predict(self, predictor: Predictor, image: int) -> Predicted:
        """Count the predicted classes of a scene."""
        scene = decode_scene(self.reader, image)
        confusion, confidence = count_scene(predictor(scene.image), scene.label)
        return scene.label, {"confusion": confusion, "confidence": confidence}

    def measure(self, store: ImageStore) -> ClosedSetCounts:
        """Return the counts of all scenes, a row per scene."""
        rows = {n: [store.read(i, n) for i in range(len(self))] for n in ClosedSetCounts._fields}
        return ClosedSetCounts(**{name: np.stack(arrays) for name, arrays in rows.items()})

    def pack(self, store: ImageStore, missing: set[str]) -> dict[str, Packed]:
        """Return the counts of all scenes for their file."""
        return {CLOSED_SET: (None, self.measure(store)._asdict())}


def split_by_size(protocols: Sequence[Protocol]) -> list[tuple[Protocol, ...]]:
    """Group the protocols that share a forward pass: those of one size."""
    sizes = dict.fromkeys(protocol.size for protocol in protocols)
    return [tuple(protocol for protocol in protocols if protocol.size == size) for size in sizes]


def evaluate_test_set(
    predictor: Predictor,
    test_set: TestSet,
    protocols: Protocol | Sequence[Protocol],
    subject: Subject,
    *,
    scores: Sequence[str] = DEFAULT_SCORES,
    num_examples: int = 3,
    components: bool = True,
    intervals: bool = True,
    scratch: Path | None = None,
    worker: Worker = ALONE,
) -> TestSetResult:
    """Score all frames of a test set; each is decoded and predicted once for all scores and protocols of a
    size.

    Args:
        scores: names of scores; `predictor` returns maps of those that are not in `SCORES`, in this order.
        num_examples: frames to keep, shrunk, for a picture.
        components: compute component metrics, slices and galleries too.
        intervals: compute 95 % intervals too, for which images are resampled.
        scratch: folder for the maps (4 bytes per pixel and score, and 4 more per pixel) until this returns;
            None is the system's. All ranks must see it where there are several.
        worker: this rank. All but the first get an empty result.

    Raises:
        InputError: a file is broken or breaks the convention, sizes differ, no pixel is anomalous, or the
            model answers NaN.
    """
    asked = (protocols,) if isinstance(protocols, Protocol) else tuple(protocols)
    results: list[Result] = []
    examples: list[Example] = []
    for same_size in split_by_size(asked):
        part = TestSetPart(
            test_set=test_set,
            protocols=same_size,
            scores=tuple(scores),
            components=components,
            num_examples=num_examples,
            intervals=intervals,
        )
        with _filled_store(part, predictor, scratch, worker) as store:
            if worker.is_first:
                results += part.measure(store, subject)
                examples = examples or part.make_examples(store)
    order = {protocol.name: i for i, protocol in enumerate(asked)}
    return TestSetResult(sorted(results, key=lambda result: order[result.record.protocol]), examples)


def evaluate_closed_set(
    predictor: Predictor,
    reader: ShardReader,
    count: int,
    *,
    intervals: bool = True,
    scratch: Path | None = None,
    worker: Worker = ALONE,
) -> MiouResult:
    """Compare predicted classes (argmax of evidence at native size) with the labels of `count` scenes.

    Args:
        intervals: resample images for the 95 % intervals too.
        scratch: folder that all ranks see.
        worker: this rank; all get the same result.

    Raises:
        InputError: a label holds a value that is no train id, outlier or void, or all are void.
    """
    part = ClosedSetPart(reader, count)
    with _filled_store(part, predictor, scratch, worker) as store:
        return measure_closed_set(part.measure(store), intervals=intervals)


@contextmanager
def _filled_store(
    part: TestSetPart | ClosedSetPart, predictor: Predictor, scratch: Path | None, worker: Worker
) -> Iterator[ImageStore]:
    """Yield a store that all ranks have filled, and that is gone afterwards."""
    assert scratch is not None or worker.count == 1, "several ranks need a folder that all of them see"
    folder = Path(tempfile.mkdtemp(dir=scratch)) if worker.count == 1 else (scratch or Path()) / ".images"
    store = ImageStore(folder, [{}] * len(part))
    try:
        if worker.is_first and worker.count > 1:
            store.remove()  # of a run that was killed
        worker.wait()
        store.fill(lambda image: part.predict(predictor, image)[1], worker, part.title)
        worker.wait()
        yield store
        worker.wait()
    finally:
        if worker.is_first:
            store.remove()
