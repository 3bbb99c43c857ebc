"""A sweep file becomes checked cells, scripts and commands; mistakes cost one line and submit nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from eval.report.record import render_json
from jobs.status import main as status
from jobs.submit import main
from shards.errors import InputError
from shards.files import hold_lock
from shards.output import claimed
from shards.settings import read_config
from slurm.tasks import StageState, read_tasks, write_state
from tests.support.records import make_record
from tests.support.refused import refused
from trainer.config import FinetuneConfig

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "slurm/examples").glob("*.yaml"))
Submit = Callable[..., None]


@pytest.fixture(name="submit")
def _submit(tmp_path) -> Submit:
    """Submit a sweep of a file (and its base configuration) with some settings replaced."""

    def submit(*options: str, **changes: Any) -> None:
        model = {"size": "tiny", "image_size": [32, 32]}
        base = {"data": {"shards": ["s"], "crop": [32, 32]}, "model": model}
        (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
        settings = {
            "name": "lr",
            "out": str(tmp_path / "sweeps"),
            "config": str(tmp_path / "base.yaml"),
            "grid": {"optim.lr": [1e-3, 1e-4]},
            "seeds": [0, 1],
            "evaluation": {"datasets": "sets", "options": {"scores": ["MSP", "RbA"]}},
        }
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump({**settings, **changes}))
        main([str(path), *options])

    return submit


@pytest.fixture(name="slurm")
def _slurm(tmp_path, monkeypatch) -> Path:
    """A Slurm that notes what it is asked: sbatch numbers its jobs from 101, or refuses as a file says."""
    folder = tmp_path / "bin"
    folder.mkdir()
    scripts = {
        "sbatch": f'echo "$@" >> {folder}/asked\nn=$(wc -l < {folder}/asked)\n'
        f"if [ -e {folder}/refuse$n ]; then cat {folder}/refuse$n >&2; exit 1; fi\necho $((100 + n))",
        "scancel": f'echo scancel "$@" >> {folder}/asked',
        "squeue": f"cat {folder}/queue",
        "sacct": "exit 1",
        "scontrol": "exit 1",
    }
    for name, script in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    (folder / "queue").write_text("")
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    return folder


def asked(slurm: Path) -> list[str]:
    return (slurm / "asked").read_text().splitlines() if (slurm / "asked").exists() else []


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_can_be_submitted(example, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    main([str(example), "--dry-run"])
    printed = capsys.readouterr().out
    assert "#SBATCH --array=0-" in printed
    assert f"python -m jobs.submit slurm/examples/{example.name} --dry-run" in example.read_text()
    assert not (ROOT / "sweeps" / yaml.safe_load(example.read_text())["name"]).exists()


def test_a_dry_run_shows_scripts_and_cells_and_writes_nothing(submit, tmp_path, capsys):
    submit("--dry-run", resources={"throttle": 2, "ranks_per_node": 2}, overrides={"loop.steps": 7})
    printed = capsys.readouterr().out
    assert "#SBATCH --array=0-3%2\n" in printed
    assert "    3  optim.lr=0.0001,seed=1  7 steps, global batch 8\n" in printed
    assert printed.count("#!/bin/bash") == 3
    assert not (tmp_path / "sweeps").exists()


def test_three_jobs_are_chained_and_every_cell_keeps_its_exact_commands(submit, slurm, tmp_path):
    submit()
    folder = tmp_path / "sweeps" / "lr"
    assert asked(slurm) == [
        f"--parsable {folder}/finetune.sbatch",
        f"--parsable --dependency=aftercorr:101 --kill-on-invalid-dep=yes {folder}/evaluate.sbatch",
        f"--parsable --dependency=afterany:102 --kill-on-invalid-dep=yes {folder}/collect.sbatch",
    ]
    jobs = json.loads((folder / "submissions.json").read_text())
    assert [(job["stage"], job["job"], job["array"]) for job in jobs] == [
        ("finetune", "101", "0-3"), ("evaluate", "102", "0-3"), ("collect", "103", ""),
    ]  # fmt: skip
    rows = json.loads((folder / "tasks.json").read_text())["cells"]
    assert [row["name"] for row in rows][:2] == ["optim.lr=0.001,seed=0", "optim.lr=0.001,seed=1"]
    stages, run = rows[3]["stages"], folder / "runs" / "optim.lr=0.0001,seed=1"
    config = folder / "cells" / "optim.lr=0.0001,seed=1" / "config.yaml"
    assert stages["finetune"]["command"].endswith(f"python -m jobs.finetune {config} --resume")
    assert stages["finetune"]["creates"] == str(run / "finished.json")
    expected = f"jobs.evaluate --checkpoint {run} --datasets sets --out {run}/eval --scores MSP RbA"
    assert stages["evaluate"]["command"].endswith(expected)
    built = read_config(FinetuneConfig, config)
    assert (built.optim.lr, built.seed, built.name, built.out) == (1e-4, 1, run.name, str(folder / "runs"))


def test_a_cell_that_may_end_early_is_done_by_its_end_and_evaluated_at_its_best(submit, slurm, tmp_path):
    choice = {"validation.shards": ["s"], "validation.select": "miou", "validation.patience": 2}
    submit(overrides={**choice, "loop.eval_every": 10})
    row = json.loads((tmp_path / "sweeps" / "lr" / "tasks.json").read_text())["cells"][0]
    run = tmp_path / "sweeps" / "lr" / "runs" / row["name"]
    assert row["stages"]["finetune"]["creates"] == str(run / "finished.json")
    assert f"--checkpoint {run}/best --datasets" in row["stages"]["evaluate"]["command"]


def test_done_queued_and_failed_cells_are_left_out(submit, slurm, tmp_path):
    submit()
    tasks = read_tasks(tmp_path / "sweeps" / "lr")
    for stage in tasks.cells[0].stages.values():
        Path(stage.creates).mkdir(parents=True)
    write_state(tasks.control(tasks.cells[1]), "finetune", StageState(state="failed", reason="exit code 1"))
    (slurm / "queue").write_text("101_3|RUNNING|5:00|n1|None\n101_2|TIMEOUT|0:00|n1|TimeLimit\n")
    submit()
    assert "#SBATCH --array=2\n" in (tasks.folder / "finetune.sbatch").read_text()
    (slurm / "queue").write_text("")
    submit("--retry-failed")
    assert "#SBATCH --array=1-3\n" in (tasks.folder / "finetune.sbatch").read_text()
    assert tasks.state(tasks.cells[1], "finetune").state == "waiting"
    assert len(asked(slurm)) == 9


def test_a_sweep_may_grow_and_change_its_resources_but_not_its_cells(submit, slurm, tmp_path):
    submit()
    submit(seeds=[0, 1, 2], resources={"time_limit_min": 9, "stop_before_end_s": 60})
    assert "#SBATCH --array=0-5\n" in (tmp_path / "sweeps/lr/finetune.sbatch").read_text()
    jobs = json.loads((tmp_path / "sweeps/lr/submissions.json").read_text())
    assert [job["job"] for job in jobs] == ["104", "105", "106"]  # whose indices are those of the cells now
    count = len(asked(slurm))
    smaller, shorter = {"grid": {"optim.lr": [1e-3]}}, {"seeds": [0, 1, 2], "overrides": {"loop.steps": 5}}
    with refused(r"another sweep: its cell optim.lr=0.001,seed=2 is none of this"):
        submit(**smaller)
    with refused(r"sweep: loop.steps of cell .* is 20000 there and 5 here; take"):
        submit(**shorter)
    (slurm / "queue").write_text("104_3|RUNNING|5:00|n1|None\n")
    with refused("cells were added or moved while jobs of .* are queued"):
        submit(seeds=[0, 1, 2, 3])
    assert len(asked(slurm)) == count


def test_what_slurm_took_away_is_sent_again_and_nothing_else(submit, slurm, tmp_path):
    """Of the folder, whatever has become of the file; the cells are preempted, cancelled, done, failed."""
    submit()
    tasks = read_tasks(tmp_path / "sweeps" / "lr")
    again = f"-m jobs.submit {tasks.folder} --lost True || code=$?\n"
    assert again in (tasks.folder / "collect.sbatch").read_text()
    (tmp_path / "base.yaml").unlink()
    states = ["PREEMPTED", "CANCELLED", "COMPLETED", "PREEMPTED"]
    (slurm / "queue").write_text("".join(f"101_{i}|{word}|0:00|n1|x\n" for i, word in enumerate(states)))
    for stage in tasks.cells[2].stages.values():
        Path(stage.creates).mkdir(parents=True)
    write_state(tasks.control(tasks.cells[3]), "finetune", StageState(state="failed"))
    main([str(tasks.folder), "--lost"])
    assert "#SBATCH --array=0\n" in (tasks.folder / "finetune.sbatch").read_text()
    assert len(asked(slurm)) == 6
    (slurm / "queue").write_text("")  # and nobody knows any more
    for index, word in ((0, "stopped"), (1, "waiting")):
        write_state(tasks.control(tasks.cells[index]), "finetune", StageState(state=word))
    main([str(tasks.folder), "--lost"])
    assert "#SBATCH --array=0\n" in (tasks.folder / "finetune.sbatch").read_text()
    (slurm / "queue").write_text("107_0|CANCELLED|0:00|n1|x\n109|RUNNING|1:00|n1|None\n")
    main([str(tasks.folder), "--lost"])
    assert len(asked(slurm)) == 9


@pytest.mark.parametrize(
    ("ranks", "overrides", "cut"),
    [(1, {}, (4, 2)), (4, {}, (2, 1)), (8, {}, (1, 1)), (1, {"loop.grad_accum": 2}, (4, 2)), (2, {}, (4, 1))],
)
def test_global_batches_stay_where_the_number_of_processes_changes(
    submit, slurm, tmp_path, ranks, overrides, cut
):
    """Batches of 4 on two processes; a seed that is new has the batch of the others."""
    submit(resources={"ranks_per_node": 2}, grid={}, seeds=[0])
    for _ in range(2):
        submit(resources={"ranks_per_node": ranks}, overrides=overrides, grid={}, seeds=[0, 1])
    for name in ("seed=0", "seed=1"):
        config = read_config(FinetuneConfig, tmp_path / "sweeps/lr/cells" / name / "config.yaml")
        assert (config.data.batch_size, config.loop.grad_accum) == cut
    with refused("resources: the global batch of .* is 8, which 3 processes cannot"):
        submit(resources={"ranks_per_node": 3}, grid={}, seeds=[0, 1])


def test_a_refusal_is_shown_and_leaves_nothing_submitted(submit, slurm, tmp_path):
    (slurm / "refuse2").write_text("sbatch: error: Batch job submission failed:\n Invalid account\n")
    with refused("sbatch refused: sbatch: error: Batch job .* failed: Invalid acc"):
        submit()
    assert asked(slurm)[-1] == "scancel 101"
    assert not (tmp_path / "sweeps/lr/submissions.json").exists()


def test_without_sbatch_nothing_is_written(submit, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with refused("sbatch: not found; .* --local 1 runs the cells here"):
        submit()
    assert not (tmp_path / "sweeps").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resources": {"gpu": 1}}, "resources.gpu: unknown setting"),
        ({"resources": {"nodes": 0}}, "sweep.yaml: nodes must be at least 1, got 0"),
        ({"grid": {"optim.lrr": [1]}}, "lrr=1,seed=0: optim.lrr: unknown setting; perhaps you meant lr"),
        ({"overrides": {"loop.steps": "many"}}, "loop.steps: expected int, got 'many'"),
        ({"grid": {"optim.lr.x": [1]}}, "optim.lr: expected float, got {'x': 1}"),
        ({"grid": {"optim.lr": [float("inf")]}}, "optim.lr: got inf; a finite number is needed"),
        ({"grid": {"optim.lr": []}}, "grid.optim.lr: the list is empty, which makes a grid of zero cells"),
        (
            {"grid": {"loop.steps": list(range(1, 74))}, "seeds": list(range(137))},
            "the grid has 10001 cells; at most 10000 are allowed",
        ),
        ({"overrides": {"out": "x"}}, "overrides.out: the sweep names its runs itself"),
        ({"name": "a/b"}, "name: got 'a/b'; 120 letters, digits, "),
        ({"config": ""}, "config and preparation.arguments: exactly one of them is needed"),
        ({"config": "gone.yaml"}, "gone.yaml: no such configuration file"),
        ({"evaluation": {"datasets": "d", "options": {"sped": 3}}}, "unrecognized options: --sped"),
        (
            {"evaluation": {"datasets": "d", "options": {"out": "x"}}},
            "evaluation.options.out: the sweep names",
        ),
        ({"evaluation": {"resources": {"nodes": 4}}}, "evaluation.resources: 4 processes, but an evaluation"),
        ({"max_starts_without_progress": 0}, "max_starts_without_progress must be at least 1, got 0"),
        ({"config": "", "preparation": {"arguments": ["coco", "--rot"]}}, "unrecognized options: --rot"),
        ({"preparation": {"tasks": 0}}, "preparation.tasks must be in 1..10000, got 0"),
    ],
)
def test_a_mistake_in_the_file_is_one_line_and_submits_nothing(submit, slurm, tmp_path, changes, message):
    with pytest.raises(InputError) as error:
        submit(**changes)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert asked(slurm) == []
    assert not (tmp_path / "sweeps").exists()


def test_a_folder_of_something_else_is_left_alone(submit, slurm, tmp_path):
    (tmp_path / "sweeps/lr").mkdir(parents=True)
    (tmp_path / "sweeps/lr/notes.txt").write_text("mine")
    with refused("out/name .*: the folder already holds files"):
        submit()
    assert asked(slurm) == []


LARGE = {"grid": {"optim.lr": [1e-3]}, "seeds": list(range(12)), "resources": {"throttle": 2}}


def limit(slurm: Path, *lines: str) -> None:
    """Have the cluster's configuration say something."""
    printed = "\n".join(["Configuration data as of 2026-01-01", *lines, "MpiDefault = none"])
    (slurm / "scontrol").write_text(f"#!/bin/sh\n[ $2 = config ] && cat <<'END'\n{printed}\nEND\n")


