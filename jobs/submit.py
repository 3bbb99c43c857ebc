"""Submission of a sweep to Slurm, or its run on this machine: fine-tunings, their evaluations, one table.

python -m jobs.submit SWEEP.yaml [--dry-run] [--local 2]
"""

from __future__ import annotations

import logging
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import tyro

from jobs.work.plan import SweepPlan, find_missing, plan_sweep, read_plan, require_same_sweep, write_plan
from shards.cores import count_gpus
from shards.errors import InputError
from shards.files import write_atomically
from shards.output import claimed, require_free
from shards.program import run_program
from shards.settings import parse_options, read_config, require_least
from slurm.launch import Machine, run_locally, share_machine
from slurm.submit import SUBMISSIONS_NAME, SlurmError
from slurm.sweep import (
    EVALUATE,
    SweepConfig,
    find_array_size,
    find_live_cells,
    find_lost_cells,
    is_table_queued,
    render_scripts,
    submit_scripts,
)
from slurm.tasks import TASKS_NAME, Tasks, read_tasks, write_state

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SubmitOptions:
    """Submit a sweep: cells that are done are left out, so the same command again continues."""

    sweep: tyro.conf.Positional[Path]
    """The sweep file; slurm/examples/ has some. Or a sweep's folder: what was submitted there, as it was."""
    dry_run: bool = False
    """Check everything and print scripts and cells; write and submit nothing. `--dry-run` alone will do."""
    retry_failed: bool = False
    """Also run cells that have failed; they continue from their last checkpoint."""
    lost: bool = False
    """Run only the cells that Slurm took away: preempted, out of time, on a machine that failed. The job at
    the end of a sweep does this."""
    local: int | None = None
    """Cells to run at a time on this machine, without Slurm; 0: one per GPU, or per group of them."""

    def __post_init__(self) -> None:
        require_least(self, local=0)


def main(arguments: Sequence[str]) -> None:
    """Submit one sweep from the command line."""
    options: SubmitOptions = parse_options(SubmitOptions, arguments, program="jobs.submit")
    if (options.sweep / TASKS_NAME).is_file():
        plan = read_plan(options.sweep)
    else:
        plan = plan_sweep(read_config(SweepConfig, options.sweep), options.sweep)
    with nullcontext() if options.dry_run else claimed(plan.config.folder, "out/name"):
        submit(plan, options)


def submit(plan: SweepPlan, options: SubmitOptions) -> None:
    """Write the sweep's folder, and submit or run what is not done; an error leaves nothing submitted."""
    config, tasks = plan.config, plan.tasks
    live, moved = _check_folder(plan)
    undone = [task for task in tasks.cells if tasks.next_stage(task)]
    failed = [task for task in undone if tasks.failed_stages(task)]
    left = [] if options.retry_failed else failed
    wanted = {task.index for task in undone if task not in left} - live
    todo = sorted(wanted & find_lost_cells(tasks) if options.lost else wanted)
    is_table_wanted = EVALUATE in config.stages and (bool(todo) or len(undone) < len(tasks.cells))
    is_table_missing = is_table_wanted and not config.table.is_dir() and not is_table_queued(config.folder)
    array_size = find_array_size(config, len(todo)) if options.local is None else 0
    scripts = render_scripts(config, todo, array_size) if todo or (is_table_missing and not live) else {}
    for line in find_missing(plan):
        logger.warning("warning: %s", line)
    if options.dry_run:
        _print_plan(plan, scripts, todo)
        return
    if scripts and options.local is None and shutil.which("sbatch") is None:
        raise SlurmError("sbatch: not found; is this a Slurm cluster? --local 1 runs the cells here")
    machine = None if options.local is None else share_machine(config.resources, options.local, count_gpus())
    write_plan(plan)
    if moved:  # the indices of earlier jobs are those of other cells now
        (config.folder / SUBMISSIONS_NAME).unlink(missing_ok=True)
    _count(tasks, len(undone), len(todo), len(live), len(left))
    for task in failed if options.retry_failed else ():
        for stage in tasks.failed_stages(task):
            write_state(tasks.control(task), stage, tasks.state(task, stage).forgiven())
    for stage, script in scripts.items():
        write_atomically(config.folder / f"{stage}.sbatch", script)
    if machine is not None:
        _run_here(plan, todo, machine, is_table_wanted)
    elif scripts:
        submit_scripts(config, list(scripts), todo, array_size)
        logger.info("watch it: python -m jobs.status %s", shlex.quote(str(config.folder)))


def _count(tasks: Tasks, undone: int, todo: int, live: int, left: int) -> None:
    """Say how many cells there are of each kind."""
    count = len(tasks.cells)
    logger.info("%s: %d cells, %d done, %d to run", tasks.folder, count, count - undone, todo)
    if live:
        logger.info("%d are queued or running already", live)
    if left:
        logger.info("%d have failed and are left out; --retry-failed runs them again", left)


def _check_folder(plan: SweepPlan) -> tuple[set[int], bool]:
    """Check that the folder is new or this sweep's; return what Slurm works on, and whether cells moved."""
    folder = plan.config.folder
    if not (folder / TASKS_NAME).is_file():
        require_free(folder, "out/name")
        return set(), False
    before = read_tasks(folder)
    require_same_sweep(plan, before)
    moved = [task.name for task in before.cells] != [task.name for task in plan.tasks.cells]
    live = find_live_cells(folder)
    if moved and live:
        moving = f"cells were added or moved while jobs of {folder} are queued"
        raise InputError(f"{plan.source}: {moving}; wait for them, or jobs.cancel {shlex.quote(str(folder))}")
    return live, moved


def _print_plan(plan: SweepPlan, scripts: dict[str, str], todo: Sequence[int]) -> None:
    for stage, script in scripts.items():
        print(f"# ==== {plan.config.folder / stage}.sbatch ====")
        print(script)
    counts = f"{len(plan.tasks.cells)} cells, {len(todo)} to run"
    print(f"# ==== {counts}, in {len(scripts) - ('collect' in scripts)} arrays ====")
    for task in plan.tasks.cells:
        mark, size = "" if task.index in todo else "  (not now: done, failed or queued)", ""
        if plan.configs:
            data, loop = plan.configs[task.name].data, plan.configs[task.name].loop
            batch = data.batch_size * loop.grad_accum * plan.config.resources.num_ranks
            size = f"  {loop.steps} steps, global batch {batch}"
        print(f"{task.index:5d}  {task.name}{size}{mark}")


def _run_here(plan: SweepPlan, todo: Sequence[int], machine: Machine, is_table_wanted: bool) -> None:
    """Run the cells here, then make the table where it was left out; exit with 1 if one of them failed."""
    config = plan.config
    codes = run_locally(config.folder, todo, config.stages, machine).items()
    failed = {index: code for index, code in codes if code}
    for index, code in failed.items():
        logger.info("%s: exit code %d", plan.tasks.cells[index].name, code)
    collect = shlex.split(config.collect_command())
    table = subprocess.run(collect, check=False).returncode if is_table_wanted else 0
    counts = len(todo) - len(failed), len(todo)
    logger.info("%d of %d cells done; python -m jobs.status %s", *counts, config.folder)
    if failed or table:
        sys.exit(1)


if __name__ == "__main__":
    run_program(main)
