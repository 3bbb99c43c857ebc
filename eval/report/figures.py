"""What a model sees, as one PNG per test set: image, ground truth, a map per score, predicted classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from shards.schema import ANOMALY, CITYSCAPES_CLASSES, VOID

PANEL_WIDTH = 400
"""Pixels; a grid of seven columns stays below 3000."""
PERCENTILES = (1.0, 99.0)
"""Ends of a colour scale: one outlying pixel must not make the rest of a map flat."""
_GAP = 6
_TITLE_HEIGHT = 22
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_INK = (20, 20, 20)
_OUTLINE = (255, 0, 160)
_VOID_SHADE = np.array([90, 90, 90])


@dataclass(frozen=True)
class Exhibit:
    """One frame as it is shown: shrunk to a panel, so that keeping a few costs nothing."""

    stem: str
    image: UInt8[np.ndarray, "h w 3"]
    """sRGB."""
    target: UInt8[np.ndarray, "h w"]
    """0 normal, 1 anomaly, 255 void."""
    prediction: UInt8[np.ndarray, "h w"]
    """Train ids."""
    scores: Mapping[str, Float32[np.ndarray, "h w"]]
    truth: UInt8[np.ndarray, "h w"] | None = None
    """True train ids, where they are known."""


def choose_exhibits(num_frames: int, count: int) -> frozenset[int]:
    """Return the indices of `count` frames (or all), evenly spread over the set."""
    count = min(count, num_frames)
    return frozenset((2 * i + 1) * num_frames // (2 * count) for i in range(count))


def shrink_exhibit(
    stem: str,
    image: UInt8[np.ndarray, "H W 3"],
    target: UInt8[np.ndarray, "H W"],
    prediction: UInt8[np.ndarray, "H W"],
    scores: Mapping[str, Float32[np.ndarray, "H W"]],
    truth: UInt8[np.ndarray, "H W"] | None = None,
) -> Exhibit:
    """Scale a frame to the width of a panel: pictures and scores by area, labels by nearest pixel."""
    size = (PANEL_WIDTH, max(1, round(image.shape[0] * PANEL_WIDTH / image.shape[1])))
    return Exhibit(
        stem=stem,
        image=cv2.resize(image, size, interpolation=cv2.INTER_AREA),
        target=cv2.resize(target, size, interpolation=cv2.INTER_NEAREST),
        prediction=cv2.resize(prediction, size, interpolation=cv2.INTER_NEAREST),
        scores={name: cv2.resize(s, size, interpolation=cv2.INTER_AREA) for name, s in scores.items()},
        truth=None if truth is None else cv2.resize(truth, size, interpolation=cv2.INTER_NEAREST),
    )


def draw_grid(title: str, exhibits: Sequence[Exhibit]) -> UInt8[np.ndarray, "H W 3"]:
    """Draw `draw_panels` below a title."""
    return add_title(title, draw_panels(exhibits))


def add_title(title: str, panels: UInt8[np.ndarray, "_H W 3"]) -> UInt8[np.ndarray, "H W 3"]:
    """Put a line above the panels.

    Args:
        title: name of the test set and model; ASCII, as OpenCV's fonts are.
    """
    title += "; each score's colours run from the 1st to the 99th percentile of the frames shown"
    return _join([_title(title, panels.shape[1]), panels], axis=0)


def draw_panels(exhibits: Sequence[Exhibit]) -> UInt8[np.ndarray, "H W 3"]:
    """Draw rows of frames and columns image | ground truth | each score | predicted classes.

    Ground truth is the true classes where they are known, else the anomalies, outlined on the image.

    A score's colour scale is shared by its column and runs between the 1st and 99th percentile of the
    frames shown; its ends stand in the column's title. Anomalies are outlined, void is shaded.

    Args:
        exhibits: at least one, of the same scores; true classes are known of all or of none.
    """
    names = list(exhibits[0].scores)
    ends = {name: _scale_ends([exhibit.scores[name] for exhibit in exhibits]) for name in names}
    titles = ["image", "ground truth (void grey)" if exhibits[0].truth is None else "true classes"]
    titles += [f"{name} [{_short(ends[name][0])} .. {_short(ends[name][1])}]" for name in names]
    titles += ["predicted classes"]
    rows = []
    for exhibit in exhibits:
        truth = exhibit.truth
        shown = draw_target(exhibit.image, exhibit.target) if truth is None else color_classes(truth)
        panels = [_caption(exhibit.image, exhibit.stem), shown]
        panels += [color_scores(exhibit.scores[name], *ends[name]) for name in names]
        panels += [color_classes(exhibit.prediction)]
        rows.append(_join(panels, axis=1))
    header = _join([_title(text, PANEL_WIDTH) for text in titles], axis=1)
    return _join([header, *rows], axis=0)


def encode_png(picture: UInt8[np.ndarray, "H W 3"]) -> bytes:
    """Encode an sRGB picture."""
    done, data = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    assert done, picture.shape
    return data.tobytes()


def decode_png(data: bytes) -> UInt8[np.ndarray, "H W 3"]:
    """Decode what `encode_png` made."""
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


def color_scores(scores: Float32[np.ndarray, "h w"], low: float, high: float) -> UInt8[np.ndarray, "h w 3"]:
    """Paint scores in a perceptually even scale: dark at `low` and below, yellow at `high` and above."""
    relative = np.clip((scores.astype(np.float64) - low) / max(high - low, 1e-12), 0, 1)
    levels = np.rint(255 * np.nan_to_num(relative)).astype(np.uint8)
    return cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)


def color_classes(prediction: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """Paint train ids in the Cityscapes palette; every other value black."""
    palette = np.zeros((256, 3), dtype=np.uint8)
    palette[: len(CITYSCAPES_CLASSES)] = [entry.color for entry in CITYSCAPES_CLASSES]
    return palette[prediction]


def draw_target(
    image: UInt8[np.ndarray, "h w 3"], target: UInt8[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "h w 3"]:
    """Outline anomalies on the image and shade what is void."""
    drawn = image.copy()
    void = target == VOID
    drawn[void] = (0.3 * drawn[void] + 0.7 * _VOID_SHADE).astype(np.uint8)
    is_anomaly = (target == ANOMALY).astype(np.uint8)
    contours, _ = cv2.findContours(is_anomaly, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(drawn, contours, -1, _OUTLINE, 2)
    return drawn


def _scale_ends(maps: Sequence[Float32[np.ndarray, "_h _w"]]) -> tuple[float, float]:
    values = np.concatenate([scores.ravel() for scores in maps])
    values = values[np.isfinite(values)]
    if values.size == 0:
        return 0.0, 1.0
    low, high = np.percentile(values, PERCENTILES)
    return float(low), float(high)


def _short(value: float) -> str:
    return f"{value:.3g}"


def _title(text: str, width: int) -> UInt8[np.ndarray, "_H _W 3"]:
    strip = np.full((_TITLE_HEIGHT, width, 3), 255, dtype=np.uint8)
    return np.asarray(cv2.putText(strip, text, (4, 15), _FONT, 0.42, _INK, 1, cv2.LINE_AA))


def _caption(image: UInt8[np.ndarray, "h w 3"], text: str) -> UInt8[np.ndarray, "h w 3"]:
    drawn = image.copy()
    drawn = np.asarray(cv2.putText(drawn, text, (5, 15), _FONT, 0.42, (0, 0, 0), 3, cv2.LINE_AA))
    return np.asarray(cv2.putText(drawn, text, (5, 15), _FONT, 0.42, (255, 255, 255), 1, cv2.LINE_AA))


def _join(pictures: Sequence[UInt8[np.ndarray, "_H _W 3"]], axis: int) -> UInt8[np.ndarray, "_h _w 3"]:
    """Put pictures side by side (axis 1) or below each other (axis 0), with white gaps and filled ends."""
    across = 1 - axis
    longest = max(picture.shape[across] for picture in pictures)
    padded = []
    for i, picture in enumerate(pictures):
        widths = [(0, 0), (0, 0), (0, 0)]
        widths[across] = (0, longest - picture.shape[across])
        widths[axis] = (_GAP if i else 0, 0)
        padded.append(np.pad(picture, widths, constant_values=255))
    return np.concatenate(padded, axis=axis)
