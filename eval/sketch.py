"""Sketches on disk: what a later program needs to test two models against each other without their pixels.

An evaluation writes `sketches/{test set}.{protocol}.{score}.npz` beside its results.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from eval.binned import ImageCounts
from eval.bootstrap import PairedTest, paired_test
from eval.measure import statistic_of
from eval.protocol import get_protocol
from shards.errors import InputError

FOLDER = "sketches"
METRICS = ("ap", "fpr95", "auroc", "best_f1")


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
    """Read a sketch.

    Raises:
        InputError: the file is missing or no sketch.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            counts = ImageCounts(
                file["images"],
                file["positives"].astype(np.float32),
                file["negatives"].astype(np.float32),
                file["single"],
            )
            return Sketch(counts, tuple(file["stems"].tolist()), str(file["protocol"]))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: no sketch of an evaluation: {error}") from None


def compare_sketches(first: Path, second: Path, metric: str) -> PairedTest:
    """Test whether model A (first) and B (second) differ in `metric`, over the images that both were tested
    on.

    Args:
        first: sketch of model A; of the same test set and protocol as `second`, of any score.
        second: sketch of model B.
        metric: one of `METRICS`.

    Raises:
        InputError: a file is no sketch, an unknown metric, or the two are of other images or protocols.
    """
    if metric not in METRICS:
        raise InputError(f"metric {metric!r}: allowed are {', '.join(METRICS)}")
    a, b = read_sketch(first), read_sketch(second)
    if (a.stems, a.protocol) != (b.stems, b.protocol):
        raise InputError(
            f"{second}: {len(b.stems)} images under protocol {b.protocol}, but {first} has {len(a.stems)} "
            f"under {a.protocol}; a paired test needs the same images and protocol"
        )
    return compare_counts(a, b, metric)


def compare_counts(first: Sketch, second: Sketch, metric: str) -> PairedTest:
    """Test two sketches of the same images and protocol, which the caller has made sure of."""
    protocol = get_protocol(first.protocol)
    statistics = [statistic_of(sketch.counts, metric, protocol) for sketch in (first, second)]
    return paired_test(statistics[0], statistics[1], len(first.stems))
