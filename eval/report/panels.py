"""Panels of frames, drawn pixel by pixel: images, ground truth, scores and classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, Float32, UInt8
from numpy.typing import NDArray

from eval.predict.log_odds import FORMS, centred_energy
from shards.schema import ANOMALY, CITYSCAPES, VOID, ClassTable

PANEL_WIDTH = 400
"""Pixels; a grid of seven columns stays below 3000."""
_PERCENTILES = (1.0, 99.0)
"""Ends of a colour scale: one outlying pixel must not make the rest of a map flat."""
_GAP = 6
_TITLE_HEIGHT = 22
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_INK = (20, 20, 20)
_OUTLINE = (255, 0, 160)
_VOID_SHADE = np.array([90, 90, 90])


@dataclass(frozen=True)
class Example:
    """One frame to be shown."""

    title: str
    image: UInt8[np.ndarray, "h w 3"]
    """sRGB."""
    target: UInt8[np.ndarray, "h w"]
    """0 normal, 1 anomaly, 255 void."""
    prediction: UInt8[np.ndarray, "h w"]
    """Train ids."""
    scores: Mapping[str, Float32[np.ndarray, "h w"]]
    truth: UInt8[np.ndarray, "h w"] | None = None
    """True train ids, where they are known."""

    def shrink(self) -> Example:
        """Scale the frame to the width of a panel: pictures and scores by area, labels by nearest pixel."""
        target, prediction = (_shrink(labels, cv2.INTER_NEAREST) for labels in (self.target, self.prediction))
        scores = {name: _shrink(score) for name, score in self.scores.items()}
        truth = None if self.truth is None else _shrink(self.truth, cv2.INTER_NEAREST)
        return Example(self.title, _shrink(self.image), target, prediction, scores, truth)


def choose_examples(num_frames: int, count: int) -> frozenset[int]:
    """Return the indices of `count` frames (or all), evenly spread over the set."""
    count = min(count, num_frames)
    return frozenset((2 * i + 1) * num_frames // (2 * count) for i in range(count))


def _shrink(picture: NDArray[Any], interpolation: int = cv2.INTER_AREA) -> NDArray[Any]:
    height = round(picture.shape[0] * PANEL_WIDTH / picture.shape[1])
    size = (PANEL_WIDTH, min(max(1, height), 4 * PANEL_WIDTH))  # a strip of pixels stays a panel
    return cv2.resize(picture, size, interpolation=interpolation)


def add_title(title: str, panels: UInt8[np.ndarray, "_H W 3"]) -> UInt8[np.ndarray, "H W 3"]:
    """Put a line above the panels: `title`, in ASCII as OpenCV's fonts are, and what colours mean."""
    title += "; each score's colours run from the 1st to the 99th percentile of the frames shown"
    return _join([_title(title, panels.shape[1]), panels], axis=0)


def draw_panels(
    examples: Sequence[Example],
    classes: ClassTable = CITYSCAPES,
    marked: str = "ground truth (void grey)",
) -> UInt8[np.ndarray, "H W 3"]:
    """Draw rows of frames and columns image | ground truth | each score | predicted classes.

    Ground truth is the true classes where they are known, else the anomalies, outlined on the image, and void
    shaded. A score's colour scale is shared by its column; its ends stand in the column's title.

    Args:
        examples: at least one, shrunk, of the same scores; true classes are known of all or of none.
        marked: words for what targets mark, where no true classes are known.
    """
    names = list(examples[0].scores)
    ends = {name: scale_ends(np.concatenate([e.scores[name].ravel() for e in examples])) for name in names}
    titles = ["image", marked if examples[0].truth is None else "true classes"]
    titles += [f"{name_scale(name)} [{low:.3g} .. {high:.3g}]" for name, (low, high) in ends.items()]
    rows = [_join([_title(text, PANEL_WIDTH) for text in (*titles, "predicted classes")], axis=1)]
    for example in examples:
        truth = example.truth
        outlined = _put_text(example.image.copy(), example.title, (5, 15), (0, 0, 0), 3)
        panels = [_put_text(outlined, example.title, (5, 15), (255, 255, 255))]
        shown = draw_target(example.image, example.target) if truth is None else color_classes(truth, classes)
        panels += [shown]
        panels += [color_scores(example.scores[name], *ends[name]) for name in names]
        rows.append(_join([*panels, color_classes(example.prediction, classes)], axis=1))
    return _join(rows, axis=0)


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


def color_classes(
    prediction: UInt8[np.ndarray, "h w"], classes: ClassTable = CITYSCAPES
) -> UInt8[np.ndarray, "h w 3"]:
    """Paint train ids in the colours of their classes; every other value black."""
    return classes.palette()[prediction]


def draw_target(
    image: UInt8[np.ndarray, "h w 3"], target: UInt8[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "h w 3"]:
    """Outline anomalies on the image and shade what is void."""
    drawn = image.copy()
    void = target == VOID
    drawn[void] = (0.3 * drawn[void] + 0.7 * _VOID_SHADE).astype(np.uint8)
    return draw_outlines(drawn, target == ANOMALY, 2)


def draw_outlines(
    picture: UInt8[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "h w"], width: int
) -> UInt8[np.ndarray, "h w 3"]:
    """Draw the borders of `mask`, those of holes too, into `picture`, which is returned."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, contours, -1, _OUTLINE, width)
    return picture


def scale_ends(values: NDArray[np.float32]) -> tuple[float, float]:
    """Return where a colour scale of scores begins and ends."""
    values = values[np.isfinite(values)]
    low, high = np.percentile(values, _PERCENTILES) if values.size else (0.0, 1.0)
    return float(low), float(high)


def _put_text(
    picture: NDArray[np.uint8], text: str, at: tuple[int, int], color: tuple[int, int, int], width: int = 1
) -> NDArray[np.uint8]:
    return np.asarray(cv2.putText(picture, text, at, _FONT, 0.42, color, width, cv2.LINE_AA))


def _title(text: str, width: int) -> NDArray[np.uint8]:
    return _put_text(np.full((_TITLE_HEIGHT, width, 3), 255, dtype=np.uint8), text, (4, 15), _INK)


def _join(pictures: Sequence[NDArray[np.uint8]], axis: int) -> NDArray[np.uint8]:
    """Put pictures side by side (axis 1) or below each other (axis 0), with white gaps and filled ends."""
    across = 1 - axis
    longest = max(picture.shape[across] for picture in pictures)
    padded = []
    for i, picture in enumerate(pictures):
        widths = {axis: (_GAP if i else 0, 0), across: (0, longest - picture.shape[across]), 2: (0, 0)}
        padded.append(np.pad(picture, [widths[k] for k in range(3)], constant_values=255))
    return np.concatenate(padded, axis=axis)


def name_scale(score: str) -> str:
    """Return a score's name, and the form in which its numbers are shown where that is none of its own."""
    is_odds = score in FORMS and FORMS[score] is not centred_energy
    return f"{score} (log-odds)" if is_odds else score
