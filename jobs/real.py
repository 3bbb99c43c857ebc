"""The tables on real data at small size: ERFNet's baselines, an EoMT-S, and what each method makes of it.

    python -m jobs.real --data REAL --out real

One baseline is trained from a DINOv2-small, and fine-tuned with each method and seed by a local sweep. Run
again, it goes on where it stopped. Methods and scores are chosen on PastedVal: val frames with objects pasted
of photographs that no run pastes.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from eval.report.choice import Runs, Way, choose_scores, render_choice, render_differences, render_numbers
from eval.report.seeds import SeedRun, read_run
from jobs.demo import CONFIGS, run_job
from outlier_paste.validation_set import FOLDER as PASTED
from shards.errors import InputError
from shards.files import write_atomically
from shards.output import claimed, make_folder
from shards.program import run_program
from shards.settings import parse_options

logger = logging.getLogger(__name__)

BASELINE, CONTROL, RBA = "baseline", "control", "rba"
RECIPE = CONFIGS / "small_pictures.yaml"
_PASTED: Mapping[str, Any] = {"paste.probability": 0.5, "paste.max_size": 0.5}
_RBA: Mapping[str, Any] = {**_PASTED, "loss.outlier": ["rba"]}
METHODS: Mapping[str, Mapping[str, Any]] = {
    CONTROL: {},
    RBA: _RBA,
    "class_claim": {**_PASTED, "loss.outlier": ["class_claim"]},
    "logit_norm": {"loss.classification": "logit_norm", "loss.options.logit_norm.temperature": 0.3},
    "isomax_plus": {"loss.classification": "isomax_plus", "model.class_head": "isomax"},
    "paste_only": _PASTED,
    "rba_small": {**_RBA, "paste.sizing": "small"},
    "rba_area": {**_RBA, "loss.area_exponent": 0.5},
    "rba_lora": {**_RBA, "adapt.mode": "lora"},
}
"""Name -> settings of its own; those of pasting need a bank."""
SCORES = ("MSP", "MaxLogit", "MaxEntropy", "RbA", "NormalizedMSP", "NormalizedEntropy", "EntropyLogMax")
PROTOCOLS = ("course-512", "native")
OWN_SCORES = {"isomax_plus": ("MinDistance",)}
"""Scores that only one method has."""
_PARTS = {
    "test sets": "Validation_Dataset",
    "Cityscapes at 512 x 256": "cityscapes_256/unpack.py",
    "COCO pictures": "coco/train2017",
    "COCO annotations": "coco/annotations",
    "ERFNet": "weights/erfnet_cityscapes_int8.pth",
    "DINOv2-small": "weights/vit_s14_fp16.safetensors",
}


@dataclass(frozen=True, kw_only=True)
class RealOptions:
    """Fill the suite's tables on real data; two cores take about four hours, less with bf16 units."""

    data: Path
    """Folder with Validation_Dataset/, cityscapes_256/unpack.py, coco/ and weights/; only read."""
    out: Path
    """New or empty folder, or that of an earlier run, which is continued."""
    seeds: tuple[int, ...] = (0, 1)
    """Seeds of the fine-tunings, each once; the baseline has seed 0."""
    methods: tuple[str, ...] = tuple(METHODS)
    """What the baseline is fine-tuned with; `control` is always among them."""
    precision: Literal["float32", "bf16"] = "float32"
    """Of trainings. bf16 takes half the time on processors with AMX, and much more on others."""
    at_once: int = 2
    """Fine-tunings side by side."""
    smoke: bool = False
    """Only check that the chain holds together; the numbers mean nothing then."""

    def __post_init__(self) -> None:
        if missing := [
            f"{name} ({path})" for name, path in _PARTS.items() if not (self.data / path).exists()
        ]:
            raise InputError(f"--data {self.data}: lacks {', '.join(missing)}; the tables need all of it")
        if unknown := sorted(set(self.methods) - METHODS.keys()):
            raise InputError(f"--methods: unknown {unknown[0]}; known: {', '.join(METHODS)}")
        if len(set(self.seeds)) < max(len(self.seeds), 2):
            given = " ".join(map(str, self.seeds))
            raise InputError(f"--seeds: got {given or 'none'}; at least two are needed, each once")


@dataclass(frozen=True, kw_only=True)
class RealFolders:
    """Places below --out."""

    out: Path

    @property
    def cityscapes(self) -> Path:
        """Shards of the frames."""
        return self.out / "shards" / "cityscapes"

    @property
    def bank(self) -> Path:
        """Objects of COCO; none is of a category that is an anomaly of a test set."""
        return self.out / "shards" / "coco-objects"

    @property
    def sets(self) -> Path:
        """Test sets and PastedVal."""
        return self.out / "sets"

    @property
    def sweep(self) -> Path:
        """The sweep of the fine-tunings."""
        return self.out / "sweeps" / "methods"


