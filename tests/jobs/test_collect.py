"""One table from many runs: seeds merged, the rest apart, what is missing said."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from eval.report.record import parse_json, render_json
from eval.sketch import sketch_path
from jobs.collect import main
from slurm.tasks import StageState, SweepStage, SweepTask, Tasks, write_state, write_tasks
from tests.support.records import make_record, write_counts
from tests.support.refused import refused


def make_run(root: Path, name: str, ap: float | None, **settings: object) -> Path:
    """A run folder; without `ap` it has no results."""
    folder = root / name
    (folder / "eval").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"name": name, "out": str(root), **settings}))
    if ap is not None:
        record = make_record(model=name, checkpoint=name, ap=ap, fpr95=0.5)
        (folder / "eval" / "results.json").write_text(render_json([record]))
    return folder


def rows(table: str) -> list[list[str]]:
    lines = table.split("## Differences")[0].splitlines()
    return [line.strip("| ").split(" | ") for line in lines if line.startswith("|")][2:]


def test_runs_that_differ_in_their_seed_become_one_row(tmp_path, capsys):
    runs = [
        make_run(tmp_path, "lora,seed=0", 0.2, seed=0, optim={"lr": 1.0}),
        make_run(tmp_path, "lora,seed=1", 0.4, seed=1, optim={"lr": 1.0}),
        make_run(tmp_path, "lora,lr=2,seed=0", 0.9, seed=0, optim={"lr": 2.0}),
    ]
    main([*map(str, runs), "--out", str(tmp_path / "table")])
    table = (tmp_path / "table" / "results.md").read_text()
    assert capsys.readouterr().out == table
    assert [row[:4] for row in rows(table)] == [
        ["lora (2 seeds)", "MSP", "30.00 ± 14.14‡", "50.00 ± 0.00"],
        ["lora,lr=2,seed=0", "MSP", "**90.00**", "50.00‡"],
    ]
    records = parse_json((tmp_path / "table" / "results.json").read_text(), "table")
    assert [record.model for record in records] == [run.name for run in runs]
    assert (tmp_path / "table" / "results.csv").read_text().count("\n") == 4
    assert "lora (2 seeds)" in (tmp_path / "table" / "results.tex").read_text()


def test_a_folder_of_runs_is_all_of_them(tmp_path):
    make_run(tmp_path / "runs", "a", 0.2, seed=0)
    make_run(tmp_path / "runs", "b", 0.4, seed=0, optim={"lr": 2.0})
    make_run(tmp_path / "runs", "c", None)
    (tmp_path / "runs" / "notes").mkdir()
    main([str(tmp_path / "runs"), "--out", str(tmp_path / "table")])
    table = (tmp_path / "table" / "results.md").read_text()
    assert [row[0] for row in rows(table)] == ["a", "b"]
    assert "Missing: c (no eval/results.json)." in table


REPETITIONS = [
    ({"limit": 3}, {"limit": 3}, ["m (first 3 frames) (2 seeds)"]),
    ({"limit": 3}, {}, ["m, seed 0 (first 3 frames)", "m, seed 1"]),
    ({"num_images": 9}, {}, ["m, seed 0", "m, seed 1"]),
    ({"model": "one"}, {"model": "two"}, ["one (2 seeds)"]),
    (
        {"checkpoint": "r/best/step-0000001"},
        {"checkpoint": "r/checkpoints/step-0000002"},
        ["m, seed 0", "m, seed 1"],
    ),
]


@pytest.mark.parametrize(("first", "second", "models"), REPETITIONS)
def test_seeds_belong_together_where_the_same_was_evaluated_whatever_its_name(
    tmp_path, first, second, models
):
    runs = []
    for seed, changes in enumerate((first, second)):
        runs.append(make_run(tmp_path, f"run{seed}", 0.2, seed=seed))
        record = make_record(**{"model": f"m, seed {seed}", "checkpoint": "gone", **changes})
        (runs[-1] / "eval" / "results.json").write_text(render_json([record]))
    main([*map(str, runs), "--out", str(tmp_path / "table")])
    assert [row[0] for row in rows((tmp_path / "table" / "results.md").read_text())] == models


def test_temperatures_that_seeds_chose_for_themselves_are_one_method(tmp_path):
    """The results lie outside of the runs; their checkpoints tell the configurations."""
    results = []
    for seed, temperature in enumerate((2.0, 3.0)):
        run = make_run(tmp_path, f"m-seed{seed}", None, seed=seed)
        checkpoint = str(run / "checkpoints" / "step-0000001")
        record = make_record(temperature=temperature, temperature_from="val", checkpoint=checkpoint, ap=0.5)
        results.append(tmp_path / f"sweep{seed}" / "results.json")
        results[-1].parent.mkdir()
        results[-1].write_text(render_json([record]))
    main([*map(str, results), "--out", str(tmp_path / "table")])
    (row,) = rows((tmp_path / "table" / "results.md").read_text())
    assert row[:3] == ["run_a (2 seeds)", "MSP (T from val)", "50.00 ± 0.00"]


def test_models_are_named_on_request_and_all_columns_shown(tmp_path):
    runs = [str(make_run(tmp_path, name, 0.2)) for name in ("a", "b")]
    out = str(tmp_path / "table")
    main([*runs, "--names", "EoMT", "ERFNet", "--all_columns", "--out", out])
    table = rows((tmp_path / "table" / "results.md").read_text())
    assert [(row[0], len(row)) for row in table] == [("EoMT", 13), ("ERFNet", 13)]
    with refused("--names: got 1 names for 2 runs; one each is needed"):
        main([*runs, "--names", "EoMT", "--out", out])


def test_a_second_run_of_one_seed_is_no_second_seed(tmp_path):
    runs = [make_run(tmp_path / part, "a", ap, seed=0) for part, ap in (("x", 0.2), ("y", 0.4))]
    main([*map(str, runs), "--out", str(tmp_path / "table")])
    table = rows((tmp_path / "table" / "results.md").read_text())
    assert [(row[0], row[2]) for row in table] == [("a", "20.00‡"), ("a", "**40.00**")]


def add_sketch(run: Path, shift: float, seed: int) -> None:
    """The counts of 12 drawn images whose anomalies score `shift` higher."""
    rng = np.random.default_rng(seed)
    anomalous, normal = rng.normal(shift, 1, (12, 30)), rng.normal(0, 1, (12, 90))
    write_counts(run / "eval", "SMIYC RA-21", anomalous, normal)


def test_what_the_images_do_not_support_is_marked_and_what_they_do_is_not(tmp_path):
    values = {"best": 0.9, "equal": 0.89, "poor": 0.5, "bare": 0.4}
    runs = [make_run(tmp_path, *item) for item in values.items()]
    for number, (run, shift) in enumerate(zip(runs, (3, 3, 1), strict=False)):
        add_sketch(run, shift, number)
    main([*map(str, runs), "--out", str(tmp_path / "table")])
    table = (tmp_path / "table" / "results.md").read_text()
    assert [row[2] for row in rows(table)] == ["**90.00**", "89.00†", "50.00", "40.00‡"]
    assert "†: the test does not support that the best is better" in table.split("## Differences")[0]
    entries = json.loads((tmp_path / "table" / "differences.json").read_text())
    entries = [entry for entry in entries if entry["column"] == "SMIYC RA-21 AuPRC"]
    assert [(e["best_row"], e["row"], e["seeds"], e["images"], e["verdict"]) for e in entries] == [
        (1, 2, 1, 12, "not supported"),
        (1, 3, 1, 12, "supported"),
        (1, 4, None, None, "no test"),
    ]
    assert entries[0]["low"] < 0 < entries[0]["high"]
    assert entries[1]["low"] > 0
    assert "| best / MSP (row 1) | bare / MSP (row 4) |  |  | no test: bare has no sketch of MSP |" in table
    tex = (tmp_path / "table" / "results.tex").read_text()
    assert r"& 89.00$^{\dagger}$ &" in tex
    assert r"& 40.00$^{\ddagger}$ &" in tex


def test_a_sweep_says_what_is_missing_and_why(tmp_path):
    """Of three cells: one is done, one failed, one waits."""
    sweep, cells = tmp_path / "sweep", []
    make_run(sweep / "runs", "a,seed=0", 0.2, seed=0)
    for i, name in enumerate(("a,seed=0", "b,seed=0", "c,seed=0")):
        created = str(sweep / "runs" / name / "eval" / "results.json")
        stages = {"evaluate": SweepStage(command="true", creates=created)}
        cells.append(SweepTask(index=i, name=name, stages=stages))
    tasks = Tasks(sweep="s", folder=sweep, max_starts_without_progress=3, cells=cells)
    tasks.control(cells[1]).mkdir(parents=True)
    write_state(tasks.control(cells[1]), "evaluate", StageState(state="failed", reason="exit code 3"))
    write_tasks(tasks)
    main([str(sweep), "--out", str(tmp_path / "table")])
    table = (tmp_path / "table" / "results.md").read_text()
    missing = "\nMissing: b,seed=0 (evaluate failed: exit code 3); c,seed=0 (evaluate waiting).\n"
    assert f"{missing}\n## Cost of s\n" in table
    assert [row[0] for row in rows(table.partition("## Cost")[0])] == ["a,seed=0"]


def test_a_table_is_replaced_only_if_asked_and_nothing_else_is(tmp_path):
    run, out = make_run(tmp_path, "a", 0.2), tmp_path / "table"
    main([str(run), "--out", str(out)])
    main([str(run), str(make_run(tmp_path, "b", 0.3)), "--out", str(out), "--replace", "True"])
    assert "| b | MSP |" in (out / "results.md").read_text()
    (out / "notes.txt").write_text("mine")
    with refused("holds notes.txt, which is no table of jobs.collect"):
        main([str(run), "--out", str(out), "--replace", "True"])


def test_mistakes_are_named(tmp_path):
    broken, damaged = make_run(tmp_path, "b", 0.1), make_run(tmp_path, "c", 0.1)
    (broken / "config.yaml").write_text("[")
    add_sketch(damaged, 1, 0)
    whole = make_run(tmp_path, "d", 0.2)
    add_sketch(whole, 1, 0)
    sketch_path(damaged / "eval", "SMIYC RA-21", "native", "MSP").write_text("no")
    for runs, message in (
        ([tmp_path / "gone"], "gone: no such run, sweep or results file"),
        ([make_run(tmp_path, "a", None)], r"nothing is finished yet: a \(no eval/results.json\)"),
        ([broken], "config.yaml: not a YAML file: "),
        ([damaged, whole], r"SMIYC RA-21.native.MSP.npz: no sketch of an evaluation"),
        ([], "no run was given"),
    ):
        with refused(message):
            main([*map(str, runs), "--out", str(tmp_path / "table")])
    assert not (tmp_path / "table").exists()
