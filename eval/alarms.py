"""Alarms: connected regions of a score map above a threshold, as numbers and drawn on the picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float32, UInt8

from eval.report.panels import color_classes, color_scores, draw_outlines
from shards.schema import CITYSCAPES, VOID_ID, ClassTable

SMALLEST = 50
"""Pixels of the smallest alarm, where nothing else is said: the toolkit of SegmentMeIfYouCan drops smaller
predicted segments of its obstacle track."""
_STRONGEST = 0.65
"""Share of the heat where it is hottest; the rest is the picture."""


@dataclass(frozen=True)
class Alarm:
    """One 8-connected region of pixels above a threshold."""

    box: tuple[int, int, int, int]
    """Left, top, width and height, in pixels."""
    area: int
    """Pixels."""
    peak: float
    """Largest score."""
    mean: float
    """Mean score."""


class Alarms(NamedTuple):
    """Alarms of one frame."""

    regions: list[Alarm]
    """By descending peak."""
    mask: Bool[np.ndarray, "H W"]
    """Whether a pixel belongs to one."""


def raise_mask(
    scores: Float32[np.ndarray, "H W"], threshold: float, smallest: int
) -> tuple[Bool[np.ndarray, "H W"], np.ndarray, np.ndarray]:
    """Find the regions above (not at) `threshold` of at least `smallest` pixels.

    A lower threshold never takes a pixel out: regions only grow and join.

    Returns:
        Whether a pixel is in one; OpenCV's numbering of all regions (H, W) and its statistics of them.
    """
    _, labels, stats, _ = cv2.connectedComponentsWithStats(
        (scores > threshold).astype(np.uint8), connectivity=8, ltype=cv2.CV_32S
    )
    keep = stats[:, cv2.CC_STAT_AREA] >= smallest
    keep[0] = False
    return keep[labels], labels, stats


def find_alarms(scores: Float32[np.ndarray, "H W"], threshold: float, smallest: int) -> Alarms:
    """Describe the regions of `raise_mask`."""
    mask, labels, stats = raise_mask(scores, threshold, smallest)
    numbers, values = labels[mask], scores[mask].astype(np.float64)
    sums, peaks = np.bincount(numbers, values, minlength=len(stats)), np.full(len(stats), -np.inf)
    np.maximum.at(peaks, numbers, values)
    regions = []
    for i in np.unique(numbers).tolist():
        left, top, width, height, area = stats[i].tolist()
        box = (left, top, width, height)
        regions.append(Alarm(box, area, float(peaks[i]), float(sums[i] / area)))
    return Alarms(sorted(regions, key=lambda alarm: (-alarm.peak, alarm.box)), mask)


def draw_overlay(
    image: UInt8[np.ndarray, "H W 3"],
    scores: Float32[np.ndarray, "H W"],
    classes: UInt8[np.ndarray, "H W"],
    mask: Bool[np.ndarray, "H W"],
    ends: tuple[float, float],
    table: ClassTable = CITYSCAPES,
) -> UInt8[np.ndarray, "H _W 3"]:
    """Draw heat and the contours of alarms on the picture and, to its right, the colours of its classes.

    Args:
        classes: train ids; `VOID_ID` everywhere of a model that says scores only: nothing is to the right.
        ends: scores at which the heat begins, and is hottest.
    """
    low, high = ends
    relative = np.clip((scores - low) / max(high - low, 1e-12), 0, 1)[..., None] * _STRONGEST
    heated = (image * (1 - relative) + color_scores(scores, low, high) * relative).astype(np.uint8)
    draw_outlines(heated, mask, max(1, round(image.shape[1] / 640)))
    if (classes == VOID_ID).all():
        return heated
    return np.concatenate(
        [heated, cv2.addWeighted(image, 0.5, color_classes(classes, table), 0.5, 0)], axis=1
    )
