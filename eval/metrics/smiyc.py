"""Pixel metrics as the toolkit of SegmentMeIfYouCan computes them: thresholds from the percentiles of each
image.

Every image brings its own thresholds, 384 quantiles of its anomalous and 384 of its normal scores, and how
many pixels lie between them. The set's curve runs over the thresholds of all images from the highest down;
an image's pixels count when the lower end of their bin is passed, so the curve is that of rounded scores.

Source: `PixBinaryClass` in road-anomaly-benchmark, as of its step-sum AP. Numbers agree to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float16, Int64
from numpy.typing import NDArray

from eval.metrics.curve import TPR, PixelMetrics
from shards.errors import InputError

NUM_QUANTILES = 768


class ImageCurve(NamedTuple):
    """An image's thresholds from the highest down, and the pixels between each and the next higher one."""

    thresholds: NDArray[np.floating]
    positives: Int64[np.ndarray, " K"]
    negatives: Int64[np.ndarray, " K"]


def image_curve(positives: Float16[np.ndarray, " P"], negatives: Float16[np.ndarray, " N"]) -> ImageCurve:
    """Choose the thresholds of an image and count its pixels between them.

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
    counts = [np.histogram(part, bins=bins)[0][::-1].astype(np.int64) for part in (positives, negatives)]
    return ImageCurve(bins[-2::-1], *counts)


def curve_metrics(curves: Sequence[ImageCurve]) -> PixelMetrics:
    """Join the curves of all images and read the metrics off.

    `f1_threshold` is the toolkit's: the lower end of a bin, which it then compares with `>`.

    Raises:
        InputError: a class has no pixel.
    """
    thresholds = np.concatenate([curve.thresholds for curve in curves])
    order = np.argsort(thresholds)[::-1]
    thresholds = thresholds[order]
    true = np.cumsum(np.concatenate([curve.positives for curve in curves])[order].astype(np.float64))
    false = np.cumsum(np.concatenate([curve.negatives for curve in curves])[order].astype(np.float64))
    num_true, num_false = true[-1], false[-1]
    for name, number in (("anomalous", num_true), ("normal", num_false)):
        if number == 0:
            raise InputError(f"metrics: no {name} pixel; AP, FPR95 and AUROC need both classes")
    # Equal thresholds of several images are one point, the last; the toolkit keeps the very first besides.
    kept = np.append(np.flatnonzero(thresholds[:-1] != thresholds[1:]), thresholds.size - 1)
    kept = kept if kept[0] == 0 else np.append(0, kept)
    thresholds, true, false = thresholds[kept], true[kept], false[kept]
    if true[0] or false[0]:  # begin at recall 0
        thresholds = np.append(thresholds[0] + 1, thresholds)
        true, false = np.append(0, true), np.append(0, false)
    precision = np.divide(true, true + false, out=np.ones_like(true), where=true + false > 0)
    recall, fpr = true / num_true, false / num_false
    f1 = 2 * true / (true + false + num_true)
    best = int(f1.argmax())
    return PixelMetrics(
        ap=float(np.sum(np.diff(recall) * precision[1:])),
        fpr95=float(fpr[np.searchsorted(recall, TPR)]),
        auroc=float((np.diff(fpr) * (recall[1:] + recall[:-1])).sum() / 2),
        best_f1=float(f1[best]),
        f1_threshold=float(thresholds[best]),
    )
