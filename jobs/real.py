"""The tables on real data at small size: ERFNet's baselines, an EoMT-S, and what each method makes of it.

    python -m jobs.real --data REAL --out real

One baseline is trained from a DINOv2-small, and fine-tuned with each method and seed by a local sweep. Run
again, it goes on where it stopped. Methods and scores are chosen on PastedVal: val frames with objects pasted
of photographs that no run pastes.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from eval.predict.score_names import NEEDS
from eval.report.choice import (
    Runs,
    Way,
    choose_scores,
    part_runs,
    render_choice,
    render_differences,
    render_numbers,
)
from eval.report.seeds import read_run
from jobs.demo import BASELINE, CONFIGS, CONTROL, PASTED_TITLE
from jobs.work.steps import link_sets, list_words, run_job
from outlier_paste.validation_set import FOLDER as PASTED
from shards.errors import InputError
from shards.files import write_atomically
from shards.output import claimed, make_folder
from shards.program import run_program
from shards.settings import parse_options

RECIPE = CONFIGS / "small_pictures.yaml"
_PASTED: Mapping[str, Any] = {"paste.probability": 0.5, "paste.max_size": 0.5, "paste.held_out": 0.2}
_RBA: Mapping[str, Any] = {**_PASTED, "loss.outlier": ["rba"]}
METHODS: Mapping[str, Mapping[str, Any]] = {
    CONTROL: {},
    "rba": _RBA,
    "class_claim": {**_PASTED, "loss.outlier": ["class_claim"]},
    "outlier_head": {
        **_PASTED,
        "adapt.mode": "outlier_head",
        "loss": {"name": "likelihood_ratio"},
        "optim.lr": 1.0e-3,
    },
    "rba_released": {**_RBA, "loss.options.rba.preset": "released", "adapt.mode": "heads"},
    "logit_norm": {"loss.classification": "logit_norm", "loss.options.logit_norm.temperature": 0.3},
    "isomax_plus": {"loss.classification": "isomax_plus", "model.class_head": "isomax"},
    "paste_only": _PASTED,
    "rba_small": {**_RBA, "paste.sizing": "small"},
    "rba_area": {**_RBA, "loss.area_exponent": 0.5},
    "rba_lora": {**_RBA, "adapt.mode": "lora"},
}
"""Name -> settings of its own. `rba_released` has thresholds, weight and mode of the released recipe, and our
pasting."""
SCORES = (
    "MSP",
    "MaxLogit",
    "MaxEntropy",
    "RbA",
    "NormalizedMSP",
    "NormalizedEntropy",
    "EntropyLogMax",
    "MinDistance",
    "LikelihoodRatio",
)
UNPACK = "cityscapes_256/unpack.py"
ERFNET, DINOV2 = "weights/erfnet_cityscapes_int8.pth", "weights/vit_s14_fp16.safetensors"
PLACES = ("Validation_Dataset", UNPACK, "coco/train2017", "coco/annotations", ERFNET, DINOV2)
"""Files and folders below --data."""


@dataclass(frozen=True, kw_only=True)
class RealOptions:
    """Fill the suite's tables on real data; by estimate four hours of two cores in bf16."""

    data: Path
    """Folder with Validation_Dataset/, cityscapes_256/unpack.py, coco/ and weights/; only read."""
    out: Path
    """New or empty folder, or that of an earlier run, which is continued."""
    seeds: tuple[int, ...] = (0, 1)
    """Seeds of the fine-tunings, each once; the baseline has seed 0."""
    methods: tuple[str, ...] = tuple(METHODS)
    """What the baseline is fine-tuned with; `control` is always among them."""
    precision: Literal["float32", "bf16"] = "float32"
    """Of every EoMT. bf16 takes half the time on processors with AMX, and much more on others."""
    at_once: int = 2
    """Fine-tunings side by side."""
    smoke: bool = False
    """Only check that the chain holds together; the numbers mean nothing then."""

    def __post_init__(self) -> None:
        if missing := [place for place in PLACES if not (self.data / place).exists()]:
            raise InputError(f"--data {self.data}: lacks {', '.join(missing)}; the tables need all of it")
        if unknown := sorted(set(self.methods) - METHODS.keys()):
            raise InputError(f"--methods: unknown {unknown[0]}; known: {', '.join(METHODS)}")
        if len(set(self.seeds)) < max(len(self.seeds), 2):
            given = " ".join(map(str, self.seeds))
            raise InputError(f"--seeds: got {given or 'none'}; at least two are needed, each once")

    @property
    def cityscapes(self) -> Path:
        """Shards of the frames."""
        return self.out.absolute() / "shards" / "cityscapes"

    @property
    def bank(self) -> Path:
        """Objects of COCO; none is of a category that is an anomaly of a test set."""
        return self.out.absolute() / "shards" / "coco-objects"

    @property
    def sets(self) -> Path:
        """Test sets and PastedVal."""
        return self.out.absolute() / "sets"

    @property
    def baseline(self) -> Path:
        """Run of the baseline."""
        return self.out.absolute() / "runs" / BASELINE

    @property
    def sweep(self) -> Path:
        """Sweep of the fine-tunings."""
        return self.out.absolute() / "sweeps" / "methods"

    @property
    def names(self) -> tuple[str, ...]:
        """Methods, the control first."""
        return tuple(dict.fromkeys((CONTROL, *self.methods)))

    def results(self, name: str) -> list[Path]:
        """Return the results of each seed."""
        names = [BASELINE] if name == BASELINE else [f"{name},seed={seed}" for seed in self.seeds]
        runs = self.baseline.parent if name == BASELINE else self.sweep / "runs"
        return [runs / run / "eval" / "results.json" for run in names]

    @property
    def evaluation(self) -> dict[str, Any]:
        """Options of every evaluation, by name."""
        limit = {"limit": 2} if self.smoke else {}
        return {"cityscapes": str(self.cityscapes), "components": False, "precision": self.precision, **limit}


