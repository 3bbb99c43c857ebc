"""Our metrics beside scikit-learn's and torchmetrics': time, memory, and that they agree.

python -m benchmarks.metrics [--pixels 10000000] [--out RESULTS.md]

Both sides run in this process on the same data, one after the other, and the ratio is of their medians.
Memory is the peak resident size over that before, each side measured in a process of its own.
"""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import sklearn
import torch
import torchmetrics
from numpy.typing import NDArray
from sklearn.metrics import auc, average_precision_score, roc_curve

from benchmarks.machine import ThreadedOptions, describe_machine, measure_peak, table
from eval.metrics.closed_set import count_classes, mean_iou
from eval.metrics.curve import HALF_VALUES, Curve, count_half, pixel_metrics
from eval.store import ImageStore, score_arrays
from shards.program import run_program
from shards.settings import parse_options

Measured = TypeVar("Measured")
Pools = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Scores of anomalous and of normal pixels."""
Images = Iterator[NDArray[np.float32]]
Numbers = tuple[float, float, float]
"""AP, FPR95, AUROC."""


@dataclass(frozen=True, kw_only=True)
class MetricsOptions(ThreadedOptions):
    """Time exact pooled AP + FPR95 + AUROC, and the accumulation of mIoU."""

    pixels: int = 10_000_000
    """Scored pixels, drawn at random."""
    images: int = 50
    """Images that the pixels come from, where they are collected one by one."""
    anomalous: float = 0.1
    """Share of them that is anomalous; the five test sets lie between 0.002 and 0.14."""
    repeats: int = 3
    """Runs of which the median counts."""
    usual: bool = True
    """Run the usual script too, which takes 70 bytes of memory per pixel; False for a billion pixels."""


def main(arguments: Sequence[str]) -> None:
    """Measure, and print a report in Markdown."""
    options: MetricsOptions = parse_options(MetricsOptions, arguments, program="benchmarks.metrics")
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(options.threads)
    lines = [
        describe_machine(options.threads, (np, sklearn, torch, torchmetrics, cv2)),
        *(compare_pixel_metrics(options) if options.usual else []),
        *compare_half(options),
        *compare_stored(options),
        *compare_miou(options),
    ]
    options.publish("Metrics", lines)


def compare_pixel_metrics(options: MetricsOptions) -> list[str]:
    """Time ours against scikit-learn on distinct and on heavily tied scores."""
    rows = []
    for kind in ("distinct", "float16 ties"):
        pools = draw_pools(options, kind)
        reference = time_median(partial(sklearn_metrics, *pools), options.repeats)
        ours_s, metrics = time_median(partial(pixel_metrics, *pools), options.repeats)
        sides = (sklearn_metrics, pixel_metrics)
        memory = [run_apart(extra_memory, side, options, kind) / options.pixels for side in sides]
        beside = set_beside(reference, (ours_s, metrics[:3]))
        rows.append([kind, *beside, *(f"{value:.1f} B/pixel" for value in memory)])
    header = "scores | sklearn, s | ours, s | ratio | largest difference | extra memory, sklearn | ours"
    return [
        "",
        f"## AP + FPR95 + AUROC, exact, {options.pixels:,} float32 pixels, {options.anomalous:.1%} anomalous",
        *table(header, rows),
    ]


def compare_half(options: MetricsOptions) -> list[str]:
    """Time counts per float16 value against scikit-learn on the same half-precision scores."""
    pools = draw_pools(options, "float16 ties")
    halves = [part.astype(np.float16) for part in pools]

    def count() -> Numbers:
        return Curve.from_counts(HALF_VALUES, *map(count_half, halves)).metrics()[:3]

    ours = time_median(count, options.repeats)
    usual = time_median(partial(sklearn_metrics, *pools), options.repeats) if options.usual else None
    return [
        "",
        f"## The same of float16 scores, counted per value, {options.pixels:,} pixels",
        "",
        "State is two counts per value, 1 MB; it adds up over images and processes.",
        *table("sklearn, s | counts, s | ratio | largest difference", [set_beside(usual, ours)], 0),
    ]


def compare_stored(options: MetricsOptions) -> list[str]:
    """Time a store of score maps, sorted image by image, against scikit-learn on all pixels at once."""
    ours, ours_bytes = run_apart(measure_collection, collect_in_store, options)
    usual, memory = None, "not run"
    if options.usual:
        usual, usual_bytes = run_apart(measure_collection, collect_lists, options)
        memory = f"{usual_bytes / 1e6:,.0f} MB"
    row = [*set_beside(usual, ours), memory, f"{ours_bytes / 1e6:,.0f} MB"]
    header = "lists + sklearn, s | ours, s | ratio | largest difference | memory of lists | of ours"
    return [
        "",
        f"## float32 scores from {options.images} images, {options.pixels:,} pixels, collected one by one",
        "",
        "Collecting and computing. Memory is what the process itself holds (anonymous pages) beyond one",
        "image; our store lies on disk, 9 bytes per pixel.",
        *table(header, [row], 0),
    ]


def measure_collection(
    collect: Callable[[Images, NDArray[np.uint8], int], Numbers], options: MetricsOptions
) -> tuple[tuple[float, Numbers], int]:
    """Collect images and compute the metrics; return seconds and metrics, and bytes."""
    size = options.pixels // options.images
    rng = np.random.default_rng(0)
    target = np.zeros(size, dtype=np.uint8)
    target[: round(size * options.anomalous)] = 1
    drawn = rng.standard_normal((4, size), dtype=np.float32)
    drawn[:, target == 1] += np.float32(1.5)
    images = (drawn[i % 4] * np.float32(1 + i / 1000) for i in range(options.images))
    found: list[tuple[float, Numbers]] = []
    run = partial(collect, images, target, options.images)
    peak = measure_peak(lambda: found.append(time_median(run, 1)), kind="RssAnon")
    return found[0], peak


def collect_lists(images: Images, target: NDArray[np.uint8], num_images: int) -> Numbers:
    """Keep all scores, and call scikit-learn."""
    scores, truth = np.concatenate(list(images)), np.tile(target, num_images)
    return sklearn_metrics(scores[truth == 1], scores[truth == 0])


def collect_in_store(images: Images, target: NDArray[np.uint8], num_images: int) -> Numbers:
    """Write the maps of each image to a store, and let that measure."""
    with tempfile.TemporaryDirectory() as folder:
        store = ImageStore(Path(folder), [{}] * num_images)
        for i, scores in enumerate(images):
            store.write(i, score_arrays({"score": scores[None]}, target[None]))
        return store.measure("score")[:3]


def compare_miou(options: MetricsOptions) -> list[str]:
    """Time counting one 2048 x 1024 frame against torchmetrics' JaccardIndex."""
    rng = np.random.default_rng(1)
    label = np.kron(rng.integers(0, 19, (16, 32)), np.ones((64, 64))).astype(np.uint8)
    wrong = rng.random(label.shape) < 0.1
    prediction = np.where(wrong, rng.integers(0, 19, label.shape), label).astype(np.uint8)
    label[:40] = 255
    metric = torchmetrics.JaccardIndex(
        task="multiclass", num_classes=19, ignore_index=255, validate_args=False
    )

    def update() -> None:
        metric.update(*(torch.from_numpy(each)[None].long() for each in (prediction, label)))

    reference_s, _ = time_median(update, 5 * options.repeats)
    ours_s, counts = time_median(partial(count_classes, label, prediction), 5 * options.repeats)
    difference = f"{abs(mean_iou(counts) - metric.compute().item()):.1e}"
    row = [f"{1e3 * reference_s:.1f}", f"{1e3 * ours_s:.2f}", f"{reference_s / ours_s:.1f}", difference]
    header = "torchmetrics, ms | ours, ms | ratio | difference"
    return ["", "## mIoU, one frame of 2048 x 1024 uint8 labels", *table(header, [row], 0)]


