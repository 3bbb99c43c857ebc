"""Pictures of an evaluation: panels of frames, drawn pixel by pixel, and plots with axes, as PNG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import matplotlib
import numpy as np
from jaxtyping import Bool, Float32, UInt8
from matplotlib.figure import Figure
from numpy.typing import NDArray

from eval.metrics.binned import ImageCounts
from eval.predict.log_odds import FORMS, centred_energy
from shards.schema import ANOMALY, CITYSCAPES, NORMAL, VOID, ClassTable

matplotlib.use("Agg")
_DPI = 110
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
_MOST_VALUES = 20_000
"""Scores of one class in a histogram."""


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


def plot_temperatures(curves: Mapping[str, Mapping[str, Sequence[tuple[float, float, float]]]]) -> bytes:
    """Plot AP (left) and FPR95 (right) over temperature, a row per test set.

    Args:
        curves: test set -> name of a line -> (temperature, AP, FPR95), fractions.
    """
    figure = Figure(figsize=(11, 3.1 * len(curves)), layout="constrained")
    axes = figure.subplots(len(curves), 2, squeeze=False)
    for (dataset, lines), row in zip(curves.items(), axes, strict=True):
        for column, (axis, metric) in enumerate(zip(row, ("AuPRC", "FPR95"), strict=True)):
            for label, points in lines.items():
                ordered = np.array(sorted(points))
                axis.plot(ordered[:, 0], 100 * ordered[:, 1 + column], marker=".", label=label)
            axis.set_xscale("log", base=2)
            axis.xaxis.set_major_formatter("{x:g}")
            axis.axvline(1, color="0.8", zorder=0)
            axis.set(title=f"{dataset}: {metric}, %", xlabel="temperature")
            axis.grid(alpha=0.3)
        row[1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return _encode(figure)


def plot_curves(title: str, counts: Mapping[str, ImageCounts]) -> bytes:
    """Plot precision over recall and TPR over FPR (logarithmic), a line per name."""
    figure = Figure(figsize=(11, 4))
    # by hand: a layout that is solved takes longer than all the drawing
    figure.subplots_adjust(0.06, 0.13, 0.87, 0.9, wspace=0.18)
    left, right = figure.subplots(1, 2)
    for name, of_images in counts.items():
        curve = of_images.curve()
        left.plot(curve.recall, curve.precision, label=name, drawstyle="steps-post")
        right.plot(np.maximum(curve.fpr, 1e-5), curve.recall, label=name)
    left.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    right.set(xlabel="false positive rate", ylabel="true positive rate", xscale="log", ylim=(0, 1.02))
    right.axhline(0.95, color="0.6", linestyle=":")
    for axis in (left, right):
        axis.grid(alpha=0.3)
    right.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.suptitle(title)
    return _encode(figure)


def plot_frames(frames: Sequence[Example]) -> bytes:
    """Plot a row per frame, of full size and one score each: anomalies outlined, scores, histogram of both
    classes."""
    height = 2.6 * len(frames)
    figure = Figure(figsize=(12, height))
    # by hand, as that of curves
    figure.subplots_adjust(0.01, 0.3 / height, 0.99, 1 - 0.3 / height, wspace=0.12, hspace=0.25)
    axes = figure.subplots(len(frames), 3, squeeze=False)
    for frame, (picture, heat, histogram) in zip(frames, axes, strict=True):
        (name,) = frame.scores
        scores, panel = frame.scores[name], frame.shrink()
        picture.imshow(draw_target(panel.image, panel.target))
        picture.set_title(frame.title, fontsize=8, loc="left")
        heat.imshow(color_scores(panel.scores[name], *scale_ends(scores)))
        for axis in (picture, heat):
            axis.set_axis_off()
        values = {"normal": _thin(scores[frame.target == NORMAL])}
        values["anomalous"] = _thin(scores[frame.target == ANOMALY])
        bins = np.histogram_bin_edges(np.concatenate(list(values.values())), bins=60)
        for label, side in values.items():
            density = np.histogram(side, bins, density=True)[0] if len(side) else np.zeros(len(bins) - 1)
            histogram.stairs(density, bins, fill=True, alpha=0.6, label=label)
        if any(len(side) for side in values.values()):
            histogram.set_yscale("log", subs=[])
        histogram.set_title(name_scale(name), fontsize=7, loc="left")
        histogram.legend(fontsize=7, loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False)
        histogram.tick_params(labelsize=7)
    return _encode(figure)


def plot_comparison(frames: Sequence[Mapping[str, Example]]) -> bytes:
    """Plot a row per frame: the image, its anomalies outlined, and the score of each model.

    The score has one scale for all frames and models, and a colour bar that says it.

    Args:
        frames: per frame, name of a model to the frame with that model's one score.
    """
    models, (first, *_) = list(frames[0]), frames[0].values()
    (score,), (height, width) = first.scores, first.target.shape
    shape = (len(frames), 2 + len(models))
    size = (4.6 * shape[1] + 0.6, 4.6 * shape[0] * height / width + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(*shape, squeeze=False)
    values = [e.scores[score].ravel() for frame in frames for e in frame.values()]
    low, high = scale_ends(np.concatenate(values))
    for row, frame in zip(axes, frames, strict=True):
        seen = frame[models[0]]
        pictures = {seen.title: seen.image, "truth (void grey)": draw_target(seen.image, seen.target)}
        for axis, (title, picture) in zip(row, pictures.items(), strict=False):
            axis.imshow(picture)
            axis.set_title(title)
        for axis, model in zip(row[2:], models, strict=True):
            shown = axis.imshow(frame[model].scores[score], cmap="inferno", vmin=low, vmax=high)
            axis.set_title(f"{model}: {name_scale(score)}")
    figure.colorbar(shown, ax=axes[:, -1], extend="both")
    for axis in axes.ravel():
        axis.set_axis_off()
    return _encode(figure)


def name_scale(score: str) -> str:
    """Return a score's name, and the form in which its numbers are shown where that is none of its own."""
    is_odds = score in FORMS and FORMS[score] is not centred_energy
    return f"{score} (log-odds)" if is_odds else score


def _thin(values: NDArray[np.float32]) -> NDArray[np.float32]:
    values = values[np.isfinite(values)]
    return values[:: max(1, values.size // _MOST_VALUES)]


def _encode(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=_DPI, metadata={"Software": None})
    return file.getvalue()
