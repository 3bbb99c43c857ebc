"""From a sweep file to cells: every cell's configuration built and checked, every command spelled out."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.evaluate import EvaluateOptions
from jobs.prepare import Job
from jobs.sweep_config import SweepConfig
from models.weights.checkpoint import BEST_FOLDER, CHECKPOINTS_FOLDER
from shards.errors import InputError
from shards.files import make_folder, write_atomically
from shards.settings import (
    build_config,
    flat_settings,
    parse_options,
    read_config,
    read_settings,
    require_finite,
    with_overrides,
    write_config,
)
from slurm.array import Cell, array_expression, expand_cells
from slurm.resources import Resources
from slurm.sbatch import Place, render_array, render_job
from slurm.tasks import CELLS_FOLDER, LOGS_FOLDER, RUNS_FOLDER, Stage, Task, Tasks, write_tasks
from trainer.config import FinetuneConfig
from trainer.run_folder import CONFIG_NAME, FINISHED_NAME, MAY_CHANGE

FINETUNE, EVALUATE, COLLECT, PREPARE = "finetune", "evaluate", "collect", "prepare"
SWEEP_NAME = "sweep.yaml"
TABLE_FOLDER = "table"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A sweep before anything is written."""

    config: SweepConfig
    source: Path
    """The sweep file."""
    tasks: Tasks
    configs: Sequence[FinetuneConfig]
    """Of each cell."""

    @property
    def stages(self) -> list[str]:
        """Stages of every cell, in order."""
        return list(self.tasks.cells[0].stages)


def plan_sweep(config: SweepConfig, source: Path) -> Plan:
    """Build and check every cell of a sweep.

    Raises:
        InputError: a cell's configuration or evaluation is refused, or the grid has none or too many.
    """
    configs: list[FinetuneConfig] = []
    if config.preparation.arguments:
        rows = _preparation_tasks(config)
    else:
        base = read_settings(Path(config.config))
        try:
            cells = expand_cells(config.grid, config.cells, config.seeds)
        except ValueError as error:
            raise InputError(f"{source}: {error}") from None
        configs = [_build_cell(config, base, cell, source) for cell in cells]
        rows = [
            Task(name=cell.name, stages=_stages(config, cell, built), settings=cell.overrides)
            for cell, built in zip(cells, configs, strict=True)
        ]
    tasks = Tasks(
        sweep=config.name, folder=config.folder, max_starts=config.max_starts_without_progress, cells=rows
    )
    return Plan(config=config, source=source, tasks=tasks, configs=configs)


def _preparation_tasks(config: SweepConfig) -> list[Task]:
    """Cut one preparation into tasks; the one that ends last completes the shards."""
    words, count = list(config.preparation.arguments), config.preparation.tasks
    parse_options(Job, words, program="jobs.prepare")  # refuses what it does not know
    rows = []
    for index in range(count):
        share = f"{index}/{count}"
        command = _command(config.resources, "prepare", [*words, "--task", share])
        rows.append(
            Task(name=f"task-{index}", stages={PREPARE: Stage(command=command)}, settings={"task": share})
        )
    return rows


def _build_cell(config: SweepConfig, base: Any, cell: Cell, source: Path) -> FinetuneConfig:
    where = f"{source}: cell {cell.name}"
    own = {"name": cell.name, "out": str(config.folder / RUNS_FOLDER)}
    settings = with_overrides(base, {**config.overrides, **cell.overrides, **own})
    built = build_config(FinetuneConfig, settings, where)
    try:
        require_finite(built)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    return built


def _stages(config: SweepConfig, cell: Cell, built: FinetuneConfig) -> dict[str, Stage]:
    run = config.folder / RUNS_FOLDER / cell.name
    checkpoints = run / CHECKPOINTS_FOLDER
    last = checkpoints / f"step-{built.loop.steps:07d}"
    saved = config.folder / CELLS_FOLDER / cell.name / CONFIG_NAME
    stages = {
        FINETUNE: Stage(
            command=_command(config.resources, "finetune", [str(saved), "--resume"]),
            creates=str(run / FINISHED_NAME if built.validation.patience else last),  # it may end early
            progress=str(checkpoints / "step-*"),
        )
    }
    if config.evaluation.datasets:
        evaluation = config.evaluation
        chosen = run / BEST_FOLDER if built.validation.select else run
        words = ["--checkpoint", str(chosen), "--datasets", evaluation.datasets, "--out", str(run / "eval")]
        words += as_words(evaluation.options)
        parse_options(EvaluateOptions, words, program="jobs.evaluate")  # refuses what it does not know
        stages[EVALUATE] = Stage(
            command=_command(evaluation.resources, "evaluate", words),
            creates=str(run / "eval" / "results.json"),
        )
    return stages


