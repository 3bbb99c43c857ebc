"""One table from many runs: seeds merged into mean ± spread, and what is missing said.

python -m jobs.collect RUNS... --out DIR
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
import yaml

from eval.report.differences import find_differences, list_differences, mark_tables, render_differences
from eval.report.record import Record, latex_tables, markdown_tables, parse_json, render_csv, render_json
from eval.report.seeds import SeedGroup, SeedRun, build_seed_tables, list_protocols
from shards.errors import InputError
from shards.files import make_folder, require_free, staged_folder, write_atomically
from shards.settings import parse_options, run_program
from slurm.tasks import RUNS_FOLDER, TASKS_NAME, read_tasks

logger = logging.getLogger(__name__)

RESULTS_NAME = "results.json"
OUTPUTS = (RESULTS_NAME, "results.csv", "results.md", "results.tex", "differences.json")
OWN_SETTINGS = ("name", "out", "seed")
"""Settings in which runs of one group may differ."""
SEED_IN_NAME = re.compile(r"[-_,.]?seed[=_-]?\d+$")


@dataclass(frozen=True, kw_only=True)
class CollectOptions:
    """Make one table of what is finished."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders (with eval/results.json), sweep folders, or results.json files."""
    out: Path
    """New or empty folder for results.md and .tex (seeds merged), results.json and .csv (every run),
    differences.json (each number against the best of its column)."""
    replace: bool = False
    """Replace the table that an earlier jobs.collect left in `out`."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise InputError("jobs.collect: no run was given; run folders or a sweep's folder are needed")


@dataclass(frozen=True)
class Finished:
    """One run that has results."""

    folder: Path
    records: Sequence[Record]
    results: Path
    """Folder of its evaluation, with the sketches."""


def main(arguments: Sequence[str]) -> None:
    """Collect from the command line, and print the table."""
    options: CollectOptions = parse_options(CollectOptions, arguments, program="jobs.collect")
    print(collect(options), end="")


def collect(options: CollectOptions) -> str:
    """Read all results, write the table and return it as Markdown.

    Raises:
        InputError: a path is no run, a file is damaged, or nothing is finished.
    """
    _require_place(options)
    finished, missing = find_results(options.runs)
    if not finished:
        raise InputError(f"jobs.collect: nothing is finished yet: {'; '.join(missing)}")
    records = [record for run in finished for record in run.records]
    groups = group_by_seed(finished)
    differences = find_differences(groups)
    tables = mark_tables(build_seed_tables(groups), list_protocols(groups), differences)
    note = f"\nMissing: {'; '.join(missing)}.\n" if missing else ""
    texts = (
        render_json(records),
        render_csv(records),
        markdown_tables(tables) + list_differences(differences) + note,
        latex_tables(tables),
        render_differences(differences),
    )
    if options.replace and options.out.is_dir():
        for name, text in zip(OUTPUTS, texts, strict=True):
            write_atomically(options.out / name, text)
    else:
        with staged_folder(options.out) as folder:
            for name, text in zip(OUTPUTS, texts, strict=True):
                (folder / name).write_text(text, encoding="utf-8")
    logger.info("%s: %d runs, %d missing", options.out, len(finished), len(missing))
    return texts[2]


def _require_place(options: CollectOptions) -> None:
    if not (options.replace and options.out.is_dir()):
        require_free(options.out)
        make_folder(options.out.absolute().parent)
        return
    foreign = sorted(
        {path.name for path in options.out.iterdir() if not path.name.startswith(".")} - set(OUTPUTS)
    )
    if foreign:
        raise InputError(f"--out {options.out}: holds {foreign[0]}, which is no table of jobs.collect")


def find_results(paths: Sequence[Path]) -> tuple[list[Finished], list[str]]:
    """Return the runs that have results, in the order given, and what is known of those that have none.

    Raises:
        InputError: a path is neither run, sweep nor results, or a results file is damaged.
    """
    finished: list[Finished] = []
    missing: list[str] = []
    for path in dict.fromkeys(paths):
        if path.is_file():
            finished.append(_read(path))
        elif (path / TASKS_NAME).is_file():
            for folder, why in _cells(path):
                _look(folder, why, finished, missing)
        elif path.is_dir():
            _look(path, "no eval/results.json", finished, missing)
        else:
            raise InputError(f"jobs.collect: {path}: no such run, sweep or results file")
    return finished, missing


def _look(folder: Path, why: str, finished: list[Finished], missing: list[str]) -> None:
    found = [path for path in (folder / "eval" / RESULTS_NAME, folder / RESULTS_NAME) if path.is_file()]
    if found:
        finished.append(_read(found[0]))
    else:
        missing.append(f"{folder.name} ({why})")


def _read(path: Path) -> Finished:
    folder = path.parent.parent if path.parent.name == "eval" else path.parent
    return Finished(folder, parse_json(path.read_text(encoding="utf-8"), str(path)), path.parent)


def _cells(sweep: Path) -> list[tuple[Path, str]]:
    """List a sweep's run folders, and how far each came."""
    tasks, cells = read_tasks(sweep), []
    for task in tasks.cells:
        stage = tasks.next_stage(task)
        state = tasks.state(task, stage) if stage else None
        why = f"{stage} {state.state}" if state else "not evaluated"
        cells.append(
            (sweep / RUNS_FOLDER / task.name, f"{why}: {state.reason}" if state and state.reason else why)
        )
    return cells


def group_by_seed(finished: Sequence[Finished]) -> list[SeedGroup]:
    """Put runs together that are called the same but for the seed, and whose settings say so too.

    Runs without config.yaml stand alone, and so does a second run of one seed.
    """
    groups: dict[tuple[str, str, int], list[SeedRun]] = {}
    seen: dict[tuple[str, str, Any], int] = {}
    for run in finished:
        model = run.records[0].model if run.records else run.folder.name
        name, (key, seed) = SEED_IN_NAME.sub("", model) or model, _settings(run.folder)
        repeat = seen[name, key, seed] = seen.get((name, key, seed), -1) + 1
        groups.setdefault((name, key, repeat), []).append(SeedRun(run.records, seed, run.results))
    return [_named(name, runs) for (name, _, _), runs in groups.items()]


def _named(name: str, runs: Sequence[SeedRun]) -> SeedGroup:
    records = runs[0].records
    return SeedGroup(name if len(runs) > 1 or not records else records[0].model, runs)


def _settings(folder: Path) -> tuple[str, Any]:
    """Return a run's settings as text, apart from those that may differ in a group, and its seed."""
    path = folder / "config.yaml"
    if not path.is_file():
        return f"folder {folder.absolute()}", None
    try:
        settings: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        kept = {name: value for name, value in settings.items() if name not in OWN_SETTINGS}
        return yaml.safe_dump(kept, sort_keys=True), settings.get("seed")
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError):
        raise InputError(f"{path}: is no configuration of a run") from None


if __name__ == "__main__":
    run_program(main)