def main(arguments: Sequence[str]) -> None:
    """Fill the tables from the command line."""
    options: RealOptions = parse_options(RealOptions, arguments, program="jobs.real")
    with claimed(options.out):
        make_folder(options.out)
        _prepare(options)
        _evaluate_erfnet(options)
        _train_baseline(options)
        fine_tune(options)
        report = _report(options)
        write_atomically(options.out / "results.md", report)
    print(report, end="")


def _prepare(options: RealOptions) -> None:
    """Write shards, the bank and PastedVal, and link the test sets."""
    out, data = options.out, options.data
    if not options.cityscapes.exists():
        frames = out / ".cityscapes"
        shutil.rmtree(frames, ignore_errors=True)
        limit = ("--limit", "8") if options.smoke else ()
        subprocess.run([sys.executable, data / UNPACK, frames, *limit], check=True)
        run_job("prepare", "cityscapes", "--root", frames, "--out", options.cityscapes)
        shutil.rmtree(frames)
    if not options.bank.exists():
        coco = ("--images", data / "coco" / "train2017", "--annotations", data / "coco" / "annotations")
        taken = ("--min_side", 240, "--exclude", "object", "--test_categories", False)
        run_job("prepare", "coco", *coco, *taken, "--out", options.bank)
    if not (out / "pasted").exists():
        paste = list_words({"paste.bank": options.bank, **_PASTED})
        frames_of = ("--data.shards", options.cityscapes, "--validation.shards", options.cityscapes)
        run_job("paste_validation", RECIPE, *frames_of, *paste, "--out", out / "pasted")
    link_sets(options.sets, out / "pasted", data / "Validation_Dataset")


def _evaluate(options: RealOptions, checkpoint: Path, out: Path, **more: object) -> None:
    if not (out / "results.json").exists():
        where = ("--checkpoint", checkpoint, "--datasets", options.sets, "--out", out)
        run_job("evaluate", *where, *list_words({**options.evaluation, **more}))


def _evaluate_erfnet(options: RealOptions) -> None:
    """Evaluate ERFNet under both protocols, and choose a temperature on PastedVal."""
    out, cache = options.out, options.out / "cache"
    for protocol, kept in {"course-512": {}, "native": {"cache": cache}}.items():
        how = {
            "name": "ERFNet",
            "precision": "float32",
            "scores": ["MSP", "MaxLogit", "MaxEntropy"],
            "protocol": protocol,
            **kept,
        }
        _evaluate(options, options.data / ERFNET, out / "erfnet" / protocol, **how)
    if not (out / "temperature").exists():
        chosen = ("--validation", PASTED, "--scores", "MSP", "--out", out / "temperature")
        run_job("temperature", "--cache", cache, *chosen)


