"""What every cell of a sweep is doing, and why those that failed did.

python -m jobs.status SWEEP
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import tyro

from jobs.sweep_config import find_sweep
from shards.errors import InputError
from shards.files import is_held
from shards.settings import parse_options, run_program
from slurm.status import JobState, query_jobs
from slurm.submit import Submission, read_submissions
from slurm.tasks import RUNS_FOLDER, StageState, Task, Tasks, read_state, read_tasks

STEP_LINE = re.compile(r"^(?P<time>\S+ \S+) step (?P<step>\d+)/(?P<steps>\d+)  (?P<rest>.*)$")
ERROR_LINE = re.compile(
    r"^(\S*: )?error: |^[\w.]*(Error|Exception|Interrupt)\b|Killed|oom[-_]kill", re.IGNORECASE
)
RANK_MARK = re.compile(r"^\[rank\d+\]: ")
TAIL_BYTES = 65536


@dataclass(frozen=True, kw_only=True)
class StatusOptions:
    """Say what every cell of a sweep is doing."""

    sweep: tyro.conf.Positional[Path]
    """The sweep's folder, or its sweep file."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What a run's log says last."""

    step: str = ""
    loss: str = ""
    images_per_s: str = ""
    to_go: str = ""
    """Until the last step, at the pace of the last lines."""


def main(arguments: Sequence[str]) -> None:
    """Print the table of one sweep."""
    options: StatusOptions = parse_options(StatusOptions, arguments, program="jobs.status")
    folder = find_sweep(options.sweep)
    try:
        tasks, submitted = read_tasks(folder), read_submissions(folder)
        jobs, complaints = query_jobs([entry.job for entry in submitted])
        print(render_status(tasks, submitted, jobs), end="")
    except ValueError as error:
        raise InputError(str(error)) from None
    for text in complaints:
        print(f"note: {text}")


def render_status(tasks: Tasks, submitted: Sequence[Submission], jobs: Mapping[str, JobState]) -> str:
    """Lay out one row per cell, why cells failed, and the job that makes the table."""
    header = ("cell", "state", "step", "images/s", "to go", "limit", "loss", "checkpoint", "host")
    rows, failures, counts = [], [], dict[str, int]()
    for index, task in enumerate(tasks.cells):
        stage, state, job = _current(tasks, task, index, submitted, jobs)
        word = _describe(tasks, task, stage, state, job)
        counts[word.split()[-1]] = counts.get(word.split()[-1], 0) + 1
        progress = read_progress(tasks.folder / RUNS_FOLDER / task.name / "log.txt")
        mark = task.stages[next(iter(task.stages))].progress_mark()
        to_go, limit, host = progress.to_go if "running" in word else "", "", ""
        if job:
            limit, host = job.time_left, job.host
        rows.append(
            (task.name, word, progress.step, progress.images_per_s, to_go, limit, progress.loss, mark, host)
        )
        if state.state == "failed" or word.endswith(("lost", "timeout", "failed", "out_of_memory")):
            failures.append(f"{task.name}: {explain(state, job)}")
    lines = _columns([header, *rows])
    lines += ["", ", ".join(f"{count} {word}" for word, count in counts.items())]
    lines += [f"  {line}" for line in failures]
    for entry in submitted[-1:]:
        if not entry.array:
            word = jobs[entry.job].state.lower() if entry.job in jobs else "no longer known"
            lines.append(f"{entry.stage}: job {entry.job} {word}")
    return "\n".join(lines) + "\n"


def _current(
    tasks: Tasks, task: Task, index: int, submitted: Sequence[Submission], jobs: Mapping[str, JobState]
) -> tuple[str, StageState, JobState | None]:
    """Return the first stage that is not done (or the last), what is known of it, and its newest job."""
    stage = next((name for name in task.stages if not tasks.is_done(task, name)), list(task.stages)[-1])
    keys = [f"{entry.job}_{index}" for entry in submitted if entry.stage == stage]
    job = next((jobs[key] for key in reversed(keys) if key in jobs), None)
    return stage, read_state(tasks.control(task), stage), job


def _describe(tasks: Tasks, task: Task, stage: str, state: StageState, job: JobState | None) -> str:
    """Say in a word or two what a cell does; what Slurm says of a live job precedes our own files."""
    if tasks.is_done(task, stage):
        return "done"
    held = is_held(tasks.control(task) / "lock")
    if state.state == "running" and held:
        return f"{stage} running"
    if job is not None and job.is_live:
        word = "starting" if job.state == "RUNNING" else job.state.lower()
        return f"{stage} {word}"
    if state.state == "running":  # but nobody holds the lock
        return f"{stage} {job.state.lower() if job else 'lost'}"
    if state.state == "waiting" and job is not None:
        return f"{stage} {job.state.lower()}"
    return f"{stage} {state.state}"


def read_progress(log: Path) -> Progress:
    """Read step, loss, speed and time to go off the last lines of a run's `log.txt`."""
    found = [match for line in read_tail(log) if (match := STEP_LINE.match(line))]
    if not found:
        return Progress()
    last = found[-1]
    words = last["rest"].split()
    values = dict(zip(words[::2], words[1::2], strict=False))
    speed = values.get("speed/images_per_s", "")
    return Progress(
        step=f"{last['step']}/{last['steps']}",
        loss=values.get("total", ""),
        images_per_s=speed,
        to_go=_to_go(found),
    )


def _to_go(found: Sequence[re.Match[str]]) -> str:
    """Extend the pace since the oldest line of the tail that belongs to the same start."""
    last = found[-1]
    first = last
    for match in reversed(found):
        if int(match["step"]) > int(first["step"]):
            break
        first = match
    steps = int(last["step"]) - int(first["step"])
    if not steps:
        return ""
    pace = (_time(last) - _time(first)) / steps
    return str(timedelta(seconds=round((pace * (int(last["steps"]) - int(last["step"]))).total_seconds())))


def _time(match: re.Match[str]) -> datetime:
    return datetime.strptime(match["time"], "%Y-%m-%d %H:%M:%S")


def explain(state: StageState, job: JobState | None) -> str:
    """Say why a cell failed: our own reason or Slurm's state, and the last error line of its log."""
    reason = state.reason or (f"Slurm says {job.state}" if job else "its process is gone")
    lines = (
        [RANK_MARK.sub("", line) for line in read_tail(Path(state.log)) if line.strip()] if state.log else []
    )
    # Slurm speaks last, after the program has said why
    said = [line for line in lines if not line.startswith(("srun: ", "slurmstepd", "["))]
    said_errors = [line for line in said if ERROR_LINE.search(line)]
    errors = [line for line in lines if ERROR_LINE.search(line)]
    last = (said_errors or errors or said or [""])[-1].strip()
    return f"{reason}; {last[:300]} ({state.log})" if last else reason


def read_tail(path: Path) -> list[str]:
    """Read the last lines of a text file; a missing one has none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            return file.read().decode("utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Align cells under each other; columns that are empty everywhere are left out."""
    used = [i for i in range(len(rows[0])) if any(row[i] for row in rows[1:])]
    widths = {i: max(len(row[i]) for row in rows) for i in used}
    return ["  ".join(row[i].ljust(widths[i]) for i in used).rstrip() for row in rows]


if __name__ == "__main__":
    run_program(main)
