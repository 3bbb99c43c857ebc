"""Error analysis of one score: best and worst frames, hits and false alarms by slices of pixels.

Slices are by size and place of the anomaly, and by place and predicted class of false alarms, all at one
threshold per set, that of FPR95: 95 % of the anomalous pixels of the set are found there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float32, UInt8

from eval.metrics.measure import ImageMetrics, round_scores
from eval.protocol import Protocol
from eval.report.panels import Example
from eval.report.plots import plot_frames
from shards.schema import ANOMALY, CITYSCAPES, NORMAL, ClassTable

FrameMaps = tuple[Float32[np.ndarray, "H W"], UInt8[np.ndarray, "H W"], UInt8[np.ndarray, "H W"]]
"""Scores, target and predicted train ids."""
NUM_EXTREMES = 2
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


class ErrorAnalysis(NamedTuple):
    """One score on one test set."""

    frames: bytes
    """PNG of the best and worst frames; empty where no frame holds an anomaly."""
    slices: dict[Slice, tuple[float, int]]
    """Share that reaches the threshold of FPR95, and number of pixels."""


def choose_extremes(rows: Sequence[ImageMetrics]) -> list[tuple[str, ImageMetrics]]:
    """Return the frames of highest and of lowest AP, each once, as ("best" or "worst", frame)."""
    ranked = sorted((r for r in rows if r.metrics), key=lambda r: -r.metrics.ap if r.metrics else 0)
    count = min(NUM_EXTREMES, (len(ranked) + 1) // 2)
    worst = ranked[max(count, len(ranked) - count) :]
    return [("best", row) for row in ranked[:count]] + [("worst", row) for row in worst]


def analyse_errors(
    score: str,
    threshold: float,
    protocol: Protocol,
    rows: Sequence[ImageMetrics],
    stems: Sequence[str],
    read_maps: Callable[[int], FrameMaps],
    read_image: Callable[[int], UInt8[np.ndarray, "H W 3"]],
    classes: ClassTable = CITYSCAPES,
) -> ErrorAnalysis:
    """Draw the best and worst frames and count the slices of all at the `threshold` of FPR95.

    Args:
        rows: all images that count.
        stems: names of all images, by position in the set, which `read_maps` and `read_image` (sRGB) take.
    """
    counts: Counter[tuple[Slice, bool]] = Counter()
    for row in rows:
        scores, target, prediction = read_maps(row.image)
        counts += count_slices(round_scores(scores, protocol), target, prediction, threshold, classes)
    frames = []
    for which, row in choose_extremes(rows):
        assert row.metrics is not None
        numbers = f"AP {100 * row.metrics.ap:.1f}, FPR95 {100 * row.metrics.fpr95:.1f}"
        scores, target, prediction = read_maps(row.image)
        title = f"{which}: {stems[row.image]}, {numbers}"
        frames.append(Example(title, read_image(row.image), target, prediction, {score: scores}))
    return ErrorAnalysis(plot_frames(frames) if frames else b"", shares(counts))


def count_slices(
    scores: Float32[np.ndarray, "H W"],
    target: UInt8[np.ndarray, "H W"],
    prediction: UInt8[np.ndarray, "H W"],
    threshold: float,
    classes: ClassTable = CITYSCAPES,
) -> Counter[tuple[Slice, bool]]:
    """Count, per slice, the pixels of a frame that reach the threshold (True) and that do not (False)."""
    counts: Counter[tuple[Slice, bool]] = Counter()
    called = scores >= np.float32(threshold)

    def count(kind: str, name: str, members: Bool[np.ndarray, "H W"]) -> None:
        hits = int((members & called).sum())
        counts[Slice(kind, name), True] += hits
        counts[Slice(kind, name), False] += int(members.sum()) - hits

    anomalous, normal = target == ANOMALY, target == NORMAL
    labels = cv2.connectedComponents(anomalous.astype(np.uint8), connectivity=8, ltype=cv2.CV_32S)[1]
    areas = np.bincount(labels.ravel())[labels]
    for low, high, name in SIZES:
        count("found", f"anomaly {name}", anomalous & (areas >= low) & (areas < high))
    height = target.shape[0]
    for i, name in enumerate(BANDS):
        band = np.zeros_like(anomalous)
        band[i * height // 3 : (i + 1) * height // 3] = True
        count("found", name, anomalous & band)
        count("alarm", name, normal & band)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * NEAR_PIXELS + 1, 2 * NEAR_PIXELS + 1))
    near = cv2.dilate(anomalous.astype(np.uint8), kernel) > 0
    count("alarm", f"within {NEAR_PIXELS} px of an anomaly", normal & near)
    count("alarm", "elsewhere", normal & ~near)
    alarms = np.bincount(prediction[normal & called], minlength=len(classes))
    for entry, number in zip(classes.classes, alarms.tolist(), strict=False):
        counts[Slice("alarms by class", entry.name), True] += number
        counts[Slice("alarms by class", entry.name), False] += int(alarms.sum()) - number
    return counts


def shares(counts: Mapping[tuple[Slice, bool], int]) -> dict[Slice, tuple[float, int]]:
    """Return each slice's share that reaches the threshold, and its pixels; empty slices are left out."""
    totals = {each: counts[each, True] + counts[each, False] for each, _ in counts}
    return {each: (counts[each, True] / total, total) for each, total in totals.items() if total}
