"""One stage of one cell, without Slurm: done once, never twice at a time, resumed, given up, told to stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from shards.files import LockTaken, hold_lock, is_held
from slurm.cell import main
from slurm.launch import Machine, run_locally
from slurm.tasks import LOGS_FOLDER, StageState, Tasks, read_state, read_tasks
from tests.support.files import wait_for
from tests.support.sweeps import work_of, write_sweep

ROOT = Path(__file__).resolve().parents[2]


def make_sweep(folder: Path, *lines: str, max_starts: int = 3) -> Tasks:
    """A sweep whose cells are shell lines; `$work` is a cell's own folder, `$work/end` what it creates."""
    start = "mkdir -p {work}; cd {work}; work=.; echo >> starts; "
    return write_sweep(folder, {"finetune": [start + line for line in lines]}, max_starts)


def command(tasks: Tasks, index: int = 0, *extra: str) -> list[str]:
    return [sys.executable, "-m", "slurm.cell", str(tasks.folder), "finetune", str(index), *extra]


def run(tasks: Tasks, index: int = 0, *extra: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(tasks, index, *extra), cwd=ROOT, capture_output=True, text=True, timeout=60)


def state(tasks: Tasks, index: int = 0) -> StageState:
    return read_state(tasks.control(tasks.cells[index]), "finetune")


def starts(tasks: Tasks, index: int = 0) -> int:
    path = work_of(tasks.folder, index) / "starts"
    return path.read_text().count("\n") if path.exists() else 0


def test_a_cell_that_is_done_is_not_run_again(tmp_path: Path) -> None:
    tasks = make_sweep(tmp_path / "it's a sweep", "touch $work/end")
    assert run(tasks).returncode == 0
    assert state(tasks).state == "done"
    assert "done before" in run(tasks).stdout
    assert starts(tasks) == 1


def test_a_failure_keeps_its_exit_code_and_reason(tmp_path: Path) -> None:
    tasks = make_sweep(tmp_path, "exit 7", "true", "kill -9 $$")
    assert run(tasks).returncode == 7
    assert (state(tasks).state, state(tasks).exit_code, state(tasks).reason) == ("failed", 7, "exit code 7")
    assert run(tasks, 1).returncode == 1
    assert "ended well, but left no" in state(tasks, 1).reason
    assert run(tasks, 2).returncode == 128 + 9


def test_a_cell_that_hung_goes_on_whatever_code_its_killed_process_had(tmp_path: Path) -> None:
    """And says what its checkpoints did not keep; a start before it does not count."""
    say = "echo 'step 9/20'; echo 'error: process 1 of 2: no step ended; it leaves with 75'"
    tasks = make_sweep(tmp_path, f"{say}; [ $(wc -l < starts) = 2 ] || touch step-0000007; exit 137")
    log = tmp_path / "log"
    for _ in range(2):
        with log.open("a") as output:
            words = command(tasks, 0, "--log", str(log))
            assert subprocess.run(words, cwd=ROOT, stdout=output, timeout=60).returncode == 75
    assert state(tasks).reason == "left; no checkpoint since step-0000007"
    assert [start.lost_steps for start in state(tasks).starts] == [2, 2]
    log.write_text("")
    assert run(tasks).returncode == 137
    assert tasks.cost(tasks.cells[0]).restarts == 2


def test_starts_without_progress_are_limited_and_progress_renews_them(tmp_path: Path) -> None:
    line = "touch $work/step-$(wc -l < $work/starts | sed s/[34]/2/); exit 75"
    tasks = make_sweep(tmp_path, line, max_starts=2)
    assert [run(tasks).returncode for _ in range(4)] == [75, 75, 75, 75]  # from "", step-1, step-2, step-2
    assert run(tasks).returncode == 1
    assert state(tasks).reason == "started 2 times from step-2 without getting further"
    assert starts(tasks) == 4


def test_two_processes_never_work_on_one_cell(tmp_path: Path) -> None:
    line = "touch $work/ready; while [ ! -e $work/go ]; do sleep 0.05; done; touch $work/end"
    tasks = make_sweep(tmp_path, line)
    first = subprocess.Popen(command(tasks), cwd=ROOT, stdout=subprocess.DEVNULL)
    wait_for(work_of(tmp_path, 0) / "ready", patience_s=30)
    second = run(tasks)
    assert second.returncode == 1
    assert f"process {first.pid}" in second.stderr
    first.kill()  # the runner dies, its training lives on, and is still alone
    first.wait()
    assert run(tasks, 0, "--wait_for_lock_s", "0").returncode == 1
    (work_of(tmp_path, 0) / "go").touch()
    wait_for(work_of(tmp_path, 0) / "end", patience_s=30)
    assert run(tasks).returncode == 0
    assert starts(tasks) == 1


