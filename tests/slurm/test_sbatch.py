"""Scripts are compared as a whole, and read by bash and shellcheck where it is there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from slurm.resources import Resources
from slurm.sbatch import Workspace, render_array, render_job

PLACES = {"folder": Path("/data/lr"), "root": Path("/home/me/suite")}
WORKSPACE = Workspace(sweep="lr", python="/home/me/.venv/bin/python", **PLACES)
PLACES = {"folder": Path('/data/my "best" 50% sweep'), "root": Path("/home/o'neil")}
AWKWARD = Workspace(sweep="it's", python="/home/o'neil/python", **PLACES)
RESOURCES = Resources(
    partition="gpu", account="course", qos="high", constraint="a100&ib", nodes=2, gpus_per_node=4,
    gpu_type="a100", cpus_per_rank=8, mem_gb_per_node=192, time_limit_min=240, throttle=3, exclusive=True,
    modules=("cuda/12.4",), environment={"NCCL_SOCKET_IFNAME": "ib0", "NOTE": "a b"},
    setup=("ulimit -n 65536",), sbatch_options=("--reservation=course",), srun_options=("--cpu-bind=cores",),
)  # fmt: skip
TWO_NODES = """\
#!/bin/bash
# Sweep lr, stage finetune: one task per cell of tasks.json.
# Written by jobs.submit; may be edited and submitted by hand.
#SBATCH --job-name=lr-finetune
#SBATCH --array=0-5%3
#SBATCH --partition=gpu
#SBATCH --account=course
#SBATCH --qos=high
#SBATCH --constraint='a100&ib'
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=a100:4
#SBATCH --cpus-per-task=8
#SBATCH --mem=192G
#SBATCH --time=240
#SBATCH --exclusive
#SBATCH --reservation=course
#SBATCH --output=/data/lr/logs/finetune-%A_%a.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@180

set -eo pipefail  # not -u: module files read variables that are not there
cd /home/me/suite
module load cuda/12.4
ulimit -n 65536
export OMP_NUM_THREADS=8
export PYTHONUNBUFFERED=1
export NCCL_SOCKET_IFNAME=ib0
export NOTE='a b'

# 8 ranks meet on the first machine and then talk over NCCL.
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export MASTER_ADDR MASTER_PORT

sweep=/data/lr
# slurm/cell.py sees to the cell's lock, restarts and end; srun starts the ranks and passes USR1 on
# to each. A task that was asked to stop is queued again, alone.
# shellcheck disable=SC2016  # the ranks expand it
exec /home/me/.venv/bin/python -m slurm.cell "$sweep" finetune "$SLURM_ARRAY_TASK_ID" \\
    --log "$sweep/logs/finetune-${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}.log" --wait_for_lock_s 120 -- \\
    srun --kill-on-bad-exit=0 --wait=120 --nodes=2 --ntasks-per-node=4 --cpus-per-task=8 --cpu-bind=cores \\
    bash -c 'export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID
             export WORLD_SIZE=$SLURM_NTASKS LOCAL_WORLD_SIZE=4
             exec "$@"' rank
"""
COLLECT = """\
#!/bin/bash
# Sweep it's, stage collect.
# Written by jobs.submit; may be edited and submitted by hand.
#SBATCH --job-name='it'"'"'s-collect'
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=1
#SBATCH --output='/data/my "best" 50%% sweep/logs'/collect-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue

set -eo pipefail  # not -u: module files read variables that are not there
cd '/home/o'"'"'neil'
export OMP_NUM_THREADS=1
export PYTHONUNBUFFERED=1
export CUDA_VISIBLE_DEVICES=''

