"""Our loader beside one of the usual kind: one worker, decode + augment + paste on half the scenes.

python -m benchmarks.loader [--real FOLDER] [--upstream FOLDER] [--out RESULTS.md]

The sides take turns on one thread each. Upstream's own code runs in another process (`upstream.py`) that
waits when others are timed; it pastes nothing.
"""

from __future__ import annotations

import contextlib
import io
import logging
import random
import subprocess
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
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
from benchmarks.machine import ReportOptions, command_upstream, describe_machine, table, time_in_turns
from benchmarks.usual_loader import UsualLoader
from outlier_paste.config import PasteConfig
from outlier_paste.paste import build_paste
from shards.batch import Batch
from shards.config import AugmentConfig, StreamConfig
from shards.errors import InputError
from shards.manifest import read_manifest
from shards.program import run_program
from shards.settings import parse_options
from shards.stream import build_stream

CROP = 1024
ENCODINGS = ("png", "jpeg", "tiles")


@dataclass(frozen=True, kw_only=True)
class FrameOptions(ReportOptions):
    """Measure on frames of 2048 x 1024."""

    real: Path | None = None
    """Folder with `cityscapes/` and `coco/` in the official layouts, instead of drawn frames."""
    rounds: int = 12
    """Turns of every side; one before them is not counted."""


@dataclass(frozen=True, kw_only=True)
class LoaderOptions(FrameOptions):
    """Time loading scenes of 2048 x 1024 into crops of 1024 x 1024."""

    upstream: Path | None = None
    """Folder with a copy of tue-mps/eomt, to time its own data set and transforms as well."""
    scaling: tuple[int, ...] = (1, 2)
    """Numbers of loader workers for the second table; empty leaves it out."""
    scenes: int = 160
    """Scenes that are timed for each of these numbers."""
    ours_per_round: int = 8
    """Scenes that each of our sides makes in a turn; the others make one."""


def main(arguments: Sequence[str]) -> None:
    """Measure, and print a report in Markdown."""
    options: LoaderOptions = parse_options(LoaderOptions, arguments, program="benchmarks.loader")
    with open_frames(options) as (root, folder):
        lines = [describe(options), *compare_loaders(options, root, folder)]
        if options.scaling:
            lines += ["", f"## Workers, tiles, batches of 2, {options.scenes} scenes"]
            header = "workers | images/s | memory of a worker at most, MB | of it not shared, MB"
            lines += table(header, [time_workers(workers, options, folder) for workers in options.scaling])
    options.publish("Loader", lines)


@contextlib.contextmanager
def open_frames(options: FrameOptions) -> Iterator[tuple[Path, Path]]:
    """Go down to one thread, and prepare the frames for all sides.

    Yields the folder of the official layouts, and one with our shards in every encoding, our bank of objects
    and the zip files of the other sides.
    """
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    random.seed(0)
    logging.getLogger().setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root = options.real or folder / "frames"
        if options.real is None:
            write_frames(root, num_frames=8, num_photos=24)
        for encoding in ENCODINGS:
            make_scenes(root, folder / encoding, encoding)
        make_bank(root, folder / "cutouts")
        for half in ("leftImg8bit", "gtFine"):
            with zipfile.ZipFile(folder / f"{half}_trainvaltest.zip", "w") as archive:
                for path in sorted((root / "cityscapes" / half).rglob("train/*/*.png")):
                    archive.write(path, str(path.relative_to(root / "cityscapes")))
        yield root, folder


def describe(options: FrameOptions) -> str:
    """Return machine and data as Markdown."""
    machine = describe_machine(1, (np, cv2, torch, torchvision))
    kind = "drawn" if options.real is None else "real"
    return f"{machine}; processor time; {kind} frames of {2 * CROP} x {CROP}, crops of {CROP} x {CROP}"


