"""The whole chain on the synthetic world, with the very programs that real data goes through.

    python -m jobs.demo --out demo

World, shards, a tiny EoMT trained from scratch, and the losses side by side: the baseline fine-tuned with
each of them, beside a control that gets the same steps, and the evaluation of all. Two CPU cores, no
download, ten to twenty minutes. `jobs.experiments` repeats it with several seeds.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from eval.report import Record, render_markdown
from jobs.chain import BASELINE, IN_DEMO, METHODS, SCORES, SHORT, SMOKE, make_data, train_and_evaluate
from jobs.command_line import parse_options, run_program
from shards.errors import InputError
from shards.staging import make_folder, require_free, write_atomically

logger = logging.getLogger(__name__)

PICTURED_SETS = ("RoadAnomaly21", "fs_static")
PICTURED_RUNS = (BASELINE, "sole_claim")


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


def main(arguments: Sequence[str]) -> None:
    """Run the demo from the command line."""
    options: DemoOptions = parse_options(DemoOptions, arguments, program="jobs.demo")
    require_free(options.out)
    make_folder(options.out)
    started = time.monotonic()
    scale = SMOKE if options.smoke else SHORT
    make_data(options.out, options.seed, scale)
    records = train_and_evaluate(options.out, options.out / "runs", options.seed, scale)
    table = render_markdown(records)
    write_atomically(options.out / "results.md", table)
    write_atomically(options.out / "picture.png", _draw_picture(options.out))
    print(table)
    print(_summary(records))
    minutes = (time.monotonic() - started) / 60
    print(f"\nall of it took {minutes:.1f} minutes")
    print(f"look at {options.out}/picture.png and {options.out}/world/preview.png")
    print(f"training curves: tensorboard --logdir {options.out}/runs")


def _draw_picture(out: Path) -> bytes:
    """Stack the evaluations' pictures: for each pictured set, before and after."""
    rows = []
    for folder in PICTURED_SETS:
        for name in PICTURED_RUNS:
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
    """Set the losses side by side: AP and FPR95 of each score, averaged over the test sets."""
    lines = [
        "Mean AP / FPR95 over the test sets. One seed: `make experiments` says which differences hold.",
        f"  {'':<12}{'mIoU':>6}" + "".join(f"{score:>15}" for score in SCORES),
    ]
    for name in (BASELINE, *IN_DEMO):
        own = [record for record in records if record.model == name]
        cells = [f"{100 * miou:.1f}" if (miou := own[0].miou) is not None else ""]
        for score in SCORES:
            pairs = [(r.ap, r.fpr95) for r in own if r.score == score]
            ap, fpr95 = np.mean(np.array(pairs, dtype=float), axis=0)
            cells.append(f"{100 * ap:.1f} / {100 * fpr95:.1f}")
        meaning = METHODS[name].meaning if name in METHODS else "a tiny EoMT from scratch"
        lines.append(f"  {name:<12}{cells[0]:>6}" + "".join(f"{c:>15}" for c in cells[1:]) + f"   {meaning}")
    return "\n".join(lines)


if __name__ == "__main__":
    run_program(main)