code=0
python -m jobs.collect 'a b' || code=$?
exit "$code"
"""


def test_one_rank_needs_no_rendezvous_and_no_limit_no_signal() -> None:
    script = render_array(WORKSPACE, "finetune", Resources(gpus_per_node=1), "0", stoppable=True)
    assert "MASTER" not in script
    assert "RANK" not in script
    assert "--signal" not in script
    assert "CUDA_VISIBLE_DEVICES" not in script
    options = "--kill-on-bad-exit=0 --wait=120 --nodes=1 --ntasks-per-node=1 --cpus-per-task=1"
    assert script.endswith(f"srun {options}\n")


def test_ranks_without_gpus_talk_over_gloo_on_one_machine() -> None:
    script = render_array(WORKSPACE, "finetune", Resources(ranks_per_node=2), "0", stoppable=True)
    assert "# 2 ranks meet on the first machine and then talk over gloo.\nMASTER_ADDR=127.0.0.1\n" in script
    assert "export CUDA_VISIBLE_DEVICES=''\n" in script


def test_no_text_of_a_sweep_is_a_command_in_its_scripts(tmp_path: Path) -> None:
    """Bash runs a script whose texts hold commands that would leave a file."""
    bad = f"a b;touch {tmp_path}/done;$(touch {tmp_path}/done)`touch {tmp_path}/done`'\"&|#\\"
    places = {"folder": tmp_path / bad.replace("/", "_"), "root": tmp_path, "python": bad}
    resources = Resources(
        partition=bad, account=bad, qos=bad, constraint=bad, gpu_type=bad, gpus_per_node=1, modules=(bad,),
        environment={"A": bad}, sbatch_options=(f"--x=$(touch {tmp_path}/done)",),
        srun_options=(f"--x=;touch {tmp_path}/done",),
    )  # fmt: skip
    script = render_array(
        Workspace(sweep="x", **places), "finetune", resources, "0", stoppable=True, offset=7
    )
    (tmp_path / "script").write_text("module() { :; }\n" + script)
    (tmp_path / "script").write_text((tmp_path / "script").read_text().replace("exec ", "echo "))
    answer = subprocess.run(
        ["bash", tmp_path / "script"],
        env={"SLURM_ARRAY_TASK_ID": "3", "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    )
    assert " finetune 10 --log " in answer.stdout
    assert f" --x=;touch {tmp_path}/done\n" in answer.stdout
    assert not (tmp_path / "done").exists()


@pytest.mark.parametrize("end", ["\n", "\r", "\x00", "\x1b", "\x7f", "\x85", "\u2028"])
def test_a_line_break_in_a_path_of_a_script_is_refused(end: str) -> None:
    for name in ("folder", "root"):
        with pytest.raises(ValueError, match="one line without control characters is needed"):
            Workspace(sweep="x", python="python", **{**PLACES, name: Path(f"/data{end}touch x")})


SCRIPTS = {
    "second array": render_array(AWKWARD, "evaluate", RESOURCES, "0-9", stoppable=False, offset=1001),
    "two nodes": render_array(WORKSPACE, "finetune", RESOURCES, "0-5%3", stoppable=True),
    "awkward names": render_array(AWKWARD, "evaluate", Resources(time_limit_min=9), "0", stoppable=False),
    "collect": render_job(AWKWARD, "collect", Resources(), "python -m jobs.collect 'a b'"),
}


def test_an_array_on_two_machines_and_a_single_job_in_a_folder_with_quotes() -> None:
    assert SCRIPTS["two nodes"] == TWO_NODES
    assert SCRIPTS["collect"] == COLLECT


@pytest.mark.parametrize("name", SCRIPTS)
def test_bash_and_shellcheck_have_nothing_to_say(name: str, tmp_path: Path) -> None:
    path = tmp_path / "script.sbatch"
    path.write_text(SCRIPTS[name])
    for command in (["bash", "-n"], ["shellcheck", "--shell=bash"]):
        if shutil.which(command[0]):
            answer = subprocess.run([*command, str(path)], capture_output=True, text=True, check=False)
            assert (answer.returncode, answer.stdout + answer.stderr) == (0, "")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"nodes": 0}, "nodes must be at least 1, got 0"),
        ({"cpus_per_rank": 0}, "cpus_per_rank must be at least 1, got 0"),
        ({"throttle": -1}, "throttle must be 0 or more, got -1"),
        ({"stop_before_end_s": 65536}, "stop_before_end_s must be in 0..65535, got 65536"),
        ({"time_limit_min": 3}, "stop_before_end_s is 180, which leaves nothing of time_limit_min 3"),
        ({"gpu_type": "a100"}, "gpu_type is 'a100', but gpus_per_node is 0"),
        ({"environment": {"A-B": "1"}}, "environment: 'A-B' is no name of a variable"),
        ({"environment": {"A": "1\n2"}}, "A: got '1\\n2'; one line without control characters is needed"),
        ({"partition": "a\nb"}, "partition: got 'a\\nb'; one line without control characters is needed"),
        ({"modules": ("a\rb",)}, "modules: got 'a\\rb'; one line without control characters is needed"),
        ({"python": "py\x1b[2J"}, "python: got 'py\\x1b[2J'; one line without control characters is needed"),
        ({"container": "run 'x"}, '"run \'x": No closing quotation'),
        ({"srun_options": ("--x=\u2028y",)}, "srun_options: got '--x=\\u2028y'; one line without control"),
        ({"srun_options": ("--x='y",)}, '"--x=\'y": No closing quotation'),
        ({"sbatch_options": ("--a\n#x",)}, "sbatch_options: got '--a\\n#x'; one line without control"),
        ({"sbatch_options": ("r",)}, "sbatch_options: 'r' does not start with - (one line each)"),
    ],
)
def test_impossible_resources_are_refused(wrong, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        Resources(**wrong)
