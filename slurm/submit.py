"""Commands of Slurm, and the list of jobs that were submitted."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from shards.errors import InputError
from shards.files import from_json, to_json, write_atomically
from slurm.array import parse_array_expression

SUBMISSIONS_NAME = "submissions.json"
TIMEOUT_S = 120


class SlurmError(InputError):
    """A command of Slurm is missing or refused; the text carries its own words."""


@dataclass(frozen=True, kw_only=True)
class Submission:
    """One job that was submitted."""

    stage: str
    job: str
    array: str = ""
    """Indices of the cells, such as `0-3,7`; empty for a job that is no array."""
    offset: int = 0
    """Index of a cell less the id of its task."""

    @property
    def indices(self) -> list[int]:
        """Cells of the array."""
        return parse_array_expression(self.array) if self.array else []

    def key(self, index: int) -> str:
        """Return Slurm's name of the task of a cell."""
        return f"{self.job}_{index - self.offset}"


def call(command: Sequence[str]) -> str:
    """Run a command of Slurm and return what it printed; a SlurmError says why that fails."""
    if shutil.which(command[0]) is None:
        raise SlurmError(f"{command[0]}: not found; is this a machine of a Slurm cluster?")
    try:
        answer = subprocess.run([*command], capture_output=True, text=True, input="", timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{command[0]}: no answer within {TIMEOUT_S} s") from None
    if answer.returncode:
        said = " ".join((answer.stderr or answer.stdout).split())
        raise SlurmError(f"{command[0]} refused: {said or f'exit code {answer.returncode}'}")
    return answer.stdout


def read_limits() -> dict[str, int]:
    """Return the cluster's MaxArraySize (ids of tasks are below it) and MaxJobCount, if it says them."""
    try:
        settings = call(["scontrol", "show", "config"])
    except SlurmError:
        return {}
    found = re.findall(r"^(MaxArraySize|MaxJobCount)\s*=\s*(\d+)", settings, re.MULTILINE)
    return {name: int(number) for name, number in found}


def submit_script(script: Path, *, dependency: str = "") -> str:
    """Submit a script and return its job's id; a SlurmError says that nothing was submitted.

    A job whose `dependency`, such as `aftercorr:17`, can never be met is cancelled by Slurm.
    """
    options = [f"--dependency={dependency}", "--kill-on-invalid-dep=yes"] if dependency else []
    answer = call(["sbatch", "--parsable", *options, str(script)]).strip()
    job = answer.split(";")[0]  # a federation adds the cluster's name
    if not job.isdecimal():
        raise SlurmError(f"sbatch answered {answer!r}, which is no number of a job")
    return job


def current_job(environment: Mapping[str, str]) -> str:
    """Return the job that this process belongs to, of an array the one task; empty outside of Slurm.

    The id of one task of an array equals that of the whole array, so the pair must be used.
    """
    array, task = environment.get("SLURM_ARRAY_JOB_ID"), environment.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else environment.get("SLURM_JOB_ID", "")


def read_submissions(folder: Path) -> list[Submission]:
    """Read which jobs of a sweep were submitted, oldest first; an InputError: the file is damaged."""
    path = folder / SUBMISSIONS_NAME
    if not path.exists():
        return []
    return from_json(list[Submission], path.read_bytes(), f"{path}: is no list of submitted jobs")


def add_submissions(folder: Path, submissions: Sequence[Submission]) -> None:
    """Note jobs that were submitted."""
    write_atomically(folder / SUBMISSIONS_NAME, to_json([*read_submissions(folder), *submissions]))
