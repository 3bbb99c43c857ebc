"""The choice of method and score, and the tables of means and differences around it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from eval.report.choice import render_choice, render_differences, render_numbers
from eval.report.seeds import SeedRun
from tests.support.records import make_record, write_counts

SCORES = ("MSP", "RbA", "EAM", "MinDistance")


def make_runs(gains: dict[tuple[str, str], float], *datasets: str) -> dict[str, list[SeedRun]]:
    """Three seeds of every method; `gains` in AP by method and score."""
    runs: dict[str, list[SeedRun]] = {}
    for seed in range(3):
        for name in ("control", "rba", "isomax_plus"):
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
    runs = make_runs({}, "SMIYC RA-21", "FS Static")
    lines = render_numbers(runs, SCORES).splitlines()
    assert lines[0].startswith("Mean ± standard deviation over 3 seeds; AP / FPR95")
    control = next(line for line in lines if line.startswith("| control |"))
    assert "| 40.00 ± 0.00 | 25.00 ± 5.00 / 50.00 ± 0.00 |" in control
    assert "|  |" in control  # no prototypes, no MinDistance
    one = render_numbers({name: of[:1] for name, of in runs.items()}, SCORES)
    assert one.startswith("One seed; AP / FPR95")
    assert "| control | 40.00 | 20.00 / 50.00 |" in one


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


def test_differences_have_intervals_over_seeds_and_images(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    runs: dict[str, list[SeedRun]] = {}
    for name, shift in (("baseline", 1.0), ("good", 2.5), ("equal", 1.0)):
        for seed in range(2):
            folder = tmp_path / f"{name}{seed}"
            for dataset in ("SMIYC RA-21", "FS Static"):
                write_counts(folder, dataset, rng.normal(shift, 1, (8, 10)), rng.normal(0, 1, (8, 30)))
            records = [make_record(dataset=dataset) for dataset in ("SMIYC RA-21", "FS Static")]
            runs.setdefault(name, []).append(SeedRun(records, seed, folder))
    report = render_differences(runs, [((name, "MSP"), ("baseline", "MSP")) for name in ("good", "equal")])
    assert "95 % interval over 2 seeds and all images" in report
    good, equal = (
        line.split(" | ") for line in report.splitlines() if line.startswith("| ") and " with " in line
    )
    assert good[:2] == ["| good with MSP", "baseline with MSP"]
    assert (good[3], good[5]) == ("supported", "supported |")
    assert good[2].startswith("+")
    assert good[4].startswith("-")
    assert equal[3] == "not supported"
