"""The cells of one test set under one protocol as JSON and arrays, and back, to the last bit.

Whose they are (name, path, closed-set quality) is put in when they are read.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from eval.cell import Cell, Subject
from eval.metrics.binned import ImageCounts, ScoreDistribution
from eval.metrics.curve import PixelMetrics
from eval.metrics.measure import ImageMetrics, Measurement
from eval.report.gallery import Gallery
from eval.report.record import parse_record
from eval.report.slices import Slice

_COUNTS = ("images", "positives", "negatives", "single")
_HISTOGRAMS = ("edges", "normal", "anomalous")


class KeptSet(NamedTuple):
    """One test set under one protocol."""

    cells: list[Cell]
    """One per score."""
    panels: bytes
    """PNG of the frames chosen for the picture, without its title; empty where none are."""


def pack_set(kept: KeptSet) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return what JSON holds of a set, and its arrays."""
    arrays = {"panels": np.frombuffer(kept.panels, np.uint8)}
    heads = []
    for i, cell in enumerate(kept.cells):
        counts = cell.measurement.counts
        arrays |= {f"{i}.{name}": getattr(counts, name) for name in _COUNTS}
        spread = cell.measurement.distribution
        arrays |= {f"{i}.{name}": getattr(spread, name) for name in _HISTOGRAMS}
        plain = cell.measurement._replace(counts=None, distribution=None)  # type: ignore[arg-type]
        head: dict[str, Any] = {
            "record": dataclasses.asdict(cell.record),
            "measurement": plain._asdict(),
            "medians": [spread.normal_median, spread.anomalous_median],
            "images": cell.images,
            "stems": cell.stems,
            "folder": cell.folder,
            "slices": None,
        }
        if cell.gallery is not None:
            arrays[f"{i}.frames"] = np.frombuffer(cell.gallery.frames, np.uint8)
            head["slices"] = [[*of_slice, *found] for of_slice, found in cell.gallery.slices.items()]
        heads.append(head)
    return {"cells": heads}, arrays


def unpack_set(content: Any, arrays: dict[str, np.ndarray], subject: Subject) -> KeptSet:
    """Rebuild a set that `pack_set` took apart, as the subject's.

    Raises:
        Exception: the content is of no set; a file whose format and checksums are right holds one.
    """
    cells = [_unpack_cell(head, arrays, f"{i}.", subject) for i, head in enumerate(content["cells"])]
    return KeptSet(cells, arrays["panels"].tobytes())


def _unpack_cell(head: Any, arrays: dict[str, np.ndarray], prefix: str, subject: Subject) -> Cell:
    record = parse_record(head["record"], "kept cell")
    entry = head["measurement"]
    intervals = {name: tuple(ends) if ends else None for name, ends in entry["intervals"].items()}
    measurement = Measurement(
        **{
            **entry,
            "metrics": PixelMetrics(*entry["metrics"]),
            "counts": ImageCounts(*(arrays[prefix + name] for name in _COUNTS)),
            "intervals": intervals,
            "distribution": ScoreDistribution(
                **{name: arrays[prefix + name] for name in _HISTOGRAMS},
                normal_median=head["medians"][0],
                anomalous_median=head["medians"][1],
            ),
        }
    )
    images = [
        ImageMetrics(image, normal, anomalous, PixelMetrics(*metrics) if metrics else None)
        for image, normal, anomalous, metrics in head["images"]
    ]
    gallery = None
    if head["slices"] is not None:
        slices = {Slice(kind, name): (share, number) for kind, name, share, number in head["slices"]}
        gallery = Gallery(arrays[prefix + "frames"].tobytes(), slices)
    return Cell(subject.sign(record), measurement, images, head["stems"], head["folder"], gallery)
