"""A whole run from shards to weights: images per second, the share of time waiting for data, memory, MFU.

python -m benchmarks.throughput [--sizes base large] [--workers 12] [--out RESULTS.md]

Each row is a run of `jobs.finetune` in a process of its own, over drawn scenes of 2048 x 1024 with objects
pasted on half of them; what it reports is read from what it logged for TensorBoard. There is no other side:
`benchmarks.train_step` compares steps, and `benchmarks.loader` compares loaders.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import accelerate
import timm
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from benchmarks.cost import CostOptions, compute_cost
from benchmarks.frames import make_bank, make_scenes, write_frames
from benchmarks.machine import ReportOptions, describe_machine, table
from benchmarks.train_step import MODES
from models.trunk import SIZES
from shards.errors import InputError
from shards.program import run_program
from shards.settings import parse_options

LOG_POINTS = 4
"""Parts of a run that are logged; the first warms up and is not counted."""


@dataclass(frozen=True, kw_only=True)
class ThroughputOptions(ReportOptions):
    """Time runs of fine-tuning, data included."""

    sizes: tuple[str, ...] = ("base", "large")
    """Keys of `models.trunk.SIZES`."""
    modes: tuple[str, ...] = ("full", "last-4", "lora on the last 4 blocks")
    """Keys of `benchmarks.train_step.MODES`."""
    crop: int = 1024
    """Side of the crops in pixels."""
    batch_size: int = 8
    """Images per step."""
    steps: int = 40
    """Steps of a run, of which a quarter warms up."""
    workers: int = max(1, (os.cpu_count() or 2) - 2)
    """Loader processes."""
    precision: Literal["float32", "bf16", "fp16"] = "bf16"
    """Of the loop."""
    extra: tuple[str, ...] = ()
    """More options of `jobs.finetune`, as `--extra=--loop.compile --extra=True`, of every run."""
    peak_tflops: float = 0.0
    """What the device can do, dense and in this precision, to state the share of it that is used (MFU)."""
    data: Path | None = None
    """Folder that keeps the drawn shards for other calls; what is there already is taken."""

    def __post_init__(self) -> None:
        for name, given, known in (("modes", self.modes, MODES), ("sizes", self.sizes, SIZES)):
            for value in given:
                if value not in known:
                    raise InputError(f"--{name}: unknown {value!r}; known: {', '.join(known)}")
        if self.steps < 2 * LOG_POINTS:
            raise InputError(f"--steps must be at least {2 * LOG_POINTS}, got {self.steps}")


def main(arguments: Sequence[str]) -> None:
    """Measure, and print a report in Markdown."""
    options: ThroughputOptions = parse_options(ThroughputOptions, arguments, program="benchmarks.throughput")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    lines = [
        f"{describe_machine(torch.get_num_threads(), (torch, timm, accelerate))}; {device}",
        "",
        f"{options.batch_size} crops of {options.crop}² per step, {options.precision}, {options.workers} "
        f"loader processes, JPEG shards, one to three objects pasted on half of the scenes; the last "
        f"{options.steps - options.steps // LOG_POINTS} of {options.steps} steps. "
        f"{' '.join(options.extra)}",
    ]
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = options.data or folder / "data"
        if not data.exists():
            prepare_data(data)
        for size in options.sizes:
            for mode in options.modes:
                rows.append(render_row(size, mode, options, time_run(size, mode, options, data, folder)))
                print(*rows[-1], sep=", ", file=sys.stderr, flush=True)
    header = "model | trains | images/s | waiting for data | peak memory, GB | TFLOP/s | MFU"
    options.publish("Throughput of whole runs", [*lines, *table(header, rows, text_columns=2)])


def prepare_data(folder: Path) -> None:
    """Draw scenes and photographs, and make shards of them; the folder is there when all is done."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        root, made = Path(name) / "drawn", Path(name) / "made"
        write_frames(root, num_frames=16, num_photos=24)
        workers = min(4, os.cpu_count() or 1)
        make_scenes(root, made / "scenes", "jpeg", workers)
        make_bank(root, made / "cutouts", workers)
        made.rename(folder)


def time_run(size: str, mode: str, options: ThroughputOptions, data: Path, folder: Path) -> dict[str, float]:
    """Run one fine-tuning; return its last memory and mean speeds (first point apart) by TensorBoard tag."""
    name = f"{size}-{mode}".replace(" ", "-")
    adapt, side = MODES[mode], str(options.crop)
    arguments = [
        "--name", name, "--out", str(folder), "--data.shards", str(data / "scenes"),
        "--data.crop", side, side, "--model.image_size", side, side, "--model.size", size,
        "--data.batch_size", str(options.batch_size), "--data.workers", str(options.workers),
        "--paste.bank", str(data / "cutouts"), "--paste.probability", "0.5", "--paste.cache_mb", "64",
        "--loss.outlier", "rba", "--adapt.mode", adapt.mode,
        "--adapt.lora.last_blocks", str(adapt.lora.last_blocks),
        "--loop.precision", options.precision, "--loop.steps", str(options.steps),
        "--loop.log_every", str(options.steps // LOG_POINTS), "--tracking.pasted_scenes", "0",
    ]  # fmt: skip
    subprocess.run([sys.executable, "-m", "jobs.finetune", *arguments, *options.extra], check=True)
    events = EventAccumulator(str(folder / name))
    events.Reload()
    found = {}
    for tag in events.Tags()["scalars"]:
        values = [point.value for point in events.Scalars(tag)]
        if tag.startswith("speed/"):
            found[tag] = sum(values[1:]) / len(values[1:])
        elif tag.startswith("memory/"):
            found[tag] = values[-1]
    return found


def render_row(size: str, mode: str, options: ThroughputOptions, found: dict[str, float]) -> list[str]:
    """Return one row of the table."""
    rate = found["speed/images_per_s"]
    memory = found.get("memory/peak_allocated_gib", found.get("memory/peak_rss_gib", 0.0)) * 2**30 / 1e9
    cost = compute_cost(size, MODES[mode], CostOptions(image_size=options.crop, masked=True))
    tera = rate * cost.step / 1e12
    mfu = f"{tera / options.peak_tflops:.1%}" if options.peak_tflops else ""
    waiting = f"{found['speed/data_wait_share']:.1%}"
    return [size, mode, f"{rate:.3g}", waiting, f"{memory:.2f}", f"{tera:.3g}", mfu]


if __name__ == "__main__":
    run_program(main)
