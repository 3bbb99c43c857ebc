"""The tables on real data: what is run in which order, whether its sweep holds, what is refused."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from eval.report.record import render_json
from eval.sketch import sketch_path
from jobs import real
from jobs.real import CONTROL, METHODS, SCORES
from jobs.submit import plan_sweep
from shards.settings import read_config
from slurm.sweep import SweepConfig
from tests.support.records import make_record, write_counts
from tests.support.refused import refused

SETS = ("SMIYC RA-21", "Pasted val")
PROGRAM = """#!/bin/bash
here="$(dirname "$0")"
case "$1" in */unpack.py) mkdir -p "$2"; exit;; esac
echo "${@:2}" >> "$here/calls"
for ((i = 1; i < $#; i++)); do [ "${!i}" = --out ] && n=$((i + 1)) && out="${!n}"; done
case "$2" in
jobs.submit) cp -r "$here/sweeps" "$here/real";;
jobs.evaluate) mkdir -p "$(dirname "$out")"; cp -r "$here/eval" "$out";;
*) mkdir -p "$out/PastedVal"; touch "$out/temperature.md";;
esac
"""
"""Stands for Python: notes what it is asked to run, and leaves what the program would leave."""


def make_data(root: Path) -> Path:
    for place in map(root.joinpath, (*real.PLACES[1:], "Validation_Dataset/RoadAnomaly21")):
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
        pairs = rng.normal(gain, 1, (8, 30)), rng.normal(0, 1, (8, 90))
        write_counts(folder, dataset, *pairs)
        for score in scores:
            ap = 0.2 + gain + 0.1 * (score == "MaxLogit")
            records.append(make_record(dataset=dataset, score=score, protocol="native", ap=ap, fpr95=0.5))
            if score != "MSP":
                measured = sketch_path(folder, dataset, "native", "MSP")
                shutil.copy(measured, sketch_path(folder, dataset, "native", score))
    (folder / "results.json").write_text(render_json(records))
    (folder / "results.md").write_text("a table\n")


def test_the_chain_goes_on_where_it_stopped_and_chooses_on_pasted_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "python").write_text(PROGRAM)
    (tmp_path / "python").chmod(0o755)
    write_results(tmp_path / "eval", SCORES[:-1])
    for name, gain in ((CONTROL, 0.0), ("rba", 1.0), ("isomax_plus", 0.1)):
        scores = SCORES if name == "isomax_plus" else SCORES[:-1]
        for seed in (0, 1):
            write_results(tmp_path / f"sweeps/methods/runs/{name},seed={seed}/eval", scores, gain)
    (tmp_path / "sweeps/methods/table").mkdir()
    (tmp_path / "sweeps/methods/table/results.md").write_text("the runs\n")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    data, out = make_data(tmp_path / "data"), tmp_path / "real"
    command = ["--data", str(data), "--out", str(out), "--methods", "rba", "isomax_plus"]
    real.main(command)
    calls = (tmp_path / "calls").read_text().splitlines()
    jobs = [call.split()[0].removeprefix("jobs.") for call in calls]
    before = ["prepare", "prepare", "paste_validation", "evaluate", "evaluate", "temperature"]
    assert jobs == [*before, "finetune", "evaluate", "submit"]
    report = (out / "results.md").read_text()
    assert "Chosen on PastedVal: rba with MaxLogit. " in report
    assert "| rba with MaxLogit | control with MaxLogit | +" in report
    assert "\nthe runs\n" in report
    assert capsys.readouterr().out == report
    real.main(command)
    again = (tmp_path / "calls").read_text().splitlines()[len(calls) :]
    assert [call.split()[0] for call in again] == ["jobs.submit"]  # which knows what it has done


def test_every_method_is_a_cell_that_a_sweep_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(real, "run_job", lambda *_: None)
    (tmp_path / "real").mkdir()
    options = real.RealOptions(data=make_data(tmp_path / "data"), out=tmp_path / "real", seeds=(0, 1, 2))
    real.fine_tune(options)
    config = read_config(SweepConfig, options.out / "sweep.yaml")
    plan = plan_sweep(config, options.out / "sweep.yaml")
    assert len(plan.configs) == 3 * len(METHODS)
    assert plan.configs["rba,seed=2"].loss.outlier == ("rba",)
    told = {task.name: "MinDistance" in task.stages["evaluate"].command for task in plan.tasks.cells}
    assert [name for name, is_told in told.items() if is_told] == [f"isomax_plus,seed={i}" for i in range(3)]
    assert plan.configs["control,seed=0"].paste.bank == ""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": Path("nowhere")}, "--data nowhere: lacks Validation_Dataset, "),
        ({"methods": ("rbaa",)}, "--methods: unknown rbaa; known: control, "),
        ({"seeds": (1,)}, "--seeds: got 1; at least two are needed, each once"),
        ({"seeds": (1, 1)}, "--seeds: got 1 1; at least two are needed, each once"),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    data = make_data(tmp_path / "data")
    with refused(message):
        real.RealOptions(**{"data": data, "out": tmp_path / "real"} | changes)  # type: ignore[arg-type]
