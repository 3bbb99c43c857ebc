"""A record and a sketch of results for tests, with what a test says about them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from eval.metrics.binned import count_images
from eval.metrics.curve import ImageScores
from eval.report.record import Record
from eval.sketch import Sketch, sketch_path, write_sketch

EXAMPLE = Record(
    model="run_a", checkpoint="runs/run_a", score="MSP", temperature=1.0, temperature_from=None,
    dataset="SMIYC RA-21", protocol="native", num_images=10, num_pixels=9_000_000, ap=0.74386, ap_ci=None,
    fpr95=0.3372, fpr95_ci=None, auroc=0.93, miou=None,
)  # fmt: skip


def make_record(**changes: object) -> Record:
    """Return `EXAMPLE` with other values."""
    return dataclasses.replace(EXAMPLE, **changes)  # type: ignore[arg-type]


def write_counts(
    folder: Path, dataset: str, anomalous: Iterable[np.ndarray], normal: Iterable[np.ndarray], first: int = 0
) -> Path:
    """Write the sketch of MSP's scores, an array per image, of which the first is number `first`."""
    pairs = zip(anomalous, normal, strict=True)
    images = [ImageScores(*(np.sort(side).astype(np.float32) for side in pair)) for pair in pairs]
    stems = tuple(f"image{first + i}" for i in range(len(images)))
    sketch = Sketch(count_images(images, range(len(images))), stems, "native")
    folder.mkdir(parents=True, exist_ok=True)
    write_sketch(sketch_path(folder, dataset, "native", "MSP"), sketch)
    return folder
