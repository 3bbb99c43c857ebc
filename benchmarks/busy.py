"""A training beside other work: how much of its fair share of the processor it gets.

python -m benchmarks.busy [--out RESULTS.md]

The demo's baseline trains alone and beside processes that count in a loop; one more such process, alone and
beside them, says what a fair share is. Settings of OpenMP's own are shown beside ours.
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.machine import ReportOptions, describe_machine, table
from jobs.work.small_world import RECIPE, Scale, make_world, plan_study
from shards.cores import count_cores
from shards.settings import parse_options

COUNT = """import sys, time
count, end = 0, time.time() + float(sys.argv[1])
while time.time() < end:
    count += 1
print(count)"""
"""Counts for some seconds, on one thread, and prints how far it came."""
SIDES: dict[str, Mapping[str, str]] = {
    "ours": {},
    "OpenMP's default": {"OMP_NUM_THREADS": str(count_cores()), "GOMP_SPINCOUNT": "300000"},
    "one thread per core, asleep": {"OMP_NUM_THREADS": str(count_cores())},
}
"""Title -> what is set for it; a spin count of 300,000 is what libgomp takes by itself."""


@dataclass(frozen=True, kw_only=True)
class BusyOptions(ReportOptions):
    """Train alone and beside other processes."""

    processes: int = 8
    """Processes beside the training."""
    steps: int = 40
    """Steps of each training alone, and at most beside others; the first ten are not counted."""
    seconds: float = 120.0
    """Longest time of a training."""


def main() -> None:
    """Print images per second of every side, alone and beside others, and the parts of a fair share."""
    options: BusyOptions = parse_options(BusyOptions, sys.argv[1:], program="benchmarks.busy")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scale = Scale(world=("--train", "16", "--val", "1", "--anomaly_images", "1"))
        make_world(plan_study(folder, 0, scale), 0, scale)
        lines = [describe_machine(torch.get_num_threads(), [torch])]
        alone, counted = {s: train(folder, s, options) for s in SIDES}, count(5)
        with busy(options.processes):
            beside, fair = {s: train(folder, s, options) for s in SIDES}, count(10) / 2 / counted
        shares = {side: beside[side] / alone[side] for side in SIDES}
        rows = [
            (s, f"{alone[s]:.2f}", f"{beside[s]:.2f}", f"{shares[s]:.3f}", f"{shares[s] / fair:.2f}")
            for s in SIDES
        ]
    lines += ["", f"{options.processes} processes count beside it; a fair share is {fair:.3f} of alone."]
    header = "threads | alone, images/s | beside others | share | of a fair share"
    options.publish("A training on a busy machine", [*lines, *table(header, rows)])


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """Let processes count, in the session of this one, so that the kernel groups them with the training."""
    started = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def count(seconds: float) -> int:
    """Return how far a process counts in some seconds."""
    return int(subprocess.check_output([sys.executable, "-c", COUNT, str(seconds)]))


def train(folder: Path, side: str, options: BusyOptions) -> float:
    """Train for some steps, or as many as there is time for; return images per second behind the tenth."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        shards = folder / "shards" / "cityscapes"
        words = ["--out", out, "--data.shards", shards, "--loop.steps", options.steps, "--loop.log_every", 5]
        command = [sys.executable, "-m", "jobs.finetune", RECIPE, *words, "--tracking.tensorboard", "False"]
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
        began = time.monotonic()
        process = subprocess.Popen(list(map(str, command)), env=kept | SIDES[side], stderr=subprocess.DEVNULL)
        log = Path(out) / "baseline" / "log.txt"
        while process.poll() is None and time.monotonic() < began + options.seconds:
            time.sleep(0.5)
        process.kill()
        process.wait()
        found = re.findall(r" step (\d+)/.* images_per_s (\S+)", log.read_text() if log.is_file() else "")
    rates = [float(rate) for step, rate in found if int(step) > 10]
    return 1 / statistics.mean(1 / rate for rate in rates) if rates else 0.0


if __name__ == "__main__":
    main()
