"""Metrics of one score of one test set under one protocol, with their intervals over images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Float64, UInt8

from eval.metrics.binned import (
    BinnedMetrics,
    ImageCounts,
    ScoreDistribution,
    choose_half_bins,
    count_below,
    count_images,
    count_on_bins,
    count_scores,
    nth_score,
)
from eval.metrics.bootstrap import draw_blocks, interval_of
from eval.metrics.components import SegmentSizes, component_metrics, count_components
from eval.metrics.curve import (
    HALF_VALUES,
    ImageScores,
    PixelMetrics,
    SpooledScores,
    count_half,
    exact_curve,
    pixel_metrics,
)
from eval.metrics.smiyc import curve_metrics, image_curve
from eval.protocol import Protocol

Interval = tuple[float, float]


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
    images: Sequence[ImageScores], protocol: Protocol, *, intervals: bool = True, scratch: Path | None = None
) -> Measurement:
    """Compute the pixel metrics of a score and their 95 % intervals over images.

    Each image is read once. The numbers come from all pixels, the intervals from counts per image and bin of
    the scores in the protocol's float type, see `eval/metrics/binned.py`.

    Args:
        images: float32 scores of all images of the set, in its order; may be lazy.
        protocol: selects images, rounds scores, and says how numbers are read.
        intervals: resample images for the 95 % intervals too.
        scratch: folder for the scores, 4 bytes per pixel, while they are measured.

    Raises:
        InputError: a class has no pixel, a score is NaN, or beyond the protocol's float type.
    """
    positions = []
    with SpooledScores(scratch) as chosen:
        for position, image in _counted(images, protocol):
            chosen.append(ImageScores(*(round_scores(scores, protocol) for scores in image)))
            positions.append(position)
        metrics = _metrics(chosen, protocol)
        if protocol.float_type == "float16":
            half = np.zeros((2, HALF_VALUES.size), dtype=np.int64)
            for image in chosen:
                half += [count_half(scores.astype(np.float16)) for scores in image]
            counts = count_on_bins(chosen, positions, choose_half_bins(list(half)))
        else:
            counts = count_images(chosen, positions)
        positives = [image.positives for image in chosen]
        negatives = [image.negatives for image in chosen]
        num_positives, num_negatives = (sum(run.size for run in runs) for runs in (positives, negatives))
        threshold = nth_score(positives, int(0.05 * num_positives))
        below, not_above = (count_below(negatives, np.float32(threshold), side) for side in ("left", "right"))
        return Measurement(
            metrics=metrics,
            counts=counts,
            intervals=_intervals(counts, protocol) if intervals else dict.fromkeys(BinnedMetrics._fields),
            num_images=len(positions),
            num_pixels=num_positives + num_negatives,
            fpr95_threshold=threshold,
            tied=float((not_above - below) / num_negatives),
            distribution=count_scores(positives, negatives),
        )


def _counted(images: Sequence[ImageScores], protocol: Protocol) -> Iterator[tuple[int, ImageScores]]:
    """Yield position and scores of the images that the protocol counts."""
    for position in range(min(len(images), protocol.most_images or len(images))):
        image = images[position]
        if protocol.images_without_anomaly == "kept" or image.positives.size:
            yield position, image


def _metrics(images: Sequence[ImageScores], protocol: Protocol) -> PixelMetrics:
    if not protocol.is_binned:
        return exact_curve(images).metrics(protocol.fpr_rule)
    halves = ([scores.astype(np.float16) for scores in image] for image in images)
    return curve_metrics([image_curve(p, n) for p, n in halves if p.size + n.size])


def _intervals(counts: ImageCounts, protocol: Protocol) -> dict[str, Interval | None]:
    """Return the interval of each metric, all from the same resampled sets."""
    num_images = len(counts.images)
    if num_images < 2:
        return dict.fromkeys(BinnedMetrics._fields)
    interpolate = protocol.fpr_rule == "interpolated"
    drawn = [counts.metrics(weights, interpolate=interpolate) for weights in draw_blocks(num_images)]
    return {
        name: interval_of(np.concatenate([getattr(part, name) for part in drawn]))
        for name in BinnedMetrics._fields
    }


def measure_images(images: Sequence[ImageScores], protocol: Protocol) -> list[ImageMetrics]:
    """Compute the exact metrics of every image that counts by itself, under the protocol's FPR95 rule."""
    return [
        ImageMetrics(
            position,
            n.size,
            p.size,
            pixel_metrics(p, n, fpr_rule=protocol.fpr_rule) if p.size and n.size else None,
        )
        for position, (p, n) in _counted(images, protocol)
    ]


class ComponentMeasurement(NamedTuple):
    """Component metrics of a set; None where there is no segment to average over."""

    siou: float | None
    ppv: float | None
    f1_star: float | None
    siou_ci: Interval | None
    ppv_ci: Interval | None
    f1_star_ci: Interval | None


def measure_components(
    frames: Iterable[tuple[Float32[np.ndarray, "H W"], UInt8[np.ndarray, "H W"]]],
    threshold: float,
    protocol: Protocol,
    smallest: SegmentSizes,
    *,
    intervals: bool = True,
) -> ComponentMeasurement:
    """Compute sIoU, PPV and F1* at the threshold where the pixels' F1 is best.

    Args:
        frames: score map, in float32, and target of each image that counts (`ImageMetrics.image`), in set
            order.
        threshold: `f1_threshold` of the pixel metrics. Pixels at it are predicted, but for protocol smiyc,
            whose toolkit compares with `>`.
        intervals: resample images for the 95 % intervals too.
    """
    if protocol.is_binned:
        # The toolkit compares float16 maps with it; NumPy 1, which it pins, rounds it to float16 for that.
        below = float(np.float16(threshold))
    else:
        below = float(np.nextafter(np.float32(threshold), np.float32(-np.inf)))
    rows = []
    for scores, target in frames:
        rows.append(count_components(round_scores(scores, protocol), target, below, smallest).flat())
    sums = np.stack(rows)
    whole = component_metrics(sums)

    siou, ppv, f1 = (None if np.isnan(values[0]) else float(values[0]) for values in whole)
    return ComponentMeasurement(siou, ppv, f1, *(_component_intervals(sums) if intervals else [None] * 3))


def _component_intervals(frames: Float64[np.ndarray, "R F"]) -> list[Interval | None]:
    """Return the intervals of sIoU, PPV and F1*, all from the same resampled sets of images."""
    if len(frames) < 2:
        return [None] * 3
    drawn = [component_metrics(frames, weights) for weights in draw_blocks(len(frames))]
    return [interval_of(np.concatenate(values)) for values in zip(*drawn, strict=True)]


def round_scores(scores: Float32[np.ndarray, "..."], protocol: Protocol) -> Float32[np.ndarray, "..."]:
    """Round scores to the float type that the protocol compares; the order of sorted ones stays."""
    if protocol.float_type == "float32":
        return scores
    with np.errstate(over="ignore"):  # infinity is refused where it is used
        return scores.astype(np.float16).astype(np.float32)
