"""On a real Slurm: arrays that are throttled, requeued, resumed, cancelled, and chained to the end.

Cells are shell lines here; `test_training.py` runs real ones. Everything lives in a folder whose name has
a space, quotes and a percent sign.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from jobs import cancel as cancel_program
from slurm.array import array_expression, split_indices
from slurm.resources import Resources
from slurm.sbatch import Workspace, render_array, render_job
from slurm.submit import Submission, add_submissions, read_limits, submit_script
from slurm.sweep import find_live_cells
from slurm.tasks import LOGS_FOLDER, read_state
from tests.support.sweeps import work_of, write_sweep

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SAVES = """
work={work}; mkdir -p "$work"; echo "$SLURM_JOB_ID $SLURM_RESTART_COUNT" >> "$work/starts"
trap 'touch "$work/step-1"; exit 75' USR1
if [ -e "$work/step-1" ]; then touch "$work/end"; exit 0; fi
touch "$work/ready"
for i in $(seq 1200); do sleep 0.1; done
"""
"""A cell that saves on USR1, and ends once it has saved; given two minutes, it fails."""


class Sweep:
    """A sweep of shell lines."""

    def __init__(self, folder: Path, stages: Mapping[str, Sequence[str]], max_starts: int = 3) -> None:
        self.folder = folder
        self.tasks = write_sweep(folder, stages, max_starts)
        self.workspace = Workspace(sweep="it's", folder=folder, root=ROOT, python=sys.executable)

    def work(self, index: int) -> Path:
        return work_of(self.folder, index)

    def submit(self, stage: str = "finetune", after: str = "", **resources: object) -> str:
        script = self.folder / f"{stage}.sbatch"
        array = array_expression(range(len(self.tasks.cells)), resources.get("throttle", 0))
        script.write_text(
            render_array(self.workspace, stage, Resources(**resources), array, stoppable=stage == "finetune")
        )
        job = submit_script(script, dependency=after)
        add_submissions(self.folder, [Submission(stage=stage, job=job, array=array)])
        return job

    def state(self, index: int, stage: str = "finetune"):
        return read_state(self.tasks.control(self.tasks.cells[index]), stage)

    def starts(self, index: int) -> int:
        path = self.work(index) / "starts"
        return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> Path:
    return tmp_path / """it's a "sweep", 50% done"""


