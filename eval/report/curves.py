"""Plots of evaluations, as PNG bytes: metrics over temperature, PR and ROC curves."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from jaxtyping import Float32, UInt8
from matplotlib.figure import Figure
from numpy.typing import NDArray

matplotlib.use("Agg")
_DPI = 110

Line = tuple[NDArray[np.float64], NDArray[np.float64]]
"""x and y."""


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


def plot_curves(title: str, precision: Mapping[str, Line], roc: Mapping[str, Line]) -> bytes:
    """Plot precision over recall and TPR over FPR (logarithmic), a line per name.

    Args:
        title: of the picture.
        precision: name -> (recall, precision).
        roc: name -> (FPR, TPR).
    """
    figure = Figure(figsize=(11, 4))
    # by hand: a layout that is solved takes longer than all the drawing
    figure.subplots_adjust(0.06, 0.13, 0.87, 0.9, wspace=0.18)
    left, right = figure.subplots(1, 2)
    for name, (x, y) in precision.items():
        left.plot(x, y, label=name, drawstyle="steps-post")
    for name, (x, y) in roc.items():
        right.plot(np.maximum(x, 1e-5), y, label=name)
    left.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    right.set(xlabel="false positive rate", ylabel="true positive rate", xscale="log", ylim=(0, 1.02))
    right.axhline(0.95, color="0.6", linestyle=":")
    for axis in (left, right):
        axis.grid(alpha=0.3)
    right.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.suptitle(title)
    return _encode(figure)


class FrameView(NamedTuple):
    """One frame with one score, shrunk."""

    caption: str
    """Which frame, and how it scored."""
    image: UInt8[np.ndarray, "h w 3"]
    """sRGB, with the anomalies' outlines."""
    heat: UInt8[np.ndarray, "h w 3"]
    """Its scores in colours."""
    normal: Float32[np.ndarray, " N"]
    """Scores of some thousand normal pixels."""
    anomalous: Float32[np.ndarray, " _N"]


def plot_frames(frames: Sequence[FrameView]) -> bytes:
    """Plot a row per frame: image with outlined anomalies, scores, histogram of both classes."""
    height = 2.6 * len(frames)
    figure = Figure(figsize=(12, height))
    # by hand, as that of curves
    figure.subplots_adjust(0.01, 0.3 / height, 0.99, 1 - 0.3 / height, wspace=0.12, hspace=0.25)
    for frame, (picture, heat, histogram) in zip(
        frames, figure.subplots(len(frames), 3, squeeze=False), strict=True
    ):
        picture.imshow(frame.image)
        picture.set_title(frame.caption, fontsize=8, loc="left")
        heat.imshow(frame.heat)
        for axis in (picture, heat):
            axis.set_axis_off()
        bins = np.histogram_bin_edges(np.concatenate([frame.normal, frame.anomalous]), bins=60)
        for name, scores in (("normal", frame.normal), ("anomalous", frame.anomalous)):
            density = np.histogram(scores, bins, density=True)[0] if len(scores) else np.zeros(len(bins) - 1)
            histogram.stairs(density, bins, fill=True, alpha=0.6, label=name)
        if len(frame.normal) + len(frame.anomalous):
            histogram.set_yscale("log", subs=[])
        histogram.legend(fontsize=7, loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False)
        histogram.tick_params(labelsize=7)
    return _encode(figure)


def _encode(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=_DPI, metadata={"Software": None})
    return file.getvalue()
