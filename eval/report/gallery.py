"""What the report shows of one test set beside numbers: its best and worst frames, slices, curves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import UInt8

from eval.metrics.measure import ImageMetrics, Measurement, round_map
from eval.protocol import Protocol
from eval.report.curves import FrameView, Line, plot_frames
from eval.report.figures import PANEL_WIDTH, color_scores, draw_target
from eval.report.slices import Slice, count_slices, shares
from eval.store import ImageStore
from shards.schema import ANOMALY, NORMAL

NUM_EXTREMES = 2
_PERCENTILES = (1, 99)


class Gallery(NamedTuple):
    """Of one score of one test set."""

    frames: bytes
    """PNG of the best and worst frames; empty where no frame holds an anomaly."""
    slices: dict[Slice, tuple[float, int]]
    """Share that reaches the threshold of FPR95, and pixels."""


def choose_extremes(rows: Sequence[ImageMetrics]) -> list[tuple[str, ImageMetrics]]:
    """Return the frames of highest and of lowest AP, each once."""
    ranked = sorted(
        (row for row in rows if row.metrics), key=lambda row: -row.metrics.ap if row.metrics else 0
    )
    count = min(NUM_EXTREMES, (len(ranked) + 1) // 2)
    worst = ranked[max(count, len(ranked) - count) :]
    return [("best", row) for row in ranked[:count]] + [("worst", row) for row in worst]


def make_gallery(
    maps: ImageStore,
    images: dict[int, UInt8[np.ndarray, "H W 3"]],
    chosen: Sequence[tuple[str, ImageMetrics]],
    rows: Sequence[ImageMetrics],
    measured: Measurement,
    score: str,
    stems: Sequence[str],
    protocol: Protocol,
) -> Gallery:
    """Draw the chosen frames and count the slices of all.

    Args:
        images: pictures of the chosen frames, by position.
        chosen: as `choose_extremes` returns.
        rows: all frames that count.
    """
    counts: Counter[tuple[Slice, bool]] = Counter()
    for row in rows:
        image = row.image
        counts += count_slices(
            round_map(maps.scores(image, score), protocol),
            maps.target(image),
            maps.prediction(image),
            measured.fpr95_threshold,
        )
    views = []
    for which, row in chosen:
        assert row.metrics is not None
        caption = (
            f"{which}: {stems[row.image]}, AP {100 * row.metrics.ap:.1f}, FPR95 {100 * row.metrics.fpr95:.1f}"
        )
        views.append(_view(caption, images[row.image], maps.target(row.image), maps.scores(row.image, score)))
    return Gallery(plot_frames(views) if views else b"", shares(counts))


def _view(caption: str, image: np.ndarray, target: np.ndarray, scores: np.ndarray) -> FrameView:
    size = (PANEL_WIDTH, max(1, round(image.shape[0] * PANEL_WIDTH / image.shape[1])))
    finite = scores[np.isfinite(scores)]
    low, high = np.percentile(finite, _PERCENTILES) if finite.size else (0.0, 1.0)
    small = cv2.resize(scores, size, interpolation=cv2.INTER_AREA)
    return FrameView(
        caption,
        draw_target(
            cv2.resize(image, size, interpolation=cv2.INTER_AREA),
            cv2.resize(target, size, interpolation=cv2.INTER_NEAREST),
        ),
        color_scores(small, float(low), float(high)),
        _thin(scores[target == NORMAL]),
        _thin(scores[target == ANOMALY]),
    )


def _thin(values: np.ndarray, most: int = 20_000) -> np.ndarray:
    values = values[np.isfinite(values)]
    return values[:: max(1, values.size // most)]


def curve_lines(measured: Measurement) -> tuple[Line, Line]:
    """Return (recall, precision) and (FPR, TPR) of the pooled set, from its sketch."""
    true = measured.counts.positives.sum(axis=0, dtype=np.float64)[::-1].cumsum()
    false = measured.counts.negatives.sum(axis=0, dtype=np.float64)[::-1].cumsum()
    seen = true + false > 0
    precision = true[seen] / (true + false)[seen]
    return (true[seen] / true[-1], precision), (false[seen] / false[-1], true[seen] / true[-1])
