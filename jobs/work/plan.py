"""A sweep before it is submitted: its cells built, checked, compared with its folder, and written there."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.predict.score_names import NEEDS
from jobs.evaluate import EvaluateOptions
from jobs.prepare import Job
from models.weights.run_files import BEST_FOLDER, CHECKPOINTS_FOLDER, CONFIG_NAME, FINISHED_NAME
from shards.errors import InputError
from shards.files import write_atomically
from shards.location import is_there
from shards.output import make_folder
from shards.settings import (
    build_config,
    find_config,
    flat_settings,
    parse_options,
    read_config,
    read_settings,
    with_overrides,
    write_config,
)
from slurm.array import combine_settings
from slurm.sweep import EVALUATE, FINETUNE, PREPARE, SweepConfig, job_command
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

SOURCE_NAME = "sweep.yaml"


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """A sweep before anything is written; `source` is its file."""

    config: SweepConfig
    source: Path
    tasks: Tasks
    configs: dict[str, FinetuneConfig]
    """Configuration of each cell; empty for a preparation."""


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
    tasks = Tasks(
        sweep=config.name,
        folder=config.folder,
        max_starts_without_progress=config.max_starts_without_progress,
        cells=rows,
        ranks=_keep_global_batch(config, configs),
    )
    return SweepPlan(config=config, source=source, tasks=tasks, configs=configs)


def read_plan(folder: Path) -> SweepPlan:
    """Read the plan of a sweep as it was submitted last, whatever has become of its file since."""
    source = folder / SOURCE_NAME
    config = read_config(SweepConfig, source)
    if config.folder != folder.absolute():
        raise InputError(f"{source}: is of {config.folder}; run this where the sweep was submitted")
    return SweepPlan(config=config, source=source, tasks=read_tasks(folder), configs={})


def _keep_global_batch(config: SweepConfig, configs: dict[str, FinetuneConfig]) -> int:
    """Cut global batches anew where cells have another number of processes than when they were submitted.

    Returns the number that they had first, which the batches of the file are meant for: those of cells that
    are new, too. A file that was changed to keep the batch by itself, or to have another, is left alone.
    """
    ranks, folder = config.resources.num_ranks, config.folder
    known = next((name for name in configs if (folder / CELLS_FOLDER / name / CONFIG_NAME).is_file()), "")
    if not known or not (folder / TASKS_NAME).is_file():
        return ranks
    before = read_config(FinetuneConfig, folder / CELLS_FOLDER / known / CONFIG_NAME)
    kept = _share(before) * read_config(SweepConfig, folder / SOURCE_NAME).resources.num_ranks
    first = read_tasks(folder).ranks or ranks
    if kept == _share(configs[known]) * ranks or kept != _share(configs[known]) * first:
        return first
    for name, built in configs.items():
        size, rest = divmod(_share(built) * first, ranks)
        if rest:
            named = f"the global batch of {name} is {_share(built) * first}"
            raise InputError(f"resources: {named}, which {ranks} processes cannot share")
        micro = max(n for n in range(1, built.data.batch_size + 1) if size % n == 0)
        data = dataclasses.replace(built.data, batch_size=micro)
        loop = dataclasses.replace(built.loop, grad_accum=size // micro)
        configs[name] = dataclasses.replace(built, data=data, loop=loop)
    told = f"{ranks} processes instead of {first}, {loop.grad_accum} x {micro} images each"
    logger.info("the global batch of %s stays %d: %s", known, kept, told)
    return first


def _share(config: FinetuneConfig) -> int:
    """Return the images of one step and process."""
    return config.data.batch_size * config.loop.grad_accum


def _preparation_tasks(config: SweepConfig) -> list[SweepTask]:
    """Cut one preparation into tasks; the one that ends last completes the shards."""
    words, count = list(config.preparation.arguments), config.preparation.tasks
    parse_options(Job, words, program="jobs.prepare")  # refuses what it does not know
    rows = []
    for index, share in enumerate(f"{index}/{count}" for index in range(count)):
        stage = SweepStage(command=job_command(config.resources, PREPARE, [*words, "--task", share]))
        name, settings = f"task-{index}", {"task": share}
        rows.append(SweepTask(index=index, name=name, stages={PREPARE: stage}, settings=settings))
    return rows


def _finetuning_stages(config: SweepConfig, built: FinetuneConfig) -> dict[str, SweepStage]:
    run = Path(built.out) / built.name
    saved = config.folder / CELLS_FOLDER / built.name / CONFIG_NAME
    command = job_command(config.resources, FINETUNE, [str(saved), "--resume"])
    end, progress = run / FINISHED_NAME, run / CHECKPOINTS_FOLDER / "step-*"
    stages = {FINETUNE: SweepStage(command=command, creates=str(end), progress=str(progress))}
    evaluation = config.evaluation
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


def require_same_sweep(plan: SweepPlan, before: Tasks) -> None:
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
    missing = [place for place in named if not is_there(place) and runs not in Path(place).parents]
    return [f"{named[place]} {place}: not there (yet)" for place in missing]


def write_plan(plan: SweepPlan) -> None:
    """Write the cells' configurations, a copy of the sweep file, and last `tasks.json`."""
    folder = plan.config.folder
    for name in (CELLS_FOLDER, RUNS_FOLDER, LOGS_FOLDER):
        make_folder(folder / name, "out/name")
    for task in plan.tasks.cells:
        make_folder(plan.tasks.control(task), "out/name")
        if plan.configs:
            write_config(plan.configs[task.name], plan.tasks.control(task) / CONFIG_NAME)
    write_atomically(folder / SOURCE_NAME, find_config(plan.source).read_bytes())
    write_tasks(plan.tasks)
