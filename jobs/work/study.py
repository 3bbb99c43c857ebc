"""A study of methods: a baseline, its fine-tunings by a local sweep, their evaluations, and the tables."""

from __future__ import annotations

import contextlib
import itertools
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

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
from eval.sets.registry import VALIDATION_SETS
from jobs.work.steps import list_words, run_job, running
from outlier_paste.validation_set import FOLDER as PASTED
from shards.errors import InputError
from shards.files import write_atomically

CONFIGS = Path(__file__).parents[1] / "configs"
BASELINE, CONTROL = "baseline", "control"


class Method(NamedTuple):
    """What a baseline is fine-tuned with."""

    meaning: str
    settings: Mapping[str, Any] = {}
    """Settings of its own."""
    pastes: bool = True


METHODS: Mapping[str, Method] = {
    CONTROL: Method("the same steps, no outliers", pastes=False),
    "rba": Method("RbA outlier exposure", {"loss.outlier": ["rba"]}),
    "class_claim": Method("class-claim outlier exposure, ours", {"loss.outlier": ["class_claim"]}),
    "outlier_head": Method(
        "likelihood-ratio head, the rest stands still",
        {"adapt.mode": "outlier_head", "loss": {"name": "likelihood_ratio"}, "optim.lr": 1.0e-3},
    ),
    "rba_released": Method(
        "RbA with thresholds, weight and mode of the released recipe, and our pasting",
        {"loss.outlier": ["rba"], "loss.options.rba.preset": "released", "adapt.mode": "heads"},
    ),
    "logit_norm": Method(
        "LogitNorm, no outliers",
        {"loss.classification": "logit_norm", "loss.options.logit_norm.temperature": 0.3},
        pastes=False,
    ),
    "isomax_plus": Method(
        "IsoMax+, no outliers",
        {"loss.classification": "isomax_plus", "model.class_head": "isomax"},
        pastes=False,
    ),
    "paste_only": Method("pasted outliers, no outlier term"),
    "rba_small": Method("RbA, small objects", {"loss.outlier": ["rba"], "paste.sizing": "small"}),
    "rba_area": Method("RbA, small objects weigh more", {"loss.outlier": ["rba"], "loss.area_exponent": 0.5}),
    "rba_lora": Method("RbA through LoRA", {"loss.outlier": ["rba"], "adapt.mode": "lora"}),
}
SCORES = (
    *("MSP", "MaxLogit", "MaxEntropy", "RbA", "NormalizedMSP", "NormalizedEntropy", "EntropyLogMax"),
    *("MinDistance", "LikelihoodRatio"),
)


