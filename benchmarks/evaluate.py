"""Everything of an evaluation after the network, beside the usual script: time, and that the numbers agree.

python -m benchmarks.evaluate [--frames 4] [--out RESULTS.md]

Both sides begin with the same class scores (19 maps per frame, as a network's windows leave them) and end
with AP and FPR95 of four scores. The usual script computes each score over the whole frame, keeps all
scores in lists, and calls scikit-learn once per score. Ours is `predict_pixels`, `ImageStore` and its
metrics. Seconds are processor time, which other work on the machine disturbs less.

Then the same at one temperature more, from predictions on disk (`jobs.evaluate --cache`). The usual script
keeps the class scores of every frame and divides them by T. Ours is `eval.temperature.Sweep`: reading and
resizing masks, once for all temperatures, has a line of its own; then, per temperature, the four scores,
counted in half precision, as curves and the search for a best T use them (`scan`), or pooled in float32 and
measured exactly, as tables report them (`measure`).
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
import torch.nn.functional as F

from benchmarks.machine import ThreadedOptions, describe_machine, table
from benchmarks.metrics import sklearn_metrics
from eval.metrics.binned import count_images
from eval.metrics.curve import exact_curve
from eval.predict.predictions import CachedSet, WindowPredictions, read_frames, write_frame
from eval.predict.score_names import DEFAULT_SCORES
from eval.predict.strips import predict_pixels
from eval.store import ImageStore, score_arrays
from eval.temperature import Sweep, Variant
from shards.program import run_program
from shards.settings import parse_options

FRAME = (1024, 2048)
WINDOWS, WINDOW, LOW, QUERIES = 3, (1024, 1024), (256, 256), 100
"""Of a frame's saved predictions."""
Numbers = dict[str, tuple[float, float]]
"""Score -> AP and FPR95."""
SweptNumbers = dict[tuple[str, float], tuple[float, float]]
"""Score and temperature -> AP and FPR95."""


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions(ThreadedOptions):
    """Time post-processing, four scores and their metrics, once and over temperatures."""

    frames: int = 4
    """Frames of a set."""
    temperatures: tuple[float, ...] = (0.25, 0.5, 0.75, 1.1, 1.5, 2.0, 3.0, 5.0)
    """Of softmax(L / T)."""


def main(arguments: Sequence[str]) -> None:
    """Measure, and print a report in Markdown."""
    options: EvaluationOptions = parse_options(EvaluationOptions, arguments, program="benchmarks.evaluate")
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(options.threads)
    *usual_s, expected = usual_script(options)
    *ours_s, ours = our_side(options)
    sketch_s = our_side(options, sketch=True)[1] - ours_s[1]
    difference = max(abs(ours[name][i] - expected[name][i]) for name in expected for i in (0, 1))
    seconds = {"scores and classes": (usual_s[0], ours_s[0]), "metrics": (usual_s[1], ours_s[1])}
    seconds["all"] = (sum(usual_s), sum(ours_s))
    rows = [(name, f"{a:.2f}", f"{b:.2f}", f"{a / b:.1f}") for name, (a, b) in seconds.items()]
    lines = [
        describe_machine(options.threads, (np, sklearn, torch, cv2)),
        "",
        f"## From class scores to AP and FPR95 of four scores, {options.frames} frames of "
        f"{FRAME[1]} x {FRAME[0]}, seconds of processor time",
        *table(" | usual script, s | ours, s | ratio", rows),
        "",
        f"Largest difference of the eight numbers: {difference:.1e}. Sketches for intervals, which the usual",
        f"script has not, take {max(0.0, sketch_s):.2f} s more.",
        *compare_sweeps(options),
    ]
    options.publish("Evaluation after the network", lines)


def compare_sweeps(options: EvaluationOptions) -> list[str]:
    """Sweep temperatures of saved predictions, on both sides."""
    with tempfile.TemporaryDirectory() as name:
        cached = write_cache(Path(name), options)
        usual_s, expected = usual_sweep(Path(name), cached, options)
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
    return [
        "",
        f"## {count} temperatures of saved predictions, {WINDOWS} windows of {QUERIES} queries a frame",
        *table(" | usual script, s | counted in half precision, s | ratio | exact, s | ratio", rows),
        "",
        "Largest difference to the usual script's numbers:",
        *table(" | AP | FPR95", differences),
    ]


def draw_frame(index: int) -> tuple[torch.Tensor, np.ndarray]:
    """Draw class scores (19, H, W) and a target with 2 % anomalous pixels, which are a little less sure."""
    generator = torch.Generator().manual_seed(index)
    small = torch.randn(1, 19, 32, 64, generator=generator)
    class_scores = F.interpolate(small, FRAME, mode="bilinear")[0].sigmoid()
    class_scores += 0.05 * torch.rand(class_scores.shape, generator=generator)
    target = np.zeros(FRAME, np.uint8)
    target[512:717, :204], target[-128:] = 1, 255
    class_scores[:, torch.from_numpy(target == 1)] *= 0.8
    return class_scores, target


