"""The sweep file, and the jobs that Slurm runs for it."""

from __future__ import annotations

import itertools
import logging
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shards.errors import InputError
from shards.files import Location, require_name
from slurm.array import array_expression, split_indices
from slurm.resources import Resources
from slurm.sbatch import Workspace, render_array, render_job
from slurm.status import TAKEN, query_jobs
from slurm.submit import (
    SlurmError,
    Submission,
    add_submissions,
    call,
    read_limits,
    read_submissions,
    submit_script,
)
from slurm.tasks import Tasks

logger = logging.getLogger(__name__)

INPUTS = ("--root", "--images", "--annotations")
"""Options of jobs.prepare that name a file or a folder it reads."""
FINETUNE, EVALUATE, COLLECT, PREPARE = "finetune", "evaluate", "collect", "prepare"


@dataclass(frozen=True, kw_only=True)
class EvaluationStage:
    """What `jobs.evaluate` does with each run that is through."""

    datasets: Location = ""
    """Folder of the test sets; empty: the runs are not evaluated."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further options of jobs.evaluate, such as cityscapes: data/cityscapes. Of `scores`, a cell takes those
    that its `model` has the parts for, such as MinDistance where `class_head` is isomax."""
    resources: Resources = field(default_factory=Resources)
    """Resources of each evaluation, which is one process."""

    def __post_init__(self) -> None:
        if self.resources.num_ranks != 1:
            given = f"{self.resources.num_ranks} processes, but an evaluation is one"
            raise InputError(f"evaluation.resources: {given}; nodes: 1 and ranks_per_node: 1 are needed")


@dataclass(frozen=True, kw_only=True)
class PreparationStage:
    """Shards written by many tasks instead of one: `jobs.prepare` as an array."""

    arguments: tuple[str, ...] = ()
    """Words behind `jobs.prepare`, such as [cityscapes, --root, downloads, --out, data/cityscapes]; empty:
    this is a sweep of fine-tunings."""
    tasks: int = 8
    """Number of tasks that share the work. The shards do not depend on it."""

    def __post_init__(self) -> None:
        if not 1 <= self.tasks <= 10_000:
            raise InputError(f"preparation.tasks must be in 1..10000, got {self.tasks}")


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """A grid of fine-tunings, their evaluations and one table: `python -m jobs.submit SWEEP.yaml`."""

    name: str
    """Name of the sweep, of its folder and of its jobs."""
    out: Location = "sweeps"
    """Folder that holds sweeps. Every machine of the cluster must see it under this name."""
    config: Location = ""
    """Configuration of jobs.finetune that every cell starts from."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Settings that every cell has instead of those in `config`, by dotted name."""
    grid: dict[str, Any] = field(default_factory=dict)
    """Dotted setting: list of its values; every combination is a cell."""
    cells: tuple[dict[str, Any], ...] = ()
    """Settings that go together; each entry is combined with the whole grid; its key `name` labels it."""
    seeds: tuple[int, ...] = (0,)
    """Each combination runs once with each; the table shows mean and spread over them."""
    max_starts_without_progress: int = 3
    """Number of starts from one and the same checkpoint after which a cell is given up."""
    resources: Resources = field(default_factory=Resources)
    """Resources of each fine-tuning, or of each task of a preparation."""
    evaluation: EvaluationStage = field(default_factory=EvaluationStage)
    collect_resources: Resources = field(default_factory=Resources)
    """Resources of the job that writes the table."""
    preparation: PreparationStage = field(default_factory=PreparationStage)

    def __post_init__(self) -> None:
        require_name(self.name, "name")
        if self.max_starts_without_progress < 1:
            least = f"must be at least 1, got {self.max_starts_without_progress}"
            raise InputError(f"max_starts_without_progress {least}")
        if bool(self.config) == bool(self.preparation.arguments):
            raise InputError("config and preparation.arguments: exactly one of them is needed")
        options, places = self.evaluation.options, ("checkpoint", "datasets", "out", "task")
        for where, settings, taken in (
            ("overrides", self.overrides, ("out", "name")),
            ("grid", self.grid, ("out", "name")),
            ("evaluation.options", options, places),
        ):
            if setting := next((name for name in taken if name in settings), ""):
                raise InputError(f"{where}.{setting}: the sweep names its runs itself")

    @property
    def folder(self) -> Path:
        """Folder of the sweep; absolute."""
        return (Path(self.out) / self.name).absolute()

    @property
    def stages(self) -> list[str]:
        """Stages of every cell, in order."""
        evaluated = [EVALUATE] if self.evaluation.datasets else []
        return [PREPARE] if self.preparation.arguments else [FINETUNE, *evaluated]

    @property
    def table(self) -> Path:
        """Folder of the table, complete or absent."""
        return self.folder / "table"

    def inputs(self) -> dict[str, str]:
        """Return the setting that names each file or folder that an evaluation or a preparation reads."""
        words, evaluation = self.preparation.arguments, self.evaluation
        named = {place: option for option, place in itertools.pairwise(words) if option in INPUTS}
        if evaluation.datasets:
            named[evaluation.datasets] = "evaluation.datasets"
            if closed_set := evaluation.options.get("cityscapes"):
                named[str(closed_set)] = "evaluation.options.cityscapes"
        return named

    def collect_command(self) -> str:
        """Return the command that makes the table."""
        words = [str(self.folder), "--out", str(self.table), "--replace", "True"]
        return job_command(self.collect_resources, COLLECT, words)


def job_command(resources: Resources, job: str, words: Sequence[str]) -> str:
    """Return a shell's command that runs one of our programs, in its container if there is one."""
    python = resources.python or sys.executable
    return shlex.join([*shlex.split(resources.container), python, "-m", f"jobs.{job}", *words])


