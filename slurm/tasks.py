"""`tasks.json`: the cells of a sweep with their exact commands, and the state of each stage.

SWEEP/tasks.json            the cells; may be read and edited by hand
SWEEP/*.sbatch              the scripts that run them
SWEEP/submissions.json      jobs that were submitted
SWEEP/cells/CELL/           lock, STAGE.json (what became of it), config.yaml
SWEEP/runs/CELL/            what the commands write
SWEEP/logs/                 what they print
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from shards.errors import InputError
from shards.files import from_json, to_json, write_atomically

TASKS_NAME = "tasks.json"
CELLS_FOLDER = "cells"
LOGS_FOLDER = "logs"
RUNS_FOLDER = "runs"
TAIL_BYTES = 65536
HUNG = "it leaves with 75"
"""Words of a process that hung; where another one had to be killed, srun tells the code of that one."""
FORGIVEN = "-"
"""Progress of a start from before a person has retried its cell."""


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
class CellStart:
    """One start of a stage of a cell, and what it cost."""

    time: str
    """In UTC, in ISO 8601."""
    host: str
    job: str
    progress: str
    """Name of what it began from; empty: the beginning."""
    seconds: float = 0.0
    """Time until its end; 0 while it runs."""
    gpus: int = 0
    cpus: int = 1
    lost_steps: int = 0
    """Steps that it took behind its last checkpoint, of those that its log tells."""


@dataclass(frozen=True, kw_only=True)
class StageState:
    """State of one stage of one cell; written by the holder of the cell's lock."""

    state: str = "waiting"
    """waiting, running, stopped (asked to, and will go on), failed, done."""
    starts: tuple[CellStart, ...] = ()
    exit_code: int | None = None
    reason: str = ""
    log: str = ""

    def starts_from(self, mark: str) -> int:
        """Count the latest starts in a row that began at `mark`."""
        others = [i for i, start in enumerate(reversed(self.starts)) if start.progress != mark]
        return min(others, default=len(self.starts))

    def told(self) -> str:
        """Return the end of what the latest start has printed."""
        return "\n".join(read_tail(Path(self.log))).rpartition(f": start {len(self.starts)},")[2]

    def forgiven(self) -> StageState:
        """Return a waiting state with the same costs, none of whose starts counts as one without progress."""
        starts = tuple(replace(start, progress=FORGIVEN) for start in self.starts)
        return StageState(starts=starts, log=self.log)

    def closed(self, end: float, mark: str) -> StageState:
        """Note what the latest start has cost, which ended at Unix time `end` and checkpoint `mark`."""
        if not self.starts or self.starts[-1].seconds:
            return self
        last = self.starts[-1]
        seconds = max(0.1, end - datetime.fromisoformat(last.time).timestamp())
        reached = [int(step) for step in re.findall(r"\bstep (\d+)/\d", self.told())][-1:] or [0]
        saved = int(mark.rpartition("-")[2]) if re.fullmatch(r"step-\d+", mark) else 0
        last = replace(last, seconds=seconds, lost_steps=max(0, reached[0] - saved))
        return replace(self, starts=(*self.starts[:-1], last))


@dataclass(frozen=True)
class CellCost:
    """What cells have cost so far."""

    restarts: int = 0
    gpu_hours: float = 0.0
    cpu_hours: float = 0.0
    lost_steps: int = 0

    def __add__(self, other: CellCost) -> CellCost:
        return CellCost(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))


@dataclass(frozen=True, kw_only=True)
class Tasks:
    """A sweep as its jobs see it."""

    sweep: str
    folder: Path
    """The sweep's folder; absolute."""
    max_starts_without_progress: int
    """Number of starts from one and the same point after which a stage is given up."""
    cells: list[SweepTask]
    ranks: int = 0
    """Processes of a cell when the sweep was submitted first, which its batch sizes are meant for."""

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

    def cost(self, task: SweepTask) -> CellCost:
        """Add up what a cell's starts have cost; one that runs counts when it has ended."""
        cost = CellCost()
        for starts in (self.state(task, stage).starts for stage in task.stages):
            for i, start in enumerate(starts):
                hours, lost = start.seconds / 3600, start.lost_steps
                cost += CellCost(min(i, 1), start.gpus * hours, start.cpus * hours, lost)
        return cost

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


def read_tail(path: Path) -> list[str]:
    """Read the last lines of a text file; a missing one has none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            return file.read().decode("utf-8", errors="replace").splitlines()
    except OSError:
        return []