def test_more_cells_than_an_array_may_have_become_several_arrays_of_one_sweep(
    submit, slurm, tmp_path, capsys
):
    limit(slurm, "MaxArraySize            = 5", "MaxJobCount             = 10000")
    submit("--dry-run", **LARGE)
    assert "# ==== 12 cells, 12 to run, in 6 arrays ====" in capsys.readouterr().out
    submit(**LARGE)
    folder = tmp_path / "sweeps" / "lr"
    assert [line.partition("sweeps/lr/")[2] for line in asked(slurm)] == [
        *("finetune.sbatch", "finetune-5.sbatch", "finetune-10.sbatch"),
        *("evaluate.sbatch", "evaluate-5.sbatch", "evaluate-10.sbatch", "collect.sbatch"),
    ]
    assert [line.split()[1] for line in asked(slurm)[1:]] == [
        *("--dependency=afterany:101", "--dependency=afterany:102", "--dependency=aftercorr:101"),
        *("--dependency=aftercorr:102", "--dependency=aftercorr:103", "--dependency=afterany:104:105:106"),
    ]
    script = (folder / "finetune-10.sbatch").read_text()
    assert "#SBATCH --array=0-1%2\n" in script
    assert '-m slurm.cell "$sweep" finetune "$((SLURM_ARRAY_TASK_ID + 10))"' in script
    (slurm / "queue").write_text(
        "101_3|RUNNING|5:00|n1|None\n102_3|PENDING|5:00||None\n103_9|RUNNING|5:00|n1|\n"
    )
    capsys.readouterr()
    status([str(folder)])
    rows = {row.split()[0]: row.split()[1:3] for row in capsys.readouterr().out.splitlines()[1:13]}
    states = [rows[f"optim.lr=0.001,seed={i}"][1] for i in range(12)]
    assert [i for i, state in enumerate(states) if state != "waiting"] == [3, 8]
    assert (states[3], states[8]) == ("starting", "pending")
    submit(**LARGE)  # what is queued is left out, and the others keep their places
    assert "#SBATCH --array=0-2,4%2\n" in (folder / "finetune.sbatch").read_text()
    assert "#SBATCH --array=0-2,4%2\n" in (folder / "finetune-5.sbatch").read_text()


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("MaxArraySize = 0", "MaxArraySize is 0: this cluster takes no arrays; --local 1"),
        ("MaxJobCount = 20", "24 tasks, but the cluster's MaxJobCount is 20; begin with fewer seeds"),
    ],
)
def test_what_a_cluster_cannot_take_is_one_line_in_a_dry_run_too(submit, slurm, tmp_path, line, text):
    limit(slurm, line)
    for options in (["--dry-run"], []):
        with refused(text):
            submit(*options, **LARGE)
    assert asked(slurm) == []
    assert not (tmp_path / "sweeps").exists()