def main(arguments: Sequence[str]) -> None:
    """Fill the tables from the command line."""
    options: RealOptions = parse_options(RealOptions, arguments, program="jobs.real")
    with claimed(options.out):
        make_folder(options.out)
        places = RealFolders(out=options.out)
        _prepare(options, places)
        _evaluate_erfnet(options, places)
        _train_baseline(options, places)
        _fine_tune(options, places)
        report = _report(options, places)
        write_atomically(options.out / "results.md", report)
    print(report, end="")


def _prepare(options: RealOptions, places: RealFolders) -> None:
    """Write shards, the bank and PastedVal, and link the test sets."""
    frames = options.out / "cityscapes"
    if not places.cityscapes.exists():
        if not frames.exists():
            staged = frames.with_name(".cityscapes")
            shutil.rmtree(staged, ignore_errors=True)
            limit = ("--limit", "8") if options.smoke else ()
            subprocess.run(
                [sys.executable, options.data / "cityscapes_256" / "unpack.py", staged, *limit], check=True
            )
            staged.rename(frames)
        run_job("prepare", "cityscapes", "--root", frames, "--out", places.cityscapes)
        shutil.rmtree(frames)
    if not places.bank.exists():
        coco = (
            "--images",
            options.data / "coco" / "train2017",
            "--annotations",
            options.data / "coco" / "annotations",
        )
        taken = ("--min_side", 240, "--exclude", "object", "--test_categories", False)
        run_job("prepare", "coco", *coco, *taken, "--out", places.bank)
    pasted = options.out / "pasted"
    if not pasted.exists():
        settings = ("--paste.bank", places.bank, "--paste.held_out", 0.2, "--paste.max_size", 0.5)
        settings = (*settings, "--validation.shards", places.cityscapes)
        run_job("paste_validation", RECIPE, "--data.shards", places.cityscapes, *settings, "--out", pasted)
    make_folder(places.sets)
    for folder in (pasted / PASTED, *(options.data / "Validation_Dataset").iterdir()):
        link = places.sets / folder.name
        if folder.is_dir() and not link.is_symlink():
            link.symlink_to(folder.resolve())


def _evaluate_erfnet(options: RealOptions, places: RealFolders) -> None:
    """Evaluate ERFNet under both protocols, and choose a temperature on PastedVal."""
    model = ("--checkpoint", options.data / _PARTS["ERFNet"], "--name", "ERFNet")
    sets = ("--datasets", places.sets, "--cityscapes", places.cityscapes, "--components", False)
    limit, scores = ("--limit", 2) if options.smoke else (), ("--scores", "MSP", "MaxLogit", "MaxEntropy")
    cache = options.out / "cache"
    for protocol in PROTOCOLS:
        out, kept = options.out / "erfnet" / protocol, ("--cache", cache) if protocol == "native" else ()
        if not (out / "results.json").exists():
            run_job("evaluate", *model, *sets, *limit, *scores, *kept, "--protocol", protocol, "--out", out)
    if not (options.out / "temperature").exists():
        chosen = ("--validation", PASTED, "--scores", "MSP", "--out", options.out / "temperature")
        run_job("temperature", "--cache", cache, *chosen)


def _train_baseline(options: RealOptions, places: RealFolders) -> None:
    """Train an EoMT-S, the last six blocks of its trunk, and keep what is best on validation."""
    steps = ("--loop.steps", 2, "--loop.eval_every", 2) if options.smoke else ("--loop.eval_every", 250)
    kept = ("--ema.decay", 0.998, "--validation.select", "miou", "--loop.save_every", 100)
    start = ("--model.weights", options.data / _PARTS["DINOv2-small"], "--adapt.mode", "last-6")
    data = ("--data.shards", places.cityscapes, "--validation.shards", places.cityscapes)
    run = (
        "--name",
        BASELINE,
        "--out",
        options.out / "runs",
        "--loop.precision",
        options.precision,
        "--resume",
    )
    if not (options.out / "runs" / BASELINE / "eval" / "results.json").exists():
        run_job("finetune", RECIPE, *run, *start, *data, *steps, *kept)
        run_job("evaluate", *_evaluation(options, places), "--out", options.out / "runs" / BASELINE / "eval")


def _evaluation(options: RealOptions, places: RealFolders) -> Iterator[object]:
    yield from ("--checkpoint", options.out / "runs" / BASELINE / "best", "--datasets", places.sets)
    for name, value in _evaluation_options(options, places).items():
        yield from (f"--{name}", *(value if isinstance(value, list) else [value]))


