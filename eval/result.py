"""Results of an evaluation, one per score, test set and protocol, and their file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from eval.metrics.binned import ImageCounts, ScoreDistribution
from eval.metrics.curve import PixelMetrics
from eval.metrics.measure import ImageMetrics
from eval.report.figures import Example
from eval.report.record import Record
from eval.report.slices import ErrorAnalysis, Slice
from eval.store import Cached
from shards.files import from_json

_COUNTS = ("images", "positives", "negatives", "single")


class Result(NamedTuple):
    """One score of one test set under one protocol, with what its record does not say."""

    record: Record
    """Names no model before it is read back from a file."""
    counts: ImageCounts
    """Counts per image and bin, for curves and paired tests."""
    images: list[ImageMetrics]
    stems: tuple[str, ...]
    """By position in the set."""
    folder: str
    """Of the test set, as its convention calls it."""
    gallery: ErrorAnalysis | None = None
    """Pictures and slices, where component metrics were computed."""
    distribution: ScoreDistribution | None = None
    """None where it is read back from a file."""


class TestSetResult(NamedTuple):
    """All scores of one test set."""

    results: list[Result]
    """One per protocol and score."""
    examples: list[Example]
    """The frames chosen for the picture, shrunk."""

    @property
    def records(self) -> list[Record]:
        """The results' records."""
        return [result.record for result in self.results]


Packed = tuple[Any, dict[str, np.ndarray]]
"""What JSON holds of a file, and its arrays."""
SavedResults = tuple[list[Result], bytes]
"""Results of one test set under one protocol, and a PNG of the frames chosen for the picture, without its
title; empty where none are."""


def pack_results(results: Sequence[Result], panels: bytes) -> Packed:
    """Take results apart."""
    arrays = {"panels": np.frombuffer(panels, np.uint8)}
    heads = []
    for i, result in enumerate(results):
        arrays |= {f"{i}.{name}": getattr(result.counts, name) for name in _COUNTS}
        head: dict[str, Any] = {
            "record": dataclasses.asdict(result.record),
            "images": result.images,
            "stems": result.stems,
            "folder": result.folder,
            "slices": None,
        }
        if result.gallery is not None:
            arrays[f"{i}.frames"] = np.frombuffer(result.gallery.frames, np.uint8)
            head["slices"] = [[*of_slice, *found] for of_slice, found in result.gallery.slices.items()]
        heads.append(head)
    return heads, arrays


def unpack_results(cached: Cached, subject: Mapping[str, Any]) -> SavedResults:
    """Rebuild the results of a file; `subject` holds the fields of records that name the model."""
    results = []
    for i, head in enumerate(cached.content):
        record: Record = from_json(Record, head["record"], "cached result")
        counts = ImageCounts(*(cached.arrays[f"{i}.{name}"] for name in _COUNTS))
        images = [
            ImageMetrics(image, normal, anomalous, PixelMetrics(*metrics) if metrics else None)
            for image, normal, anomalous, metrics in head["images"]
        ]
        gallery = None
        if head["slices"] is not None:
            slices = {Slice(kind, name): (share, number) for kind, name, share, number in head["slices"]}
            gallery = ErrorAnalysis(cached.arrays[f"{i}.frames"].tobytes(), slices)
        record = dataclasses.replace(record, **subject)
        results.append(Result(record, counts, images, tuple(head["stems"]), head["folder"], gallery))
    return results, cached.arrays["panels"].tobytes()
