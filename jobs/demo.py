"""The whole chain on the synthetic world, through the same programs that real data goes through.

python -m jobs.demo --out demo
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eval.report.choice import render_differences, render_numbers
from eval.sets.registry import ANOMALY, find_test_sets, read_image, read_target
from jobs.work.small_world import SHORT, SMOKE, make_world, plan_study
from jobs.work.steps import link_sets
from jobs.work.study import BASELINE, CONTROL, Study
from shards.cores import count_cores
from shards.errors import InputError
from shards.files import write_atomically
from shards.output import claimed, require_free
from shards.program import run_program
from shards.settings import parse_options

METHODS = (CONTROL, "rba", "class_claim")
SCORES = ("MSP", "NormalizedEntropy", "EntropyLogMax")
PICTURED_SETS = ("RoadAnomaly", "fs_static")
PICTURED_RUNS = {"before": BASELINE, "after": METHODS[-1]}
PICTURED_SCORE = "EntropyLogMax"


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
    with claimed(options.out):
        _run_chain(options)


def _run_chain(options: DemoOptions) -> None:
    started, scale = time.monotonic(), SMOKE if options.smoke else SHORT
    study = plan_study(options.out, options.seed, scale)
    study = dataclasses.replace(
        study, methods=METHODS, seeds=(options.seed,), scores=SCORES, at_once=count_cores() + 1
    )  # one that starts or ends leaves a core to others
    link_sets(study.sets, make_world(study, options.seed, scale))
    study.run()
    out, report = options.out, _render_report(study)
    write_atomically(out / "results.md", report)
    write_atomically(out / "picture.png", _draw_picture(study))
    print(report)
    print(f"All of it took {(time.monotonic() - started) / 60:.1f} minutes. Look at")
    for path, shown in {
        out / "picture.png": "streets, their anomalies, and the scores before and after outlier exposure",
        out / "results.md": "the tables above",
        study.table: "each test set by itself",
        study.results(METHODS[-1])[0].with_name("report.html"): "everything about one evaluation",
        out / "world" / "preview.png": "the drawn world",
    }.items():
        print(f"  {path}  {shown}")
    print(f"  tensorboard --logdir {out}  the trainings")


def _draw_picture(study: Study) -> bytes:
    """Draw the frame of each pictured set that has most anomaly, and its score before and after exposure."""
    import torch

    from eval.predict.strips import predict_pixels
    from eval.report.panels import Example
    from eval.report.plots import plot_comparison
    from models.segmenter import open_predictor
    from models.weights.checkpoint import find_checkpoint

    predictors = {}
    for title, name in PICTURED_RUNS.items():
        checkpoint = find_checkpoint(study.results(name)[0].parents[1])
        predictors[title] = open_predictor(checkpoint, (PICTURED_SCORE,), torch.device("cpu")).load()
    frames = []
    for test_set in find_test_sets(study.sets):
        if test_set.convention.folder in PICTURED_SETS:
            targets = [(read_target(frame, test_set.convention), frame) for frame in test_set.frames]
            target, frame = max(targets, key=lambda pair: np.count_nonzero(pair[0] == ANOMALY))
            image = read_image(frame)
            found = {name: predict_pixels(p(image), (PICTURED_SCORE,)) for name, p in predictors.items()}
            frames.append(
                {name: Example(test_set.name, image, target, *f[::-1]) for name, f in found.items()}
            )
    return plot_comparison(frames)


def _render_report(study: Study) -> str:
    """Set the methods side by side, and say which differences hold."""
    runs = study.read()
    pairs = [(name, CONTROL) for name in METHODS[1:]] + [(METHODS[-1], "rba")]
    compared = [((a, score), (b, score)) for score in ("MSP", PICTURED_SCORE) for a, b in pairs]
    return f"{render_numbers(runs, SCORES)}\n{study.explain()}{render_differences(runs, compared)}"


if __name__ == "__main__":
    run_program(main)
