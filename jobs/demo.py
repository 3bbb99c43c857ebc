"""The whole chain on the synthetic world, through the same programs that real data goes through.

python -m jobs.demo --out demo
"""

from __future__ import annotations

import contextlib
import logging
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from eval.predict.score_names import NEEDS
from eval.report.choice import Runs, render_differences
from eval.report.seeds import read_run
from eval.sets.registry import VALIDATION_SETS, find_test_sets, read_image, read_target
from jobs.work.steps import list_words, run_job, running
from outlier_paste.validation_set import FOLDER as PASTED
from shards.cores import count_cores
from shards.errors import InputError
from shards.files import write_atomically
from shards.output import claimed, make_folder, require_free
from shards.program import run_program
from shards.settings import parse_options, read_settings

logger = logging.getLogger(__name__)

CONFIGS = Path(__file__).parent / "configs"
BASELINE, CONTROL = "baseline", "control"
METHODS = {
    CONTROL: "the same steps, no outliers",
    "logit_norm": "LogitNorm, no outliers",
    "isomax_plus": "IsoMax+, no outliers",
    "paste_only": "pasted outliers, no outlier term",
    "rba": "RbA outlier exposure",
    "class_claim": "class-claim outlier exposure, ours",
    "outlier_head": "likelihood-ratio head, the rest stands still",
}
"""Name of run and configuration (`demo_NAME.yaml`) -> what the baseline is fine-tuned with."""
BATCH = 4
"""Images of a step of the baseline, over all its ranks."""
IN_DEMO = (CONTROL, "rba", "class_claim")
SCORES = ("MSP", "NormalizedEntropy", "EntropyLogMax")
PASTED_TITLE = VALIDATION_SETS[PASTED].name
"""The set that `jobs.paste_validation` writes, in tables."""
PICTURED_SETS = ("RoadAnomaly21", "fs_static")
PICTURED_RUNS = {"before": BASELINE, "after": "class_claim"}
PICTURED_SCORE = "EntropyLogMax"


@dataclass(frozen=True)
class Scale:
    """Size of the world, and what the runs have instead of the settings of their configurations."""

    world: tuple[str, ...] = ()
    """Options of `jobs.synthesize`."""
    baseline: Mapping[str, Any] = field(default_factory=dict)
    finetune: Mapping[str, Any] = field(default_factory=dict)
    ranks: int = 2
    """Processes that train the baseline, where there are as many cores."""


SHORT = Scale(baseline={"loop.steps": 800}, finetune={"loop.steps": 150})
"""Fewer steps than the configurations have, so that the demo ends after seven minutes or so."""
_SMALL = {"data.crop": [64, 64], "model.image_size": [64, 64]}
SMOKE = Scale(
    world=("--height", "64", "--train", "16", "--val", "3", "--coco", "24", "--anomaly_images", "3"),
    baseline={"loop.steps": 4, **_SMALL},
    finetune={"loop.steps": 2, **_SMALL},
    ranks=1,
)
"""A miniature world and a handful of steps: only shows that the chain holds together."""


def make_data(out: Path, seed: int, scale: Scale) -> None:
    """Draw the world into `out`/world and turn it into `out`/shards."""
    world, shards = out / "world", out / "shards"
    if not world.exists():
        run_job("synthesize", "--out", world, "--seed", seed, *scale.world)
    if not (shards / "cityscapes").exists():
        frames = ("--root", world / "cityscapes", "--out", shards / "cityscapes", "--samples_per_shard", 16)
        run_job("prepare", "cityscapes", *frames)
    if not (shards / "cutouts").exists():
        coco = ("--images", world / "coco" / "train2017", "--annotations", world / "coco" / "annotations")
        run_job("prepare", "coco", *coco, "--out", shards / "cutouts")