def test_inputs_that_are_not_there_are_warned_of_once(submit, slurm, tmp_path, caplog):
    caplog.set_level("WARNING")
    for name in ("shards/a-0.tar", "sets/x", "val.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    shards = [f"{tmp_path}/shards/a-{{0..3}}.tar", f"{tmp_path}/shards/b-*.tar", "s3://bucket/c.tar"]
    missing = {"data.shards": shards, "model.weights": f"{tmp_path}/w.pth", "paste.bank": f"{tmp_path}/bank"}
    measured = {"validation.shards": [f"{tmp_path}/val.tar"], "loop.eval_every": 5}
    options = {"cityscapes": f"{tmp_path}/none"}
    stage = {"datasets": f"{tmp_path}/sets", "options": options}
    submit("--dry-run", overrides={**missing, **measured}, evaluation=stage)
    assert sorted(caplog.messages) == [
        f"warning: data.shards {tmp_path}/shards/b-*.tar: not there (yet)",
        f"warning: evaluation.options.cityscapes {tmp_path}/none: not there (yet)",
        f"warning: model.weights {tmp_path}/w.pth: not there (yet)",
        f"warning: paste.bank {tmp_path}/bank: not there (yet)",
    ]
    caplog.clear()
    words = ["cityscapes", "--root", f"{tmp_path}/downloads", "--out", f"{tmp_path}/new"]
    none = {"config": "", "grid": {}, "evaluation": {}, "name": "p"}
    submit("--dry-run", **none, preparation={"arguments": words, "tasks": 2})
    assert caplog.messages == [f"warning: --root {tmp_path}/downloads: not there (yet)"]


def test_a_line_break_in_the_folder_of_sweeps_is_refused(submit, slurm, tmp_path):
    with refused(r"out/name: got '.*\\n.*'; one line without control characters"):
        submit(out=f"{tmp_path}/a\ntouch {tmp_path}/b\n#")
    assert asked(slurm) == []
    assert {path.name for path in tmp_path.iterdir()} == {"bin", "base.yaml", "sweep.yaml"}


def test_status_tells_states_numbers_and_why_a_cell_failed(submit, slurm, tmp_path, capsys):
    submit()
    folder = tmp_path / "sweeps" / "lr"
    tasks = read_tasks(folder)
    run = folder / "runs" / tasks.cells[1].name
    (run / "checkpoints" / "step-0000020").mkdir(parents=True)
    (run / "log.txt").write_text(
        "2026-01-01 10:00:00 step 20/120  to_go 00:50  total 9.5  images_per_s 4.2\n"
        "2026-01-01 10:00:40 step 40/120  to_go 00:40  total 8.25  images_per_s 4.5\n"
    )
    (folder / "logs" / "x.log").write_text(
        "[c] finetune: start 1\n[rank0]: RuntimeError: CUDA out of memory\nsrun: error: n1: task 0: Exited\n"
    )
    log = str(folder / "logs" / "x.log")
    failed = StageState(state="failed", exit_code=1, reason="exit code 1", log=log)
    write_state(tasks.control(tasks.cells[2]), "finetune", failed)
    (slurm / "queue").write_text(
        "101_0|PENDING|5:00||Resources\n101_1|RUNNING|1:23:00|n2|None\n101_2|FAILED|0:00|n1|NonZeroExitCode\n"
        "101_3|TIMEOUT|0:00|n1|TimeLimit\n103|PENDING|1:00||Dependency\n"
    )
    capsys.readouterr()
    status([str(folder)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["optim.lr=0.001,seed=0", "finetune", "pending"]
    assert " ".join(lines[2].split()) == (
        "optim.lr=0.001,seed=1 finetune starting 40/120 4.5 1:23:00 8.25 step-0000020 n2"
    )
    assert lines[3].split()[:3] == ["optim.lr=0.0001,seed=0", "finetune", "failed"]
    assert lines[4].split()[:3] == ["optim.lr=0.0001,seed=1", "finetune", "timeout"]
    assert f"exit code 1; RuntimeError: CUDA out of memory ({log})" in lines[7]
    assert "the time limit struck before it had saved; raise time_limit_min or stop_before" in lines[8]
    assert "collect: job 103 pending" in lines


def test_status_reads_runs_that_no_sweep_knows(tmp_path, capsys):
    for name in ("done", "going", "stopped"):
        (tmp_path / name / "checkpoints/step-0000020").mkdir(parents=True)
        (tmp_path / name / "config.yaml").touch()
        line = "2026-01-01 10:00:00 step 20/120  to_go 00:50  total 9.5  images_per_s 4.2\n"
        (tmp_path / name / "log.txt").write_text(line)
    (tmp_path / "done" / "finished.json").touch()
    with hold_lock(tmp_path / "going" / "lock", wait_s=0.0, owner="me"):
        status([str(tmp_path)])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["run", "state", "step", "images/s", "to", "go", "loss", "checkpoint"]
    assert rows[1] == ["done", "done", "20/120", "4.2", "9.5", "step-0000020"]
    assert rows[2] == ["going", "running", "20/120", "4.2", "00:50", "9.5", "step-0000020"]
    assert rows[3] == ["stopped", "stopped", "20/120", "4.2", "9.5", "step-0000020"]
    status([str(tmp_path / "done")])
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_status_of_nothing_is_one_line(tmp_path):
    with refused("no sweep is in .* jobs.submit makes one"):
        status([str(tmp_path)])


@pytest.fixture(name="evaluated")
def _evaluated(submit, slurm, tmp_path) -> Path:
    """A sweep all of whose cells are done, and which lacks its table: it was killed before the last step."""
    submit()
    tasks = read_tasks(tmp_path / "sweeps" / "lr")
    for task in tasks.cells:
        for stage in task.stages.values():
            Path(stage.creates).parent.mkdir(parents=True, exist_ok=True)
            record = make_record(model=task.name, checkpoint=task.name)
            Path(stage.creates).write_text(render_json([record]))
    (slurm / "queue").write_text("")
    return tasks.folder


def test_what_was_killed_before_the_table_makes_it(evaluated, submit):
    submit("--local", "1")
    assert "optim.lr=0.001" in (evaluated / "table" / "results.md").read_text()


def test_a_table_that_fails_is_told_by_the_exit_code(evaluated, submit):
    (evaluated / "table").write_text("in the way")
    with pytest.raises(SystemExit) as left:
        submit("--local", "1")
    assert left.value.code == 1


def test_slurm_is_asked_for_the_table_alone_unless_it_is_queued(evaluated, submit, slurm):
    submit()
    assert asked(slurm)[3:] == [f"--parsable {evaluated}/collect.sbatch"]
    (slurm / "queue").write_text("104|PENDING|5:00||None\n")
    submit()
    (slurm / "queue").write_text("")
    (evaluated / "table").mkdir()
    submit()
    assert len(asked(slurm)) == 4


def test_a_second_submission_is_told_who_is_submitting(submit, slurm, tmp_path):
    with claimed(tmp_path / "sweeps" / "lr"), refused("out/name .* is held by proc"):
        submit()
    assert asked(slurm) == []
