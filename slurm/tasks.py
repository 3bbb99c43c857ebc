"""`tasks.json`: the cells of a sweep with their exact commands, and the state of each stage.

SWEEP/tasks.json            the cells; may be read and edited by hand
SWEEP/*.sbatch              the scripts that run them
SWEEP/submissions.json      jobs that were submitted
SWEEP/cells/CELL/           lock, STAGE.json (what became of it), config.yaml
SWEEP/runs/CELL/            what the commands write
SWEEP/logs/                 what they print
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shards.errors import InputError
from shards.files import from_json, to_json, write_atomically

TASKS_NAME = "tasks.json"
CELLS_FOLDER = "cells"
LOGS_FOLDER = "logs"
RUNS_FOLDER = "runs"


@dataclass(frozen=True, kw_only=True)
class SweepStage:
    """One command of a cell."""

    command: str
    """As a shell would take it."""
    creates: str = ""
    """File or folder that the command leaves at its end, complete or absent: the stage is done exactly when
    it exists. Empty where there is no such thing; then exit code 0 counts."""
    progress: str = ""
    """Pattern of what it leaves on the way; the last name in order is how far it came."""

    def progress_mark(self) -> str:
        """Return the name of the newest thing it left on the way; empty if there is none."""
        pattern = Path(self.progress or "-")
        return max((path.name for path in pattern.parent.glob(pattern.name)), default="")


@dataclass(frozen=True, kw_only=True)
class SweepTask:
    """One cell of a sweep."""

    index: int
    """Position in the sweep, and number of its array task."""
    name: str
    stages: dict[str, SweepStage]
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What distinguishes the cell, for readers."""


@dataclass(frozen=True, kw_only=True)
class StageState:
    """State of one stage of one cell; written by the holder of the cell's lock."""

    state: str = "waiting"
    """waiting, running, stopped (asked to, and will go on), failed, done."""
    starts: tuple[Mapping[str, str], ...] = ()
    """One entry per start: time, host, job, and from where (`progress`)."""
    exit_code: int | None = None
    reason: str = ""
    log: str = ""

    def starts_from(self, mark: str) -> int:
        """Count the latest starts in a row that began at `mark`."""
        others = [i for i, start in enumerate(reversed(self.starts)) if start["progress"] != mark]
        return min(others, default=len(self.starts))


@dataclass(frozen=True, kw_only=True)
class Tasks:
    """A sweep as its jobs see it."""

    sweep: str
    folder: Path
    """The sweep's folder; absolute."""
    max_starts_without_progress: int
    """Number of starts from one and the same point after which a stage is given up."""
    cells: list[SweepTask]

    def control(self, task: SweepTask) -> Path:
        """Return the folder of a cell's lock and state."""
        return self.folder / CELLS_FOLDER / task.name

    def is_done(self, task: SweepTask, stage: str) -> bool:
        """Say whether a stage's command has been through."""
        creates = task.stages[stage].creates
        return Path(creates).exists() if creates else self.state(task, stage).state == "done"

    def next_stage(self, task: SweepTask) -> str:
        """Return the first stage that is not done; empty if there is none."""
        return next((stage for stage in task.stages if not self.is_done(task, stage)), "")

    def failed_stages(self, task: SweepTask) -> list[str]:
        """List the stages that have failed."""
        return [stage for stage in task.stages if self.state(task, stage).state == "failed"]

    def state(self, task: SweepTask, stage: str) -> StageState:
        """Read the state of a stage."""
        return read_state(self.control(task), stage)


def write_tasks(tasks: Tasks) -> None:
    """Write `tasks.json`."""
    content = {name: value for name, value in vars(tasks).items() if name != "folder"}
    write_atomically(tasks.folder / TASKS_NAME, to_json(content))


def read_tasks(folder: Path) -> Tasks:
    """Read `tasks.json` of a sweep's folder; an InputError says that it is missing or damaged."""
    path = folder / TASKS_NAME
    if not path.is_file():
        raise InputError(f"{folder}: no sweep is there ({TASKS_NAME} is missing)")
    where = f"{path}: is no list of cells"
    content: dict[str, Any] = from_json(dict[str, Any], path.read_bytes(), where)
    return from_json(Tasks, {**content, "folder": str(folder.absolute())}, where)


def read_state(control: Path, stage: str) -> StageState:
    """Read the state of a stage; without a file it is waiting."""
    path = control / f"{stage}.json"
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return StageState()
    return from_json(StageState, content, f"{path}: is no state of a cell; remove it to begin anew")


def write_state(control: Path, stage: str, state: StageState) -> None:
    """Write the state of a stage."""
    write_atomically(control / f"{stage}.json", to_json(state))
