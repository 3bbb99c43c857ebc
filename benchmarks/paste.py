"""Pasting one object: ours beside a straightforward whole-image mapper, and its share of a training sample.

python -m benchmarks.paste [--real FOLDER] [--out RESULTS.md]

The mapper decodes the object's photograph, rasterises its polygons, and copies the whole frame. Both sides
run in this process on one thread and take turns. Each call gets a scene of its own, made outside of the
measured time. Measured is processor time, which does not count the turns of other programs: a call of a third
of a millisecond would else show how busy the machine was.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.loader import CROP, FrameOptions, describe, open_frames, open_usual
from benchmarks.machine import table, time_in_turns
from outlier_paste.bank import SHRINKS
from outlier_paste.config import PasteConfig
from outlier_paste.paste import build_paste
from shards.config import StreamConfig
from shards.order import sample_generator
from shards.program import run_program
from shards.schema import Sample
from shards.settings import parse_options
from shards.stream import build_stream

FRAME = (CROP, 2 * CROP)
TARGETS = {"ours, from shards": "15", "ours, from the pool": "50"}
"""Ratios to the mapper that ours is to reach."""
STEPS = ("color", "defocus", "motion", "noise", "seamless")
SHARE_CALLS = 8


def main(arguments: Sequence[str]) -> None:
    """Measure, and print a report in Markdown."""
    options: FrameOptions = parse_options(FrameOptions, arguments, program="benchmarks.paste")
    with open_frames(options) as (root, folder):
        lines = [describe(options), *compare_sides(options, root, folder)]
        lines += measure_share(options, folder) + measure_steps(options, folder)
    options.publish("Paste", lines)


def compare_sides(options: FrameOptions, root: Path, folder: Path) -> list[str]:
    """Time one object per scene, on both sides."""
    usual = open_usual(root, folder, probability=1.0)
    mapper = "whole-image mapper"
    sides = {mapper: on_fresh_scenes(lambda scene: usual.paste(scene.image, scene.label), FRAME)}
    for name, shape, settings in (
        ("ours", (CROP, CROP), {"max_objects": 1, "min_pixels": 0}),
        ("ours as the mapper pastes (mode rba)", FRAME, {"mode": "rba"}),
    ):
        for place, cache_mb in (("from shards", 0), ("from the pool", 256)):
            sides[f"{name}, {place}"] = on_fresh_scenes(open_paste(folder, cache_mb, **settings), shape)
    times = time_in_turns(sides, options.rounds, dict.fromkeys(sides, 16))
    rows = [
        (name, f"{1e3 * seconds:.2f}", f"{times[mapper] / seconds:.1f}", TARGETS.get(name, ""))
        for name, seconds in times.items()
    ]
    return ["", "## Pasting one object", *table("side | ms of one core | ratio | target", rows)]


def measure_share(options: FrameOptions, folder: Path) -> list[str]:
    """Time whole training samples with no object and with one to three on every scene, in turns."""
    sides = {}
    for name, probability in (("no objects", 0.0), ("1 to 3 objects on every scene", 1.0)):
        paste = build_paste(PasteConfig(bank=str(folder / "cutouts"), probability=probability, cache_mb=256))
        config = StreamConfig(shards=(str(folder / "jpeg"),), crop=(CROP, CROP), batch_size=1, workers=0)
        stream = build_stream(config, seed=0, rank=0, world_size=1, transform=paste)
        sides[name] = partial(next, iter(stream))  # the same frames, crops and colours on both
    times = time_in_turns(sides, options.rounds, dict.fromkeys(sides, SHARE_CALLS))
    without, with_objects = times.values()
    share = (with_objects - without) / with_objects
    rows = [(name, f"{1e3 * seconds:.2f}") for name, seconds in times.items()]
    return [
        "",
        "## Share of a training sample (decode, crop, paste, colours, tensor)",
        *table("samples | ms of one core", rows),
        "",
        f"Pasting is {100 * share:.1f} % of a sample that gets objects.",
    ]


def measure_steps(options: FrameOptions, folder: Path) -> list[str]:
    """Time one object with each appearance step, from the pool."""
    one = {"max_objects": 1, "min_pixels": 0}
    sides = {"none": on_fresh_scenes(open_paste(folder, 256, **one), (CROP, CROP))}
    for step in STEPS:
        sides[step] = on_fresh_scenes(open_paste(folder, 256, match=(step,), **one), (CROP, CROP))
    times = time_in_turns(sides, options.rounds, dict.fromkeys(sides, 4))
    rows = [(name, f"{1e3 * seconds:.2f}") for name, seconds in times.items()]
    return ["", "## One object with an appearance step, from the pool", *table("step | ms of one core", rows)]


def open_paste(folder: Path, cache_mb: int, **settings: Any) -> Callable[[Sample], object]:
    """Return what pastes objects of the prepared bank; with a memory, everything is in it."""
    config = PasteConfig(bank=str(folder / "cutouts"), probability=1.0, cache_mb=cache_mb, **settings)
    paste = build_paste(config)
    assert paste is not None
    if cache_mb:
        for index, shrink in itertools.product(range(len(paste.bank)), SHRINKS):
            paste.bank.get(index, shrink)
    numbers = itertools.count()
    return lambda scene: paste(scene, sample_generator("paste", 0, next(numbers), "scene"))


def on_fresh_scenes(paste: Callable[[Sample], object], shape: tuple[int, int]) -> Callable[[], float]:
    """Return what pastes onto a new copy of a scene, sky over road with grain, and times pasting alone."""
    image = np.random.default_rng(0).integers(90, 110, (*shape, 3), dtype=np.uint8)
    label = np.full(shape, 10, np.uint8)
    label[shape[0] // 2 :] = 0

    def run() -> float:
        scene = Sample(key="scene", image=image.copy(), label=label.copy())
        began = time.process_time()
        paste(scene)
        return time.process_time() - began

    return run


if __name__ == "__main__":
    run_program(main)
