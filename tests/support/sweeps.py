"""Sweeps whose cells are shell lines."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from slurm.tasks import LOGS_FOLDER, SweepStage, SweepTask, Tasks, write_tasks


def work_of(folder: Path, index: int, stage: str = "finetune") -> Path:
    """Return where a stage of a cell works."""
    return folder / "work" / f"{stage} {index}"


def write_sweep(folder: Path, stages: Mapping[str, Sequence[str]], max_starts: int = 3) -> Tasks:
    """Write a sweep of a shell line per cell for each stage; `{work}` in it is `work_of` this stage.

    There a stage leaves `end` when it is done, and `step-*` on the way.
    """
    cells = []
    for index in range(len(next(iter(stages.values())))):
        own = {}
        for stage, lines in stages.items():
            work = work_of(folder, index, stage)
            command = shlex.join(["bash", "-c", lines[index].replace("{work}", shlex.quote(str(work)))])
            own[stage] = SweepStage(command=command, creates=f"{work}/end", progress=f"{work}/step-*")
        cells.append(SweepTask(index=index, name=f"cell {index}", stages=own))
    (folder / LOGS_FOLDER).mkdir(parents=True)
    tasks = Tasks(sweep=folder.name, folder=folder, max_starts_without_progress=max_starts, cells=cells)
    write_tasks(tasks)
    return tasks
