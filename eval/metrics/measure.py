"""Metrics of one score of one test set under one protocol, with their intervals over images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8
from numpy.typing import NDArray

from eval.metrics.binned import (
    BinnedMetrics,
    ImageCounts,
    ScoreDistribution,
    count_below,
    count_images,
    count_scores,
    nth_scores,
)
from eval.metrics.bootstrap import Interval, bootstrap_intervals
from eval.metrics.components import ComponentMetrics, component_metrics, count_components
from eval.metrics.curve import (
    Curve,
    ImageScores,
    PixelMetrics,
    exact_curve,
)
from eval.protocol import Protocol
from shards.errors import InputError

NUM_QUANTILES = 768
Steps = tuple[NDArray[np.number], NDArray[np.int64], NDArray[np.int64]]
"""Thresholds of an image, from the highest down, and its anomalous and its normal pixels at each."""


class ImageMetrics(NamedTuple):
    """One image by itself; None where it holds no anomaly."""

    image: int
    num_normal: int
    num_anomalous: int
    metrics: PixelMetrics | None


class Measurement(NamedTuple):
    """One score of one set under one protocol."""

    metrics: PixelMetrics
    counts: ImageCounts
    """Sketch per image, for paired tests."""
    intervals: dict[str, Interval | None]
    """By field of `PixelMetrics`, without the threshold; None where there is none or none was asked for."""
    num_images: int
    num_pixels: int
    fpr95_threshold: float
    """95 % of the anomalous pixels have at least this score."""
    tied: float
    """Share of the normal pixels whose score is exactly the threshold of FPR95."""
    distribution: ScoreDistribution


def measure_score(
    images: Sequence[ImageScores], protocol: Protocol, *, intervals: bool = True
) -> Measurement:
    """Compute the pixel metrics of a score and their 95 % intervals over images.

    The numbers come from all pixels, the intervals from counts per image and bin (`eval/metrics/binned.py`),
    both of the scores in the protocol's float type. An InputError says that a class has no pixel, a score is
    NaN, or beyond the protocol's float type.

    Args:
        images: of the whole set, in its order; the protocol selects.
        intervals: resample images for the 95 % intervals too.
    """
    positions = _counted(images, protocol)
    counted = [images[position] for position in positions]
    rounded = partial(round_scores, protocol=protocol)  # keeps the order
    if protocol.is_binned:
        steps = (_percentile_steps(*map(rounded, each)) for each in counted if any(map(len, each)))
        metrics = _percentile_metrics(list(steps))
    else:
        metrics = exact_curve(counted).metrics(protocol.fpr_rule)
    counts = count_images(counted, positions, rounded=rounded)
    found: dict[str, Interval | None] = dict.fromkeys(BinnedMetrics._fields)
    if intervals:
        of_sets = partial(counts.metrics, interpolate=protocol.fpr_rule == "interpolated")
        found = dict(zip(found, bootstrap_intervals(of_sets, len(positions)), strict=True))
    positives, negatives = ([image[i] for image in counted] for i in (0, 1))
    num_positives, num_negatives = (sum(run.size for run in runs) for runs in (positives, negatives))
    threshold = rounded(nth_scores(positives, [int(0.05 * num_positives)]))
    below, not_above = (count_below(map(rounded, negatives), threshold, side) for side in ("left", "right"))
    return Measurement(
        metrics=metrics,
        counts=counts,
        intervals=found,
        num_images=len(positions),
        num_pixels=num_positives + num_negatives,
        fpr95_threshold=float(threshold[0]),
        tied=float((not_above - below)[0] / num_negatives),
        distribution=count_scores(positives, negatives, rounded),
    )


def _counted(images: Sequence[ImageScores], protocol: Protocol) -> list[int]:
    """Return the positions of the images that the protocol counts."""
    return [
        position
        for position, image in enumerate(images)
        if (protocol.images_without_anomaly == "kept" or image.positives.size)
        and (protocol.most_images is None or position < protocol.most_images)
    ]


def measure_images(images: Sequence[ImageScores], protocol: Protocol) -> list[ImageMetrics]:
    """Compute the exact metrics of every image that counts by itself, under the protocol's FPR95 rule."""
    rows = []
    for position in _counted(images, protocol):
        p, n = images[position]
        metrics = exact_curve([images[position]]).metrics(protocol.fpr_rule) if p.size and n.size else None
        rows.append(ImageMetrics(position, n.size, p.size, metrics))
    return rows


