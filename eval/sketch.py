"""Files of counts per image and bin, from which two models are tested against each other without pixels.

An evaluation writes `sketches/{test set}.{protocol}.{score}.npz` beside its results.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from eval.metrics.binned import BinnedMetrics, ImageCounts
from eval.metrics.bootstrap import Comparison, draw_weights, interval_of, resample
from eval.protocol import get_protocol
from shards.errors import InputError
from shards.source import ZIP_DAMAGES

FOLDER = "sketches"
METRICS = BinnedMetrics._fields


class Sketch(NamedTuple):
    """Per-image counts of one score of one model on one set."""

    counts: ImageCounts
    stems: tuple[str, ...]
    """Names of the images, in the order of the counts."""
    protocol: str


def sketch_path(results: Path, dataset: str, protocol: str, score: str) -> Path:
    """Return where an evaluation's folder keeps a sketch; arguments as in its records."""
    return results / FOLDER / f"{dataset.replace('/', '-')}.{protocol}.{score}.npz"


def write_sketch(path: Path, sketch: Sketch) -> None:
    """Write a sketch, compressed."""
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as file:
        np.savez_compressed(
            file,
            images=sketch.counts.images,
            positives=sketch.counts.positives.astype(np.uint32),
            negatives=sketch.counts.negatives.astype(np.uint32),
            single=sketch.counts.single,
            stems=np.array(sketch.stems),
            protocol=np.array(sketch.protocol),
        )


def read_sketch(path: Path) -> Sketch:
    """Read a sketch; an InputError says that the file is missing or none."""
    try:
        with np.load(path, allow_pickle=False) as file:
            positives, negatives = (file[name].astype(np.float32) for name in ("positives", "negatives"))
            counts = ImageCounts(file["images"], positives, negatives, file["single"])
            return Sketch(counts, tuple(file["stems"].tolist()), str(file["protocol"]))
    except ZIP_DAMAGES as error:
        raise InputError(f"{path}: no sketch of an evaluation: {error}") from None


class Resampled(NamedTuple):
    """All metrics of a sketch, small enough to keep for comparing many models with one another."""

    stems: tuple[str, ...]
    metrics: BinnedMetrics
    """Of the set as it is, then of each resampled set."""


def resample_sketch(sketch: Sketch) -> Resampled:
    """Compute all metrics of a sketch, on the same resampled sets for every sketch of as many images."""
    interpolate = get_protocol(sketch.protocol).fpr_rule == "interpolated"
    of_sets, count = partial(sketch.counts.metrics, interpolate=interpolate), len(sketch.stems)
    both = zip(of_sets(np.ones((1, count))), resample(of_sets, count), strict=True)
    return Resampled(sketch.stems, BinnedMetrics(*map(np.concatenate, both)))


def compare_resampled(
    first: Sequence[Sequence[Resampled]], second: Sequence[Sequence[Resampled]], metric: str
) -> Comparison:
    """Test whether two models differ in the mean of a metric over seeds and test sets: a two-level bootstrap.

    Images and seeds are drawn independently of one another, images the same for both models and all seeds:
    what makes an image hard is hard for all. One seed less than there are is drawn, without which the mean
    would vary too little (Rao and Wu, 1988). Still, two or three seeds show little of their spread.

    Args:
        first: the test sets of each seed, in the same order as of `second`, and of the same images.
        metric: one of `METRICS`.
    """
    pairs = [list(zip(*sets, strict=True)) for sets in zip(first, second, strict=True)]
    assert all(a.stems == b.stems for sets in pairs for a, b in sets), "a paired test needs the same images"
    differences = np.array(
        [[getattr(a.metrics, metric) - getattr(b.metrics, metric) for a, b in sets] for sets in pairs]
    )
    count, num_sets = differences.shape[:2]
    # rolled, for sets of equally many images have the same weights, and are to be drawn independently
    drawn = np.mean([np.roll(differences[:, i, 1:], i, axis=-1) for i in range(num_sets)], axis=0)
    weights = draw_weights(count, drawn.shape[1], seed=1, drawn=max(count - 1, 1))
    low, high = interval_of((weights.T * drawn).sum(axis=0) / max(count - 1, 1)) or (math.nan, math.nan)
    images = sum(len(each.stems) for each in first[0])
    return Comparison(float(differences[..., 0].mean()), low, high, count, images)