def as_words(options: Mapping[str, Any]) -> list[str]:
    """Turn settings by name into words of a command line; a list becomes several."""
    words = []
    for name, value in options.items():
        values = value if isinstance(value, list | tuple) else [value]
        words += [f"--{name}", *map(str, values)]
    return words


def _command(resources: Resources, job: str, words: Sequence[str]) -> str:
    python = resources.python or sys.executable
    return shlex.join([*shlex.split(resources.container), python, "-m", f"jobs.{job}", *words])


def require_same_sweep(plan: Plan, before: Tasks) -> bool:
    """Check that a folder holds an earlier submission of this very sweep; say whether cells are new or moved.

    What `jobs.finetune` may change on resume may change here too, and so may all resources.

    Raises:
        InputError: a cell is gone, or its settings have changed.
    """
    where = f"{plan.source}: {before.folder} holds another sweep"
    now = {task.name: task for task in plan.tasks.cells}
    configs = {config.name: config for config in plan.configs}
    for task in before.cells:
        if task.name not in now or (task.stages.keys() ^ now[task.name].stages.keys()) - {EVALUATE}:
            raise InputError(f"{where}: its cell {task.name} is none of this one's; take another name")
        if task.name in configs:
            saved = flat_settings(read_config(FinetuneConfig, before.control(task) / CONFIG_NAME))
            built = flat_settings(configs[task.name])
        else:
            saved, built = _commands(task), _commands(now[task.name])
        for name in sorted(saved.keys() | built.keys()):
            if name not in MAY_CHANGE and saved.get(name) != built.get(name):
                raise InputError(
                    f"{where}: {name} of cell {task.name} is {saved.get(name)} there and {built.get(name)} "
                    f"here; take another name"
                )
    return [task.name for task in before.cells] != [task.name for task in plan.tasks.cells]


def _commands(task: Task) -> dict[str, str | int | float | bool]:
    return {name: stage.command for name, stage in task.stages.items()}


def write_plan(plan: Plan) -> None:
    """Write the sweep's folder: the cells' configurations, a copy of the sweep file, last `tasks.json`."""
    folder = plan.config.folder
    for name in (CELLS_FOLDER, RUNS_FOLDER, LOGS_FOLDER):
        make_folder(folder / name, "out/name")
    for task in plan.tasks.cells:
        make_folder(plan.tasks.control(task), "out/name")
    for config in plan.configs:
        write_config(config, folder / CELLS_FOLDER / config.name / CONFIG_NAME)
    write_atomically(folder / SWEEP_NAME, plan.source.read_bytes())
    write_tasks(plan.tasks)


def render_scripts(plan: Plan, indices: Sequence[int]) -> dict[str, str]:
    """Render the script of every stage for these cells, and of the job at the end; by stage, in order."""
    config = plan.config
    place = Place(sweep=config.name, folder=config.folder, root=Path.cwd(), python=sys.executable)
    scripts = {}
    for stage in plan.stages:
        resources = config.evaluation.resources if stage == EVALUATE else config.resources
        array = array_expression(indices, resources.throttle)
        scripts[stage] = render_array(place, stage, resources, array, stoppable=stage == FINETUNE)
    if EVALUATE in plan.stages:
        scripts[COLLECT] = render_job(place, COLLECT, config.collect_resources, collect_command(plan))
    return scripts


def collect_command(plan: Plan) -> str:
    """Return the command that makes the sweep's table."""
    folder = plan.config.folder
    words = [str(folder), "--out", str(folder / TABLE_FOLDER), "--replace", "True"]
    return _command(plan.config.collect_resources, "collect", words)