def train_and_evaluate(
    out: Path,
    runs: Path,
    seed: int,
    scale: Scale,
    methods: Sequence[str] = IN_DEMO,
    scores: Sequence[str] = SCORES,
    sets: Path | None = None,
) -> None:
    """Train the baseline; then evaluate it, while a local sweep fine-tunes it with each method.

    The data is where `make_data` has put it; what is complete in the folder `runs` is left as it is. `sets`
    holds the test sets, if not the world.
    """
    baseline, shards = runs.absolute() / BASELINE, (out / "shards").absolute()
    data = {"data.shards": [str(shards / "cityscapes")]}
    evaluation = {
        "datasets": str((sets or out / "world" / "anomaly").absolute()),
        "cityscapes": str(shards / "cityscapes"),
        "components": False,  # the maps of them and of the pictures take two thirds of the time
        "scores": list(scores),
    }
    ranks = min(scale.ranks, count_cores())
    own = {"name": BASELINE, "out": runs, "seed": seed, "data.batch_size": BATCH // ranks, **data}
    own |= scale.baseline
    sweep = _plan_sweep(baseline, shards / "cutouts", {**data, **scale.finetune}, seed, methods, evaluation)
    with contextlib.ExitStack() as beside:
        if not (baseline / "eval" / "results.json").exists():
            run_job("finetune", CONFIGS / "demo_baseline.yaml", *list_words(own), "--resume", ranks=ranks)
            read = [score for score in scores if NEEDS[score] in ("", "queries")]
            place = {"checkpoint": baseline, "out": baseline / "eval", "scores": read}
            beside.enter_context(running("evaluate", *list_words({**evaluation, **place})))
        write_atomically(runs / "methods.yaml", yaml.safe_dump(sweep, sort_keys=False))
        at_once = min(len(methods), count_cores() + 1)  # one that starts or ends leaves a core to others
        run_job("submit", runs / "methods.yaml", "--local", at_once, stdout=subprocess.DEVNULL)


def _plan_sweep(
    baseline: Path,
    bank: Path,
    overrides: Mapping[str, Any],
    seed: int,
    methods: Sequence[str],
    evaluation: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the content of a sweep file: a cell for each method, of the configuration `demo_METHOD.yaml`."""
    cells, control = [], read_settings(CONFIGS / f"demo_{CONTROL}.yaml")
    for method in methods:
        config = read_settings(CONFIGS / f"demo_{method}.yaml")
        own = {section: config[section] for section in config if config[section] != control.get(section)}
        model = {**config["model"], **_of_section("model", overrides), "weights": str(baseline)}
        cell = {**own, "name": method, "loss": config["loss"], "model": model}
        cell |= {"paste": {**config["paste"], "bank": str(bank)}} if "paste" in config else {}
        cells.append(cell)
    return {
        "name": "methods",
        "out": str(baseline.parent),
        "config": str(CONFIGS / f"demo_{CONTROL}.yaml"),
        "overrides": dict(overrides),
        "cells": cells,
        "seeds": [seed],
        "evaluation": {
            "datasets": evaluation["datasets"],
            "options": {name: value for name, value in evaluation.items() if name != "datasets"},
        },
    }


def _of_section(section: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    names = [name for name in settings if name.startswith(f"{section}.")]
    return {name.partition(".")[2]: settings[name] for name in names}


def find_results(runs: Path, seed: int, name: str) -> Path:
    """Return where `train_and_evaluate` leaves the results of the baseline or of a method."""
    run = runs / name if name == BASELINE else runs / "methods" / "runs" / f"{name},seed={seed}"
    return run / "eval" / "results.json"


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
    out, runs, started = options.out, options.out / "runs", time.monotonic()
    make_folder(runs)
    scale = SMOKE if options.smoke else SHORT
    make_data(out, options.seed, scale)
    train_and_evaluate(out, runs, options.seed, scale)
    paths = {name: find_results(runs, options.seed, name) for name in (BASELINE, *IN_DEMO)}
    report = render_report({name: [read_run(path, name)] for name, path in paths.items()})
    write_atomically(out / "results.md", report)
    write_atomically(
        out / "picture.png", _draw_picture(out, {n: path.parents[1] for n, path in paths.items()})
    )
    print(report)
    print(f"All of it took {(time.monotonic() - started) / 60:.1f} minutes. Look at")
    for path, shown in {
        out / "picture.png": "streets, their anomalies, and the scores before and after outlier exposure",
        out / "results.md": "the tables above",
        runs / "methods" / "table" / "results.md": "each test set by itself",
        paths[IN_DEMO[-1]].with_name("report.html"): "everything about one evaluation",
        out / "world" / "preview.png": "the drawn world",
    }.items():
        print(f"  {path}  {shown}")
    print(f"  tensorboard --logdir {runs}  the trainings")


def _draw_picture(out: Path, runs: Mapping[str, Path]) -> bytes:
    """Draw the middle frame of each pictured set with one score, before and after outlier exposure."""
    import torch

    from eval.predict.strips import predict_pixels
    from eval.report.figures import Example, plot_comparison
    from models.segmenter import open_predictor
    from models.weights.checkpoint import find_checkpoint

    predictors = {}
    for title, name in PICTURED_RUNS.items():
        checkpoint = find_checkpoint(runs[name])
        predictors[title] = open_predictor(checkpoint, (PICTURED_SCORE,), torch.device("cpu")).load()
    frames = []
    for test_set in find_test_sets(out / "world" / "anomaly"):
        if test_set.convention.folder in PICTURED_SETS:
            frame = test_set.frames[len(test_set.frames) // 2]
            image, target = read_image(frame), read_target(frame, test_set.convention)
            found = {name: predict_pixels(p(image), (PICTURED_SCORE,)) for name, p in predictors.items()}
            frames.append(
                {name: Example(test_set.name, image, target, *f[::-1]) for name, f in found.items()}
            )
    return plot_comparison(frames)


def render_report(runs: Runs) -> str:
    """Set the methods side by side, means over the test sets, and say which differences hold."""
    lines = [
        "AP / FPR95 in percent, means of five drawn test sets in the layouts of benchmarks; one seed.",
        "",
        f"| run | mIoU | {' | '.join(SCORES)} | |",
        f"|---|---:|{'---:|' * len(SCORES)}---|",
    ]
    for name, (run,) in runs.items():
        cells = [f"{100 * (run.records[0].miou or 0):.1f}"]
        for score in SCORES:
            found = np.array([(r.ap, r.fpr95) for r in run.records if r.score == score], dtype=float)
            ap, fpr95 = 100 * found.mean(axis=0)
            cells.append(f"{ap:.1f} / {fpr95:.1f}")
        meaning = METHODS.get(name, "a tiny EoMT from scratch")
        lines.append(f"| {' | '.join((name, *cells, meaning))} |")
    pairs = [(name, CONTROL) for name in IN_DEMO[1:]] + [(IN_DEMO[-1], "rba")]
    compared = [((a, score), (b, score)) for score in ("MSP", PICTURED_SCORE) for a, b in pairs]
    return "\n".join(lines) + "\n" + render_differences(runs, compared)


if __name__ == "__main__":
    run_program(main)
