"""One temperature more of saved predictions, beside the usual script: time, and that the numbers agree.

python -m benchmarks.temperature [--frames 4] [--out RESULTS.md]

Both sides begin with the predictions of `jobs.evaluate --cache`, on disk, and end with AP and FPR95 of four
scores at each temperature. The usual script keeps the evidence of every frame, at full size, divides it by T,
computes each score over the frame and calls scikit-learn; making that evidence is not counted for it.
Ours is `eval.temperature.Sweep`, reading, resizing and pooling included. Seconds are processor time, which
other work on the machine disturbs less.
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
from sklearn.metrics import average_precision_score, roc_curve
from torch import Tensor

from benchmarks.machine import describe_machine
from eval.cache import CachedSet, WindowPredictions, read_frames, write_frame
from eval.scores import DEFAULT_SCORES
from eval.temperature import Sweep, Variant, list_kinds
from jobs.command_line import parse_options, run_program

WINDOW = (1024, 1024)
LOW = (256, 256)
QUERIES = 100
Numbers = dict[tuple[str, float], tuple[float, float]]
"""Score and temperature -> AP and FPR95."""


@dataclass(frozen=True, kw_only=True)
class TemperatureBenchmarkOptions:
    """Time a sweep over pixel temperatures."""

    frames: int = 2
    """Frames of 2048 x 1024: three windows of 100 queries each."""
    temperatures: tuple[float, ...] = (0.5, 0.75, 1.1, 2.0)
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
        ours_s, ours = our_side(Path(name), cached, options)
    difference = max(abs(a - b) for key in expected for a, b in zip(ours[key], expected[key], strict=True))
    count = len(options.temperatures)
    lines = [
        "# Temperature sweep from saved predictions",
        "",
        describe_machine(options.threads, (np, sklearn, torch, cv2)),
        "",
        f"{options.frames} frames of 2048 x 1024, {count} temperatures, AP and FPR95 of four scores; "
        "seconds of processor time.",
        "",
        "| | usual script, s | ours, s | ratio |",
        "|---|---:|---:|---:|",
        f"| all | {usual_s:.2f} | {ours_s:.2f} | {usual_s / ours_s:.1f} |",
        f"| per temperature | {usual_s / count:.2f} | {ours_s / count:.2f} | {usual_s / ours_s:.1f} |",
        "",
        f"Largest difference of the {2 * len(expected)} numbers: {difference:.1e}.",
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
        truth = np.array([target for target, _ in frames])
        for name, maps in kept.items():
            scores = np.array(maps)
            values = np.concatenate([scores[truth == 1], scores[truth == 0]])
            labels = np.concatenate([np.ones((truth == 1).sum()), np.zeros((truth == 0).sum())])
            fpr, tpr, _ = roc_curve(labels, values)
            ap = float(average_precision_score(labels, values))
            numbers[name, temperature] = ap, float(fpr[np.argmax(tpr >= 0.95)])
    return time.process_time() - begin, numbers


def usual_scores(evidence: Tensor) -> dict[str, Tensor]:
    """Compute the scores of a frame as evaluation scripts do."""
    probability = evidence.softmax(dim=0)
    return {
        "MSP": 1 - probability.max(dim=0).values,
        "MaxLogit": -evidence.max(dim=0).values,
        "MaxEntropy": -(probability * torch.log(probability + 1e-12)).sum(dim=0),
        "RbA": -evidence.tanh().sum(dim=0),
    }


def our_side(cache: Path, cached: CachedSet, options: TemperatureBenchmarkOptions) -> tuple[float, Numbers]:
    """Sweep; MaxLogit, whose order no temperature changes, is measured once."""
    kinds = list_kinds(has_queries=False)
    begin = time.process_time()
    sweep = Sweep(cache, cached)
    sweep.measure(
        [Variant(*kind, t) for kind in kinds for t in options.temperatures]
        + [Variant("MaxLogit", "pixel", 1.0)]
    )
    seconds = time.process_time() - begin
    numbers = {}
    for name in DEFAULT_SCORES:
        for t in options.temperatures:
            found = sweep.metrics[Variant(name, "pixel", 1.0 if name == "MaxLogit" else t)]
            numbers[name, t] = found.ap, found.fpr95
    return seconds, numbers


if __name__ == "__main__":
    run_program(main)