@dataclass(frozen=True, kw_only=True)
class Study:
    """A baseline and what each method makes of it. What is complete in `out` is left as it is."""

    out: Path
    """Folder of data, runs and sweep; absolute."""
    recipe: Path
    """Configuration that every run starts from. It pastes nothing."""
    baseline: Mapping[str, Any]
    """Settings of the baseline."""
    finetuning: Mapping[str, Any]
    """Settings of every fine-tuning."""
    paste: Mapping[str, Any]
    """Settings of the methods that paste."""
    evaluation: Mapping[str, Any]
    """Options of every evaluation."""
    scores: Sequence[str] = SCORES
    """Scores of every evaluation; a network that lacks the parts for one goes without."""
    methods: Sequence[str] = tuple(METHODS)
    """Names in METHODS; the control is always among them."""
    seeds: Sequence[int] = (0, 1)
    """Of the fine-tunings; the baseline has the seed of its settings."""
    at_once: int = 2
    """Fine-tunings side by side."""
    ranks: int = 1
    """Processes that train the baseline."""

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.methods) - METHODS.keys()):
            raise InputError(f"--methods: unknown {unknown[0]}; known: {', '.join(METHODS)}")

    @property
    def names(self) -> tuple[str, ...]:
        """Methods, the control first."""
        return tuple(dict.fromkeys((CONTROL, *self.methods)))

    @property
    def cityscapes(self) -> Path:
        """Shards of the frames."""
        return self.out / "shards" / "cityscapes"

    @property
    def bank(self) -> Path:
        """Shards of the objects to paste."""
        return self.out / "shards" / "coco-objects"

    @property
    def sets(self) -> Path:
        """Folder of the test sets and PastedVal."""
        return self.out / "sets"

    @property
    def table(self) -> Path:
        """Results of the fine-tunings, by test set."""
        return self.out / "sweeps" / "methods" / "table" / "results.md"

    def results(self, name: str) -> list[Path]:
        """Return the results of the baseline, or those of each seed of a method."""
        if name == BASELINE:
            runs, names = self.out / "runs", [name]
        else:
            runs = self.out / "sweeps" / "methods" / "runs"
            names = [f"{name},seed={seed}" for seed in self.seeds]
        return [runs / run / "eval" / "results.json" for run in names]

    def prepare_objects(self, coco: Path, *options: object) -> None:
        """Cut the objects out of the photographs in `coco`."""
        if not self.bank.exists():
            photographs = ("--images", coco / "train2017", "--annotations", coco / "annotations")
            run_job("prepare", "coco", *photographs, *options, "--out", self.bank)

    def paste_validation(self) -> Path:
        """Write PastedVal, val frames with objects that no run pastes, and return its folder."""
        pasted = self.out / "pasted"
        if not pasted.exists():
            shards = {"data.shards": self.cityscapes, "validation.shards": self.cityscapes}
            words = list_words({**shards, "paste.bank": self.bank, **self.paste})
            run_job("paste_validation", self.recipe, *words, "--out", pasted)
        return pasted

    def run(self) -> None:
        """Train the baseline, fine-tune it with each method and seed, and evaluate all of them."""
        with contextlib.ExitStack() as beside:
            results = self.results(BASELINE)[0].parent
            if not (results / "results.json").exists():
                own = {"name": BASELINE, "out": self.out / "runs", "data.shards": self.cityscapes}
                words = list_words({**own, **self.baseline})
                run_job("finetune", self.recipe, *words, "--resume", ranks=self.ranks)
                read = [score for score in self.scores if NEEDS[score] in ("", "queries")]
                place = {"checkpoint": self._checkpoint, "datasets": self.sets, "out": results}
                options = {**place, **self.evaluation_options, "scores": read}
                beside.enter_context(running("evaluate", *list_words(options)))
            write_atomically(self.out / "sweep.yaml", yaml.safe_dump(self._plan_sweep(), sort_keys=False))
            sweep = (self.out / "sweep.yaml", "--local", self.at_once)
            run_job("submit", *sweep, stdout=subprocess.DEVNULL)

    @property
    def _checkpoint(self) -> Path:
        run = self.out / "runs" / BASELINE
        return run / "best" if "validation.select" in self.baseline else run

    @property
    def evaluation_options(self) -> dict[str, Any]:
        """Options of every evaluation by name, but for place and scores."""
        return {"cityscapes": str(self.cityscapes), "components": False, **self.evaluation}

    def _plan_sweep(self) -> dict[str, Any]:
        """Return the content of the sweep's file: a cell for each method."""
        given = {
            "data.shards": [str(self.cityscapes)],
            "validation.shards": [],
            "model.weights": str(self._checkpoint),
            **self.finetuning,
        }
        paste = {"paste.bank": str(self.bank), **self.paste}
        methods = {name: METHODS[name] for name in self.names}
        return {
            "name": "methods",
            "out": str(self.out / "sweeps"),
            "config": str(self.recipe),
            "overrides": given,
            "cells": [
                {"name": name, **(paste if method.pastes else {}), **method.settings}
                for name, method in methods.items()
            ],
            "seeds": [*self.seeds],
            "evaluation": {
                "datasets": str(self.sets),
                "options": {**self.evaluation_options, "scores": [*self.scores]},
            },
        }

    def read(self) -> Runs:
        """Read the results of all runs."""
        return {name: [*map(read_run, self.results(name))] for name in (BASELINE, *self.names)}

    def render(self, tables: Mapping[str, Path]) -> str:
        """Put `tables`, title -> file, before means, the choice on PastedVal, and differences."""
        tests, pasted = part_runs(self.read(), VALIDATION_SETS[PASTED].name)
        own = {
            "Before fine-tuning": self.results(BASELINE)[0].with_name("results.md"),
            "Fine-tuned": self.table,
        }
        parts = [f"## {title}\n\n{path.read_text()}" for title, path in {**tables, **own}.items()]
        parts.append(f"## Means and choice\n\n{render_numbers(tests, self.scores)}\n{self.explain()}")
        return "\n".join((*parts, render_choice(tests, pasted) + render_differences(tests, [*pair(pasted)])))

    def explain(self) -> str:
        """Say what each row is."""
        rows = {name: METHODS[name].meaning for name in self.names}
        return "".join(f"{name}: {meaning}\n" for name, meaning in rows.items())


def pair(pasted: Runs) -> Iterator[tuple[Way, Way]]:
    """Yield methods to compare: with chosen scores each and the control, each and the next, best first; then
    each and the control with equal scores.

    A score is chosen by `pasted`, the results on PastedVal.
    """
    chosen = {name: score for name, score in choose_scores(pasted).items() if name != BASELINE}
    against_control = [(name, CONTROL) for name in chosen if name != CONTROL]
    between = [names for names in itertools.pairwise(chosen) if CONTROL not in names]
    yield from (((a, chosen[a]), (b, chosen[b])) for a, b in (*against_control, *between))
    for score in ("MSP", "NormalizedEntropy", "EntropyLogMax"):
        yield from (((a, score), (b, score)) for a, b in against_control)
