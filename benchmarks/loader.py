"""Our loader beside one of the usual kind: one worker, decode + augment + paste on half the scenes.

python -m benchmarks.loader [--real FOLDER] [--upstream FOLDER] [--out RESULTS.md]

The sides take turns on one thread each, so that whatever else the machine does slows all of them. Upstream's
own code runs in another process (`upstream_loader.py`) that waits when others are timed; it pastes nothing.
"""

from __future__ import annotations

import contextlib
import io
import logging
import random
import statistics
import subprocess
import sys
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
import psutil
import torch
import torchvision

from benchmarks.frames import make_bank, make_scenes, write_frames
from benchmarks.machine import describe_machine, publish
from benchmarks.usual_loader import UsualLoader
from outlier_paste.config import PasteConfig
from outlier_paste.paste import OutlierPaste, build_paste
from shards.augment import AugmentConfig
from shards.batch import Batch
from shards.errors import InputError
from shards.manifest import read_manifest
from shards.settings import parse_options, run_program
from shards.stream import StreamConfig, build_stream, keep_freed_memory

CROP = 1024
ENCODINGS = ("png", "jpeg", "tiles")


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions:
    """Time loading scenes of 2048 x 1024 into crops of 1024 x 1024."""

    real: Path | None = None
    """Folder with `cityscapes/` and `coco/` in the official layouts, instead of drawn frames."""
    upstream: Path | None = None
    """Folder with a copy of tue-mps/eomt, to time its own data set and transforms as well."""
    scaling: tuple[int, ...] = (1, 2)
    """Numbers of loader workers for the second table; empty leaves it out."""
    scenes: int = 160
    """Scenes that are timed for each of these numbers."""
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
    keep_freed_memory()  # as our workers do; the usual side in this process gains from it, too
    random.seed(0)
    logging.getLogger().setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root = options.real or folder / "frames"
        if options.real is None:
            write_frames(root, num_frames=8, num_photos=24)
        prepare_both(root, folder)
        lines = ["# Loader", *describe(options)]
        lines += compare_loaders(options, root, folder)
        lines += scale_workers(options, folder)
    publish(lines, options.out)


def prepare_both(root: Path, folder: Path) -> None:
    """Make the shards of our side in every encoding, and the zip files of the other sides."""
    for encoding in ENCODINGS:
        make_scenes(root, folder / encoding, encoding)
    make_bank(root, folder / "cutouts")
    for name, half in (
        ("frames", ""),
        ("leftImg8bit_trainvaltest", "leftImg8bit"),
        ("gtFine_trainvaltest", "gtFine"),
    ):
        with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
            for path in sorted((root / "cityscapes" / half).rglob("train/*/*.png")):
                archive.write(path, str(path.relative_to(root / "cityscapes" if half else root)))


def compare_loaders(options: BenchmarkOptions, root: Path, folder: Path) -> list[str]:
    """Time whole scenes, from the file to the tensor."""
    usual = open_usual(root, folder, probability=0.5)
    numbers = count()
    sides: dict[str, Callable[[], object]] = {"usual": lambda: usual.load(next(numbers) % len(usual.images))}
    if options.upstream is not None:
        sides["upstream, without objects"] = open_upstream(options.upstream, folder)
    baselines = tuple(sides)
    for encoding in ENCODINGS:
        sides[f"ours, {encoding} frames"] = open_ours(folder, encoding, AugmentConfig())
        upstream = AugmentConfig(recipe="upstream")
        sides[f"ours, {encoding} frames, upstream's recipe"] = open_ours(folder, encoding, upstream)
    repeats = {name: 1 if name in baselines else options.ours_per_round for name in sides}
    times = time_in_turns(sides, repeats, options.rounds)
    ratios = " | ".join(f"{name.split(',')[0]} / side" for name in baselines)
    lines = ["", "## Whole scenes, objects on half of them", "", f"| side | ms/image | images/s | {ratios} |"]
    lines.append("|---|---:|---:|" + "---:|" * len(baselines))
    for name, seconds in times.items():
        times_faster = " | ".join(f"{times[baseline] / seconds:.1f}" for baseline in baselines)
        lines.append(f"| {name} | {1e3 * seconds:.1f} | {1 / seconds:.1f} | {times_faster} |")
    return [
        *lines,
        "",
        *(f"- {encoding}: {size_of(folder, encoding):.2f} MB/frame" for encoding in ENCODINGS),
    ]


