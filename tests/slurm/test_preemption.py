"""On a real Slurm with PreemptMode=CANCEL, which requeues no job: a sweep ends complete without a person."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from jobs import submit
from slurm.submit import read_submissions
from slurm.tasks import Tasks, read_state
from tests.support.sweeps import work_of, write_sweep

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
TRAINS = """
work={work}; mkdir -p "$work"; echo >> "$work/starts"
trap 'sleep 0.3; exit 75' TERM USR1
if [ -e "$work/step-0000001" ]; then touch "$work/step-0000002" "$work/end"; exit 0; fi
[ {index} = 2 ] || touch "$work/step-0000001"
[ {index} = 1 ] && { touch "$work/end"; exit 0; }
touch "$work/ready"; for i in $(seq 600); do sleep 0.1; done
"""
"""Cell 0 goes on from its checkpoint, cell 1 is done at once, cell 2 never saves anything."""
SCORES = "mkdir -p {work}; touch {work}/end"


def write_taken(out: Path) -> Tasks:
    """A sweep of three cells as jobs.submit leaves it, whose commands are shell lines; it has no table."""
    lines = [TRAINS.replace("{index}", str(index)) for index in range(3)]
    tasks = write_sweep(out / "taken", {"finetune": lines, "evaluate": [SCORES] * 3}, max_starts=2)
    sweep = {"name": "taken", "out": str(out), "config": "none.yaml", "max_starts_without_progress": 2}
    resources = {"cpus_per_rank": 5, "sbatch_options": ["--nodelist=n1"]}  # one cell at a time fits
    sweep |= {"evaluation": {"datasets": "none"}, "resources": resources}
    sweep |= {"collect_resources": {"partition": "urgent"}}
    (tasks.folder / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    return tasks


def test_what_was_preempted_comes_back_by_itself(
    cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    tasks = write_taken(tmp_path)
    folder, works = tasks.folder, [work_of(tasks.folder, i) for i in range(3)]
    submit.main([str(folder)])
    for index in (0, 2, 2):
        ready = works[index] / "ready"
        cluster.until(ready.exists, 90, f"cell {index} runs")
        ready.unlink()
        options = ["--partition=urgent", "--nodelist=n1", "--cpus-per-task=8", "--output=/dev/null"]
        urgent = cluster.run("sbatch", "--parsable", *options, "--wrap=sleep 1")
        cluster.until_ended(urgent)
    cluster.until(lambda: not cluster.run("squeue", "-h"), 300, "an empty queue")
    states = [read_state(tasks.control(task), "finetune") for task in tasks.cells]
    assert [state.state for state in states] == ["done", "done", "failed"]
    assert states[2].reason == "started 2 times from the beginning without getting further"
    assert [len(state.starts) for state in states] == [2, 1, 2]
    assert all((work_of(folder, i, "evaluate") / "end").exists() for i in (0, 1))
    assert not work_of(folder, 2, "evaluate").exists()
    arrays = [(entry.stage, entry.array) for entry in read_submissions(folder)]
    assert arrays[:3] == [("finetune", "0-2"), ("evaluate", "0-2"), ("collect", "")]
    assert ("evaluate", "0,2") in arrays
    assert states[0].starts[0].seconds > 0


def test_what_a_person_cancels_stays_cancelled(
    cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    tasks = write_taken(tmp_path)
    submit.main([str(tasks.folder)])
    cluster.until((work_of(tasks.folder, 0) / "ready").exists, 90, "cell 0 runs")
    job = read_submissions(tasks.folder)[0].job
    cluster.run("scancel", job)
    cluster.until(lambda: not cluster.run("squeue", "-h"), 60, "an empty queue")
    assert len(read_submissions(tasks.folder)) == 3
