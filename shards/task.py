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
        return _parse_array(environment)
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if not match or not int(match[1]) < int(match[2]):
        raise InputError(f"--task: got {text!r}; I/N with I in 0..N-1 is needed, such as 0/8, or slurm")
    return Task(int(match[1]), int(match[2]))


def _parse_array(environment: Mapping[str, str]) -> Task:
    """Read the place in an array whose ids have one distance, such as 0-7, 3,7 or 0-9:3."""
    names = {name: f"SLURM_ARRAY_TASK_{name}" for name in ("ID", "MIN", "MAX", "COUNT", "STEP")}
    texts = {name: environment.get(variable, "") for name, variable in names.items()}
    texts["STEP"] = texts["STEP"] or "1"
    for name, text in texts.items():
        if not re.fullmatch(r"[0-9]{1,9}", text) and (text or name != "MAX"):
            given = f"got {text!r}" if text else "is not set"
            raise InputError(f"--task slurm: {names[name]} {given}; this is no task of a SLURM array")
    number, first, count, step = (int(texts[name]) for name in ("ID", "MIN", "COUNT", "STEP"))
    last = int(texts["MAX"] or first + (count - 1) * step)
    ids = range(first, last + 1, (last - first) // max(count - 1, 1) or 1)
    if number not in ids or len(ids) != count or ids[-1] != last:
        given = f"task {number} of {count} from {first} to {last}"
        needed = "ids at one distance are needed, such as 0-7 or 0-9:3"
        raise InputError(f"--task slurm: {given}; {needed}")
    return Task(ids.index(number), count)
