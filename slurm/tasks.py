"""`tasks.json`: one row per cell with its exact commands, and what each cell has come to.

SWEEP/tasks.json            the rows; may be read and edited by hand
SWEEP/*.sbatch              the scripts that run them
SWEEP/submissions.json      jobs that were submitted
SWEEP/cells/CELL/           lock, STAGE.json (what became of it), config.yaml
SWEEP/runs/CELL/            what the commands write
SWEEP/logs/                 what they print
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

TASKS_NAME = "tasks.json"
CELLS_FOLDER = "cells"
LOGS_FOLDER = "logs"
RUNS_FOLDER = "runs"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One command of a cell."""

    command: str
    """As a shell would take it."""
    creates: str = ""
    """What the command leaves at its end, complete or absent: it is there exactly when the stage is done.
    Empty where there is no such thing; then exit code 0 counts."""
    progress: str = ""
    """Pattern of what it leaves on the way; the last name in order is how far it came."""

    def progress_mark(self) -> str:
        """Return the name of the newest thing it left on the way; empty if there is none."""
        pattern = Path(self.progress or "-")
        names = [path.name for path in pattern.parent.glob(pattern.name)]
        return max(names, default="")


@dataclass(frozen=True, kw_only=True)
class Task:
    """One cell."""

    name: str
    stages: Mapping[str, Stage]
    settings: Mapping[str, Any] = field(default_factory=dict)
    """For readers: what distinguishes the cell."""


@dataclass(frozen=True, kw_only=True)
class Tasks:
    """A sweep as its jobs see it."""

    sweep: str
    folder: Path
    """The sweep's folder; absolute."""
    max_starts: int
    """A stage that started so often from one and the same point is not started again."""
    cells: Sequence[Task]

    def control(self, task: Task) -> Path:
        """Return the folder of a cell's lock and state."""
        return self.folder / CELLS_FOLDER / task.name

    def is_done(self, task: Task, stage: str) -> bool:
        """Say whether a stage's command has been through."""
        creates = task.stages[stage].creates
        if creates:
            return Path(creates).exists()
        return read_state(self.control(task), stage).state == "done"


@dataclass(frozen=True, kw_only=True)
class StageState:
    """What became of one stage of one cell; written by who holds the cell's lock."""

    state: str = "waiting"
    """waiting, running, stopped (asked to, and will go on), failed, done."""
    starts: tuple[Mapping[str, str], ...] = ()
    """One per start: time, host, job, and from where (`progress`)."""
    exit_code: int | None = None
    reason: str = ""
    log: str = ""

    def starts_from(self, mark: str) -> int:
        """Count the latest starts in a row that began at `mark`."""
        count = 0
        for start in reversed(self.starts):
            if start["progress"] != mark:
                break
            count += 1
        return count


def write_tasks(tasks: Tasks) -> None:
    """Write `tasks.json`."""
    cells = [{"index": index, **asdict(task)} for index, task in enumerate(tasks.cells)]
    content = {"sweep": tasks.sweep, "max_starts_without_progress": tasks.max_starts, "cells": cells}
    write_json(tasks.folder / TASKS_NAME, content)


def read_tasks(folder: Path) -> Tasks:
    """Read `tasks.json` of a sweep's folder.

    Raises:
        ValueError: it is missing, or is no list of cells.
    """
    path = folder / TASKS_NAME
    if not path.is_file():
        raise ValueError(f"{folder}: no sweep is there ({TASKS_NAME} is missing)")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        cells = [
            Task(
                name=row["name"],
                stages={name: Stage(**stage) for name, stage in row["stages"].items()},
                settings=row.get("settings", {}),
            )
            for row in content["cells"]
        ]
        return Tasks(
            sweep=content["sweep"],
            folder=folder.absolute(),
            max_starts=int(content["max_starts_without_progress"]),
            cells=cells,
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path}: is no list of cells: {error!r}") from None


def read_state(control: Path, stage: str) -> StageState:
    """Read what became of a stage; nothing yet reads as waiting."""
    try:
        content = json.loads((control / f"{stage}.json").read_text(encoding="utf-8"))
        return StageState(**{**content, "starts": tuple(content["starts"])})
    except FileNotFoundError:
        return StageState()
    except (ValueError, TypeError, KeyError):
        raise ValueError(f"{control / stage}.json: is no state of a cell; remove it to begin anew") from None


def write_state(control: Path, stage: str, state: StageState) -> None:
    """Write what became of a stage."""
    write_json(control / f"{stage}.json", asdict(state))


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file through a temporary name, replacing what is there."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(json.dumps(content, indent=1) + "\n")
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
