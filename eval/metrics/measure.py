"""From pooled scores to the numbers of one score under one protocol, with what the images leave uncertain."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float16, Float32, Float64, UInt8

from eval.metrics.binned import NUM_BINS, BinnedMetrics, ImageCounts, count_images, count_on_bins
from eval.metrics.bootstrap import Statistic, draw_blocks, interval_of
from eval.metrics.components import SegmentSizes, component_metrics, count_components
from eval.metrics.curve import ImageScores, PixelMetrics, pixel_metrics, pooled_metrics
from eval.metrics.distribution import ScoreDistribution, count_scores
from eval.metrics.half_histogram import CountedScores, HalfHistogram, choose_bins
from eval.metrics.runs import SortedRuns
from eval.metrics.smiyc import curve_metrics, image_curve
from eval.protocol import Protocol

Scores = Float32[np.ndarray, " _N"]
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


def select_images(images: Sequence[ImageScores], protocol: Protocol) -> list[int]:
    """Return the positions of the images that the protocol counts."""
    return [
        position
        for position, image in enumerate(images)
        if (protocol.images_without_anomaly == "kept" or image.positives.size)
        and (protocol.most_images is None or position < protocol.most_images)
    ]


def measure_score(
    images: Sequence[ImageScores], protocol: Protocol, *, intervals: bool = True
) -> Measurement:
    """Compute the pixel metrics of a score and their 95 % intervals over images.

    Intervals come from a sketch (see `eval/metrics/binned.py`) of the scores in the protocol's float type,
    numbers from all pixels. Without `intervals` nothing is resampled.

    Args:
        images: float32 scores of all images of the set, in its order; may be lazy.
        protocol: selects images, rounds scores, and says how numbers are read.
        intervals: resample images for the 95 % intervals too.

    Raises:
        InputError: a class has no pixel, a score is NaN, or beyond the protocol's float type.
    """
    positions = select_images(images, protocol)
    chosen = [images[position] for position in positions]
    if protocol.float_type == "float16":
        return _measure_half(positions, chosen, protocol, intervals)
    positives = SortedRuns([image.positives for image in chosen])
    negatives = SortedRuns([image.negatives for image in chosen])
    metrics = pooled_metrics(positives, negatives, fpr_rule=protocol.fpr_rule)
    counts = count_images(positions, [i.positives for i in chosen], [i.negatives for i in chosen])
    return _measurement(metrics, counts, positives, negatives, protocol, intervals)


def _measure_half(
    positions: list[int], chosen: list[ImageScores], protocol: Protocol, intervals: bool
) -> Measurement:
    """Measure scores rounded to half precision, one image at a time; rounding keeps their order."""
    histogram, curves = HalfHistogram(), []
    for image in chosen:
        p, n = _half(image.positives), _half(image.negatives)
        histogram.add(p, n)
        if protocol.is_binned and p.size + n.size:
            curves.append(image_curve(p, n))
    metrics = curve_metrics(curves) if protocol.is_binned else histogram.metrics(fpr_rule=protocol.fpr_rule)
    bins = choose_bins((histogram.positives, histogram.negatives), NUM_BINS)
    counts = count_on_bins(
        positions, _rounded(i.positives for i in chosen), _rounded(i.negatives for i in chosen), bins
    )
    positives, negatives = CountedScores(histogram.positives), CountedScores(histogram.negatives)
    return _measurement(metrics, counts, positives, negatives, protocol, intervals)


def _rounded(runs: Iterable[Scores]) -> Iterator[Scores]:
    return (_half(run).astype(np.float32) for run in runs)


def _measurement(
    metrics: PixelMetrics,
    counts: ImageCounts,
    positives: SortedRuns,
    negatives: SortedRuns,
    protocol: Protocol,
    intervals: bool,
) -> Measurement:
    return Measurement(
        metrics=metrics,
        counts=counts,
        intervals=_intervals(counts, protocol) if intervals else dict.fromkeys(BinnedMetrics._fields),
        num_images=len(counts.images),
        num_pixels=positives.size + negatives.size,
        fpr95_threshold=float(positives.nth(int(0.05 * positives.size))),
        tied=_tied_at_fpr95(positives, negatives),
        distribution=count_scores(positives, negatives),
    )


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


def _half(scores: Float32[np.ndarray, "..."]) -> Float16[np.ndarray, "..."]:
    with np.errstate(over="ignore"):  # infinity is refused where it is used
        return scores.astype(np.float16)


def _tied_at_fpr95(positives: SortedRuns, negatives: SortedRuns) -> float:
    at = np.asarray(positives.nth(int(0.05 * positives.size)))
    return float((negatives.count_not_above(at) - negatives.count_below(at)) / negatives.size)


def statistic_of(counts: ImageCounts, metric: str, protocol: Protocol) -> Statistic:
    """Return what the bootstrap asks: weights of images to the metric of the resampled set.

    Args:
        counts: a sketch, of this evaluation or read back from another.
        metric: ap, fpr95, auroc or best_f1.
        protocol: whose FPR95 rule holds.
    """

    def evaluate(weights: Float64[np.ndarray, "B R"]) -> Float64[np.ndarray, " B"]:
        found = counts.metrics(weights, interpolate=protocol.fpr_rule == "interpolated")
        return np.asarray(getattr(found, metric))

    return evaluate


def measure_images(images: Sequence[ImageScores], protocol: Protocol) -> list[ImageMetrics]:
    """Compute the exact metrics of every image that counts by itself, under the protocol's FPR95 rule."""
    rows = []
    for position in select_images(images, protocol):
        p, n = images[position]
        metrics = pixel_metrics(p, n, fpr_rule=protocol.fpr_rule) if p.size and n.size else None
        rows.append(ImageMetrics(position, n.size, p.size, metrics))
    return rows


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
        rows.append(count_components(round_map(scores, protocol), target, below, smallest).flat())
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


def round_map(scores: Float32[np.ndarray, "H W"], protocol: Protocol) -> Float32[np.ndarray, "H W"]:
    """Round a score map to the float type that the protocol compares."""
    return _half(scores).astype(np.float32) if protocol.float_type == "float16" else scores
