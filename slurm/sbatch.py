"""Batch scripts, as text that a person can read, edit and submit by hand."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from slurm.resources import Resources, require_one_line, split_words
from slurm.tasks import LOGS_FOLDER

LOCK_WAIT_S = 120
"""A file server frees the locks of a machine that vanished only after a while."""
RANK_WAIT_S = 120
"""How long srun lets the other ranks go on after one has left: long enough to end a save, then no hanging."""
FIRST_PORT, NUM_PORTS = 20000, 20000


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """Folders and interpreter of a sweep's jobs."""

    sweep: str
    """Name of the sweep."""
    folder: Path
    """The sweep's folder; absolute."""
    root: Path
    """Working folder of every command; absolute."""
    python: str
    """Interpreter of the batch script itself, outside of any container."""

    def __post_init__(self) -> None:
        places = {"out/name": self.folder, "working folder": self.root, "Python": self.python}
        for name, value in {"name": self.sweep, **places}.items():
            require_one_line(name, str(value))


def render_array(
    workspace: Workspace, stage: str, resources: Resources, array: str, *, stoppable: bool, offset: int = 0
) -> str:
    """Render the script of an array, as `--array` takes it: one task per cell, one process per rank.

    The cell of a task is its id plus `offset`.
    A `stoppable` command saves and leaves with 75 when it gets USR1, so it is asked before the time is up.
    """
    options = _options(workspace, stage, resources, f"{stage}-%A_%a.log")
    options.insert(1, f"--array={array}")
    if stoppable and resources.time_limit_min and resources.stop_before_end_s:
        options.append(f"--signal=B:USR1@{resources.stop_before_end_s}")
    name = f"{stage}-${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}.log"
    cell = f"$((SLURM_ARRAY_TASK_ID + {offset}))" if offset else "$SLURM_ARRAY_TASK_ID"
    lines = [
        *_head(workspace, f"stage {stage}: one task per cell of tasks.json", options),
        *_environment(resources),
        *(_rendezvous(resources) if resources.num_ranks > 1 else []),
        f"sweep={shlex.quote(str(workspace.folder))}",
        "# slurm/cell.py sees to the cell's lock, restarts and end; srun starts the ranks and passes USR1 on",
        "# to each. A task that was asked to stop is queued again, alone.",
        *(["# shellcheck disable=SC2016  # the ranks expand it"] if resources.num_ranks > 1 else []),
        f'exec {shlex.quote(workspace.python)} -m slurm.cell "$sweep" {stage} "{cell}" \\',
        f'    --log "$sweep/{LOGS_FOLDER}/{name}" --wait_for_lock_s {LOCK_WAIT_S} -- \\',
        *_srun(resources),
    ]
    return "\n".join(lines) + "\n"


def render_job(workspace: Workspace, stage: str, resources: Resources, *commands: str) -> str:
    """Render the script of a single job that runs commands, given as a shell would take them, one by one.

    One that fails stops none behind it, and is told by the exit code.
    """
    lines = [
        *_head(workspace, f"stage {stage}", _options(workspace, stage, resources, f"{stage}-%j.log")),
        *_environment(resources),
        "code=0",
        *(f"{command} || code=$?" for command in commands),
        'exit "$code"',
    ]
    return "\n".join(lines) + "\n"


def _head(workspace: Workspace, what: str, options: Sequence[str]) -> list[str]:
    return [
        "#!/bin/bash",
        f"# Sweep {workspace.sweep}, {what}.",
        "# Written by jobs.submit; may be edited and submitted by hand.",
        *(f"#SBATCH {option}" for option in options),
        "",
        "set -eo pipefail  # not -u: module files read variables that are not there",
        f"cd {shlex.quote(str(workspace.root))}",
    ]


def _options(workspace: Workspace, stage: str, resources: Resources, log: str) -> list[str]:
    folder = str(workspace.folder / LOGS_FOLDER).replace("%", "%%")
    name = shlex.quote(f"{workspace.sweep}-{stage}")
    output = f"--output={shlex.quote(folder)}/{log}"
    return [f"--job-name={name}", *resources.options(), output, "--open-mode=append", "--requeue"]


def _environment(resources: Resources) -> list[str]:
    variables = {"OMP_NUM_THREADS": str(resources.cpus_per_rank), "PYTHONUNBUFFERED": "1"}
    if not resources.gpus_per_node:
        variables["CUDA_VISIBLE_DEVICES"] = ""  # also where nothing hides the GPUs of other jobs
    variables |= resources.environment
    return [
        *(f"module load {shlex.quote(name)}" for name in resources.modules),
        *resources.setup,
        *(f"export {name}={shlex.quote(value)}" for name, value in variables.items()),
        "",
    ]


def _rendezvous(resources: Resources) -> list[str]:
    backend = "NCCL" if resources.gpus_per_node else "gloo"
    first = '$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)'
    address = first if resources.nodes > 1 else "127.0.0.1"
    return [
        f"# {resources.num_ranks} ranks meet on the first machine and then talk over {backend}.",
        f"MASTER_ADDR={address}",
        f"MASTER_PORT=$(({FIRST_PORT} + SLURM_JOB_ID % {NUM_PORTS}))",
        "export MASTER_ADDR MASTER_PORT",
        "",
    ]


def _srun(resources: Resources) -> list[str]:
    """Return the launcher's lines: of several ranks, each learns its number from Slurm's variables.

    GPUs are given to the machine and not to the rank, so that LOCAL_RANK picks one and NCCL sees its peers.
    """
    options = [
        "--kill-on-bad-exit=0",  # a rank that leaves with 75 must not end the others
        f"--wait={RANK_WAIT_S}",
        f"--nodes={resources.nodes}",
        f"--ntasks-per-node={resources.ranks_here}",
        f"--cpus-per-task={resources.cpus_per_rank}",  # not inherited from sbatch since Slurm 22.05
        *(word for option in resources.srun_options for word in split_words(option)),
    ]
    if resources.num_ranks == 1:
        return [f"    srun {shlex.join(options)}"]
    return [
        f"    srun {shlex.join(options)} \\",
        "    bash -c 'export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID",
        f"             export WORLD_SIZE=$SLURM_NTASKS LOCAL_WORLD_SIZE={resources.ranks_here}",
        """             exec "$@"' rank""",
    ]
