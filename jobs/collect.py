"""One table from many runs: seeds merged into mean ± spread, unfinished runs listed.

python -m jobs.collect RUNS... --out DIR
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from eval.report.differences import find_differences, list_differences, mark_tables
from eval.report.record import render_csv, render_json
from eval.report.seeds import build_seed_tables, group_by_seed, read_run
from eval.report.tables import latex_tables, markdown_tables
from models.weights.run_files import list_runs
from shards.errors import InputError
from shards.files import to_json, write_atomically
from shards.output import claimed, staged_folder
from shards.program import run_program
from shards.settings import parse_options
from slurm.tasks import RUNS_FOLDER, TASKS_NAME, read_tasks

logger = logging.getLogger(__name__)

RESULTS_NAME = "results.json"
OUTPUTS = (RESULTS_NAME, "results.csv", "results.md", "results.tex", "differences.json")


@dataclass(frozen=True, kw_only=True)
class CollectOptions:
    """Make one table of what is finished."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders (with eval/results.json), folders of them, sweep folders, or results.json files."""
    out: Path
    """New or empty folder for results.md and .tex (seeds merged), results.json and .csv (every run),
    differences.json (each number against the best of its column)."""
    names: tuple[str, ...] = ()
    """Names of the models in the table: one for each of RUNS, none of which is a sweep."""
    all_columns: bool = False
    """Show mIoU and all five benchmarks, whether measured or not."""
    replace: bool = False
    """Replace the table that an earlier jobs.collect left in `out`."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise InputError("jobs.collect: no run was given; run folders or a sweep's folder are needed")
        if self.names and len(self.names) != len(self.runs):
            given = f"got {len(self.names)} names for {len(self.runs)} runs"
            raise InputError(f"--names: {given}; one each is needed")


def main(arguments: Sequence[str]) -> None:
    """Collect from the command line, and print the table."""
    options: CollectOptions = parse_options(CollectOptions, arguments, program="jobs.collect")
    print(collect(options), end="")


def collect(options: CollectOptions) -> str:
    """Read all results, write the table and return it as Markdown."""
    is_replaced = options.replace and options.out.is_dir()
    with claimed(options.out) if is_replaced else staged_folder(options.out) as staged:
        return _collect_into(staged or options.out, options)


def _collect_into(folder: Path, options: CollectOptions) -> str:
    if folder == options.out:
        names = {path.name for path in options.out.iterdir() if not path.name.startswith(".")}
        if foreign := sorted(names - set(OUTPUTS)):
            raise InputError(f"--out {options.out}: holds {foreign[0]}, which is no table of jobs.collect")
    found, missing = find_results(options.runs)
    if not found:
        raise InputError(f"jobs.collect: nothing is finished yet: {'; '.join(missing)}")
    if options.names and (len(found) != len(options.names) or missing):
        raise InputError("--names: needs one finished run for each name, and no sweep")
    runs = [read_run(*pair) for pair in zip(found, options.names or [""] * len(found), strict=True)]
    records = [record for run in runs for record in run.records]
    groups = group_by_seed(runs)
    differences = find_differences(groups)
    tables = mark_tables(build_seed_tables(groups, options.all_columns), differences)
    note = f"\nMissing: {'; '.join(missing)}.\n" if missing else ""
    note += "".join(map(_list_costs, options.runs))
    markdown = markdown_tables(tables) + list_differences(differences) + note
    texts = [render_json(records), render_csv(records), markdown, latex_tables(tables)]
    texts.append(to_json(differences, allow_nan=False))
    for name, text in zip(OUTPUTS, texts, strict=True):
        write_atomically(folder / name, text)
    logger.info("%s: %d runs, %d missing", options.out, len(runs), len(missing))
    return markdown


def find_results(paths: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """Return the results.json of runs that have one, in the order given, and name and state of the others."""
    found: list[Path] = []
    missing: list[str] = []
    for path in dict.fromkeys(paths):
        if path.is_file():
            found.append(path)
            continue
        if not path.is_dir():
            raise InputError(f"jobs.collect: {path}: no such run, sweep or results file")
        is_sweep = (path / TASKS_NAME).is_file()
        plain = [(run, "no eval/results.json") for run in list_runs(path) or [path]]
        for folder, state in _list_sweep(path) if is_sweep else plain:
            results = [p for p in (folder / "eval" / RESULTS_NAME, folder / RESULTS_NAME) if p.is_file()]
            found += results[:1]
            missing += [] if results else [f"{folder.name} ({state})"]
    return found, missing


def _list_costs(sweep: Path) -> str:
    """Return, in Markdown, what the cells of a sweep have cost so far; nothing for what is no sweep."""
    if not (sweep / TASKS_NAME).is_file():
        return ""
    tasks = read_tasks(sweep)
    lines = [
        f"\n## Cost of {tasks.sweep}\n",
        "| cell | GPU h | CPU h | restarts | lost steps |",
        "|---|" + 4 * "---:|",
    ]
    for task in tasks.cells:
        cost = tasks.cost(task)
        hours = f"{cost.gpu_hours:.2f} | {cost.cpu_hours:.2f}"
        lines.append(f"| {task.name} | {hours} | {cost.restarts} | {cost.lost_steps} |")
    return "\n".join([*lines, ""])


def _list_sweep(sweep: Path) -> list[tuple[Path, str]]:
    """Return a sweep's run folders, and how far each came."""
    tasks, runs = read_tasks(sweep), []
    for task in tasks.cells:
        stage = tasks.next_stage(task)
        state = tasks.state(task, stage) if stage else None
        text = f"{stage} {state.state}" if state else "not evaluated"
        reason = f": {state.reason}" if state and state.reason else ""
        runs.append((sweep / RUNS_FOLDER / task.name, text + reason))
    return runs


if __name__ == "__main__":
    run_program(main)