@pytest.fixture(scope="module", name="at_the_limit", autouse=True)
def _at_the_limit(cluster_of_session, tmp_path_factory):
    """A cell with a limit of one minute, submitted before all others, because it needs that minute."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("SLURM_CONF", "PATH"):
            patch.setenv(name, cluster_of_session.environment[name])
        sweep = Sweep(tmp_path_factory.mktemp("limit") / "sweep", {"finetune": [SAVES]})
        return sweep, sweep.submit(time_limit_min=1, stop_before_end_s=30)


def test_a_throttled_array_with_a_failing_cell_and_what_follows_it(cluster, folder: Path) -> None:
    line = (
        "mkdir -p {work}; date +%s.%N > {work}/begin; sleep 1.5; date +%s.%N > {work}/last; touch {work}/end"
    )
    after = "mkdir -p {work}; touch {work}/end"
    sweep = Sweep(
        folder,
        {"finetune": [line, "echo 'error: no such thing' >&2; exit 3", line, line], "evaluate": [after] * 4},
    )
    job = sweep.submit(throttle=2)
    following = sweep.submit("evaluate", after=f"aftercorr:{job}")
    script = folder / "collect.sbatch"
    script.write_text(
        render_job(sweep.workspace, "collect", Resources(), f"ls {shlex.quote(str(folder / 'work'))}")
    )
    last = submit_script(script, dependency=f"afterany:{following}")
    assert cluster.until_ended(job) == {"0": "COMPLETED", "1": "FAILED", "2": "COMPLETED", "3": "COMPLETED"}
    cluster.until_ended(last)
    expected = {"0": "COMPLETED", "1": "CANCELLED", "2": "COMPLETED", "3": "COMPLETED"}
    assert cluster.states(following) == expected
    assert [sweep.state(i).state for i in range(4)] == ["done", "failed", "done", "done"]
    assert (sweep.state(1).exit_code, sweep.state(1).reason) == (3, "exit code 3")
    assert "error: no such thing" in Path(sweep.state(1).log).read_text()
    listed = (folder / LOGS_FOLDER / f"collect-{last}.log").read_text()
    assert "evaluate 3" in listed
    assert "evaluate 1" not in listed
    spans = [[float((sweep.work(i) / name).read_text()) for name in ("begin", "last")] for i in (0, 2, 3)]
    assert max(sum(begin <= at < end for begin, end in spans) for at, _ in spans) <= 2


def test_a_task_that_is_asked_to_stop_is_queued_again_alone(cluster, folder: Path) -> None:
    sweep = Sweep(folder, {"finetune": [SAVES, SAVES]})
    job = sweep.submit()
    cluster.until(lambda: all((sweep.work(i) / "ready").exists() for i in (0, 1)), 30, "both cells run")
    cluster.run("scancel", "--batch", "--signal=USR1", f"{job}_1")
    cluster.until(lambda: (sweep.work(1) / "end").exists(), 60, "the end of cell 1")
    assert (sweep.starts(0), sweep.starts(1)) == (1, 2)
    cluster.until(lambda: sweep.state(1).state == "done", 10, "the state of cell 1")
    assert [start.progress for start in sweep.state(1).starts] == ["", "step-1"]
    assert cluster.states(job)["0"] == "RUNNING"  # and was left in peace
    cluster.run("scancel", job)
    cluster.until_ended(job)


def test_requeue_by_an_administrator_touches_one_task_and_is_not_done_twice(cluster, folder: Path) -> None:
    line = SAVES.replace("USR1", "TERM")  # Slurm sends TERM to the ranks of a job that it takes away
    sweep = Sweep(folder, {"finetune": [line, line]})
    job = sweep.submit()
    cluster.until(lambda: all((sweep.work(i) / "ready").exists() for i in (0, 1)), 30, "both cells run")
    cluster.run("scontrol", "requeue", f"{job}_0")
    cluster.until(lambda: (sweep.work(0) / "end").exists(), 60, "the end of cell 0")
    assert (sweep.starts(0), sweep.starts(1)) == (2, 1)
    assert cluster.run("scontrol", "show", "job", f"{job}_0").count("Restarts=1") == 1
    cluster.run("scancel", job)
    assert cluster.until_ended(job)["1"] == "CANCELLED"
    time.sleep(3)  # a cancelled task saved and left with 75, and must stay cancelled
    assert cluster.states(job)["1"] == "CANCELLED"
    assert sweep.state(1).state == "stopped"


def test_a_sweep_larger_than_an_array_may_be_runs_in_several(cluster, folder: Path) -> None:
    size = read_limits()["MaxArraySize"]
    assert size == 1001
    sweep = Sweep(folder, {"finetune": ["mkdir -p {work}; touch {work}/end"] * (size + 2)})
    offset, part = list(split_indices([size - 1, size, size + 1], size).items())[1]
    assert (offset, part) == (size, [size, size + 1])
    array = array_expression([index - offset for index in part])
    script = folder / "finetune-1001.sbatch"
    script.write_text(
        render_array(sweep.workspace, "finetune", Resources(), array, stoppable=True, offset=offset)
    )
    job = submit_script(script)
    assert cluster.until_ended(job) == {"0": "COMPLETED", "1": "COMPLETED"}
    assert [sweep.state(index).state for index in (0, size, size + 1)] == ["waiting", "done", "done"]
    add_submissions(folder, [Submission(stage="finetune", job=job, array="1001-1002", offset=offset)])
    assert find_live_cells(folder) == set()


def test_cancel_takes_this_sweeps_jobs_and_no_others(cluster, folder: Path, capsys) -> None:
    sweep = Sweep(folder, {"finetune": [SAVES, SAVES], "evaluate": ["exit 1", "exit 1"]})
    foreign = cluster.run("sbatch", "--parsable", "--output=/dev/null", "--wrap=sleep 60")
    job = sweep.submit()
    following = sweep.submit("evaluate", after=f"aftercorr:{job}")
    cluster.until(lambda: (sweep.work(0) / "ready").exists(), 30, "cell 0 runs")
    cancel_program.main([str(folder)])
    assert f"cancelled {following}, {job}" in capsys.readouterr().out
    assert set(cluster.until_ended(job).values()) == {"CANCELLED"}
    assert set(cluster.states(following).values()) == {"CANCELLED"}
    assert cluster.states(foreign) == {"": "RUNNING"}
    cluster.run("scancel", foreign)
    cancel_program.main([str(folder)])
    assert "nothing is queued or running" in capsys.readouterr().out


def test_the_time_limit_asks_the_cell_to_save_before_it_strikes(cluster, at_the_limit) -> None:
    sweep, job = at_the_limit
    cluster.until(lambda: (sweep.work(0) / "end").exists(), 120, "the cell that ran into its limit")
    assert sweep.starts(0) == 2
    assert cluster.until_ended(job) == {"0": "COMPLETED"}
    assert "TIME LIMIT" not in Path(sweep.state(0).log).read_text()
