"""Component and pixel metrics beside the official toolkit of SegmentMeIfYouCan itself, on drawn fields.

python -m benchmarks.smiyc_toolkit --toolkit road-anomaly-benchmark [--out RESULTS.md]

The toolkit is the user's own copy of github.com/SegmentMeIfYouCan/road-anomaly-benchmark. The functions that
compute its numbers are cut out of its files and run as they are, so that its data sets, plots and old pins
are not needed. Two things that they lean on are gone from today's packages and put back: `numpy.trapz`, and
`EasyDict`, a dictionary with attributes.
"""

from __future__ import annotations

import ast
import contextlib
import io
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import scipy.ndimage

from benchmarks.machine import ReportOptions, describe_machine, publish, table
from eval.metrics.components import TAUS, SegmentSizes, component_metrics, count_components
from eval.metrics.smiyc import curve_metrics, image_curve
from eval.sets.registry import TEST_SETS
from shards.errors import InputError
from shards.settings import parse_options, run_program

FILES = {
    "instance_segmentation.py": ("default_instancer", "segment_metrics"),
    "pixel_classification.py": ("binary_confusion_matrix", "aggregate_dynamic_bins"),
    "pixel_classification_curves.py": ("curves_from_cmats",),
}
"""Of `road_anomaly_benchmark/metrics`, and what is taken from each."""
TRACKS = {"RoadAnomaly21": "AnomalyTrack", "RoadObsticle21": "ObstacleTrack"}
Frame = tuple[np.ndarray, np.ndarray]
"""Scores (float16) and target."""


@dataclass(frozen=True, kw_only=True)
class ToolkitOptions(ReportOptions):
    """Compare with the toolkit of SegmentMeIfYouCan."""

    toolkit: Path
    """Folder with the toolkit's code, which holds road_anomaly_benchmark/."""
    frames: int = 20
    """Drawn frames per track."""


class AttributeDict(dict[str, Any]):
    """What the toolkit uses of `easydict.EasyDict`."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


def main(arguments: Sequence[str]) -> None:
    """Compare, and print a report in Markdown."""
    options: ToolkitOptions = parse_options(ToolkitOptions, arguments, program="benchmarks.smiyc_toolkit")
    toolkit = load_toolkit(options.toolkit)
    frames = [draw_frame(seed) for seed in range(options.frames)]
    rows, seconds = [], np.zeros(2)
    for folder, track in TRACKS.items():
        smallest = SegmentSizes(*TEST_SETS[folder].smallest)
        begin = time.perf_counter()
        expected = official_side(toolkit, frames, smallest)
        middle = time.perf_counter()
        ours = our_side(frames, smallest)
        seconds += middle - begin, time.perf_counter() - middle
        for name, value in expected.items():
            difference = f"{abs(ours[name] - value):.1e}"
            rows.append((track, name, f"{value:.6f}", f"{ours[name]:.6f}", difference))
    lines = [
        "# Metrics of SegmentMeIfYouCan: its own toolkit and ours",
        "",
        describe_machine(1, (np, scipy, cv2)),
        "",
        f"{options.frames} drawn frames of 400 x 300 per track; fractions.",
        *table("track | metric | toolkit | ours | difference", rows, text_columns=2),
        "",
        f"All numbers took the toolkit {seconds[0]:.1f} s, ours {seconds[1]:.1f} s.",
    ]
    publish(lines, options.out)


def load_toolkit(folder: Path) -> dict[str, Any]:
    """Return the toolkit's functions, by name."""
    if not hasattr(np, "trapz"):
        setattr(np, "trapz", np.trapezoid)  # noqa: B010 (ruff forbids its name)
    space: dict[str, Any] = {"np": np, "EasyDict": AttributeDict, "label": scipy.ndimage.label}
    for name, wanted in FILES.items():
        path = folder / "road_anomaly_benchmark" / "metrics" / name
        if not path.is_file():
            raise InputError(f"--toolkit {folder}: no {path.relative_to(folder)} in it")
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name in wanted]
        if len(found) < len(wanted):
            raise InputError(f"--toolkit {folder}: {name} lacks one of {', '.join(wanted)}")
        for function in found:
            function.decorator_list = []
            exec(compile(ast.Module([function], []), str(path), "exec"), space)
    return space


def draw_frame(seed: int) -> Frame:
    """Draw anomalies of many sizes, void, and scores that find some, miss some and merge some."""
    rng = np.random.default_rng(seed)
    target = np.zeros((300, 400), np.uint8)
    field = rng.normal(0, 1, target.shape).astype(np.float32)
    scores = 2 * cv2.GaussianBlur(field, (0, 0), 4)
    for _ in range(int(rng.integers(3, 12))):
        centre, axes = rng.integers((400, 300)).tolist(), rng.integers(2, 30, 2).tolist()
        angle = float(rng.integers(180))
        cv2.ellipse(target, centre, axes, angle, 0, 360, (1,), -1)
        found = np.zeros_like(scores)
        grown = np.maximum(1, axes + rng.integers(-2, 8, 2)).tolist()
        cv2.ellipse(found, centre, grown, angle, 0, 360, (1.0,), -1)
        scores += float(rng.uniform(0, 2)) * found
    target[:20] = 255
    target[rng.integers(20, 280) :, : rng.integers(10, 60)] = 255
    return scores.astype(np.float16), target


def official_side(
    toolkit: dict[str, Any], frames: Sequence[Frame], smallest: SegmentSizes
) -> dict[str, float]:
    """Run the toolkit as its `SegEval` and `PixBinaryClass` do."""
    counts = [
        toolkit["binary_confusion_matrix"](s[t < 255], t[t < 255].astype(bool), 768, "percentiles")
        for s, t in frames
    ]
    joined = toolkit["aggregate_dynamic_bins"](counts)
    with contextlib.redirect_stdout(io.StringIO()):
        curve = toolkit["curves_from_cmats"](joined.cmat, joined.thresholds)
    rows = []
    for scores, target in frames:
        true, predicted, _ = toolkit["default_instancer"](
            scores, target, curve.best_f1_threshold, smallest.predicted, smallest.true
        )
        rows.append(toolkit["segment_metrics"](true, predicted))
    f1 = []
    for tau in np.linspace(0.25, 0.75, len(TAUS)):
        tp, fn, fp = (sum(row[f"{kind}_{int(tau * 100)}"] for row in rows) for kind in ("tp", "fn", "fp"))
        f1.append(2 * tp / (2 * tp + fn + fp))
    return {
        "AP": float(curve.area_PRC),
        "FPR95": float(curve.tpr95_fpr),
        "best F1 threshold": float(curve.best_f1_threshold),
        "sIoU": float(np.concatenate([row.sIoU_gt for row in rows]).mean()),
        "PPV": float(np.concatenate([row.prec_pred for row in rows]).mean()),
        "F1*": float(np.mean(f1)),
    }


def our_side(frames: Sequence[Frame], smallest: SegmentSizes) -> dict[str, float]:
    """Compute the same."""
    pixels = curve_metrics([image_curve(s[t == 1], s[t == 0]) for s, t in frames])
    rows = [count_components(s.astype(np.float32), t, pixels.f1_threshold, smallest) for s, t in frames]
    found = component_metrics(np.stack(rows))
    return {
        "AP": pixels.ap,
        "FPR95": pixels.fpr95,
        "best F1 threshold": pixels.f1_threshold,
        "sIoU": float(found.siou[0]),
        "PPV": float(found.ppv[0]),
        "F1*": float(found.f1_star[0]),
    }


if __name__ == "__main__":
    run_program(main)
