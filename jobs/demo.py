"""The whole chain on the synthetic world, with the very programs that real data goes through.

    python -m jobs.demo --out demo

World, shards, a tiny EoMT trained from scratch, its evaluation, fine-tuning with RbA outlier exposure on
pasted objects, beside a control that gets the same steps without outliers, and their evaluations. Two CPU
cores, no download, about ten minutes.
"""

from __future__ import annotations

import logging
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from eval.report import Record, parse_json, render_markdown
from jobs.command_line import parse_options, run_program
from shards.errors import InputError
from shards.staging import make_folder, require_free, write_atomically

logger = logging.getLogger(__name__)

CONFIGS = Path(__file__).parent / "configs"
BASELINE, CONTROL, EXPOSED = "baseline", "control", "rba"
PICTURED = ("RoadAnomaly21", "fs_static")


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """Run the whole chain on the synthetic world, on the CPU."""

    out: Path
    """New or empty folder for world, shards, runs, tables and pictures."""
    seed: int = 0
    """Of the world and of every run."""
    smoke: bool = False
    """Only check that the chain holds together: a miniature world and a handful of steps. The numbers
    mean nothing then."""

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise InputError(f"--seed must be in 0..{2**32 - 1}, got {self.seed}")


@dataclass(frozen=True)
class Scale:
    """How much of everything."""

    world: tuple[str, ...] = ()
    baseline: tuple[str, ...] = ()
    finetune: tuple[str, ...] = ()


SMOKE = Scale(
    world=("--height", "64", "--train", "16", "--val", "3", "--coco", "24", "--anomaly_images", "3"),
    baseline=("--loop.steps", "4", "--data.crop", "64", "64", "--model.image_size", "64", "64"),
    finetune=("--loop.steps", "2", "--data.crop", "64", "64", "--model.image_size", "64", "64"),
)


def main(arguments: Sequence[str]) -> None:
    """Run the demo from the command line."""
    options: DemoOptions = parse_options(DemoOptions, arguments, program="jobs.demo")
    require_free(options.out)
    make_folder(options.out)
    started = time.monotonic()
    run_chain(options, SMOKE if options.smoke else Scale())
    records = [record for name in (BASELINE, CONTROL, EXPOSED) for record in _read_records(options.out, name)]
    table = render_markdown(records)
    write_atomically(options.out / "results.md", table)
    write_atomically(options.out / "picture.png", _draw_picture(options.out))
    print(table)
    print(_summary(records))
    minutes = (time.monotonic() - started) / 60
    print(f"\nall of it took {minutes:.1f} minutes")
    print(f"look at {options.out}/picture.png and {options.out}/world/preview.png")
    print(f"training curves: tensorboard --logdir {options.out}/runs")


def run_chain(options: DemoOptions, scale: Scale) -> None:
    """Run the programs one after the other; each prints its own command first."""
    out, seed = options.out, ("--seed", str(options.seed))
    world, cityscapes, cutouts = out / "world", out / "shards" / "cityscapes", out / "shards" / "cutouts"
    run_job("synthesize", "--out", world, *seed, *scale.world)
    frames = ("--root", world / "cityscapes", "--out", cityscapes, "--samples_per_shard", "16")
    run_job("prepare", "cityscapes", *frames)
    coco = ("--images", world / "coco" / "train2017", "--annotations", world / "coco" / "annotations")
    run_job("prepare", "coco", *coco, "--out", cutouts)

    data = ("--out", out / "runs", *seed, "--data.shards", cityscapes)
    run_job("finetune", CONFIGS / "demo_baseline.yaml", "--name", BASELINE, *data, *scale.baseline)
    start = (*data, "--model.weights", out / "runs" / BASELINE, *scale.finetune)
    run_job("finetune", CONFIGS / "demo_control.yaml", "--name", CONTROL, *start)
    run_job("finetune", CONFIGS / "demo_rba.yaml", "--name", EXPOSED, *start, "--paste.bank", cutouts)
    for name in (BASELINE, CONTROL, EXPOSED):
        run = out / "runs" / name
        sets = ("--datasets", world / "anomaly", "--cityscapes", cityscapes)
        run_job("evaluate", "--checkpoint", run, *sets, "--out", run / "eval")


def run_job(job: str, *arguments: object) -> None:
    """Run `python -m jobs.JOB` as its own process.

    Raises:
        SystemExit: the program failed, with its own exit code; it has said why.
    """
    words = [str(argument) for argument in arguments]
    logger.info("\n$ python -m jobs.%s %s", job, shlex.join(words))
    process = subprocess.Popen([sys.executable, "-m", f"jobs.{job}", *words])
    try:
        code = process.wait()
    except BaseException:  # Ctrl-C reaches both of us, SIGTERM perhaps only this one
        process.terminate()
        process.wait()
        raise
    if code:
        sys.exit(code)  # the program has said why


def _read_records(out: Path, name: str) -> list[Record]:
    path = out / "runs" / name / "eval" / "results.json"
    return parse_json(path.read_text(), str(path))


def _draw_picture(out: Path) -> bytes:
    """Stack the evaluations' pictures: for each pictured set, before and after."""
    rows = []
    for folder in PICTURED:
        for name in (BASELINE, EXPOSED):
            picture = cv2.imread(str(out / "runs" / name / "eval" / f"{folder}.png"))
            assert picture is not None, f"{name}/eval/{folder}.png"
            rows.append(picture)
    width = max(row.shape[1] for row in rows)
    padded = [
        cv2.copyMakeBorder(r, 0, 8, 0, width - r.shape[1], cv2.BORDER_CONSTANT, value=(255,) * 3)
        for r in rows
    ]
    return cv2.imencode(".png", np.vstack(padded))[1].tobytes()


def _summary(records: Sequence[Record]) -> str:
    """Say what outlier exposure changed, per score, averaged over the test sets."""
    lines = [
        "Mean over the test sets, baseline -> control (same steps, no outliers) -> RbA outlier exposure:"
    ]
    for score in dict.fromkeys(record.score for record in records):
        cells = []
        for metric in ("ap", "fpr95"):
            means = [
                np.mean([getattr(r, metric) for r in records if r.score == score and r.model == name])
                for name in (BASELINE, CONTROL, EXPOSED)
            ]
            cells.append(f"{metric.upper()} " + " -> ".join(f"{100 * mean:.1f}" for mean in means))
        lines.append(f"  {score:<10} " + "   ".join(cells))
    return "\n".join(lines)


if __name__ == "__main__":
    run_program(main)
