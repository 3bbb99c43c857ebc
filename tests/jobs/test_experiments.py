"""Several seeds as one comparison: what is printed, what is run again, what is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from eval.report.record import Record, render_json
from jobs import experiments
from jobs.demo import BASELINE, METHODS, Scale, make_data, train_and_evaluate
from jobs.experiments import SCORES, ExperimentsOptions, render_report
from shards.errors import InputError
from tests.support.records import make_record

RECORD = make_record(ap=0.2, fpr95=0.5, miou=0.4)


def make_records(seed: int) -> list[Record]:
    """RbA gains 10 points of AP whatever the seed; sole_claim as much on average, but not reliably."""
    gains = {"rba": 0.1 + 0.001 * seed, "sole_claim": (0.0, 0.3, 0.0)[seed]}
    records = []
    for name in (BASELINE, *METHODS):
        for score in (*SCORES, *(METHODS[name].scores if name in METHODS else ())):
            for dataset in ("SMIYC RA-21", "FS Static"):
                ap = 0.2 + 0.05 * seed + gains.get(name, 0.0) + (0.1 if dataset == "FS Static" else -0.1)
                of = {"model": name, "score": score, "dataset": dataset}
                records.append(make_record(**of, ap=ap, fpr95=0.5, miou=0.4))
    return records


def test_the_report_says_which_differences_hold_over_seeds() -> None:
    report = render_report({seed: make_records(seed) for seed in range(3)})
    lines = report.splitlines()
    control = next(line for line in lines if line.startswith("| control |"))
    assert "| 40.00 ± 0.00 | 25.00 ± 5.00 / 50.00 ± 0.00 |" in control  # means over the sets, then over seeds
    assert control.endswith("|  |")  # no prototypes, no MinDistance
    rba = next(line for line in lines if line.startswith("| rba - control | MSP |"))
    assert "| +10.1 [+9.9, +10.3] | supported | +0.0 [+0.0, +0.0] | not supported |" in rba
    sole = next(line for line in lines if line.startswith("| sole_claim - control | MSP |"))
    assert sole.startswith("| sole_claim - control | MSP | +10.0 [")
    assert "not supported" in sole.split(" | ")[3]
    assert "| rba | SoleClaim - MSP | +0.0 [+0.0, +0.0] | not supported |" in report


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
mkdir -p "$out"
[ "$2" != jobs.evaluate ] || cp "$(dirname "$0")/results.json" "$out"
"""
"""Stands for Python: notes what it is asked to run, and leaves the folder that the program would leave."""


def test_a_chain_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "python").write_text(PROGRAM)
    (tmp_path / "python").chmod(0o755)
    (tmp_path / "results.json").write_text(render_json([RECORD]))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))

    def run() -> list[Record]:
        make_data(tmp_path, 0, Scale())
        return train_and_evaluate(tmp_path, tmp_path / "runs", 3, Scale(), ("control", "rba"))

    assert len(run()) == 3
    calls = (tmp_path / "calls").read_text().splitlines()
    names = ["synthesize", *["prepare"] * 2, *["finetune"] * 3, *["evaluate"] * 3]
    assert [call.split()[0] for call in calls] == [f"jobs.{name}" for name in names]
    assert all("--seed 3" in call and "--resume" in call for call in calls[3:6])
    assert ["--paste.bank" in call for call in calls[3:6]] == [False, False, True]
    assert len(run()) == 3
    assert (tmp_path / "calls").read_text().splitlines() == calls
