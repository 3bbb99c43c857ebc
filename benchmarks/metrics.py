"""Our metrics beside scikit-learn's and torchmetrics': time, memory, and that they agree.

python -m benchmarks.metrics [--pixels 10000000] [--out RESULTS.md]

Both sides run in this process on the same data, one after the other, and the ratio is of their medians.
Memory is the peak resident size over that before, each side measured in a process of its own.
"""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
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

from benchmarks.machine import describe_machine, measure_peak
from eval.metrics.closed_set import ConfusionMatrix
from eval.metrics.curve import count_half, half_curve, pixel_metrics
from eval.store import ImageStore, score_arrays
from shards.settings import parse_options, run_program

Result = TypeVar("Result")
Pools = tuple[NDArray[np.float32], NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions:
    """Time exact pooled AP + FPR95 + AUROC, and the accumulation of mIoU."""

    pixels: int = 10_000_000
    """Scored pixels, drawn at random."""
    images: int = 50
    """Images that the pixels come from, where they are collected one by one."""
    anomalous: float = 0.1
    """Share of them that is anomalous; the five test sets lie between 0.002 and 0.14."""
    repeats: int = 3
    """Runs of which the median counts."""
    threads: int = 1
    """Threads that PyTorch and OpenCV may use; NumPy's sort uses one."""
    usual: bool = True
    """Run the usual script too, which takes 70 bytes of memory per pixel; False for a billion pixels."""
    out: Path | None = None
    """File to write the report to as well."""


def main(arguments: Sequence[str]) -> None:
    """Measure, and print a report in Markdown."""
    options: BenchmarkOptions = parse_options(BenchmarkOptions, arguments, program="benchmarks.metrics")
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(options.threads)
    machine = describe_machine(options.threads, (np, sklearn, torch, torchmetrics, cv2))
    lines = [
        "# Metrics",
        "",
        machine,
        *(compare_pixel_metrics(options) if options.usual else []),
        *compare_half(options),
        *compare_pool(options),
        *compare_miou(options),
    ]
    report = "\n".join(lines) + "\n"
    print(report, end="")
    if options.out is not None:
        options.out.write_text(report, encoding="utf-8")


def compare_pixel_metrics(options: BenchmarkOptions) -> list[str]:
    """Time ours against scikit-learn on distinct and on heavily tied scores."""
    lines = [
        "",
        f"## AP + FPR95 + AUROC, exact, {options.pixels:,} float32 pixels, {options.anomalous:.1%} anomalous",
        "",
        "| scores | sklearn, s | ours, s | ratio | largest difference | extra memory, sklearn | ours |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for kind in ("distinct", "float16 ties"):
        pools = draw_pools(options, kind)
        reference_s, expected = time_median(partial(sklearn_metrics, *pools), options.repeats)
        ours_s, ours = time_median(partial(pixel_metrics, *pools), options.repeats)
        difference = max(abs(a - b) for a, b in zip(ours[:3], expected, strict=True))
        memory = [measure_extra_memory(side, options, kind) for side in ("sklearn", "ours")]
        lines.append(
            f"| {kind} | {reference_s:.2f} | {ours_s:.3f} | {reference_s / ours_s:.1f} | {difference:.1e} | "
            f"{memory[0] / options.pixels:.1f} B/pixel | {memory[1] / options.pixels:.1f} B/pixel |"
        )
    return lines


def compare_half(options: BenchmarkOptions) -> list[str]:
    """Time counts per float16 value against scikit-learn on the same half-precision scores."""
    positives, negatives = (part.astype(np.float16) for part in draw_pools(options, "float16 ties"))

    def count() -> tuple[float, float, float]:
        found = half_curve(count_half(positives), count_half(negatives)).metrics()
        return found.ap, found.fpr95, found.auroc

    ours_s, ours = time_median(count, options.repeats)
    texts = ["not run"] * 3
    if options.usual:
        pools = positives.astype(np.float32), negatives.astype(np.float32)
        reference_s, expected = time_median(partial(sklearn_metrics, *pools), options.repeats)
        difference = max(abs(a - b) for a, b in zip(ours, expected, strict=True))
        texts = [f"{reference_s:.2f}", f"{reference_s / ours_s:.0f}", f"{difference:.1e}"]
    return [
        "",
        f"## The same of float16 scores, counted per value, {options.pixels:,} pixels",
        "",
        "State is two counts per value, 1 MB; it adds up over images and processes.",
        "",
        "| sklearn, s | counts, s | ratio | largest difference |",
        "|---:|---:|---:|---:|",
        f"| {texts[0]} | {ours_s:.4f} | {texts[1]} | {texts[2]} |",
    ]


def compare_pool(options: BenchmarkOptions) -> list[str]:
    """Time a store on disk, filled image by image, against scikit-learn on all pixels at once."""
    rows = []
    for side in ("sklearn", "ours") if options.usual else ("ours",):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            rows.append(pool.apply(_run_pooled, (side, options)))
    ours_s, ours_bytes, ours = rows[-1]
    texts = ["not run"] * 4
    if options.usual:
        reference_s, reference_bytes, expected = rows[0]
        difference = max(abs(a - b) for a, b in zip(ours, expected, strict=True))
        texts = [f"{reference_s:.1f}", f"{reference_s / ours_s:.1f}", f"{difference:.1e}"]
        texts.append(f"{reference_bytes / 1e6:,.0f} MB")
    return [
        "",
        f"## float32 scores from {options.images} images, {options.pixels:,} pixels, collected one by one",
        "",
        "Collecting and computing. Memory is what the process itself holds (anonymous pages) beyond one",
        "image; the store's files lie on disk, 9 bytes per pixel.",
        "",
        "| lists + sklearn, s | ImageStore, s | ratio | largest difference | memory of lists | of store |",
        "|---:|---:|---:|---:|---:|---:|",
        f"| {texts[0]} | {ours_s:.2f} | {texts[1]} | {texts[2]} | {texts[3]} | {ours_bytes / 1e6:,.0f} MB |",
    ]


def _run_pooled(side: str, options: BenchmarkOptions) -> tuple[float, int, tuple[float, float, float]]:
    """Collect images and compute the metrics; return seconds, bytes and metrics."""
    size = options.pixels // options.images
    rng = np.random.default_rng(0)
    target = np.zeros(size, dtype=np.uint8)
    target[: round(size * options.anomalous)] = 1
    drawn = rng.standard_normal((4, size), dtype=np.float32)
    drawn[:, target == 1] += np.float32(1.5)
    before = peak = _anonymous_bytes()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, _anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    begin = time.perf_counter()
    if side == "sklearn":
        images = [drawn[i % 4] * np.float32(1 + i / 1000) for i in range(options.images)]
        scores, truth = np.concatenate(images), np.tile(target, options.images)
        found = sklearn_metrics(scores[truth == 1], scores[truth == 0])
    else:
        with tempfile.TemporaryDirectory() as folder:
            store = ImageStore(Path(folder), [{}] * options.images)
            for i in range(options.images):
                scores = (drawn[i % 4] * np.float32(1 + i / 1000))[None]
                store.write(i, score_arrays({"score": scores}, target[None]))
            metrics = store.measure("score")
            found = metrics.ap, metrics.fpr95, metrics.auroc
    seconds = time.perf_counter() - begin
    done.set()
    watcher.join()
    return seconds, peak - before, found


def _anonymous_bytes() -> int:
    """Memory of this process alone; pages of a mapped file are the system's to drop. Linux only."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return 1024 * int(line.split()[1])
    raise RuntimeError("no RssAnon in /proc/self/status")


def compare_miou(options: BenchmarkOptions) -> list[str]:
    """Time counting one 2048 x 1024 frame against torchmetrics' JaccardIndex."""
    rng = np.random.default_rng(1)
    label = np.kron(rng.integers(0, 19, (16, 32)), np.ones((64, 64))).astype(np.uint8)
    prediction = np.where(rng.random(label.shape) < 0.1, rng.integers(0, 19, label.shape), label).astype(
        np.uint8
    )
    label[:40] = 255
    metric = torchmetrics.JaccardIndex(
        task="multiclass", num_classes=19, ignore_index=255, validate_args=False
    )
    matrix = ConfusionMatrix()
    reference_s, _ = time_median(
        lambda: metric.update(
            torch.from_numpy(prediction)[None].long(), torch.from_numpy(label)[None].long()
        ),
        5 * options.repeats,
    )
    ours_s, _ = time_median(lambda: matrix.add(label, prediction), 5 * options.repeats)
    difference = abs(matrix.mean_iou() - metric.compute().item())
    return [
        "",
        "## mIoU, one frame of 2048 x 1024 uint8 labels",
        "",
        "| torchmetrics, ms | ours, ms | ratio | difference |",
        "|---:|---:|---:|---:|",
        f"| {1e3 * reference_s:.1f} | {1e3 * ours_s:.2f} | {reference_s / ours_s:.1f} | {difference:.1e} |",
    ]


def draw_pools(options: BenchmarkOptions, kind: str) -> Pools:
    """Draw scores of anomalous and normal pixels; `float16 ties` rounds them to half precision."""
    rng = np.random.default_rng(0)
    count = round(options.pixels * options.anomalous)
    positives = rng.standard_normal(count, dtype=np.float32) + np.float32(1.5)
    negatives = rng.standard_normal(options.pixels - count, dtype=np.float32)
    if kind == "float16 ties":
        return positives.astype(np.float16).astype(np.float32), negatives.astype(np.float16).astype(
            np.float32
        )
    return positives, negatives


def sklearn_metrics(
    positives: NDArray[np.float32], negatives: NDArray[np.float32]
) -> tuple[float, float, float]:
    """Compute the three metrics as the usual evaluation script does."""
    scores = np.concatenate([positives, negatives])
    truth = np.repeat(np.array([1, 0], dtype=np.uint8), [positives.size, negatives.size])
    ap = average_precision_score(truth, scores)
    fpr, tpr, _ = roc_curve(truth, scores, drop_intermediate=False)
    return float(ap), float(fpr[np.argmax(tpr >= 0.95)]), float(auc(fpr, tpr))


def time_median(run: Callable[[], Result], repeats: int) -> tuple[float, Result]:
    """Return the median time in seconds, and what the runs returned."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        result = run()
        times.append(time.perf_counter() - begin)
    return statistics.median(times), result


def measure_extra_memory(side: str, options: BenchmarkOptions, kind: str) -> int:
    """Return the bytes that one side needs beyond the two pools, in a fresh process."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_extra_memory, (side, options, kind))


def _extra_memory(side: str, options: BenchmarkOptions, kind: str) -> int:
    pools = draw_pools(options, kind)
    run = sklearn_metrics if side == "sklearn" else pixel_metrics
    run(pools[0][:1000], pools[1][:1000])  # what is loaded lazily does not count
    return measure_peak(partial(run, *pools))


if __name__ == "__main__":
    run_program(main)
