"""Submit a sweep to Slurm, or run it on this machine: a grid of fine-tunings, their evaluations, one table.

python -m jobs.submit SWEEP.yaml --dry-run
python -m jobs.submit SWEEP.yaml
python -m jobs.submit SWEEP.yaml --local 2
"""

from __future__ import annotations

import logging
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from jobs.sweep import (
    COLLECT,
    EVALUATE,
    Plan,
    collect_command,
    plan_sweep,
    render_scripts,
    require_same_sweep,
    write_plan,
)
from jobs.sweep_config import SweepConfig
from shards.errors import InputError
from shards.files import require_free, write_atomically
from shards.settings import parse_options, read_config, run_program
from slurm.array import array_expression
from slurm.launch import Machine, run_locally
from slurm.status import query_jobs
from slurm.submit import (
    SlurmError,
    Submission,
    add_submission,
    cancel,
    forget_submissions,
    read_submissions,
    submit_script,
)
from slurm.tasks import TASKS_NAME, read_state, read_tasks

logger = logging.getLogger(__name__)

FLAGS = ("dry_run", "retry_failed")


@dataclass(frozen=True, kw_only=True)
class SubmitOptions:
    """Submit a sweep: cells that are done are left out, so the same command again continues."""

    sweep: tyro.conf.Positional[Path]
    """The sweep file; slurm/examples/ has some."""
    dry_run: bool = False
    """Check everything and print scripts and cells; write and submit nothing. `--dry-run` alone will do."""
    retry_failed: bool = False
    """Also run cells that have failed; they continue from their last checkpoint."""
    local: int | None = None
    """Without Slurm: run so many cells at a time on this machine, under the same rules; 0: one per GPU (or
    per group of GPUs, where a cell has several processes)."""

    def __post_init__(self) -> None:
        if self.local is not None and self.local < 0:
            raise InputError(
                f"--local: got {self.local}; 0 (as many as there are GPUs for) or more is needed"
            )


def main(arguments: Sequence[str]) -> None:
    """Submit one sweep from the command line."""
    options: SubmitOptions = parse_options(SubmitOptions, _spell_out(arguments), program="jobs.submit")
    plan = plan_sweep(read_config(SweepConfig, options.sweep), options.sweep)
    try:
        submit(plan, options)
    except (SlurmError, ValueError) as error:
        raise InputError(str(error)) from None


def _spell_out(arguments: Sequence[str]) -> list[str]:
    """Let `--dry-run` stand for `--dry_run True`."""
    words = list(arguments)
    for i in reversed(range(len(words))):
        follows = words[i + 1] if i + 1 < len(words) else ""
        if words[i].lstrip("-").replace("-", "_") in FLAGS and follows not in ("True", "False"):
            words.insert(i + 1, "True")
    return words


def submit(plan: Plan, options: SubmitOptions) -> None:
    """Write the sweep's folder, and submit or run what is not done.

    Raises:
        InputError: the folder holds something else, or jobs of the sweep are still queued for other cells.
        SlurmError: sbatch is missing or refused; nothing stays submitted.
    """
    folder, tasks = plan.config.folder, plan.tasks
    live, moved = _check_folder(plan)
    failed = [i for i in range(len(tasks.cells)) if _has_failed(plan, i)]
    left_out = set() if options.retry_failed else set(failed)
    todo = [i for i in range(len(tasks.cells)) if not _is_done(plan, i) and i not in left_out | live]
    if options.dry_run:
        _print_plan(plan, todo)
        return
    if todo and options.local is None and shutil.which("sbatch") is None:
        raise SlurmError(
            "sbatch: not found; is this a machine of a Slurm cluster? --local 1 runs the cells here"
        )
    machine = _machine(plan, options) if options.local is not None else None
    write_plan(plan)
    if moved:
        forget_submissions(folder)  # their indices are those of other cells now
    _report(plan, todo, failed, live, options)
    if options.retry_failed:
        for index in failed:
            _forget_failure(plan, index)
    if not todo:
        return
    for stage, script in render_scripts(plan, todo).items():
        write_atomically(folder / f"{stage}.sbatch", script)
    if machine is None:
        _submit_scripts(plan, todo)
    else:
        _run_here(plan, todo, machine)


def _check_folder(plan: Plan) -> tuple[set[int], bool]:
    """Check that the folder is new or this sweep's; return what Slurm works on, and whether cells moved."""
    folder = plan.config.folder
    if not (folder / TASKS_NAME).is_file():
        require_free(folder, "out/name")
        return set(), False
    moved = require_same_sweep(plan, read_tasks(folder))
    submitted = [entry for entry in read_submissions(folder) if entry.array]
    found, _ = query_jobs([entry.job for entry in submitted])
    live = {int(key.partition("_")[2]) for key, job in found.items() if "_" in key and job.is_live}
    if moved and live:
        raise InputError(
            f"{plan.source}: cells were added or moved while jobs of {folder} are queued; wait for them, or "
            f"jobs.cancel {shlex.quote(str(folder))}"
        )
    return live, moved