def _train_baseline(options: RealOptions) -> None:
    """Train the last six blocks and the queries of an EoMT-S, and keep what is best on validation."""
    settings = {
        "name": BASELINE,
        "out": options.baseline.parent,
        "model.weights": options.data / DINOV2,
        "adapt.mode": "last-6",
        "data.shards": options.cityscapes,
        "validation.shards": options.cityscapes,
        "validation.select": "miou",
        "ema.decay": 0.998,
        "loop.precision": options.precision,
        "loop.steps": 2 if options.smoke else 2000,
        "loop.eval_every": 2 if options.smoke else 250,
        "loop.save_every": 100,
    }
    results = options.baseline / "eval"
    if not (results / "results.json").exists():
        run_job("finetune", RECIPE, *list_words(settings), "--resume")
        _evaluate(
            options,
            options.baseline / "best",
            results,
            scores=[score for score in SCORES if NEEDS[score] in ("", "queries")],
        )


def fine_tune(options: RealOptions) -> None:
    """Fine-tune the baseline with each method and seed, as a sweep on this machine, and evaluate."""
    bank = {"paste.bank": str(options.bank)}
    cells = [
        {
            "name": m,
            "optim.lr": 1.0e-4,
            **METHODS[m],
            **(bank if _PASTED.items() <= METHODS[m].items() else {}),
        }
        for m in options.names
    ]
    overrides = {
        "data.shards": [str(options.cityscapes)],
        "validation.shards": [],
        "model.weights": str(options.baseline / "best"),
        "adapt.mode": "last-3",
        "loop.precision": options.precision,
        "loop.steps": 2 if options.smoke else 200,
        "loop.save_every": 50,
        "loop.eval_every": 0,
    }
    sweep = {
        "name": options.sweep.name,
        "out": str(options.sweep.parent),
        "config": str(RECIPE),
        "overrides": overrides,
        "cells": cells,
        "seeds": [*options.seeds],
        "evaluation": {"datasets": str(options.sets), "options": {**options.evaluation, "scores": [*SCORES]}},
    }
    write_atomically(options.out / "sweep.yaml", yaml.safe_dump(sweep, sort_keys=False))
    run_job("submit", options.out / "sweep.yaml", "--local", options.at_once)


def _report(options: RealOptions) -> str:
    """Put the tables one below the other: ERFNet's, its temperatures, the runs', the choice, differences."""
    found = {name: [*map(read_run, options.results(name))] for name in (BASELINE, *options.names)}
    tests, pasted = part_runs(found, PASTED_TITLE)
    out = options.out
    tables = {
        "ERFNet, protocol course-512": out / "erfnet" / "course-512" / "results.md",
        "ERFNet, protocol native": out / "erfnet" / "native" / "results.md",
        "MSP of ERFNet by temperature": out / "temperature" / "temperature.md",
        "EoMT-S before fine-tuning": options.baseline / "eval" / "results.md",
        "EoMT-S": options.sweep / "table" / "results.md",
    }
    parts = [f"## {title}\n\n{path.read_text()}" for title, path in tables.items()]
    parts.append(f"## Means and choice\n\n{render_numbers(tests, SCORES)}{render_choice(tests, pasted)}")
    return "\n".join((*parts, render_differences(tests, [*_list_pairs(pasted)])))


def _list_pairs(pasted: Runs) -> Iterator[tuple[Way, Way]]:
    """Yield each method against the control, each with the score chosen for it, and with the same scores."""
    chosen = {name: score for name, score in choose_scores(pasted).items() if name != BASELINE}
    others = [name for name in chosen if name != CONTROL]
    yield from (((name, chosen[name]), (CONTROL, chosen[CONTROL])) for name in others)
    for score in ("MSP", "NormalizedEntropy", "EntropyLogMax"):
        yield from (((name, score), (CONTROL, score)) for name in others)


if __name__ == "__main__":
    run_program(main)