def usual_script(options: EvaluationOptions) -> tuple[float, float, Numbers]:
    """Score whole frames, keep lists, call scikit-learn."""
    seconds = 0.0
    kept: dict[str, list[np.ndarray]] = {name: [] for name in DEFAULT_SCORES}
    targets = []
    for index in range(options.frames):
        class_scores, target = draw_frame(index)
        begin = time.process_time()
        for name, scores in usual_scores(class_scores).items():
            kept[name].append(scores.numpy())
        class_scores.argmax(dim=0).numpy()
        targets.append(target)
        seconds += time.process_time() - begin
    begin = time.process_time()
    found = usual_metrics(kept, targets)
    return seconds, time.process_time() - begin, found


def usual_scores(class_scores: torch.Tensor) -> dict[str, torch.Tensor]:
    """Compute the scores of a frame as evaluation scripts do."""
    probability = class_scores.softmax(dim=0)
    return {
        "MSP": 1 - probability.max(dim=0).values,
        "MaxLogit": -class_scores.max(dim=0).values,
        "MaxEntropy": -(probability * torch.log(probability + 1e-12)).sum(dim=0) / np.log(19),
        "RbA": -class_scores.tanh().sum(dim=0),
    }


def usual_metrics(kept: dict[str, list[np.ndarray]], targets: Sequence[np.ndarray]) -> Numbers:
    """Return AP and FPR95 of each score over all frames, by scikit-learn."""
    truth, found = np.array(targets), {}
    for name, maps in kept.items():
        scores = np.array(maps)
        found[name] = sklearn_metrics(scores[truth == 1], scores[truth == 0])[:2]
    return found


def our_side(options: EvaluationOptions, sketch: bool = False) -> tuple[float, float, Numbers]:
    """Score strip by strip, store, and compute the metrics."""
    scored = measured = 0.0
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        store = ImageStore(Path(folder), [{}] * options.frames)
        for index in range(options.frames):
            class_scores, target = draw_frame(index)
            begin = time.process_time()
            answers = predict_pixels(class_scores, DEFAULT_SCORES)
            scored += time.process_time() - begin
            begin = time.process_time()
            store.write(index, score_arrays(answers.scores, target))
            measured += time.process_time() - begin
        begin = time.process_time()
        for name in DEFAULT_SCORES:
            with store.sorted_scores(name) as images:
                metrics = exact_curve(images).metrics()
                if sketch:
                    count_images(images, range(len(images)))
            found[name] = metrics.ap, metrics.fpr95
        measured += time.process_time() - begin
    return scored, measured, found


def write_cache(folder: Path, options: EvaluationOptions) -> CachedSet:
    """Save drawn predictions: blobs of 100 queries, sure of a class each; anomalies are claimed by none."""
    for index in range(options.frames):
        generator = torch.Generator().manual_seed(index)
        coarse = torch.randn(WINDOWS, QUERIES, 16, 16, generator=generator)
        masks = 4 * F.interpolate(coarse, LOW, mode="bicubic") - 4
        classes = torch.randn(WINDOWS, QUERIES, 20, generator=generator)
        classes[..., torch.arange(QUERIES), torch.arange(QUERIES) % 20] += 6
        target = np.zeros(FRAME, np.uint8)
        target[500:700, 200:400], target[-128:] = 1, 255
        masks[..., 125:175, :] -= 2
        write_frame(folder / "set", index, target, WindowPredictions(masks, classes, None, 19))
    stems = tuple(map(str, range(options.frames)))
    return CachedSet(folder="set", name="set", is_benchmark=False, window=WINDOW, stems=stems)


def usual_sweep(cache: Path, cached: CachedSet, options: EvaluationOptions) -> tuple[float, SweptNumbers]:
    """Score whole frames, keep lists, call scikit-learn; once per temperature."""
    frames = [(target, found.class_scores(FRAME, WINDOW)[0]) for target, found in read_frames(cache, cached)]
    begin = time.process_time()
    numbers: SweptNumbers = {}
    for temperature in options.temperatures:
        kept: dict[str, list[np.ndarray]] = {name: [] for name in DEFAULT_SCORES}
        for _, class_scores in frames:
            for name, scores in usual_scores(class_scores / temperature).items():
                kept[name].append(scores.numpy())
        found = usual_metrics(kept, [target for target, _ in frames])
        numbers |= {(name, temperature): values for name, values in found.items()}
    return time.process_time() - begin, numbers


def our_sweep(
    cache: Path, cached: CachedSet, options: EvaluationOptions, use: Literal["scan", "measure"]
) -> tuple[float, float, SweptNumbers]:
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