def _is_done(plan: Plan, index: int) -> bool:
    task = plan.tasks.cells[index]
    return all(plan.tasks.is_done(task, stage) for stage in task.stages)


def _has_failed(plan: Plan, index: int) -> bool:
    task = plan.tasks.cells[index]
    states = [read_state(plan.tasks.control(task), stage).state for stage in task.stages]
    return "failed" in states and not _is_done(plan, index)


def _forget_failure(plan: Plan, index: int) -> None:
    task = plan.tasks.cells[index]
    control = plan.tasks.control(task)
    for stage in task.stages:
        if read_state(control, stage).state == "failed":
            (control / f"{stage}.json").unlink(missing_ok=True)


def _report(
    plan: Plan, todo: Sequence[int], failed: Sequence[int], live: set[int], options: SubmitOptions
) -> None:
    count = len(plan.tasks.cells)
    done = sum(_is_done(plan, i) for i in range(count))
    logger.info("%s: %d cells, %d done, %d to run", plan.config.folder, count, done, len(todo))
    if live:
        logger.info("%d are queued or running already", len(live))
    if failed and not options.retry_failed:
        logger.info("%d have failed and are left out; --retry-failed runs them again", len(failed))


def _print_plan(plan: Plan, todo: Sequence[int]) -> None:
    scripts = render_scripts(plan, todo) if todo else {}
    for stage, script in scripts.items():
        print(f"# ==== {plan.config.folder / stage}.sbatch ====")
        print(script)
    print(f"# ==== {len(plan.tasks.cells)} cells, {len(todo)} to run ====")
    for index, task in enumerate(plan.tasks.cells):
        mark = "" if index in todo else "  (not now: done, failed or queued)"
        size = ""
        if plan.configs:
            data, loop = plan.configs[index].data, plan.configs[index].loop
            batch = data.batch_size * loop.grad_accum * plan.config.resources.num_ranks
            size = f"  {loop.steps} steps, global batch {batch}"
        print(f"{index:5d}  {task.name}{size}{mark}")


def _submit_scripts(plan: Plan, todo: Sequence[int]) -> None:
    """Submit the arrays, each cell's evaluation behind its own fine-tuning, and the table behind all."""
    folder, array = plan.config.folder, array_expression(todo)
    submitted: list[Submission] = []
    try:
        for stage in [*plan.stages, *([COLLECT] if EVALUATE in plan.stages else [])]:
            kind = "afterany" if stage == COLLECT else "aftercorr"
            dependency = f"{kind}:{submitted[-1].job}" if submitted else ""
            job = submit_script(folder / f"{stage}.sbatch", dependency=dependency)
            submitted.append(Submission(stage=stage, job=job, array="" if stage == COLLECT else array))
    except SlurmError:
        cancel([entry.job for entry in reversed(submitted)])
        raise
    for entry in submitted:
        add_submission(folder, entry)
        logger.info("submitted %s as job %s %s", entry.stage, entry.job, entry.array and f"[{entry.array}]")
    logger.info("watch it: python -m jobs.status %s", shlex.quote(str(folder)))


def _machine(plan: Plan, options: SubmitOptions) -> Machine:
    ranks, count = plan.config.resources.num_ranks, torch.cuda.device_count()
    gpus = [str(i) for i in range(count)]
    if options.local == 0 and count < ranks:
        raise InputError(
            f"--local 0: this machine has {count} GPUs, and a cell takes {ranks}; --local 1 uses the CPU"
        )
    if gpus and ranks > count:
        raise InputError(f"--local: a cell has {ranks} processes, and this machine {count} GPUs")
    return Machine(at_once=options.local or count // ranks, ranks=ranks, gpus=gpus)


def _run_here(plan: Plan, todo: Sequence[int], machine: Machine) -> None:
    """Run the cells on this machine, then make the table; exit with 1 if a cell failed."""
    folder = plan.config.folder
    environment = plan.config.resources.environment
    codes = run_locally(folder, todo, plan.stages, machine, python=sys.executable, environment=environment)
    failed = [index for index, code in codes.items() if code]
    for index in failed:
        logger.info("%s: exit code %d", plan.tasks.cells[index].name, codes[index])
    if EVALUATE in plan.stages:
        subprocess.run(shlex.split(collect_command(plan)), check=False)
    logger.info("%d of %d cells done; python -m jobs.status %s", len(todo) - len(failed), len(todo), folder)
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    run_program(main)
