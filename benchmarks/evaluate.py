"""Everything of an evaluation after the network, beside the usual script: time, and that the numbers agree.

python -m benchmarks.evaluate [--frames 4] [--out RESULTS.md]

Both sides begin with the same class scores (19 maps per frame, as a network's windows leave them) and end
with AP and FPR95 of four scores. The usual script computes each score over the whole frame, keeps all
scores in lists, and calls scikit-learn once per score. Ours is `predict_pixels`, `ImageStore` and its
metrics; sorted runs for intervals included. Seconds are processor time, which other work on the machine
disturbs less.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import sklearn
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score, roc_curve

from benchmarks.machine import ThreadedOptions, describe_machine, table
from eval.metrics.binned import count_images
from eval.metrics.curve import exact_curve
from eval.predict.scores import DEFAULT_SCORES
from eval.predict.strips import predict_pixels
from eval.store import ImageStore, score_arrays
from shards.program import run_program
from shards.settings import parse_options

Numbers = dict[str, tuple[float, float]]
"""Score -> AP and FPR95."""


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions(ThreadedOptions):
    """Time post-processing, four scores and their metrics."""

    frames: int = 4
    """Frames of a set."""
    height: int = 1024
    """Rows of a frame; columns are twice as many."""


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
        f"{2 * options.height} x {options.height}, seconds of processor time",
        *table(" | usual script, s | ours, s | ratio", rows),
        "",
        f"Largest difference of the eight numbers: {difference:.1e}. Sketches for intervals, which the usual",
        f"script has not, take {max(0.0, sketch_s):.2f} s more.",
    ]
    options.publish("Evaluation after the network", lines)


def draw_frame(options: EvaluationOptions, index: int) -> tuple[torch.Tensor, np.ndarray]:
    """Draw class scores (19, H, W) and a target with 2 % anomalous pixels, which are a little less sure."""
    generator = torch.Generator().manual_seed(index)
    small = torch.randn(1, 19, options.height // 32, options.height // 16, generator=generator)
    class_scores = F.interpolate(small, (options.height, 2 * options.height), mode="bilinear")[0].sigmoid()
    class_scores += 0.05 * torch.rand(class_scores.shape, generator=generator)
    target = np.zeros(class_scores.shape[1:], np.uint8)
    target[options.height // 2 : options.height // 2 + options.height // 5, : options.height // 5] = 1
    target[-options.height // 8 :] = 255
    class_scores[:, torch.from_numpy(target == 1)] *= 0.8
    return class_scores, target


def usual_script(options: EvaluationOptions) -> tuple[float, float, Numbers]:
    """Score whole frames, keep lists, call scikit-learn."""
    seconds = 0.0
    kept: dict[str, list[np.ndarray]] = {name: [] for name in DEFAULT_SCORES}
    targets = []
    for index in range(options.frames):
        class_scores, target = draw_frame(options, index)
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
    truth = np.array(targets)
    found = {}
    for name, maps in kept.items():
        scores = np.array(maps)
        values = np.concatenate([scores[truth == 1], scores[truth == 0]])
        labels = np.concatenate([np.ones((truth == 1).sum()), np.zeros((truth == 0).sum())])
        fpr, tpr, _ = roc_curve(labels, values)
        found[name] = float(average_precision_score(labels, values)), float(fpr[np.argmax(tpr >= 0.95)])
    return found


def our_side(options: EvaluationOptions, sketch: bool = False) -> tuple[float, float, Numbers]:
    """Score strip by strip, store, and compute the metrics."""
    scored = measured = 0.0
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        store = ImageStore(Path(folder), [{}] * options.frames)
        for index in range(options.frames):
            class_scores, target = draw_frame(options, index)
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


if __name__ == "__main__":
    run_program(main)
