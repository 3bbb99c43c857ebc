"""One temperature more of saved predictions, beside the usual script: time, and that the numbers agree.

python -m benchmarks.temperature [--frames 4] [--out RESULTS.md]

Both sides begin with the predictions of `jobs.evaluate --cache`, on disk, and end with AP and FPR95 of four
scores at each temperature. The usual script keeps the class scores of every frame, at full size, divides
them by T, computes each score over the frame and calls scikit-learn; making the class scores is not
counted. Ours is what `eval.temperature.Sweep` does: reading and resizing masks, once for all temperatures,
which has a line of its own; then, per temperature, the four scores, either counted in half precision, as
curves and the search for a best T use them (`Sweep.scan`), or pooled in float32 and measured exactly, as
tables report them (`Sweep.measure`). The ratio per temperature is that of what one temperature more costs.
Seconds are processor time, which other work on the machine disturbs less.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import sklearn
import torch

from benchmarks.evaluate import usual_metrics, usual_scores
from benchmarks.machine import ThreadedOptions, describe_machine, table
from eval.predict.predictions import CachedSet, WindowPredictions, read_frames, write_frame
from eval.predict.scores import DEFAULT_SCORES
from eval.temperature import Sweep, Variant
from shards.program import run_program
from shards.settings import parse_options

FRAME = (1024, 2048)
WINDOW = (1024, 1024)
LOW = (256, 256)
QUERIES = 100
Numbers = dict[tuple[str, float], tuple[float, float]]
"""Score and temperature -> AP and FPR95."""


@dataclass(frozen=True, kw_only=True)
class SweepOptions(ThreadedOptions):
    """Time a sweep over pixel temperatures."""

    frames: int = 2
    """Frames of 2048 x 1024: three windows of 100 queries each."""
    temperatures: tuple[float, ...] = (0.25, 0.5, 0.75, 1.1, 1.5, 2.0, 3.0, 5.0)
    """Of softmax(L / T)."""


def main(arguments: Sequence[str]) -> None:
    """Measure, and print a report in Markdown."""
    options: SweepOptions = parse_options(SweepOptions, arguments, program="benchmarks.temperature")
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        cached = write_cache(Path(name), options)
        usual_s, expected = usual_script(Path(name), cached, options)
        sides = [our_sweep(Path(name), cached, options, use) for use in ("scan", "measure")]
    count = len(options.temperatures)
    rows = [["class scores, once", "not counted"], ["per temperature", f"{usual_s / count:.2f}"]]
    rows.append(["all, class scores included", f"{usual_s:.2f}"])
    differences = []
    for label, (class_scores_s, further_s, numbers) in zip(("counted", "exact"), sides, strict=True):
        all_s = class_scores_s + further_s
        rows[0] += [f"{class_scores_s:.2f}", ""]
        rows[1] += [f"{further_s / count:.3f}", f"{usual_s / further_s:.1f}"]
        rows[2] += [f"{all_s:.3f}", f"{usual_s / all_s:.1f}"]
        errors = np.abs([np.subtract(numbers[key], expected[key]) for key in expected])
        differences.append([label, *(f"{largest:.1e}" for largest in errors.max(axis=0))])
    lines = [
        describe_machine(options.threads, (np, sklearn, torch, cv2)),
        "",
        f"{options.frames} frames of 2048 x 1024, {count} temperatures, AP and FPR95 of four scores; "
        "seconds of processor time.",
        *table(" | usual script, s | counted in half precision, s | ratio | exact, s | ratio", rows),
        "",
        "Largest difference to the usual script's numbers:",
        *table(" | AP | FPR95", differences),
    ]
    options.publish("Temperature sweep from saved predictions", lines)


def write_cache(folder: Path, options: SweepOptions) -> CachedSet:
    """Save drawn predictions: blobs of 100 queries, sure of a class each; anomalies are claimed by none."""
    for index in range(options.frames):
        generator = torch.Generator().manual_seed(index)
        coarse = torch.randn(3, QUERIES, 16, 16, generator=generator)
        masks = 4 * torch.nn.functional.interpolate(coarse, LOW, mode="bicubic") - 4
        classes = torch.randn(3, QUERIES, 20, generator=generator)
        classes[..., torch.arange(QUERIES), torch.arange(QUERIES) % 20] += 6
        target = np.zeros(FRAME, np.uint8)
        target[500:700, 200:400], target[-128:] = 1, 255
        masks[..., 125:175, :] -= 2
        write_frame(folder / "set", index, target, WindowPredictions(masks, classes, None, 19))
    stems = tuple(map(str, range(options.frames)))
    return CachedSet(folder="set", name="set", is_benchmark=False, window=WINDOW, stems=stems)


def usual_script(cache: Path, cached: CachedSet, options: SweepOptions) -> tuple[float, Numbers]:
    """Score whole frames, keep lists, call scikit-learn; once per temperature."""
    frames = [(target, found.class_scores(FRAME, WINDOW)) for target, found in read_frames(cache, cached)]
    begin = time.process_time()
    numbers: Numbers = {}
    for temperature in options.temperatures:
        kept: dict[str, list[np.ndarray]] = {name: [] for name in DEFAULT_SCORES}
        for _, class_scores in frames:
            for name, scores in usual_scores(class_scores / temperature).items():
                kept[name].append(scores.numpy())
        found = usual_metrics(kept, [target for target, _ in frames])
        numbers |= {(name, temperature): values for name, values in found.items()}
    return time.process_time() - begin, numbers


def our_sweep(
    cache: Path, cached: CachedSet, options: SweepOptions, use: Literal["scan", "measure"]
) -> tuple[float, float, Numbers]:
    """Sweep; return the seconds of the class scores, those of all temperatures, and the numbers."""
    begin = time.process_time()
    for _, predictions in read_frames(cache, cached):
        predictions.class_scores(FRAME, WINDOW)
    class_scores_s = time.process_time() - begin
    sweep = Sweep(cache, cached)
    variants = [Variant(name, "pixel", t) for name in DEFAULT_SCORES for t in options.temperatures]
    begin = time.process_time()
    getattr(sweep, use)(variants)
    seconds = time.process_time() - begin
    passes = 1 if use == "scan" else math.ceil(len(variants) / 16)
    found = sweep.scanned if use == "scan" else sweep.metrics
    numbers = {(v.score, v.temperature): (metrics.ap, metrics.fpr95) for v, metrics in found.items()}
    return passes * class_scores_s, seconds - passes * class_scores_s, numbers


if __name__ == "__main__":
    run_program(main)
