"""The study of all methods: its steps in order and not again, the cells of its sweep, what is refused."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.report.record import render_json
from eval.sketch import sketch_path
from jobs import experiments
from jobs.submit import plan_sweep
from jobs.work import small_cityscapes
from jobs.work.study import CONTROL, METHODS, SCORES
from shards.settings import read_config
from slurm.sweep import SweepConfig
from tests.support.records import make_record, write_counts
from tests.support.refused import refused

SETS = ("SMIYC RA-21", "Pasted val")
CHOSEN = ("rba", "isomax_plus")
PROGRAM = """#!/bin/bash
here="$(dirname "$0")"
case "$1" in */unpack.py) mkdir -p "$2"; exit;; esac
echo "${@:2}" >> "$here/calls"
for ((i = 1; i < $#; i++)); do [ "${!i}" = --out ] && n=$((i + 1)) && out="${!n}"; done
case "$2" in
jobs.synthesize) mkdir -p "$out/anomaly/RoadAnomaly21";;
jobs.submit) cp -r "$here/sweeps" "$(dirname "$3")";;
jobs.evaluate) mkdir -p "$(dirname "$out")"; cp -r "$here/eval" "$out";;
*) mkdir -p "$out/PastedVal"; touch "$out/temperature.md";;
esac
"""
"""Stands for Python: notes what it is asked to run, and leaves what the program would leave."""


def make_data(root: Path) -> Path:
    places = (*small_cityscapes.PLACES[1:], "Validation_Dataset/RoadAnomaly21")
    for place in map(root.joinpath, places):
        if place.suffix:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.touch()
        else:
            place.mkdir(parents=True)
    return root


def write_results(folder: Path, scores: Sequence[str], gain: float = 0.0) -> None:
    """Leave an evaluation: of each set eight images and its numbers, equal for all scores but MaxLogit."""
    rng = np.random.default_rng(0)
    records = []
    for dataset in SETS:
        pairs = rng.normal(gain, 1, (8, 10)), rng.normal(0, 1, (8, 30))
        write_counts(folder, dataset, *pairs)
        for score in scores:
            ap = 0.2 + gain + 0.1 * (score == "MaxLogit")
            records.append(make_record(dataset=dataset, score=score, protocol="native", ap=ap, fpr95=0.5))
            if score != "MSP":
                measured = sketch_path(folder, dataset, "native", "MSP")
                shutil.copy(measured, sketch_path(folder, dataset, "native", score))
    (folder / "results.json").write_text(render_json(records))
    (folder / "results.md").write_text("a table\n")


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let every step be PROGRAM, and give the file of its calls."""
    (tmp_path / "python").write_text(PROGRAM)
    (tmp_path / "python").chmod(0o755)
    write_results(tmp_path / "eval", SCORES[:-2])
    for name, gain in ((CONTROL, 0.0), ("rba", 1.0), ("isomax_plus", 0.1)):
        scores = SCORES[:-1] if name == "isomax_plus" else SCORES[:-2]
        for seed in (0, 1):
            write_results(tmp_path / f"sweeps/methods/runs/{name},seed={seed}/eval", scores, gain)
    (tmp_path / "sweeps/methods/table").mkdir()
    (tmp_path / "sweeps/methods/table/results.md").write_text("the runs\n")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    return tmp_path / "calls"


DRAWN = ["synthesize", "prepare", "prepare", "paste_validation"]
REAL = ["prepare", "prepare", "paste_validation", "evaluate", "evaluate", "temperature"]


@pytest.mark.parametrize(("is_real", "before"), [(False, DRAWN), (True, REAL)])
def test_experiments_go_on_where_they_stopped_and_choose_on_pasted_data(
    tmp_path: Path, programs: Path, capsys: pytest.CaptureFixture[str], is_real: bool, before: list[str]
) -> None:
    out = tmp_path / "out"
    data = ["--data", str(make_data(tmp_path / "data"))] if is_real else []
    command = ["--out", str(out), "--methods", *CHOSEN, *data]
    experiments.main(command)
    calls = programs.read_text().splitlines()
    *first, trained, one, other = calls
    assert [call.split()[0].removeprefix("jobs.") for call in first] == before
    assert "--resume" in trained
    assert f"--name baseline --out {out}/runs" in trained
    evaluated, submitted = sorted((one, other))  # side by side
    assert evaluated.startswith("jobs.evaluate")
    assert "MinDistance" not in evaluated
    assert submitted.startswith("jobs.submit")
    report = (out / "results.md").read_text()
    assert "Chosen on PastedVal: rba with MaxLogit. " in report
    assert "| rba with MaxLogit | control with MaxLogit | +" in report
    assert "\nthe runs\n" in report
    assert "rba: RbA outlier exposure\n" in report
    assert ("## ERFNet, protocol native" in report) == is_real
    assert capsys.readouterr().out == report
    experiments.main(command)
    again = programs.read_text().splitlines()[len(calls) :]
    assert [call.split()[0] for call in again] == ["jobs.submit"]  # which knows what it has done


@pytest.mark.parametrize("is_real", [False, True])
def test_every_method_is_a_cell_that_a_sweep_takes(tmp_path: Path, programs: Path, is_real: bool) -> None:
    data = {"data": make_data(tmp_path / "data")} if is_real else {}
    options = experiments.ExperimentsOptions(out=tmp_path / "out", seeds=(0, 1, 2), **data)  # type: ignore[arg-type]
    study = experiments.plan(options)
    study.run()
    config = read_config(SweepConfig, study.out / "sweep.yaml")
    plan = plan_sweep(config, study.out / "sweep.yaml")
    assert list(plan.configs) == [f"{name},seed={seed}" for name in METHODS for seed in range(3)]
    for task, (name, cell) in zip(plan.tasks.cells, plan.configs.items(), strict=True):
        method, _, seed = name.partition(",seed=")
        assert cell.seed == int(seed)
        assert cell.optim.lr == (1e-3 if method == "outlier_head" else 1e-4 if is_real else 3e-4)
        bank = str(study.bank) if METHODS[method].pastes else ""
        assert (cell.paste.bank, cell.paste.probability > 0) == (bank, bool(bank))
        assert cell.model.weights == str(study.out / "runs/baseline" / ("best" if is_real else ""))
        evaluation = task.stages["evaluate"]
        assert ("MinDistance" in evaluation.command) == (method == "isomax_plus")
        assert ("LikelihoodRatio" in evaluation.command) == (method == "outlier_head")
        assert Path(evaluation.creates) == study.results(method)[cell.seed]
    assert plan.configs["rba,seed=2"].loss.outlier == ("rba",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": Path("nowhere")}, "--data nowhere: lacks Validation_Dataset, "),
        ({"methods": ("rbaa",)}, "--methods: unknown rbaa; known: control, "),
        ({"seeds": ()}, "--seeds: got none; at least two are needed, each once"),
        ({"seeds": (1,)}, "--seeds: got 1; at least two are needed, each once"),
        ({"seeds": (3, -1)}, "--seeds: got -1..3; allowed are 0..4294967295"),
        ({"seeds": (1, 1)}, "--seeds: got 1 1; at least two are needed, each once"),
    ],
)
def test_impossible_experiments_are_one_line(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with refused(message):
        experiments.plan(experiments.ExperimentsOptions(**{"out": tmp_path / "out"} | changes))
    assert not (tmp_path / "out").exists()


def test_other_experiments_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "experiments.yaml").write_text("data: null\nsmoke: true\n")
    with refused("holds experiments with --smoke True"):
        experiments.main(["--out", str(tmp_path)])
