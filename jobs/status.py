"""State of every cell of a sweep, and the reasons of those that failed; or of every run of a folder.

python -m jobs.status SWEEP
python -m jobs.status runs
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from models.weights.run_files import CONFIG_NAME, FINISHED_NAME, LOCK_NAME, list_runs, newest_checkpoint
from shards.errors import InputError
from shards.files import is_held
from shards.program import run_program
from shards.settings import parse_options, read_config
from slurm.status import JobState, query_jobs
from slurm.submit import Submission, read_submissions
from slurm.sweep import SweepConfig
from slurm.tasks import (
    RUNS_FOLDER,
    TASKS_NAME,
    CellCost,
    StageState,
    SweepTask,
    Tasks,
    read_tail,
    read_tasks,
)

STEP_LINE = re.compile(r"^\S+ \S+ step (?P<step>\d+)/(?P<steps>\d+)  (?P<rest>.*)$")
ERROR_LINE = re.compile(
    r"^(\S*: )?error: |^[\w.]*(Error|Exception|Interrupt)\b|Killed|oom[-_]kill", re.IGNORECASE
)
RANK_MARK = re.compile(r"^\[rank\d+\]: ")
NUMBERS = ("state", "step", "images/s", "to go", "limit", "loss", "checkpoint")
MOST_ROWS, MOST_REASONS, MOST_NAMES = 40, 12, 3
"""What fits on a screen: cells, else reasons of those that need a person, and names of cells for each."""
COSTS = ("GPU h", "CPU h", "restarts", "lost steps")
NEEDY = ("failed", "lost", "timeout", "out_of_memory", "node_fail", "boot_fail", "preempted", "cancelled")
"""States that end only if somebody sees to them, or the job at the end of the sweep."""


@dataclass(frozen=True, kw_only=True)
class StatusOptions:
    """Say what every cell of a sweep, or every run of a folder, is doing."""

    sweep: tyro.conf.Positional[Path]
    """The sweep's folder, its sweep file, a folder of runs, or a run."""
    all: bool = False
    """Show every cell; without it, only a sweep of 40 cells at most is shown cell by cell."""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Last lines of a run's log."""

    step: str = ""
    loss: str = ""
    images_per_s: str = ""
    to_go: str = ""
    """Time until the last step."""


def main(arguments: Sequence[str]) -> None:
    """Print the table of one sweep."""
    options: StatusOptions = parse_options(StatusOptions, arguments, program="jobs.status")
    own = [options.sweep] if (options.sweep / CONFIG_NAME).is_file() else list_runs(options.sweep)
    if own and not (options.sweep / TASKS_NAME).is_file():
        print("\n".join(_columns([("run", *NUMBERS), *map(describe_run, own)])))
        return
    folder = find_sweep(options.sweep)
    tasks, submitted = read_tasks(folder), read_submissions(folder)
    jobs, complaints = query_jobs([entry.job for entry in submitted])
    print(render_status(tasks, submitted, jobs, rows=options.all or len(tasks.cells) <= MOST_ROWS), end="")
    for text in complaints:
        print(f"note: {text}")


def find_sweep(path: Path) -> Path:
    """Return the folder of a sweep, given that folder or the sweep file; an InputError says there is none."""
    folder = read_config(SweepConfig, path).folder if path.suffix in (".yaml", ".yml") else path.absolute()
    if not (folder / TASKS_NAME).is_file():
        raise InputError(f"{path}: no sweep is in {folder} ({TASKS_NAME} is missing); jobs.submit makes one")
    return folder


def describe_run(folder: Path) -> tuple[str, ...]:
    """Return the row of a run that no sweep knows: its state is read off its folder."""
    running = is_held(folder / LOCK_NAME)
    state = "running" if running else "done" if (folder / FINISHED_NAME).is_file() else "stopped"
    progress, mark = read_progress(folder / "log.txt"), newest_checkpoint(folder)
    numbers = (progress.step, progress.images_per_s, progress.to_go if running else "", "", progress.loss)
    return (folder.name, state, *numbers, mark.name if mark else "")


def render_status(
    tasks: Tasks, submitted: Sequence[Submission], jobs: Mapping[str, JobState], *, rows: bool = True
) -> str:
    """Lay out a row per cell if `rows` are wanted, counts, costs, what needs a person, the job at the end."""
    newest = {(i, entry.stage): entry.key(i) for entry in submitted for i in entry.indices}
    table: list[tuple[str, ...]] = [("cell", *NUMBERS, "host", *COSTS)]
    counts, needy, total = Counter[str](), [], CellCost()
    for task in tasks.cells:
        stage = tasks.next_stage(task)
        job = jobs.get(newest.get((task.index, stage), ""))
        state, cost = tasks.state(task, stage) if stage else StageState(state="done"), tasks.cost(task)
        word = f"{stage} {_describe(tasks, task, state, job)}" if stage else "done"
        counts[word], total = counts[word] + 1, total + cost
        if rows:
            table.append((task.name, word, *_describe_run_of(tasks, task, word, job), *_list_cost(cost)))
        if "; no checkpoint since" in state.reason or word.endswith(NEEDY):
            needy.append((task.name, word, state, job))
    lines = [*_columns(table), ""] if rows else []
    lines.append(", ".join(f"{count} {word}" for word, count in counts.most_common()))
    if any(
        spent := [f"{value} {name}" for name, value in zip(COSTS, _list_cost(total), strict=True) if value]
    ):
        lines.append(f"so far: {', '.join(spent)}")
    is_idle = not any(job.is_live for job in jobs.values()) and "running" not in " ".join(counts)
    if is_idle and counts["done"] < len(tasks.cells):
        lines.append("nothing of it is queued; jobs.submit continues what is not done and has not failed")
    lines += _list_reasons(needy)
    for entry in submitted[-1:]:
        if not entry.array:
            word = jobs[entry.job].state.lower() if entry.job in jobs else "no longer known"
            lines.append(f"{entry.stage}: job {entry.job} {word}")
    return "\n".join(lines) + "\n"


