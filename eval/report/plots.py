"""Plots with axes: curves, histograms and frames side by side, as PNG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eval.metrics.binned import ImageCounts
from eval.report.panels import Example, color_scores, draw_target, name_scale, scale_ends
from shards.schema import ANOMALY, NORMAL

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 110
_MOST_VALUES = 20_000
"""Scores of one class in a histogram."""


def plot_temperatures(curves: Mapping[str, Mapping[str, Sequence[tuple[float, float, float]]]]) -> bytes:
    """Plot AP (left) and FPR95 (right) over temperature, a row per test set.

    Args:
        curves: test set -> name of a line -> (temperature, AP, FPR95), fractions.
    """
    figure = _make_figure(figsize=(11, 3.1 * len(curves)), layout="constrained")
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
    figure = _make_figure(figsize=(11, 4))
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
    figure = _make_figure(figsize=(12, height))
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
    figure = _make_figure(figsize=size, layout="constrained")
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


def _thin(values: NDArray[np.float32]) -> NDArray[np.float32]:
    values = values[np.isfinite(values)]
    return values[:: max(1, values.size // _MOST_VALUES)]


def _make_figure(**options: Any) -> Figure:
    from matplotlib.figure import Figure  # takes half a second to import, and a training draws none

    return Figure(**options)


def _encode(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=_DPI, metadata={"Software": None})
    return file.getvalue()
