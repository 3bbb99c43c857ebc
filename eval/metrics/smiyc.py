"""Pixel metrics of SegmentMeIfYouCan's toolkit, whose thresholds are percentiles of each image.

Every image brings its own thresholds, 384 quantiles of its anomalous and 384 of its normal scores, and how
many pixels lie between them. The set's curve runs over the thresholds of all images from the highest down;
an image's pixels count when the lower end of their bin is passed, so the curve is that of rounded scores.

Source: `PixBinaryClass` in road-anomaly-benchmark, as of its step-sum AP. Numbers agree to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float16
from numpy.typing import NDArray

from eval.metrics.curve import Curve, PixelMetrics
from shards.errors import InputError

NUM_QUANTILES = 768


Steps = tuple[NDArray[np.number], NDArray[np.int64], NDArray[np.int64]]
"""Thresholds of an image, from the highest down, and its anomalous and its normal pixels at each."""


def image_curve(positives: Float16[np.ndarray, " P"], negatives: Float16[np.ndarray, " N"]) -> Steps:
    """Choose the thresholds of an image, and count its pixels at each.

    Args:
        positives: scores of the anomalous pixels; may be empty, but not both.
        negatives: scores of the normal pixels.

    Raises:
        InputError: a score is not finite in half precision.
    """
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


def curve_metrics(curves: Sequence[Steps]) -> PixelMetrics:
    """Join the curves of all images and read the metrics off.

    `f1_threshold` is the toolkit's: the lower end of a bin, which it then compares with `>`.

    Raises:
        InputError: a class has no pixel.
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