def draw_pools(options: MetricsOptions, kind: str) -> Pools:
    """Draw scores of anomalous and normal pixels; `float16 ties` rounds them to half precision."""
    rng = np.random.default_rng(0)
    count = round(options.pixels * options.anomalous)
    positives = rng.standard_normal(count, dtype=np.float32) + np.float32(1.5)
    negatives = rng.standard_normal(options.pixels - count, dtype=np.float32)
    if kind == "float16 ties":
        positives, negatives = (part.astype(np.float16).astype(np.float32) for part in (positives, negatives))
    return positives, negatives


def sklearn_metrics(positives: NDArray[np.float32], negatives: NDArray[np.float32]) -> Numbers:
    """Compute the three metrics as the usual evaluation script does."""
    scores = np.concatenate([positives, negatives])
    truth = np.repeat(np.array([1, 0], dtype=np.uint8), [positives.size, negatives.size])
    ap = average_precision_score(truth, scores)
    fpr, tpr, _ = roc_curve(truth, scores, drop_intermediate=False)
    return float(ap), float(fpr[np.argmax(tpr >= 0.95)]), float(auc(fpr, tpr))


def time_median(run: Callable[[], Measured], repeats: int) -> tuple[float, Measured]:
    """Return the median time in seconds, and what the runs returned."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        result = run()
        times.append(time.perf_counter() - begin)
    return statistics.median(times), result


def set_beside(usual: tuple[float, Numbers] | None, ours: tuple[float, Numbers]) -> list[str]:
    """Return seconds of the usual script and of ours, their ratio, and the largest difference."""
    if usual is None:
        return ["not run", f"{ours[0]:.3g}", "not run", "not run"]
    difference = max(abs(a - b) for a, b in zip(ours[1], usual[1], strict=True))
    return [f"{usual[0]:.3g}", f"{ours[0]:.3g}", f"{usual[0] / ours[0]:.3g}", f"{difference:.1e}"]


def run_apart(run: Callable[..., Measured], *arguments: object) -> Measured:
    """Run in a fresh process, whose memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(run, arguments)


def extra_memory(run: Callable[..., object], options: MetricsOptions, kind: str) -> int:
    """Return the bytes that one side needs beyond the two pools."""
    pools = draw_pools(options, kind)
    run(pools[0][:1000], pools[1][:1000])  # what is loaded lazily does not count
    return measure_peak(partial(run, *pools))


if __name__ == "__main__":
    run_program(main)
