"""Our loader beside one of the usual kind: one worker, decode + augment + paste on half the scenes.

python -m benchmarks.loader [--real FOLDER] [--out RESULTS.md]

Both sides run in this process on one thread and take turns, so that whatever else the machine does slows
both.
"""

from __future__ import annotations

import contextlib
import datetime
import io
import logging
import os
import platform
import random
import statistics
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path

import cv2
import numpy as np
import torch
import torchvision

from benchmarks.frames import write_frames
from benchmarks.usual_loader import UsualLoader
from jobs.command_line import parse_options, run_program
from jobs.prepare import main as prepare
from outlier_paste.config import PasteConfig
from outlier_paste.paste import OutlierPaste, build_paste
from shards.augment import AugmentConfig
from shards.batch import Batch
from shards.schema import Sample
from shards.stream import StreamConfig, build_stream

CROP = 1024
UPSTREAM_SCALE = (0.25, 1.0)
"""What the usual "0.5 to 2.0" amounts to on a Cityscapes frame."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions:
    """Time loading scenes of 2048 x 1024 into crops of 1024 x 1024."""

    real: Path | None = None
    """Folder with `cityscapes/` and `coco/` in the official layouts, instead of drawn frames."""
    rounds: int = 12
    """Turns; in each, the usual loader makes one scene and each of ours makes `ours_per_round`."""
    ours_per_round: int = 8
    """Scenes that each of our sides makes in a turn."""
    out: Path | None = None
    """File to write the report to as well."""


def main(arguments: Sequence[str]) -> None:
    """Measure, and print a report in Markdown."""
    options: BenchmarkOptions = parse_options(BenchmarkOptions, arguments, program="benchmarks.loader")
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    random.seed(0)
    logging.getLogger().setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root = options.real or folder / "frames"
        if options.real is None:
            write_frames(root, num_frames=8, num_photos=24)
        prepare_both(root, folder)
        lines = describe_machine(options)
        lines += compare_loaders(options, root, folder)
        lines += compare_paste(options, root, folder)
    report = "\n".join(lines) + "\n"
    print(report, end="")
    if options.out is not None:
        options.out.write_text(report, encoding="utf-8")


def prepare_both(root: Path, folder: Path) -> None:
    """Make the shards of our side, as JPEG and as the lossless original, and the zip file of the other."""
    for encoding in ("jpeg", "png"):
        options = ["--root", str(root / "cityscapes"), "--out", str(folder / encoding), "--splits", "train"]
        prepare(["cityscapes", *options, "--image_encoding", encoding, "--workers", "1"])
    sources = ["--images", str(root / "coco/train2017"), "--annotations", str(root / "coco/annotations")]
    everything = ["--excluded_categories", "--min_side", "0"]
    prepare(["coco", *sources, "--out", str(folder / "cutouts"), *everything, "--workers", "1"])
    with zipfile.ZipFile(folder / "frames.zip", "w") as archive:
        for path in sorted((root / "cityscapes").rglob("train/*/*.png")):
            archive.write(path, str(path.relative_to(root)))


def compare_loaders(options: BenchmarkOptions, root: Path, folder: Path) -> list[str]:
    """Time whole scenes, from the file to the tensor."""
    usual = open_usual(root, folder, probability=0.5)
    numbers = count()
    sides: dict[str, Callable[[], object]] = {"usual": lambda: usual.load(next(numbers) % len(usual.images))}
    for encoding in ("png", "jpeg"):
        sides[f"ours, {encoding} frames"] = open_ours(folder, encoding, AugmentConfig())
        same_scales = AugmentConfig(scale=UPSTREAM_SCALE)
        sides[f"ours, {encoding} frames, the usual scales"] = open_ours(folder, encoding, same_scales)
    repeats = {name: 1 if name == "usual" else options.ours_per_round for name in sides}
    times = time_in_turns(sides, repeats, options.rounds)
    lines = ["", "## Whole scenes, objects on half of them", "", "| side | ms/image | images/s | ratio |"]
    lines.append("|---|---:|---:|---:|")
    for name, seconds in times.items():
        lines.append(f"| {name} | {1e3 * seconds:.1f} | {1 / seconds:.1f} | {times['usual'] / seconds:.1f} |")
    return lines


def compare_paste(options: BenchmarkOptions, root: Path, folder: Path) -> list[str]:
    """Time pasting one object onto a decoded scene: onto the frame there, onto the crop here."""
    usual = open_usual(root, folder, probability=1.0)
    picture, ids = np.zeros((CROP, 2 * CROP, 3), np.uint8), np.zeros((CROP, 2 * CROP), np.uint8)
    crop = Sample(
        key="crop", image=np.ascontiguousarray(picture[:, :CROP]), label=np.zeros((CROP, CROP), np.uint8)
    )
    rng = np.random.default_rng(0)
    sides: dict[str, Callable[[], object]] = {"usual": lambda: usual.paste(picture, ids)}
    for name, cache_mb in (("ours, from shards", 0), ("ours, from memory", 256)):
        sides[name] = partial(open_paste(folder, probability=1.0, cache_mb=cache_mb), crop, rng)
    times = time_in_turns(sides, dict.fromkeys(sides, 8), options.rounds)
    lines = ["", "## Pasting one object", "", "| side | ms | ratio |", "|---|---:|---:|"]
    for name, seconds in times.items():
        lines.append(f"| {name} | {1e3 * seconds:.2f} | {times['usual'] / seconds:.1f} |")
    return lines


def open_usual(root: Path, folder: Path, probability: float) -> UsualLoader:
    """Open the other side; pycocotools prints while it reads."""
    with contextlib.redirect_stdout(io.StringIO()):
        return UsualLoader(folder / "frames.zip", root / "coco", crop=CROP, probability=probability)


def open_ours(folder: Path, encoding: str, augment: AugmentConfig) -> Callable[[], Batch]:
    """Return what makes our next scene, as a batch of one."""
    config = StreamConfig(
        shards=(str(folder / encoding),), crop=(CROP, CROP), batch_size=1, workers=0, augment=augment
    )
    paste = open_paste(folder, probability=0.5, cache_mb=PasteConfig().cache_mb)
    return partial(next, iter(build_stream(config, seed=0, rank=0, world_size=1, transform=paste)))


def open_paste(folder: Path, probability: float, cache_mb: int) -> OutlierPaste:
    """Paste one object per chosen scene, as the other side does."""
    config = PasteConfig(
        bank=str(folder / "cutouts"), probability=probability, max_objects=1, min_pixels=0, cache_mb=cache_mb
    )
    paste = build_paste(config)
    assert paste is not None
    return paste


def time_in_turns(
    sides: Mapping[str, Callable[[], object]], repeats: Mapping[str, int], rounds: int
) -> dict[str, float]:
    """Return the mean seconds per call of each side.

    The mean, because it is what a worker delivers: calls with and without object, jitter or mirroring cost
    different amounts. A first round is not counted.
    """
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + 1):
        for name, run in sides.items():
            for _ in range(repeats[name]):
                began = time.perf_counter()
                run()
                if turn:
                    times[name].append(time.perf_counter() - began)
    return {name: statistics.mean(values) for name, values in times.items()}


def describe_machine(options: BenchmarkOptions) -> list[str]:
    """Return date, processor, data and versions as Markdown."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
    versions = {m.__name__: m.__version__ for m in (np, cv2, torch, torchvision)}
    frames = "drawn" if options.real is None else "real"
    return [
        "# Loader",
        "",
        f"{datetime.date.today()}; {names[0] if names else platform.processor()}, {os.cpu_count()} cores, "
        f"one thread used; {frames} frames of {2 * CROP} x {CROP}, crops of {CROP} x {CROP}; Python "
        f"{platform.python_version()}, {', '.join(f'{k} {v}' for k, v in versions.items())}",
    ]


if __name__ == "__main__":
    run_program(main)
