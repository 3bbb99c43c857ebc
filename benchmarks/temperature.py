"""One temperature more of saved predictions, beside the usual script: time, and that the numbers agree.

python -m benchmarks.temperature [--frames 4] [--out RESULTS.md]

Both sides begin with the predictions of `jobs.evaluate --cache`, on disk, and end with AP and FPR95 of four
scores at each temperature. The usual script keeps the evidence of every frame, at full size, divides it by T,
computes each score over the frame and calls scikit-learn; making that evidence is not counted for it.
Ours is what `eval.temperature.Sweep` does: reading and resizing masks, once for all temperatures, which has a
line of its own; then, per temperature, the four scores, either counted in half precision, as curves and the
search for a best T use them (`Sweep.scan`), or pooled in float32 and measured exactly, as tables report them
(`Sweep.measure`). The ratio per temperature is that of what one temperature more costs.
Seconds are processor time, which other work on the machine disturbs less.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import sklearn
import torch

from benchmarks.evaluate import usual_metrics, usual_scores
from benchmarks.machine import describe_machine
from eval.metrics.curve import PixelMetrics
from eval.metrics.half_histogram import HalfHistogram
from eval.predict.predictions import CachedSet, WindowPredictions, read_frames, write_frame
from eval.predict.scores import DEFAULT_SCORES
from eval.predict.strips import compare_at
from eval.scan import count_frame
from eval.store import ImageStore, score_arrays
from shards.settings import parse_options, run_program

WINDOW = (1024, 1024)
LOW = (256, 256)
QUERIES = 100
Numbers = dict[tuple[str, float], tuple[float, float]]
"""Score and temperature -> AP and FPR95."""


class Side(NamedTuple):
    """What ours took, and found."""

    evidence_s: float
    further_s: float
    """Of all temperatures."""
    numbers: Numbers


@dataclass(frozen=True, kw_only=True)
class TemperatureBenchmarkOptions:
    """Time a sweep over pixel temperatures."""

    frames: int = 2
    """Frames of 2048 x 1024: three windows of 100 queries each."""
    temperatures: tuple[float, ...] = (0.25, 0.5, 0.75, 1.1, 1.5, 2.0, 3.0, 5.0)
    """Of softmax(L / T)."""
    threads: int = 1
    """Threads that PyTorch and OpenCV may use."""
    out: Path | None = None
    """File to write the report to as well."""


def main(arguments: Sequence[str]) -> None:
    """Measure, and print a report in Markdown."""
    options: TemperatureBenchmarkOptions = parse_options(
        TemperatureBenchmarkOptions, arguments, program="benchmarks.temperature"
    )
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        cached = write_cache(Path(name), options)
        usual_s, expected = usual_script(Path(name), cached, options)
        scan, measure = our_scan(Path(name), cached, options), our_measure(Path(name), cached, options)
    count = len(options.temperatures)
    lines = [
        "# Temperature sweep from saved predictions",
        "",
        describe_machine(options.threads, (np, sklearn, torch, cv2)),
        "",
        f"{options.frames} frames of 2048 x 1024, {count} temperatures, AP and FPR95 of four scores; "
        "seconds of processor time.",
        "",
        "| | usual script, s | counted in half precision, s | ratio | exact, s | ratio |",
        "|---|---:|---:|---:|---:|---:|",
        f"| evidence, once | not counted | {scan.evidence_s:.2f} | | {measure.evidence_s:.2f} | |",
        _row("per temperature", usual_s / count, scan.further_s / count, measure.further_s / count),
        _row(
            "all, evidence included", usual_s, *(each.evidence_s + each.further_s for each in (scan, measure))
        ),
        "",
        "Largest difference to the usual script's numbers:",
        "",
        "| | AP | FPR95 |",
        "|---|---:|---:|",
        _differences("counted", scan.numbers, expected),
        _differences("exact", measure.numbers, expected),
    ]
    report = "\n".join(lines) + "\n"
    print(report, end="")
    if options.out is not None:
        options.out.write_text(report, encoding="utf-8")


def write_cache(folder: Path, options: TemperatureBenchmarkOptions) -> CachedSet:
    """Save drawn predictions: blobs of 100 queries, sure of a class each; anomalies are claimed by none."""
    for index in range(options.frames):
        generator = torch.Generator().manual_seed(index)
        coarse = torch.randn(3, QUERIES, 16, 16, generator=generator)
        masks = 4 * torch.nn.functional.interpolate(coarse, LOW, mode="bicubic") - 4
        classes = torch.randn(3, QUERIES, 20, generator=generator)
        classes[..., torch.arange(QUERIES), torch.arange(QUERIES) % 20] += 6
        target = np.zeros((1024, 2048), np.uint8)
        target[500:700, 200:400], target[-128:] = 1, 255
        masks[..., 125:175, :] -= 2
        write_frame(folder / "set", index, target, WindowPredictions(masks, classes, None, 19))
    stems = tuple(map(str, range(options.frames)))
    return CachedSet(folder="set", name="set", is_benchmark=False, window=WINDOW, stems=stems)


def usual_script(
    cache: Path, cached: CachedSet, options: TemperatureBenchmarkOptions
) -> tuple[float, Numbers]:
    """Score whole frames, keep lists, call scikit-learn; once per temperature."""
    frames = [(target, found.evidence((1024, 2048), WINDOW)) for target, found in read_frames(cache, cached)]
    begin, numbers = time.process_time(), {}
    for temperature in options.temperatures:
        kept: dict[str, list[np.ndarray]] = {name: [] for name in DEFAULT_SCORES}
        for _, evidence in frames:
            for name, scores in usual_scores(evidence / temperature).items():
                kept[name].append(scores.numpy())
        found = usual_metrics(kept, [target for target, _ in frames])
        numbers |= {(name, temperature): values for name, values in found.items()}
    return time.process_time() - begin, numbers


def our_scan(cache: Path, cached: CachedSet, options: TemperatureBenchmarkOptions) -> Side:
    """Do what `Sweep.scan` does, with a clock between evidence and scores."""
    counts = {(name, t): HalfHistogram() for name in DEFAULT_SCORES for t in options.temperatures}
    marks = [time.process_time()]
    for target, predictions in read_frames(cache, cached):
        (evidence,) = predictions.evidence_at((1024, 2048), WINDOW, (1.0,))
        marks.append(time.process_time())
        count_frame(counts, evidence.numpy(), target)
        marks.append(time.process_time())
    found = {key: histogram.metrics() for key, histogram in counts.items()}
    marks.append(time.process_time())
    return _side(marks, found)


def our_measure(cache: Path, cached: CachedSet, options: TemperatureBenchmarkOptions) -> Side:
    """Do what `Sweep.measure` does, with a clock between evidence and scores."""
    names = {(name, t): f"{name} {t}" for name in DEFAULT_SCORES for t in options.temperatures}
    marks = [time.process_time()]
    with tempfile.TemporaryDirectory() as folder:
        store = ImageStore(Path(folder), [{}] * len(cached.stems))
        for image, (target, predictions) in enumerate(read_frames(cache, cached)):
            evidence = predictions.evidence((1024, 2048), WINDOW)
            marks.append(time.process_time())
            maps = {}
            for t in options.temperatures:
                maps |= {
                    names[name, t]: found for name, found in compare_at(evidence, DEFAULT_SCORES, t).items()
                }
            store.write(image, score_arrays(maps, target))
            marks.append(time.process_time())
        found = {key: store.measure(name) for key, name in names.items()}
        marks.append(time.process_time())
    return _side(marks, found)


def _side(marks: Sequence[float], found: Mapping[tuple[str, float], PixelMetrics]) -> Side:
    """Sort the time between marks: evidence and scores take turns, and metrics come last."""
    spans = np.diff(marks)
    numbers = {key: (metrics.ap, metrics.fpr95) for key, metrics in found.items()}
    evidence_s = float(spans[:-1:2].sum())
    return Side(evidence_s, float(spans.sum()) - evidence_s, numbers)


def _row(label: str, usual_s: float, scan_s: float, measure_s: float) -> str:
    return (
        f"| {label} | {usual_s:.2f} | {scan_s:.3f} | {usual_s / scan_s:.1f} "
        f"| {measure_s:.3f} | {usual_s / measure_s:.1f} |"
    )


def _differences(label: str, ours: Numbers, expected: Numbers) -> str:
    ap, fpr95 = (max(abs(ours[key][i] - expected[key][i]) for key in ours) for i in (0, 1))
    return f"| {label} | {ap:.1e} | {fpr95:.1e} |"


if __name__ == "__main__":
    run_program(main)
