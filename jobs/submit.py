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
from typing import Any

import tyro

from eval.predict.score_names import NEEDS
from jobs.evaluate import EvaluateOptions
from jobs.prepare import Job
from models.weights.run_files import BEST_FOLDER, CHECKPOINTS_FOLDER, CONFIG_NAME, FINISHED_NAME
from shards.cores import count_gpus
from shards.errors import InputError
from shards.files import write_atomically
from shards.location import is_there
from shards.output import claimed, make_folder, require_free
from shards.program import run_program
from shards.settings import (
    build_config,
    flat_settings,
    parse_options,
    read_config,
    read_settings,
    with_overrides,
    write_config,
)
from slurm.array import combine_settings
from slurm.launch import Machine, run_locally, share_machine
from slurm.submit import SUBMISSIONS_NAME, SlurmError
from slurm.sweep import (
    EVALUATE,
    FINETUNE,
    PREPARE,
    SweepConfig,
    find_array_size,
    find_live_cells,
    is_table_queued,
    job_command,
    render_scripts,
    submit_scripts,
)
from slurm.tasks import (
    CELLS_FOLDER,
    LOGS_FOLDER,
    RUNS_FOLDER,
    TASKS_NAME,
    SweepStage,
    SweepTask,
    Tasks,
    read_tasks,
    write_tasks,
)
from trainer.config import MAY_CHANGE, FinetuneConfig

logger = logging.getLogger(__name__)


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
    """Cells to run at a time on this machine, without Slurm; 0: one per GPU, or per group of them."""

    def __post_init__(self) -> None:
        if (self.local or 0) < 0:
            raise InputError(f"--local: got {self.local}; 0 (one per GPU) or more is needed")


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """A sweep before anything is written; `source` is its file."""

    config: SweepConfig
    source: Path
    tasks: Tasks
    configs: dict[str, FinetuneConfig]
    """Configuration of each cell; empty for a preparation."""


def main(arguments: Sequence[str]) -> None:
    """Submit one sweep from the command line."""
    options: SubmitOptions = parse_options(SubmitOptions, arguments, program="jobs.submit")
    plan = plan_sweep(read_config(SweepConfig, options.sweep), options.sweep)
    with nullcontext() if options.dry_run else claimed(plan.config.folder, "out/name"):
        submit(plan, options)


def plan_sweep(config: SweepConfig, source: Path) -> SweepPlan:
    """Build and check every cell of a sweep; an InputError says what is refused."""
    configs: dict[str, FinetuneConfig] = {}
    if config.preparation.arguments:
        rows = _preparation_tasks(config)
    else:
        rows, base = [], read_settings(Path(config.config))
        try:
            combinations = combine_settings(config.grid, config.cells, config.seeds)
        except InputError as error:
            raise InputError(f"{source}: {error}") from None
        for index, combination in enumerate(combinations):
            name = combination.name
            own = {"name": name, "out": str(config.folder / RUNS_FOLDER)}
            settings = with_overrides(base, {**config.overrides, **combination.overrides, **own})
            built = configs[name] = build_config(FinetuneConfig, settings, f"{source}: cell {name}")
            stages = _finetuning_stages(config, built)
            rows.append(SweepTask(index=index, name=name, stages=stages, settings=combination.overrides))
    limit = config.max_starts_without_progress
    tasks = Tasks(sweep=config.name, folder=config.folder, max_starts_without_progress=limit, cells=rows)
    return SweepPlan(config=config, source=source, tasks=tasks, configs=configs)


def _preparation_tasks(config: SweepConfig) -> list[SweepTask]:
    """Cut one preparation into tasks; the one that ends last completes the shards."""
    words, count = list(config.preparation.arguments), config.preparation.tasks
    parse_options(Job, words, program="jobs.prepare")  # refuses what it does not know
    rows = []
    for index, share in enumerate(f"{index}/{count}" for index in range(count)):
        stage = SweepStage(command=job_command(config.resources, PREPARE, [*words, "--task", share]))
        settings = {"task": share}
        rows.append(SweepTask(index=index, name=f"task-{index}", stages={PREPARE: stage}, settings=settings))
    return rows


def _finetuning_stages(config: SweepConfig, built: FinetuneConfig) -> dict[str, SweepStage]:
    run = Path(built.out) / built.name
    last = run / CHECKPOINTS_FOLDER / f"step-{built.loop.steps:07d}"
    saved = str(config.folder / CELLS_FOLDER / built.name / CONFIG_NAME)
    command = job_command(config.resources, FINETUNE, [saved, "--resume"])
    end = run / FINISHED_NAME if built.validation.patience else last  # it may end early
    progress, evaluation = str(last.with_name("step-*")), config.evaluation
    stages = {FINETUNE: SweepStage(command=command, creates=str(end), progress=progress)}
    if evaluation.datasets:
        chosen = run / BEST_FOLDER if built.validation.select else run
        words = ["--checkpoint", str(chosen), "--datasets", evaluation.datasets, "--out", str(run / "eval")]
        for name, value in evaluation.options.items():
            values = value if isinstance(value, list) else [value]
            if name == "scores":
                values = [score for score in values if NEEDS.get(score, "") in ("", *built.parts)]
            words += [f"--{name}", *map(str, values)]
        parse_options(EvaluateOptions, words, program="jobs.evaluate")  # refuses what it does not know
        command = job_command(evaluation.resources, EVALUATE, words)
        stages[EVALUATE] = SweepStage(command=command, creates=str(run / "eval" / "results.json"))
    return stages


