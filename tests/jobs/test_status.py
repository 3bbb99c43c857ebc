"""What a screen shows of a large sweep, and what cells have cost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from eval.report.record import render_json
from jobs.collect import CollectOptions, collect
from jobs.status import main as status
from slurm.cell import count_devices
from slurm.tasks import CellStart, StageState, SweepStage, SweepTask, Tasks, write_state, write_tasks
from tests.support.records import make_record

START = CellStart(
    time="2026-01-01T00:00:00+00:00", host="n1", job="job 7_0", progress="", seconds=7200, cpus=2
)


@pytest.fixture(name="large")
def _large(tmp_path) -> Tasks:
    """200 cells: every second one done, every tenth failed, every hundredth stopped where it began."""
    cells = []
    for index in range(200):
        name = f"cell-{index}"
        end = str(tmp_path / "runs" / name / "finished.json")
        cells.append(
            SweepTask(index=index, name=name, stages={"finetune": SweepStage(command="x", creates=end)})
        )
    tasks = Tasks(sweep="large", folder=tmp_path, max_starts_without_progress=3, cells=cells)
    write_tasks(tasks)
    (tmp_path / "log").write_text("step 5/9\n" * 10_000 + "RuntimeError: CUDA out of memory\n")
    for task in cells:
        Path(task.stages["finetune"].creates).parent.mkdir(parents=True)
        tasks.control(task).mkdir(parents=True)
        state = StageState(state="stopped", starts=(START, START), reason="asked to stop")
        if task.index % 100 == 5:
            state = replace(state, reason="asked to stop; no checkpoint since step-0000020")
        elif task.index % 10 == 3:
            state = replace(state, state="failed", reason="exit code 1", log=str(tmp_path / "log"))
        if task.index % 2 == 0:
            Path(task.stages["finetune"].creates).touch()
        write_state(tasks.control(task), "finetune", state)
    return tasks


def test_a_large_sweep_is_one_screen(large, capsys):
    status([str(large.folder)])
    lines = capsys.readouterr().out.splitlines()
    log = large.folder / "log"
    assert lines == [
        "100 done, 80 finetune stopped, 20 finetune failed",
        "so far: 1600.00 CPU h, 200 restarts",
        "nothing of it is queued; jobs.submit continues what is not done and has not failed",
        "  cell-3, cell-13, cell-23 and 17 more: finetune failed: "
        f"exit code 1; RuntimeError: CUDA out of memory ({log})",
        "  cell-5, cell-105: finetune stopped: asked to stop; no checkpoint since step-0000020",
    ]
    status([str(large.folder), "--all", "True"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 207
    assert lines[2].split() == ["cell-1", "finetune", "stopped", "8.00", "1"]


def test_a_start_is_charged_for_what_it_took_in_vain(tmp_path):
    log = tmp_path / "log"
    state = StageState(state="running", starts=(START, replace(START, seconds=0.0)), log=str(log))
    earlier = "[cell] finetune: start 1, from the beginning: x\n2026 step 90/100  to_go 1\n"
    log.write_text(earlier + "[cell] finetune: start 2, from step-0000080: x\n")
    assert state.closed(1.8e9, "step-0000080").starts[1].lost_steps == 0
    log.write_text(log.read_text() + "step 87/100  to_go 1\n")
    closed = state.closed(1767225600 + 30, "step-0000080")
    assert (closed.starts[1].lost_steps, closed.starts[1].seconds) == (7, 30)
    assert closed.closed(1.9e9, "") == closed
    assert closed.forgiven().starts_from("") == 0


def test_devices_are_those_that_slurm_gave_or_that_are_seen():
    slurm = {"SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "4", "SLURM_CPUS_ON_NODE": "16"}
    assert count_devices(1, slurm) == (8, 32)
    assert count_devices(2, {"CUDA_VISIBLE_DEVICES": "0,1", "OMP_NUM_THREADS": "3"}) == (2, 6)
    assert count_devices(2, {"CUDA_VISIBLE_DEVICES": ""}) == (0, 2)


def test_costs_stand_below_the_table(large):
    path = large.folder / "runs" / "cell-1" / "eval" / "results.json"
    path.parent.mkdir()
    path.write_text(render_json([make_record()]))
    text = collect(CollectOptions(runs=(large.folder,), out=large.folder / "table"))
    assert "## Cost of large\n\n| cell | GPU h | CPU h | restarts | lost steps |\n|---|---:|" in text
    assert "| cell-1 | 0.00 | 8.00 | 1 | 0 |\n" in text
    assert (large.folder / "table" / "results.md").read_text() == text
