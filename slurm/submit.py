"""Asking Slurm to do something: submit, requeue, cancel."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from slurm.tasks import write_json

SUBMISSIONS_NAME = "submissions.json"
TIMEOUT_S = 120


class SlurmError(RuntimeError):
    """A command of Slurm is missing or refused; the text carries its own words."""


@dataclass(frozen=True, kw_only=True)
class Submission:
    """One job that was submitted."""

    stage: str
    job: str
    array: str = ""
    """Indices of the cells, such as `0-3,7`; empty for a job that is no array."""


def call(command: Sequence[str]) -> str:
    """Run a command of Slurm and return what it printed.

    Raises:
        SlurmError: it is missing, refused or did not answer.
    """
    if shutil.which(command[0]) is None:
        raise SlurmError(f"{command[0]}: not found; is this a machine of a Slurm cluster?")
    try:
        answer = subprocess.run(
            list(command),
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{command[0]}: no answer within {TIMEOUT_S} s") from None
    if answer.returncode:
        said = " ".join((answer.stderr or answer.stdout).split())
        raise SlurmError(f"{command[0]} refused: {said or f'exit code {answer.returncode}'}")
    return answer.stdout


def submit_script(script: Path, *, dependency: str = "", array: str = "") -> str:
    """Submit a script and return its job's id.

    Args:
        dependency: such as `aftercorr:17`; a job whose dependency can never be met is cancelled by Slurm.
        array: indices, in place of those that the script names.

    Raises:
        SlurmError: sbatch is missing or refused; nothing was submitted.
    """
    command = ["sbatch", "--parsable"]
    command += [f"--dependency={dependency}", "--kill-on-invalid-dep=yes"] if dependency else []
    command += [f"--array={array}"] if array else []
    answer = call([*command, str(script)]).strip()
    job = answer.split(";")[0]  # a federation adds the cluster's name
    if not job.isdecimal():
        raise SlurmError(f"sbatch answered {answer!r}, which is no number of a job")
    return job


def requeue(job: str) -> None:
    """Put a job, or one task `17_3` of an array, back into the queue.

    Raises:
        SlurmError: Slurm refused.
    """
    call(["scontrol", "requeue", job])


def is_running(job: str) -> bool:
    """Say whether Slurm counts a job or task as running, and not as ending, cancelled or queued again.

    Raises:
        SlurmError: Slurm does not know it.
    """
    answer = call(["scontrol", "show", "job", "-o", job])
    return re.search(r"\bJobState=RUNNING\b", answer) is not None


def cancel(jobs: Sequence[str]) -> None:
    """Cancel jobs, whole arrays included; those that have ended already do not matter.

    Raises:
        SlurmError: Slurm refused.
    """
    if jobs:
        call(["scancel", *jobs])


def current_job(environment: Mapping[str, str]) -> str:
    """Return the job that this process belongs to, of an array the one task; empty outside of Slurm.

    The id of one task of an array equals that of the whole array, so the pair must be used.
    """
    array, task = environment.get("SLURM_ARRAY_JOB_ID"), environment.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else environment.get("SLURM_JOB_ID", "")


def read_submissions(folder: Path) -> list[Submission]:
    """Read which jobs of a sweep were submitted, oldest first.

    Raises:
        ValueError: the file is damaged.
    """
    path = folder / SUBMISSIONS_NAME
    try:
        return [Submission(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError):
        raise ValueError(f"{path}: is no list of submitted jobs") from None


def forget_submissions(folder: Path) -> None:
    """Forget which jobs of a sweep were submitted."""
    (folder / SUBMISSIONS_NAME).unlink(missing_ok=True)


def add_submission(folder: Path, submission: Submission) -> None:
    """Note a job that was submitted."""
    entries = [*read_submissions(folder), submission]
    write_json(folder / SUBMISSIONS_NAME, [asdict(entry) for entry in entries])
