"""Pasting one object: ours beside a straightforward whole-image mapper, and its share of a training sample.

python -m benchmarks.paste [--real FOLDER] [--out RESULTS.md]

The mapper decodes the object's photograph, rasterises its polygons, and copies the whole frame. Both sides
run in this process on one thread and take turns. Each call gets a scene of its own, made outside of the
measured time. Measured is the thread's processor time, which does not count the turns of other programs: a
call of a third of a millisecond would else show how busy the machine was.
"""

from __future__ import annotations

import itertools
import logging
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from benchmarks.frames import write_frames
from benchmarks.loader import CROP, BenchmarkOptions, describe, open_usual, prepare_both
from benchmarks.machine import publish
from outlier_paste.bank import SHRINKS
from outlier_paste.config import PasteConfig
from outlier_paste.paste import OutlierPaste, build_paste
from shards.order import sample_generator
from shards.schema import Sample
from shards.settings import parse_options, run_program
from shards.stream import StreamConfig, build_stream

FRAME = (CROP, 2 * CROP)
TARGETS = {"from shards": 15, "from the pool": 50}


@dataclass(frozen=True)
class Side:
    """One way to paste: what is measured, and the scene that it gets."""

    run: Callable[[Sample], object]
    shape: tuple[int, int]


def main(arguments: Sequence[str]) -> None:
    """Measure, and print a report in Markdown."""
    options: BenchmarkOptions = parse_options(BenchmarkOptions, arguments, program="benchmarks.paste")
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
        lines = ["# Paste", *describe(options)]
        lines += compare_sides(options, root, folder)
        lines += measure_share(options, folder)
        lines += measure_steps(options, folder)
    publish(lines, options.out)


def compare_sides(options: BenchmarkOptions, root: Path, folder: Path) -> list[str]:
    """Time one object per scene, on both sides."""
    usual = open_usual(root, folder, probability=1.0)
    sides = {"whole-image mapper": Side(lambda scene: usual.paste(scene.image, scene.label), FRAME)}
    for place, cache_mb in (("from shards", 0), ("from the pool", 256)):
        sides[f"ours, {place}"] = Side(open_side(folder, cache_mb), (CROP, CROP))
    for place, cache_mb in (("from shards", 0), ("from the pool", 256)):
        sides[f"ours as the mapper pastes (mode rba), {place}"] = Side(
            open_side(folder, cache_mb, mode="rba"), FRAME
        )
    times = time_sides(sides, options)
    lines = [
        "",
        "## Pasting one object",
        "",
        "| side | ms of one core | ratio | target |",
        "|---|---:|---:|---:|",
    ]
    base = times["whole-image mapper"]
    for name, seconds in times.items():
        target = next((f"{goal}" for place, goal in TARGETS.items() if name == f"ours, {place}"), "")
        lines.append(f"| {name} | {1e3 * seconds:.2f} | {base / seconds:.1f} | {target} |")
    return lines


def measure_share(options: BenchmarkOptions, folder: Path) -> list[str]:
    """Time whole training samples with no object and with one to three on every scene, in turns."""
    streams = {}
    for name, probability in (("no objects", 0.0), ("1 to 3 objects on every scene", 1.0)):
        paste = build_paste(PasteConfig(bank=str(folder / "cutouts"), probability=probability, cache_mb=256))
        config = StreamConfig(shards=(str(folder / "jpeg"),), crop=(CROP, CROP), batch_size=1, workers=0)
        streams[name] = iter(build_stream(config, seed=0, rank=0, world_size=1, transform=paste))
    times: dict[str, list[float]] = {name: [] for name in streams}
    for turn in range(8 * options.rounds):
        for name, stream in streams.items():  # the same frame, crop and colours on both
            began = time.thread_time()
            next(stream)
            if turn >= 8:
                times[name].append(time.thread_time() - began)
    without, with_objects = (statistics.mean(values) for values in times.values())
    lines = ["", "## Share of a training sample (decode, crop, paste, colours, tensor)", ""]
    lines += ["| samples | ms of one core |", "|---|---:|"]
    lines += [f"| {name} | {1e3 * statistics.mean(values):.2f} |" for name, values in times.items()]
    share = (with_objects - without) / with_objects
    return [*lines, "", f"Pasting is {100 * share:.1f} % of a sample that gets objects."]


def measure_steps(options: BenchmarkOptions, folder: Path) -> list[str]:
    """Time one object with each appearance step, from the pool."""
    steps = ("", "color", "defocus", "motion", "noise", "seamless")
    sides = {
        step or "none": Side(open_side(folder, 256, match=(step,) if step else ()), (CROP, CROP))
        for step in steps
    }
    times = time_sides(sides, options, calls=4)
    lines = [
        "",
        "## One object with an appearance step, from the pool",
        "",
        "| step | ms of one core |",
        "|---|---:|",
    ]
    return lines + [f"| {name} | {1e3 * seconds:.2f} |" for name, seconds in times.items()]


def open_side(folder: Path, cache_mb: int, **settings: object) -> Callable[[Sample], object]:
    """Return what pastes one object of the prepared bank; with a memory, everything is in it."""
    one = {} if "mode" in settings else {"max_objects": 1, "min_pixels": 0}
    config = PasteConfig(
        bank=str(folder / "cutouts"),
        probability=1.0,
        cache_mb=cache_mb,
        **{**one, **settings},  # type: ignore[arg-type]
    )
    paste = build_paste(config)
    assert paste is not None
    if cache_mb:
        warm_up(paste)
    numbers = itertools.count()
    return lambda scene: paste(scene, sample_generator("paste", 0, next(numbers), "scene"))


def warm_up(paste: OutlierPaste) -> None:
    """Decode every object at every size."""
    for index, shrink in itertools.product(range(len(paste.bank)), SHRINKS):
        paste.bank.get(index, shrink)


def time_sides(sides: dict[str, Side], options: BenchmarkOptions, calls: int = 16) -> dict[str, float]:
    """Return the mean processor seconds per call of each side; a first round is not counted."""
    blank = {side.shape: draw_scene(side.shape) for side in sides.values()}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(options.rounds + 1):
        for name, side in sides.items():
            for _ in range(calls):
                image, label = blank[side.shape]
                scene = Sample(key="scene", image=image.copy(), label=label.copy())
                began = time.thread_time()
                side.run(scene)
                if turn:
                    times[name].append(time.thread_time() - began)
    return {name: statistics.mean(values) for name, values in times.items()}


def draw_scene(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Draw sky over road, with grain."""
    rng = np.random.default_rng(0)
    image = rng.integers(90, 110, (*shape, 3), dtype=np.uint8)
    label = np.full(shape, 10, np.uint8)
    label[shape[0] // 2 :] = 0
    return image, label


if __name__ == "__main__":
    run_program(main)
