"""Cancellation of one sweep's jobs, and no others.

python -m jobs.cancel SWEEP
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from jobs.status import find_sweep
from shards.program import run_program
from shards.settings import parse_options
from slurm.status import query_jobs
from slurm.submit import SlurmError, call, read_submissions


@dataclass(frozen=True, kw_only=True)
class CancelOptions:
    """Cancel what a sweep has in the queue; what is done stays, and jobs.submit continues the rest."""

    sweep: tyro.conf.Positional[Path]
    """The sweep's folder, or its sweep file."""


def main(arguments: Sequence[str]) -> None:
    """Cancel one sweep from the command line."""
    options: CancelOptions = parse_options(CancelOptions, arguments, program="jobs.cancel")
    folder = find_sweep(options.sweep)
    submitted = [entry.job for entry in read_submissions(folder)]
    found, complaints = query_jobs(submitted)
    if submitted and not found and complaints:
        raise SlurmError(complaints[0])
    live = {key.partition("_")[0] for key, job in found.items() if job.is_live}
    jobs = [job for job in reversed(submitted) if job in live]  # what waits for others goes first
    if jobs:
        call(["scancel", *jobs])
    print(f"{folder}: cancelled {', '.join(jobs)}" if jobs else f"{folder}: nothing is queued or running")


if __name__ == "__main__":
    run_program(main)