def size_of(folder: Path, encoding: str) -> float:
    """Return the mean size of a sample in MB, label and tar headers included."""
    manifest = read_manifest(folder / encoding)
    return sum(entry.num_bytes for entry in manifest.shards) / manifest.num_samples / 1e6


def scale_workers(options: BenchmarkOptions, folder: Path) -> list[str]:
    """Time the stream with several loader workers, and look at their memory."""
    if not options.scaling:
        return []
    lines = ["", f"## Workers, tiles, batches of 2, {options.scenes} scenes", ""]
    lines += [
        "| workers | images/s | memory of a worker at most, MB | of it not shared, MB |",
        "|---:|---:|---:|---:|",
    ]
    for workers in options.scaling:
        config = StreamConfig(
            shards=(str(folder / "tiles"),), crop=(CROP, CROP), batch_size=2, workers=workers
        )
        paste = open_paste(folder, probability=0.5, cache_mb=PasteConfig().cache_mb)
        batches = iter(build_stream(config, seed=0, rank=0, world_size=1, transform=paste))
        for _ in range(2 * workers + 2):  # started, and what was made ahead is used up
            next(batches)
        resident, private = [0], [0]
        began = time.perf_counter()
        for _ in range(options.scenes // 2):
            next(batches)
        seconds = time.perf_counter() - began
        for child in psutil.Process().children():
            if child.cmdline() == psutil.Process().cmdline():  # a forked worker, not upstream's loader
                memory = child.memory_full_info()
                resident.append(memory.rss)
                private.append(memory.uss)
        batches.close()  # type: ignore[attr-defined]
        megabytes = f"{max(resident) / 1e6:.0f} | {max(private) / 1e6:.0f}"
        lines.append(f"| {workers} | {options.scenes / seconds:.1f} | {megabytes} |")
    return lines


def open_upstream(upstream: Path, folder: Path) -> Callable[[], float]:
    """Start upstream's own loader, and return what makes it load one scene and tells the seconds."""
    script = Path(__file__).with_name("upstream_loader.py")
    process = subprocess.Popen(
        [sys.executable, str(script), str(upstream.resolve()), str(folder), str(CROP)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=folder,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    if process.stdout.readline() != "ready\n":
        raise InputError(
            f"--upstream {upstream}: its loader does not start; a copy of tue-mps/eomt is needed"
        )
    ask, answer = process.stdin, process.stdout

    def load() -> float:
        ask.write("1\n")
        ask.flush()
        return float(answer.readline())

    return load


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
    """Return the mean processor seconds per call of each side.

    Processor time, not the clock's, so that others on the machine disturb less; a side that runs in another
    process returns its own. The mean, because it is what a worker delivers: calls with and without object,
    jitter or mirroring cost different amounts. A first round is not counted.
    """
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + 1):
        for name, run in sides.items():
            for _ in range(repeats[name]):
                began = time.process_time()
                told = run()
                seconds = told if isinstance(told, float) else time.process_time() - began
                if turn:
                    times[name].append(seconds)
    return {name: statistics.mean(values) for name, values in times.items()}


def describe(options: BenchmarkOptions) -> list[str]:
    """Return machine and data as Markdown."""
    frames = "drawn" if options.real is None else "real"
    machine = describe_machine(1, (np, cv2, torch, torchvision))
    return [
        "",
        f"{machine}; processor time; {frames} frames of {2 * CROP} x {CROP}, crops of {CROP} x {CROP}",
    ]


if __name__ == "__main__":
    run_program(main)