def render_scripts(config: SweepConfig, indices: Sequence[int], array_size: int = 0) -> dict[str, str]:
    """Render the scripts of every stage for these cells, and of the job at the end; by name, in order.

    A stage has one array, `finetune`, or several where task ids must stay below `array_size`: `finetune-1001`
    begins with cell 1001. Without cells it is the job at the end alone. That submits what Slurm has taken
    away, and itself behind it, then makes the table.
    """
    workspace = Workspace(sweep=config.name, folder=config.folder, root=Path.cwd(), python=sys.executable)
    scripts = {}
    for stage in config.stages if indices else ():
        resources = config.evaluation.resources if stage == EVALUATE else config.resources
        for offset, part in split_indices(indices, array_size).items():
            array = array_expression([index - offset for index in part], resources.throttle)
            stoppable, name = stage == FINETUNE, f"{stage}-{offset}" if offset else stage
            script = render_array(workspace, stage, resources, array, stoppable=stoppable, offset=offset)
            scripts[name] = script
    again = shlex.join([sys.executable, "-m", "jobs.submit", str(config.folder), "--lost", "True"])
    tables = [config.collect_command()] if EVALUATE in config.stages else []
    scripts[COLLECT] = render_job(workspace, COLLECT, config.collect_resources, again, *tables)
    return scripts


def find_live_cells(folder: Path) -> set[int]:
    """Return the indices of the cells that Slurm runs or has in its queue."""
    arrays = [entry for entry in read_submissions(folder) if entry.array]
    jobs, _ = query_jobs([entry.job for entry in arrays])
    live = {key for key, job in jobs.items() if job.is_live}
    return {i for entry in arrays for i in entry.indices if entry.key(i) in live}


def find_lost_cells(tasks: Tasks) -> set[int]:
    """Return the cells that are not done because Slurm took a job of theirs away.

    It has forgotten a job after a while where there is no accounting; then its cell counts if it has started.
    """
    submitted = [entry for entry in read_submissions(tasks.folder) if entry.array]
    jobs, _ = query_jobs([entry.job for entry in submitted], all_tasks=True)
    latest = {(i, entry.stage): entry.key(i) for entry in submitted for i in entry.indices}
    lost = set()
    for task in tasks.cells:
        stage = tasks.next_stage(task)
        found = {name: jobs.get(latest.get((task.index, name), "")) for name in task.stages}
        words = {name: job.state for name, job in found.items() if job is not None}
        state = tasks.state(task, stage).state if stage else "done"
        forgotten = stage not in words and state in ("running", "stopped")
        if state not in ("done", "failed") and (forgotten or TAKEN & set(words.values())):
            lost.add(task.index)
    return lost


def is_table_queued(folder: Path) -> bool:
    """Say whether Slurm runs the job that makes the table, or has it in its queue."""
    jobs, _ = query_jobs([entry.job for entry in read_submissions(folder) if entry.stage == COLLECT])
    return any(job.is_live for job in jobs.values())


def find_array_size(config: SweepConfig, count: int) -> int:
    """Return below what task ids must stay, 0: no limit; check that the cluster takes `count` cells."""
    limits = read_limits()
    if count and limits.get("MaxArraySize") == 0:
        raise SlurmError("MaxArraySize is 0: this cluster takes no arrays; --local 1 runs the cells here")
    jobs, most = count * len(config.stages), limits.get("MaxJobCount", 0)
    if most and jobs > most:
        remedy = "begin with fewer seeds or values; more may be added to the file later"
        raise SlurmError(f"{jobs} tasks, but the cluster's MaxJobCount is {most}; {remedy}")
    return limits.get("MaxArraySize", 0)


def submit_scripts(
    config: SweepConfig, names: Sequence[str], indices: Sequence[int], array_size: int = 0
) -> None:
    """Submit a sweep's scripts: each cell's evaluation behind its own fine-tuning, the table behind all.

    Of the arrays of a stage that is throttled, one waits for the other.

    A SlurmError says that sbatch is missing or refused; nothing stays submitted then.
    """
    submitted: list[Submission] = []
    try:
        for name in names:
            stage, _, offset = name.partition("-")
            dependency = _dependency(config, stage, int(offset or 0), submitted)
            job = submit_script(config.folder / f"{name}.sbatch", dependency=dependency)
            cells = [] if stage == COLLECT else split_indices(indices, array_size)[int(offset or 0)]
            array = array_expression(cells)
            submitted.append(Submission(stage=stage, job=job, array=array, offset=int(offset or 0)))
    except SlurmError:
        if submitted:
            call(["scancel", *(entry.job for entry in reversed(submitted))])
        raise
    add_submissions(config.folder, submitted)
    for entry in submitted:
        logger.info("submitted %s as job %s %s", entry.stage, entry.job, entry.array and f"[{entry.array}]")


def _dependency(config: SweepConfig, stage: str, offset: int, submitted: Sequence[Submission]) -> str:
    """Say which of the jobs submitted before a job waits for, and how."""
    earlier = [entry for entry in submitted if entry.stage != stage]
    last = [entry for entry in earlier if entry.stage == earlier[-1].stage]
    if stage == COLLECT:
        return ":".join(["afterany", *(entry.job for entry in last)]) if last else ""
    waits = [f"aftercorr:{entry.job}" for entry in last if entry.offset == offset]
    resources = config.evaluation.resources if stage == EVALUATE else config.resources
    same = [entry.job for entry in submitted if entry.stage == stage and resources.throttle]
    return ",".join([*waits, *(f"afterany:{job}" for job in same[-1:])])