def compare_loaders(options: LoaderOptions, root: Path, folder: Path) -> list[str]:
    """Time whole scenes, from the file to the tensor."""
    usual = open_usual(root, folder, probability=0.5)
    numbers = count()
    sides: dict[str, Callable[[], object]] = {"usual": lambda: usual.load(next(numbers) % len(usual.images))}
    if options.upstream is not None:
        sides["upstream, without objects"] = open_upstream(options.upstream, folder)
    baselines, sizes = tuple(sides), []
    for encoding in ENCODINGS:
        sides[f"ours, {encoding} frames"] = open_ours(folder, encoding, AugmentConfig())
        upstream = AugmentConfig(recipe="upstream")
        sides[f"ours, {encoding} frames, upstream's recipe"] = open_ours(folder, encoding, upstream)
        manifest = read_manifest(folder / encoding)  # whose bytes include label and tar headers
        mean = sum(entry.num_bytes for entry in manifest.shards) / manifest.num_samples
        sizes.append(f"- {encoding}: {mean / 1e6:.2f} MB/frame")
    calls = {name: 1 if name in baselines else options.ours_per_round for name in sides}
    times = time_in_turns(sides, options.rounds, calls)
    header = "side | ms/image | images/s"
    header += "".join(f" | {name.split(',')[0]} / side" for name in baselines)
    rows = [
        [name, f"{1e3 * seconds:.1f}", f"{1 / seconds:.1f}"]
        + [f"{times[baseline] / seconds:.1f}" for baseline in baselines]
        for name, seconds in times.items()
    ]
    return ["", "## Whole scenes, objects on half of them", *table(header, rows), "", *sizes]


def time_workers(workers: int, options: LoaderOptions, folder: Path) -> list[str]:
    """Time the stream with several loader workers, and look at their memory; return a row of the table."""
    batches = open_stream(folder, "tiles", AugmentConfig(), batch_size=2, workers=workers)
    for _ in range(2 * workers + 2):  # started, and what was made ahead is used up
        next(batches)
    began = time.perf_counter()
    for _ in range(options.scenes // 2):
        next(batches)
    seconds = time.perf_counter() - began
    ours = psutil.Process()
    children = [child for child in ours.children() if child.cmdline() == ours.cmdline()]  # not upstream's
    memory = [child.memory_full_info() for child in children]
    batches.close()  # type: ignore[attr-defined]
    resident, private = (max((getattr(m, kind) for m in memory), default=0) for kind in ("rss", "uss"))
    rate = f"{options.scenes / seconds:.1f}"
    return [str(workers), rate, f"{resident / 1e6:.0f}", f"{private / 1e6:.0f}"]


def open_upstream(upstream: Path, folder: Path) -> Callable[[], float]:
    """Start upstream's own loader, and return what makes it load one scene and returns the seconds."""
    command = command_upstream("load", upstream, folder, 1, {"crop": CROP})
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder)
    ask, answer = process.stdin, process.stdout
    assert ask is not None
    assert answer is not None
    if answer.readline() != "ready\n":
        raise InputError(
            f"--upstream {upstream}: its loader does not start; a copy of tue-mps/eomt is needed"
        )

    def load() -> float:
        ask.write("1\n")
        ask.flush()
        return float(answer.readline())

    return load


def open_usual(root: Path, folder: Path, probability: float) -> UsualLoader:
    """Open the other side; pycocotools prints while it reads."""
    with contextlib.redirect_stdout(io.StringIO()):
        return UsualLoader(folder, root / "coco", crop=CROP, probability=probability)


def open_ours(folder: Path, encoding: str, augment: AugmentConfig) -> Callable[[], Batch]:
    """Return what makes our next scene, as a batch of one."""
    return partial(next, open_stream(folder, encoding, augment, batch_size=1, workers=0))


def open_stream(
    folder: Path, encoding: str, augment: AugmentConfig, batch_size: int, workers: int
) -> Iterator[Batch]:
    """Open our stream; one object is pasted on half of the scenes, as the other side does."""
    objects = PasteConfig(bank=str(folder / "cutouts"), probability=0.5, max_objects=1, min_pixels=0)
    shards = (str(folder / encoding),)
    config = StreamConfig(
        shards=shards, crop=(CROP, CROP), batch_size=batch_size, workers=workers, augment=augment
    )
    return iter(build_stream(config, seed=0, rank=0, world_size=1, transform=build_paste(objects)))


if __name__ == "__main__":
    run_program(main)