def measure_components(
    frames: Iterable[tuple[Float32[np.ndarray, "H W"], UInt8[np.ndarray, "H W"]]],
    threshold: float,
    protocol: Protocol,
    smallest: tuple[int, int],
    *,
    intervals: bool = True,
) -> dict[str, float | Interval | None]:
    """Compute sIoU, PPV and F1* at the threshold where the pixels' F1 is best, and their intervals.

    By name of the record's field; None where there is no segment to average over, or no interval.

    Args:
        frames: score map and target of each image that counts (`ImageMetrics.image`), in set order.
        threshold: `f1_threshold` of the pixel metrics. Pixels at it are predicted, but for protocol smiyc,
            whose toolkit compares with `>`.
        smallest: as of `count_components`.
    """
    if protocol.is_binned:
        # The toolkit compares float16 maps with it; NumPy 1, which it pins, rounds it to float16 for that.
        below = float(np.float16(threshold))
    else:
        below = float(np.nextafter(np.float32(threshold), np.float32(-np.inf)))
    sums = np.stack([count_components(round_scores(s, protocol), t, below, smallest) for s, t in frames])
    values = [None if np.isnan(found[0]) else float(found[0]) for found in component_metrics(sums)]
    ends: list[Interval | None] = [None] * len(values)
    if intervals:
        ends = bootstrap_intervals(lambda weights: component_metrics(sums, weights), len(sums))
    names = ComponentMetrics._fields
    return {
        **dict(zip(names, values, strict=True)),
        **{f"{n}_ci": e for n, e in zip(names, ends, strict=True)},
    }


def round_scores(scores: Float32[np.ndarray, "..."], protocol: Protocol) -> Float32[np.ndarray, "..."]:
    """Round scores to the float type that the protocol compares; the order of sorted ones stays."""
    if protocol.float_type == "float32":
        return scores
    with np.errstate(over="ignore"):  # infinity is refused where it is used
        return scores.astype(np.float16).astype(np.float32)


def _percentile_steps(positives: Float32[np.ndarray, " P"], negatives: Float32[np.ndarray, " N"]) -> Steps:
    """Choose the thresholds of an image as SMIYC's toolkit does, and count its pixels at each.

    Every image brings 384 quantiles of its anomalous and 384 of its normal scores; either class may be empty.
    An InputError says that a score is not finite in half precision.

    Source: `PixBinaryClass` in road-anomaly-benchmark, as of its step-sum AP. Numbers agree to rounding.
    """
    positives, negatives = positives.astype(np.float16), negatives.astype(np.float16)
    scores = np.concatenate([positives, negatives])
    if not np.isfinite(scores).all():
        raise InputError(
            "protocol smiyc: a score is NaN or beyond 65504, the end of the float16 it is stored in"
        )
    low, high = scores.min(), scores.max()
    margin = np.maximum((high - low) * np.float16(1e-2), np.float16(1e-2))
    edges = [np.array([low - margin, high + margin])]
    for part in (positives, negatives):
        if part.size:
            edges.append(np.quantile(part, np.linspace(0, 1, min(NUM_QUANTILES // 2, part.size))))
    bins = np.unique(np.concatenate(edges))
    true, false = (np.histogram(part, bins)[0][::-1].astype(np.int64) for part in (positives, negatives))
    return bins[-2::-1], true, false


def _percentile_metrics(curves: Sequence[Steps]) -> PixelMetrics:
    """Join the curves of all images and read the metrics off, as SMIYC's toolkit does.

    The curve runs over the thresholds of all images from the highest down; an image's pixels count when the
    lower end of their bin is passed. `f1_threshold` is such a lower end, which the toolkit compares with `>`.
    An InputError says that a class has no pixel.
    """
    thresholds, positives, negatives = (np.concatenate(parts) for parts in zip(*curves, strict=True))
    order = np.argsort(thresholds)
    joined = Curve.from_counts(thresholds[order], positives[order], negatives[order])
    # Equal thresholds of several images are one point, the last; the toolkit keeps the very first besides.
    kept = np.append(joined.thresholds[:-1] != joined.thresholds[1:], True)
    kept[0] = True
    true, false = joined.true[kept], joined.false[kept]
    curve = Curve(joined.thresholds[kept], true, false, np.append(0, false[:-1]), joined.num_negatives)
    metrics = curve.metrics()
    origin = [0] if true[0] or false[0] else []  # begin at recall 0
    recall, fpr, precision = (np.append(origin, r) for r in (curve.recall, curve.fpr, curve.precision))
    return metrics._replace(  # to the rounding of the toolkit's sums
        ap=float(np.sum(np.diff(recall) * precision[1:])),
        auroc=float((np.diff(fpr) * (recall[1:] + recall[:-1])).sum() / 2),
    )
