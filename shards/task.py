"""One of N processes that share a job and know nothing of each other: `I/N`, or a place in a SLURM array."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from shards.errors import InputError


@dataclass(frozen=True)
class Task:
    """One of several processes that share a preparation."""

    number: int
    """From 0."""
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


def parse_task(text: str, environment: Mapping[str, str] = os.environ) -> Task:
    """Read `I/N`, or `slurm` for the place of this process in a SLURM array.

    Raises:
        InputError: it is neither, or this is no task of an array.
    """
    if text == "slurm":
        names = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_COUNT")
        if missing := [name for name in names if not environment.get(name, "").isdecimal()]:
            raise InputError(f"--task slurm: {missing[0]} is not set; this is no task of a SLURM array")
        number, first, count = (int(environment[name]) for name in names)
        step = int(environment.get("SLURM_ARRAY_TASK_STEP") or 1)
        return Task((number - first) // step, count)
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if not match or not int(match[1]) < int(match[2]):
        raise InputError(f"--task: got {text!r}; I/N with I in 0..N-1 is needed, such as 0/8, or slurm")
    return Task(int(match[1]), int(match[2]))