def submit(plan: SweepPlan, options: SubmitOptions) -> None:
    """Write the sweep's folder, and submit or run what is not done; an error leaves nothing submitted."""
    config, tasks = plan.config, plan.tasks
    live, moved = _check_folder(plan)
    undone = [task for task in tasks.cells if tasks.next_stage(task)]
    failed = [task for task in undone if tasks.failed_stages(task)]
    left = [] if options.retry_failed else failed
    todo = [task.index for task in undone if task.index not in live and task not in left]
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
    _write_folder(plan)
    if moved:  # the indices of earlier jobs are those of other cells now
        (config.folder / SUBMISSIONS_NAME).unlink(missing_ok=True)
    count = len(tasks.cells)
    logger.info("%s: %d cells, %d done, %d to run", config.folder, count, count - len(undone), len(todo))
    if live:
        logger.info("%d are queued or running already", len(live))
    if left:
        logger.info("%d have failed and are left out; --retry-failed runs them again", len(left))
    for task in failed if options.retry_failed else ():
        for stage in tasks.failed_stages(task):
            (tasks.control(task) / f"{stage}.json").unlink(missing_ok=True)
    for stage, script in scripts.items():
        write_atomically(config.folder / f"{stage}.sbatch", script)
    if machine is not None:
        _run_here(plan, todo, machine, is_table_wanted)
    elif scripts:
        submit_scripts(config, list(scripts), todo, array_size)
        logger.info("watch it: python -m jobs.status %s", shlex.quote(str(config.folder)))


def _check_folder(plan: SweepPlan) -> tuple[set[int], bool]:
    """Check that the folder is new or this sweep's; return what Slurm works on, and whether cells moved."""
    folder = plan.config.folder
    if not (folder / TASKS_NAME).is_file():
        require_free(folder, "out/name")
        return set(), False
    before = read_tasks(folder)
    _require_same_sweep(plan, before)
    moved = [task.name for task in before.cells] != [task.name for task in plan.tasks.cells]
    live = find_live_cells(folder)
    if moved and live:
        moving = f"cells were added or moved while jobs of {folder} are queued"
        raise InputError(f"{plan.source}: {moving}; wait for them, or jobs.cancel {shlex.quote(str(folder))}")
    return live, moved


def _require_same_sweep(plan: SweepPlan, before: Tasks) -> None:
    """Check that a folder holds an earlier submission of this very sweep.

    What `jobs.finetune` may change on resume may change here too, and so may all resources.
    """
    where = f"{plan.source}: {before.folder} holds another sweep"
    tasks_now = {task.name: task for task in plan.tasks.cells}
    for task in before.cells:
        now, name = tasks_now.get(task.name), task.name
        if not now or (task.stages.keys() ^ now.stages.keys()) - {EVALUATE}:
            raise InputError(f"{where}: its cell {name} is none of this one's; take another name")
        there: dict[str, Any] = {key: stage.command for key, stage in task.stages.items()}
        here: dict[str, Any] = {key: stage.command for key, stage in now.stages.items()}
        if name in plan.configs:
            there = flat_settings(read_config(FinetuneConfig, before.control(task) / CONFIG_NAME))
            here = flat_settings(plan.configs[name])
        for key in sorted(there.keys() | here.keys()):
            if key not in MAY_CHANGE and there.get(key) != here.get(key):
                differs = f"{key} of cell {name} is {there.get(key)} there and {here.get(key)} here"
                raise InputError(f"{where}: {differs}; take another name")


def find_missing(plan: SweepPlan) -> list[str]:
    """List inputs of a sweep's cells that are not there, each once: data, weights, test sets."""
    named = plan.config.inputs()
    for config in plan.configs.values():
        named = config.inputs() | named
    runs = plan.config.folder / RUNS_FOLDER  # a cell may start from another's
    missing = (place for place in named if not is_there(place) and runs not in Path(place).parents)
    return [f"{named[place]} {place}: not there (yet)" for place in missing]


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


def _write_folder(plan: SweepPlan) -> None:
    """Write the cells' configurations, a copy of the sweep file, and last `tasks.json`."""
    for name in (CELLS_FOLDER, RUNS_FOLDER, LOGS_FOLDER):
        make_folder(plan.config.folder / name, "out/name")
    for task in plan.tasks.cells:
        make_folder(plan.tasks.control(task), "out/name")
        if plan.configs:
            write_config(plan.configs[task.name], plan.tasks.control(task) / CONFIG_NAME)
    write_atomically(plan.config.folder / "sweep.yaml", plan.source.read_bytes())
    write_tasks(plan.tasks)


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