def _evaluation_options(options: RealOptions, places: RealFolders) -> dict[str, Any]:
    limit = {"limit": 2} if options.smoke else {}
    return {
        "cityscapes": str(places.cityscapes.absolute()),
        "scores": [*SCORES],
        "components": False,
        **limit,
    }


def _fine_tune(options: RealOptions, places: RealFolders) -> None:
    """Fine-tune the baseline with each method and seed, as a sweep on this machine, and evaluate."""
    names = dict.fromkeys((CONTROL, *options.methods))
    bank = {"paste.bank": str(places.bank.absolute()), "paste.held_out": 0.2}
    cells = [
        {"name": name, **METHODS[name], **(bank if "paste.probability" in METHODS[name] else {})}
        for name in names
    ]
    shards = [str(places.cityscapes.absolute())]
    overrides = {
        "data.shards": shards,
        "validation.shards": [],
        "model.weights": str((options.out / "runs" / BASELINE / "best").absolute()),
        "loop.precision": options.precision,
        "loop.steps": 2 if options.smoke else 250,
        "loop.save_every": 50,
        "loop.eval_every": 0,
        "optim.lr": 1e-4,
    }
    sweep = {
        "name": places.sweep.name,
        "out": str(places.sweep.parent.absolute()),
        "config": str(RECIPE),
        "overrides": overrides,
        "cells": cells,
        "seeds": [*options.seeds],
        "evaluation": {
            "datasets": str(places.sets.absolute()),
            "options": _evaluation_options(options, places),
        },
    }
    write_atomically(options.out / "sweep.yaml", yaml.safe_dump(sweep, sort_keys=False))
    run_job("submit", options.out / "sweep.yaml", "--local", options.at_once)
    for name, scores in OWN_SCORES.items():
        for run in _runs_of(name, options, places) if name in names else ():
            if not (run / "own" / "results.json").exists():
                sets = (
                    "--datasets",
                    places.sets,
                    "--components",
                    False,
                    *(("--limit", 2) if options.smoke else ()),
                )
                run_job("evaluate", "--checkpoint", run, *sets, "--scores", *scores, "--out", run / "own")


def _runs_of(name: str, options: RealOptions, places: RealFolders) -> list[Path]:
    return [places.sweep / "runs" / f"{name},seed={seed}" for seed in options.seeds]


def _report(options: RealOptions, places: RealFolders) -> str:
    """Put the tables one below the other: ERFNet's, its temperatures, the runs', the choice, differences."""
    found: dict[str, list[SeedRun]] = {
        BASELINE: [read_run(options.out / "runs" / BASELINE / "eval" / "results.json")]
    }
    for name in dict.fromkeys((CONTROL, *options.methods)):
        found[name] = [_read_all(run) for run in _runs_of(name, options, places)]
    tests, pasted = (
        {
            name: [
                run._replace(records=[r for r in run.records if (r.dataset == "Pasted val") is is_pasted])
                for run in runs
            ]
            for name, runs in found.items()
        }
        for is_pasted in (False, True)
    )
    scores = [*SCORES, *(score for name in found for score in OWN_SCORES.get(name, ()))]
    parts = [
        *(
            f"## ERFNet, {protocol}\n\n" + (options.out / "erfnet" / protocol / "results.md").read_text()
            for protocol in PROTOCOLS
        ),
        "## Temperature of ERFNet's MSP\n\n" + (options.out / "temperature" / "temperature.md").read_text(),
        "## EoMT-S\n\n" + (places.sweep / "table" / "results.md").read_text(),
        "## Means and choice\n\n" + render_numbers(tests, scores) + render_choice(tests, pasted),
        render_differences(tests, [*_list_pairs(pasted)]),
    ]
    return "\n".join(parts)


def _read_all(run: Path) -> SeedRun:
    """Read a run with the scores that only it has."""
    common = read_run(run / "eval" / "results.json")
    own = run / "own" / "results.json"
    return common._replace(records=[*common.records, *(read_run(own).records if own.exists() else ())])


def _list_pairs(pasted: Runs) -> Iterator[tuple[Way, Way]]:
    """Yield each method against the control, each with the score chosen for it, and with the same scores."""
    chosen = {name: score for name, score in choose_scores(pasted).items() if name != BASELINE}
    yield from (
        ((name, score), (CONTROL, chosen[CONTROL])) for name, score in chosen.items() if name != CONTROL
    )
    for score in ("MSP", "NormalizedEntropy", "EntropyLogMax"):
        yield from (((name, score), (CONTROL, score)) for name in chosen if name != CONTROL)


if __name__ == "__main__":
    run_program(main)
