"""Where a score fails: detection by size and place of the anomaly, false alarms by place and predicted class.

All at one threshold per set, that of FPR95: 95 % of the anomalous pixels of the set are found there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float32, UInt8

from shards.schema import ANOMALY, CITYSCAPES_CLASSES, NORMAL

SIZES = ((0, 1_000, "below 1,000 px"), (1_000, 10_000, "1,000 to 10,000 px"), (10_000, 1 << 62, "above"))
"""Area of the connected anomaly that a pixel belongs to."""
BANDS = ("upper third (far)", "middle third", "lower third (near)")
"""By the row of a pixel: on a road, lower is nearer."""
NEAR_PIXELS = 10
"""How far from an anomaly a normal pixel is near its boundary."""


class Slice(NamedTuple):
    """A group of pixels of one kind."""

    kind: str
    """found: anomalous pixels; alarm: normal pixels; alarms by class: shares of all false alarms."""
    name: str


def count_slices(
    scores: Float32[np.ndarray, "H W"],
    target: UInt8[np.ndarray, "H W"],
    prediction: UInt8[np.ndarray, "H W"],
    threshold: float,
) -> Counter[tuple[Slice, bool]]:
    """Count, per slice, the pixels of a frame that reach the threshold (True) and that do not (False).

    Counts of frames add up.
    """
    counts: Counter[tuple[Slice, bool]] = Counter()
    called = scores >= np.float32(threshold)
    anomalous, normal = target == ANOMALY, target == NORMAL
    labels, areas = _areas(anomalous)
    for low, high, name in SIZES:
        _count(
            counts,
            Slice("found", f"anomaly {name}"),
            anomalous & (areas[labels] >= low) & (areas[labels] < high),
            called,
        )
    height = target.shape[0]
    for i, name in enumerate(BANDS):
        band = np.zeros_like(anomalous)
        band[i * height // 3 : (i + 1) * height // 3] = True
        _count(counts, Slice("found", name), anomalous & band, called)
        _count(counts, Slice("alarm", name), normal & band, called)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * NEAR_PIXELS + 1, 2 * NEAR_PIXELS + 1))
    near = cv2.dilate(anomalous.astype(np.uint8), kernel) > 0
    _count(counts, Slice("alarm", f"within {NEAR_PIXELS} px of an anomaly"), normal & near, called)
    _count(counts, Slice("alarm", "elsewhere"), normal & ~near, called)
    alarms = np.bincount(prediction[normal & called], minlength=len(CITYSCAPES_CLASSES))
    for entry, number in zip(CITYSCAPES_CLASSES, alarms.tolist(), strict=False):
        of_class = Slice("alarms by class", entry.name)
        counts[of_class, True] += number
        counts[of_class, False] += int(alarms.sum()) - number
    return counts


def _areas(mask: Bool[np.ndarray, "H W"]) -> tuple[np.ndarray, np.ndarray]:
    """Return the number of each pixel's 8-connected region, and the area of each region."""
    labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8, ltype=cv2.CV_32S)[1]
    return labels, np.bincount(labels.ravel())


def _count(
    counts: Counter[tuple[Slice, bool]],
    of_slice: Slice,
    members: Bool[np.ndarray, "H W"],
    called: Bool[np.ndarray, "H W"],
) -> None:
    total, hits = int(members.sum()), int((members & called).sum())
    counts[of_slice, True] += hits
    counts[of_slice, False] += total - hits


def shares(counts: Mapping[tuple[Slice, bool], int]) -> dict[Slice, tuple[float, int]]:
    """Return each slice's share that reaches the threshold, and its pixels; empty slices are left out."""
    found = {}
    for of_slice in dict.fromkeys(key[0] for key in counts):
        hits, total = counts[of_slice, True], counts[of_slice, True] + counts[of_slice, False]
        if total:
            found[of_slice] = hits / total, total
    return found
