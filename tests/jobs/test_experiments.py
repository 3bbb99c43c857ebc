"""Several seeds as one comparison: what is printed, what is run again, what is refused."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from eval.report.record import Record, render_json
from jobs import demo as chain
from jobs import experiments
from jobs.demo import BASELINE, METHODS, SCORES, Scale, make_data, train_and_evaluate
from jobs.experiments import ExperimentsOptions, render_report
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
                records.append(
                    make_record(model=name, score=score, dataset=dataset, ap=ap, fpr95=0.5, miou=0.4)
                )
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


@pytest.mark.parametrize("seeds", [(), (1,), (1, 1)], ids=["none", "one", "twice"])
def test_a_spread_needs_two_different_seeds(seeds: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="--seeds: got .*; at least two, each once, are needed for a spread"):
        ExperimentsOptions(out=Path("x"), seeds=seeds)


def test_impossible_seeds_are_refused() -> None:
    with pytest.raises(InputError, match=r"--seeds: got -1..3; allowed are 0..4294967295"):
        ExperimentsOptions(out=Path("x"), seeds=(3, -1))


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(InputError, match="already holds files"):
        experiments.main(["--out", str(tmp_path)])
    (tmp_path / "experiments.yaml").write_text("smoke: true\n")
    with pytest.raises(InputError, match="holds experiments with --smoke True"):
        experiments.main(["--out", str(tmp_path)])


def test_a_chain_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def run(job: str, *arguments: object) -> None:
        words = [str(argument) for argument in arguments]
        calls.append(f"{job} {shlex.join(words)}")
        out = Path(words[words.index("--out") + 1])
        out.mkdir(parents=True, exist_ok=True)
        if job == "evaluate":
            (out / "results.json").write_text(render_json([RECORD]))

    monkeypatch.setattr(chain, "run_job", run)
    make_data(tmp_path, 0, Scale())
    train_and_evaluate(tmp_path, tmp_path / "runs", 3, Scale(), ("control", "rba"))
    assert [call.split()[0] for call in calls] == [
        "synthesize",
        *["prepare"] * 2,
        *["finetune"] * 3,
        *["evaluate"] * 3,
    ]
    assert all("--seed 3" in call and "--resume" in call for call in calls if call.startswith("finetune"))
    assert "--paste.bank" in calls[5]
    assert "--paste.bank" not in calls[4]
    calls.clear()
    make_data(tmp_path, 0, Scale())
    records = train_and_evaluate(tmp_path, tmp_path / "runs", 3, Scale(), ("control", "rba"))
    assert calls == []
    assert len(records) == 3