def test_a_holder_killed_outright_leaves_no_lock(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from shards.files import hold_lock\n"
        "with hold_lock(Path(sys.argv[1]), wait_s=0.0, owner='me'): print('held', flush=True); time.sleep(60)"
    )
    words, lock = [sys.executable, "-c", code], tmp_path / "lock"
    holder = subprocess.Popen([*words, str(lock)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    assert is_held(lock)
    with pytest.raises(LockTaken, match="lock is held by me"), hold_lock(lock, wait_s=0.0, owner="you"):
        pass
    holder.kill()
    holder.communicate()
    assert not is_held(lock)
    with hold_lock(lock, wait_s=0.0, owner="you"):
        assert lock.read_text() == "you"
    assert not is_held(tmp_path / "missing")


def test_a_runner_that_is_asked_to_stop_asks_its_command_and_says_so(tmp_path: Path) -> None:
    line = "trap 'touch $work/step-1; exit 75' TERM; touch $work/ready; while true; do sleep 0.05; done"
    tasks = make_sweep(tmp_path, line)
    process = subprocess.Popen(command(tasks), cwd=ROOT, stdout=subprocess.DEVNULL)
    wait_for(work_of(tmp_path, 0) / "ready", patience_s=30)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(30) == 75
    assert state(tasks).state == "stopped"
    assert (work_of(tmp_path, 0) / "step-1").exists()


def test_ranks_without_a_launcher_learn_who_they_are(tmp_path: Path) -> None:
    line = 'echo "$RANK $LOCAL_RANK $WORLD_SIZE $MASTER_ADDR $MASTER_PORT" > $work/rank$RANK; touch $work/end'
    tasks = make_sweep(tmp_path, line)
    assert run(tasks, 0, "--ranks", "2").returncode == 0
    ranks = [(work_of(tmp_path, 0) / f"rank{i}").read_text().split() for i in range(2)]
    assert [rank[:4] for rank in ranks] == [["0", "0", "2", "127.0.0.1"], ["1", "1", "2", "127.0.0.1"]]
    assert ranks[0][4] == ranks[1][4]


def test_wrong_arguments_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tasks = make_sweep(tmp_path, "true")
    assert read_tasks(tmp_path) == tasks
    assert main([str(tmp_path / "gone"), "finetune", "0"]) == 2
    assert main([str(tasks.folder), "finetune", "1"]) == 2
    assert main([str(tasks.folder), "evaluate", "0"]) == 2
    (tmp_path / "tasks.json").write_text("[1]")
    assert main([str(tasks.folder), "finetune", "0"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"error: {tmp_path / 'gone'}: no sweep is there (tasks.json is missing)"
    assert lines[1] == f"error: {tmp_path}: there is no cell 1; it has 1"
    assert lines[2] == "error: stage 'evaluate': known here: finetune"
    assert lines[3].startswith(f"error: {tmp_path}/tasks.json: is no list of cells: ")


def test_local_cells_run_some_at_a_time_and_fail_alone(tmp_path: Path) -> None:
    line = "date +%s.%N > $work/begin; sleep 0.7; date +%s.%N > $work/last; touch $work/end"
    make_sweep(tmp_path, line, "exit 4", line, line, line)
    codes = run_locally(tmp_path, range(5), ["finetune"], Machine(at_once=2, ranks=1))
    assert codes == {0: 0, 1: 4, 2: 0, 3: 0, 4: 0}
    works = [work_of(tmp_path, i) for i in (0, 2, 3, 4)]
    spans = [[float((work / name).read_text()) for name in ("begin", "last")] for work in works]
    assert max(sum(begin <= at < end for begin, end in spans) for at, _ in spans) == 2
    assert "exit code 4" in (tmp_path / LOGS_FOLDER / "finetune-local_1.log").read_text()


def test_local_cells_get_gpus_of_their_own() -> None:
    machine = Machine(at_once=2, ranks=2, gpus=("0", "1", "2", "3"))
    assert [machine.variables(i)["CUDA_VISIBLE_DEVICES"] for i in range(3)] == ["0,1", "2,3", "0,1"]
    assert Machine(at_once=1, ranks=1, environment={"A": "b"}).variables(0) == {"A": "b"}


def test_an_interrupted_local_run_asks_its_cells_to_save(tmp_path: Path) -> None:
    line = "trap 'touch $work/saved; exit 75' TERM; touch $work/ready; while true; do sleep 0.05; done"
    tasks = make_sweep(tmp_path, line, line)
    code = (
        "import sys, signal; from pathlib import Path; from slurm.launch import *\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        "run_locally(Path(sys.argv[1]), [0, 1], ['finetune'], Machine(at_once=2, ranks=1))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT)
    for index in range(2):
        wait_for(work_of(tmp_path, index) / "ready", patience_s=30)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(30) == 143
    assert all((work_of(tmp_path, i) / "saved").exists() for i in range(2))
    assert [state(tasks, i).state for i in range(2)] == ["stopped", "stopped"]