def _describe_run_of(tasks: Tasks, task: SweepTask, word: str, job: JobState | None) -> tuple[str, ...]:
    """Return the numbers of a cell's run, and its host."""
    progress = read_progress(tasks.folder / RUNS_FOLDER / task.name / "log.txt")
    mark = next(iter(task.stages.values())).progress_mark()
    to_go = progress.to_go if "running" in word else ""
    limit, host = (job.time_left, job.host) if job else ("", "")
    return progress.step, progress.images_per_s, to_go, limit, progress.loss, mark, host


def _list_cost(cost: CellCost) -> tuple[str, ...]:
    """Write a cost as `COSTS` names it, 0 as nothing; the hours of processors only where no GPU is."""
    hours = [cost.gpu_hours, 0 if cost.gpu_hours else cost.cpu_hours]
    counts = [str(number or "") for number in (cost.restarts, cost.lost_steps)]
    return (*(f"{value:.2f}" if value else "" for value in hours), *counts)


def _list_reasons(needy: Sequence[tuple[str, str, StageState, JobState | None]]) -> list[str]:
    """Say what needs a person: one line for all cells with the same reason, the log of the first."""
    alike: dict[tuple[str, str], list[int]] = {}
    for i, (_, word, state, job) in enumerate(needy):
        alike.setdefault((word, state.reason or (job.state if job else "")), []).append(i)
    lines = []
    for (word, _), cells in list(alike.items())[:MOST_REASONS]:
        names = ", ".join(needy[i][0] for i in cells[:MOST_NAMES])
        more = f" and {len(cells) - MOST_NAMES} more" if len(cells) > MOST_NAMES else ""
        lines.append(f"  {names}{more}: {word}: {explain(*needy[cells[0]][2:])}")
    if len(alike) > MOST_REASONS:
        lines.append(f"  and {len(alike) - MOST_REASONS} reasons more; --all True shows every cell")
    return lines


def _describe(tasks: Tasks, task: SweepTask, state: StageState, job: JobState | None) -> str:
    """Say in a word what an unfinished stage does; Slurm's word for a live job precedes our own files."""
    if state.state == "running" and is_held(tasks.control(task) / "lock"):
        return "running"
    if job is not None and (job.is_live or state.state in ("running", "waiting")):
        return "starting" if job.state == "RUNNING" else job.state.lower()
    return "lost" if state.state == "running" else state.state  # running, but nobody holds the lock


def read_progress(log: Path) -> Pace:
    """Read step, loss, speed and time to go off the last lines of a run's `log.txt`."""
    found = [match for line in read_tail(log) if (match := STEP_LINE.match(line))]
    if not found:
        return Pace()
    last = found[-1]
    words = last["rest"].split()
    values = dict(zip(words[::2], words[1::2], strict=False))
    step, loss = f"{last['step']}/{last['steps']}", values.get("total", "")
    speed, to_go = values.get("images_per_s", ""), values.get("to_go", "")
    return Pace(step=step, loss=loss, images_per_s=speed, to_go=to_go)


def explain(state: StageState, job: JobState | None) -> str:
    """Say why a cell failed: our own reason or Slurm's state, and the last error line of its log."""
    reason = state.reason or (f"Slurm says {job.state}" if job else "its process is gone")
    if job is not None and job.state == "TIMEOUT":
        reason = "the time limit struck before it had saved; raise time_limit_min or stop_before_end_s"
    tail = read_tail(Path(state.log)) if state.log else []
    lines = [RANK_MARK.sub("", line) for line in tail if line.strip()]
    # Slurm speaks last, after the program has said why
    said = [line for line in lines if not line.startswith(("srun: ", "slurmstepd", "["))]
    said_errors = [line for line in said if ERROR_LINE.search(line)]
    errors = [line for line in lines if ERROR_LINE.search(line)]
    last = (said_errors or errors or said or [""])[-1].strip()
    return f"{reason}; {last[:300]} ({state.log})" if last else reason


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Align cells under each other; columns that are empty everywhere are left out."""
    used = [i for i in range(len(rows[0])) if any(row[i] for row in rows[1:])]
    widths = {i: max(len(row[i]) for row in rows) for i in used}
    return ["  ".join(row[i].ljust(widths[i]) for i in used).rstrip() for row in rows]


if __name__ == "__main__":
    run_program(main)
