"""Several seeds as one comparison: what is printed, what is run again, what is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from eval.report.choice import render_choice, render_differences, render_numbers
from eval.report.seeds import SeedRun
from jobs import experiments
from jobs.demo import BASELINE, METHODS, SMOKE, Scale, find_results, make_data, train_and_evaluate
from jobs.experiments import SCORES, ExperimentsOptions, list_comparisons
from jobs.submit import plan_sweep
from shards.errors import InputError
from shards.settings import read_config
from slurm.sweep import SweepConfig
from tests.support.records import make_record, write_counts

RECORD = make_record(ap=0.2, fpr95=0.5, miou=0.4)


def make_runs(gains: dict[tuple[str, str], float], *datasets: str) -> dict[str, list[SeedRun]]:
    """Three seeds of every method; `gains` in AP by method and score."""
    runs: dict[str, list[SeedRun]] = {}
    for seed in range(3):
        for name in (BASELINE, *METHODS):
            records = []
            for score in [s for s in SCORES if s != "MinDistance" or name == "isomax_plus"]:
                for dataset in datasets:
                    ap = 0.2 + 0.05 * seed + gains.get((name, score), 0.0)
                    ap += 0.1 if dataset == "FS Static" else -0.1
                    of = {"model": name, "score": score, "dataset": dataset}
                    records.append(make_record(**of, ap=ap, fpr95=0.5, miou=0.4))
            runs.setdefault(name, []).append(SeedRun(records, seed))
    return runs


def test_the_table_has_means_over_the_sets_then_over_seeds() -> None:
    lines = render_numbers(make_runs({}, "SMIYC RA-21", "FS Static"), SCORES).splitlines()
    control = next(line for line in lines if line.startswith("| control |"))
    assert "| 40.00 ± 0.00 | 25.00 ± 5.00 / 50.00 ± 0.00 |" in control
    assert "|  |" in control  # no prototypes, no MinDistance


def test_method_and_score_are_chosen_on_pasted_data_whatever_the_test_sets_say() -> None:
    tests = make_runs({("control", "MSP"): 0.5}, "SMIYC RA-21", "FS Static")
    pasted = make_runs({("rba", "EAM"): 0.3, ("control", "RbA"): 0.2}, "PastedVal")
    report = render_choice(tests, pasted)
    assert "Chosen on PastedVal: rba with EAM. " in report
    assert "| method | chosen score | PastedVal | SMIYC RA-21 | FS Static | mean |" in report
    rows = [line for line in report.splitlines() if " / " in line]
    numbers = "| 15.00 ± 5.00 / 50.00 ± 0.00 | 35.00 ± 5.00 / 50.00 ± 0.00 | 25.00 ± 5.00 / 50.00 ± 0.00 |"
    assert rows[0] == f"| rba | EAM | 45.00 ± 5.00 / 50.00 ± 0.00 {numbers}"
    assert rows[1].startswith("| control | RbA | 35.00 ")
    pairs = list(list_comparisons(tests, pasted))
    assert pairs[0] == (("rba", "EAM"), ("control", "RbA"))
    assert (("class_claim", "MSP"), ("rba", "MSP")) in pairs


def test_differences_have_intervals_over_seeds_and_images(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    runs: dict[str, list[SeedRun]] = {}
    for name, shift in ((BASELINE, 1.0), ("good", 2.5), ("equal", 1.0)):
        for seed in range(2):
            folder = tmp_path / f"{name}{seed}"
            for dataset in ("SMIYC RA-21", "FS Static"):
                write_counts(folder, dataset, rng.normal(shift, 1, (8, 30)), rng.normal(0, 1, (8, 90)))
            records = [make_record(dataset=dataset) for dataset in ("SMIYC RA-21", "FS Static")]
            runs.setdefault(name, []).append(SeedRun(records, seed, folder))
    report = render_differences(runs, [((name, "MSP"), (BASELINE, "MSP")) for name in ("good", "equal")])
    assert "95 % interval over 2 seeds and all images" in report
    good, equal = (
        line.split(" | ") for line in report.splitlines() if line.startswith("| ") and " with " in line
    )
    assert good[:2] == ["| good with MSP", "baseline with MSP"]
    assert (good[3], good[5]) == ("supported", "supported |")
    assert good[2].startswith("+")
    assert good[4].startswith("-")
    assert equal[3] == "not supported"


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        ((), "got none; at least two, each once, are needed for a spread"),
        ((1,), "got 1; at least two, each once"),
        ((1, 1), "got 1 1; at least two, each once"),
        ((3, -1), "got -1..3; allowed are 0..4294967295"),
    ],
)
def test_impossible_seeds_are_refused(seeds: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError, match=f"--seeds: {message}"):
        ExperimentsOptions(out=Path("x"), seeds=seeds)


def test_experiments_of_another_size_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "experiments.yaml").write_text("smoke: true\n")
    with pytest.raises(InputError, match="holds experiments with --smoke True"):
        experiments.main(["--out", str(tmp_path)])


PROGRAM = """#!/bin/bash
echo "${@:2}" >> "$(dirname "$0")/calls"
for ((i = 1; i < $#; i++)); do [ "${!i}" = --out ] && n=$((i + 1)) && out="${!n}"; done
[ "$2" = jobs.submit ] || mkdir -p "$out"
[ "$2" != jobs.evaluate ] || touch "$out/results.json"
"""
"""Stands for Python: notes what it is asked to run, and leaves the folder that the program would leave."""


def test_a_chain_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "python").write_text(PROGRAM)
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))

    def run() -> list[str]:
        make_data(tmp_path, 0, Scale())
        train_and_evaluate(tmp_path, tmp_path / "runs", 3, SMOKE, METHODS, SCORES)
        return (tmp_path / "calls").read_text().splitlines()

    *before, trained, first, second = run()
    assert [call.split()[0] for call in before] == ["jobs.synthesize", "jobs.prepare", "jobs.prepare"]
    assert trained.startswith("jobs.finetune")
    assert all(word in trained for word in ("--seed 3", "--resume", "--loop.steps 4", "crop 64 64"))
    evaluated, submitted = sorted((first, second))
    assert evaluated.startswith("jobs.evaluate")
    assert "MinDistance" not in evaluated
    assert submitted.startswith("jobs.submit")
    assert run()[6:] == [submitted]  # which knows what is done

    plan = plan_sweep(read_config(SweepConfig, tmp_path / "runs/methods.yaml"), tmp_path / "methods.yaml")
    assert list(plan.configs) == [f"{name},seed=3" for name in METHODS]
    for task, (name, config) in zip(plan.tasks.cells, plan.configs.items(), strict=True):
        assert (config.seed, config.loop.steps, config.data.crop) == (3, 2, (64, 64))
        assert config.model.weights == str(tmp_path / "runs/baseline")
        pastes = not name.startswith(("control", "logit_norm", "isomax_plus"))
        assert (config.paste.bank, config.paste.probability > 0) == (
            (str(tmp_path / "shards/cutouts"), True) if pastes else ("", False)
        )
        assert ("MinDistance" in task.stages["evaluate"].command) == name.startswith("isomax_plus")
        assert find_results(tmp_path / "runs", 3, name.partition(",")[0]) == Path(
            task.stages["evaluate"].creates
        )
