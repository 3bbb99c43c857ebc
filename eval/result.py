"""Results of an evaluation, one per score, test set and protocol, and their file."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from eval.metrics.binned import ImageCounts
from eval.metrics.curve import PixelMetrics
from eval.metrics.distribution import ScoreDistribution
from eval.metrics.measure import ImageMetrics, Measurement
from eval.report.figures import Example
from eval.report.record import Record
from eval.report.slices import ErrorAnalysis, Slice
from eval.store import Cached
from shards.files import from_json

_COUNTS = ("images", "positives", "negatives", "single")
_HISTOGRAMS = ("edges", "normal", "anomalous")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is evaluated, as records name it."""

    model: str
    checkpoint: str
    miou: float | None = None
    miou_ci: tuple[float, float] | None = None
    ece: float | None = None
    ece_ci: tuple[float, float] | None = None


class Result(NamedTuple):
    """One score of one test set under one protocol, with what its record does not say."""

    record: Record
    measurement: Measurement
    images: list[ImageMetrics]
    stems: list[str]
    """By position in the set."""
    folder: str
    """Of the test set, as its convention calls it."""
    gallery: ErrorAnalysis | None = None
    """Pictures and slices, where component metrics were computed."""


class TestSetResult(NamedTuple):
    """All scores of one test set."""

    results: list[Result]
    """One per protocol and score."""
    examples: list[Example]
    """The frames chosen for the picture."""

    @property
    def records(self) -> list[Record]:
        """The results' records."""
        return [result.record for result in self.results]


class SavedResults(NamedTuple):
    """All scores of one test set under one protocol: the content of a file."""

    results: list[Result]
    panels: bytes
    """PNG of the frames chosen for the picture, without its title; empty where none are."""


Packed = tuple[Any, dict[str, np.ndarray]]
"""What JSON holds of a file, and its arrays."""


def pack_results(saved: SavedResults) -> Packed:
    """Take results apart."""
    arrays = {"panels": np.frombuffer(saved.panels, np.uint8)}
    heads = []
    for i, result in enumerate(saved.results):
        measured, gallery = result.measurement, result.gallery
        arrays |= {f"{i}.{name}": getattr(measured.counts, name) for name in _COUNTS}
        arrays |= {f"{i}.{name}": getattr(measured.distribution, name) for name in _HISTOGRAMS}
        medians = [measured.distribution.normal_median, measured.distribution.anomalous_median]
        head = result._asdict() | {
            "record": dataclasses.asdict(result.record),
            "measurement": measured._asdict() | {"counts": None, "distribution": medians},
            "gallery": None,
        }
        if gallery is not None:
            arrays[f"{i}.frames"] = np.frombuffer(gallery.frames, np.uint8)
            head["gallery"] = [[*of_slice, *found] for of_slice, found in gallery.slices.items()]
        heads.append(head)
    return heads, arrays


def unpack_results(cached: Cached, subject: Subject) -> SavedResults:
    """Rebuild the results of a file, as the subject's: model name and path are filled in on load."""
    results = [_unpack(head, cached.arrays, f"{i}.", subject) for i, head in enumerate(cached.content)]
    return SavedResults(results, cached.arrays["panels"].tobytes())


def _unpack(head: Any, arrays: dict[str, np.ndarray], prefix: str, subject: Subject) -> Result:
    record: Record = from_json(Record, head["record"], "cached result")
    entry = head["measurement"]
    measurement = Measurement(**entry)._replace(
        metrics=PixelMetrics(*entry["metrics"]),
        counts=ImageCounts(*(arrays[prefix + name] for name in _COUNTS)),
        intervals={name: tuple(ends) if ends else None for name, ends in entry["intervals"].items()},
        distribution=ScoreDistribution(
            **{name: arrays[prefix + name] for name in _HISTOGRAMS},
            normal_median=entry["distribution"][0],
            anomalous_median=entry["distribution"][1],
        ),
    )
    images = [
        ImageMetrics(image, normal, anomalous, PixelMetrics(*metrics) if metrics else None)
        for image, normal, anomalous, metrics in head["images"]
    ]
    gallery = None
    if head["gallery"] is not None:
        slices = {Slice(kind, name): (share, number) for kind, name, share, number in head["gallery"]}
        gallery = ErrorAnalysis(arrays[prefix + "frames"].tobytes(), slices)
    record = dataclasses.replace(record, **dataclasses.asdict(subject))
    return Result(record, measurement, images, head["stems"], head["folder"], gallery)
