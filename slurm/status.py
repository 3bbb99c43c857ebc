"""States of jobs and array tasks, as Slurm answers them, and the place of this process in an array."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from shards.errors import InputError
from slurm.array import parse_array_expression
from slurm.submit import SlurmError, call

ENDED = frozenset(
    {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY"}
    | {"PREEMPTED", "REVOKED", "TIMEOUT"}
)
"""States that a job does not leave by itself."""
TAKEN = frozenset({"BOOT_FAIL", "NODE_FAIL", "PREEMPTED", "TIMEOUT"})
"""Those in which Slurm has taken a job away that nobody wanted to end."""


@dataclass(frozen=True, kw_only=True)
class JobState:
    """One job, or one task of an array."""

    state: str
    """In Slurm's words, such as PENDING, RUNNING, COMPLETED, TIMEOUT."""
    reason: str = ""
    """Reason why it waits or has ended; empty if Slurm gives none."""
    time_left: str = ""
    """Time until its limit, as squeue writes it."""
    host: str = ""

    @property
    def is_live(self) -> bool:
        """Say whether it runs, or waits for its turn."""
        return self.state not in ENDED


def query_jobs(jobs: Sequence[str], *, all_tasks: bool = False) -> tuple[dict[str, JobState], list[str]]:
    """Ask squeue, and for jobs that it no longer knows sacct, then scontrol.

    Squeue soon forgets tasks of an array that goes on; with `all_tasks` the others are asked for these, too.

    `jobs` are numbers of jobs, of an array its one number. Returned are states by `17`, or `17_3` for a task
    of an array (a job that nobody knows any more is missing), and the messages of the commands that failed.
    """
    found: dict[str, JobState] = {}
    complaints: list[str] = []
    for command, parse in QUERIES:
        known = {key.partition("_")[0] for key in found}
        missing = [job for job in jobs if all_tasks or job not in known]
        asked = missing if command[0] == "scontrol" else [",".join(missing)]  # which takes one at a time
        for names in filter(None, asked):
            try:
                found = {**parse(call([*command, names])), **found}
            except SlurmError as error:
                complaints.append(str(error))
    return found, complaints


def parse_squeue(text: str) -> dict[str, JobState]:
    """Read lines `job|state|time left|nodes|reason`."""
    found = {}
    for line in text.splitlines():
        job, state, left, host, reason = line.split("|", 4)
        left = left if state == "RUNNING" else ""
        found[job.strip()] = JobState(state=state, reason=_known(reason), time_left=left, host=host)
    return found


def parse_sacct(text: str) -> dict[str, JobState]:
    """Read lines `job|state|nodes`; a state may carry who cancelled."""
    found = {}
    for line in text.splitlines():
        job, state, host = line.split("|", 2)
        word, _, rest = state.partition(" ")
        for key in _expand(job):
            found[key] = JobState(state=word, reason=rest, host=_known(host))
    return found


def parse_scontrol(text: str) -> dict[str, JobState]:
    """Read the lines of `scontrol show job -o`."""
    found: dict[str, JobState] = {}
    for line in text.splitlines():
        fields = dict(re.findall(r"(?:^|\s)([A-Za-z]+)=(\S*)", line))
        if "JobState" not in fields:
            continue
        reason, host = (_known(fields.get(name, "")) for name in ("Reason", "NodeList"))
        state = JobState(state=fields["JobState"], reason=reason, host=host)
        is_task = "ArrayTaskId" in fields
        job = f"{fields['ArrayJobId']}_[{fields['ArrayTaskId']}]" if is_task else fields["JobId"]
        found |= dict.fromkeys(_expand(job), state)
    return found


def _expand(job: str) -> list[str]:
    """Turn `17_[0-2%1]` into its tasks."""
    match = re.fullmatch(r"(\d+)_\[(.+)\]", job)
    return [f"{match[1]}_{index}" for index in parse_array_expression(match[2])] if match else [job]


def _known(text: str) -> str:
    return "" if text in ("None", "(null)", "None assigned") else text


QUERIES: tuple[tuple[list[str], Callable[[str], dict[str, JobState]]], ...] = (
    (["squeue", "-h", "-r", "-t", "all", "-o", "%i|%T|%L|%N|%r", "-j"], parse_squeue),
    (["sacct", "-n", "-P", "-X", "-o", "JobID,State,NodeList", "-j"], parse_sacct),
    (["scontrol", "show", "job", "-o"], parse_scontrol),
)


def parse_task(text: str, environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Read number (from 0) and count of the tasks that share a job, out of `I/N`, or of `slurm` in an array.

    An InputError says that it is neither, that this is no task of an array, or that the place is not known.
    """
    if text == "slurm":
        return _find_place(environment)
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if not match or not int(match[1]) < int(match[2]):
        raise InputError(f"--task: got {text!r}; I/N with I in 0..N-1 is needed, such as 0/8, or slurm")
    return int(match[1]), int(match[2])


def _find_place(environment: Mapping[str, str]) -> tuple[int, int]:
    """Find this process among the ids of its array.

    Slurm sets the smallest, the largest and their number. Where these leave a choice, it is asked, as long as
    it remembers all tasks; where it does not tell, the ids are taken to be at one distance, such as 0-9:3.
    """
    names = {name: f"SLURM_ARRAY_TASK_{name}" for name in ("ID", "MIN", "MAX", "COUNT")}
    texts = {name: environment.get(variable, "") for name, variable in names.items()}
    for name, text in texts.items():
        if not re.fullmatch(r"[0-9]{1,9}", text):
            given = f"got {text!r}" if text else "is not set"
            raise InputError(f"--task slurm: {names[name]} {given}; this is no task of a SLURM array")
    number, first, last, count = (int(text) for text in texts.values())
    ids: Sequence[int] = range(first, last + 1, (last - first) // max(count - 1, 1) or 1)
    job = environment.get("SLURM_ARRAY_JOB_ID", "")
    if job and 2 < count <= last - first:
        tasks = query_jobs([job], all_tasks=True)[0]
        known = sorted(int(index) for _, _, index in (key.partition("_") for key in tasks) if index)
        ids = known if len(known) == count else ids
    if number not in ids or len(ids) != count or ids[-1] != last:
        given = f"task {number} of {count} from {first} to {last}, and Slurm does not tell the others"
        advice = "take ids at one distance, such as 0-7 or 0-9:3, or give --task I/N"
        raise InputError(f"--task slurm: {given}; {advice}")
    return ids.index(number), count
