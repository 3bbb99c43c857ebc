"""The end of a process: stop signals, time limit."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType

import torch
from accelerate import Accelerator

from shards.errors import InputError
from trainer.sections import parse_limit

SLURM_END = "SLURM_JOB_END_TIME"
"""Unix time at which Slurm ends the job; set by Slurm since 22.05."""
UNMEASURED_SAVE_S = 120.0
"""Time allowed for the first save; a tenth of the time limit if that is less."""


class Deadline:
    """Says once per step whether it is time to save and leave.

    The margin before the end covers what has been measured since the start: the longest time between two
    questions (a step, and validation and save where they fell between), and twice the longest save.
    """

    def __init__(self, end: float | None = None, now: Callable[[], float] = time.time) -> None:
        """Take the Unix time of the end, None where there is none, and a clock."""
        self._end, self._now = end, now
        self._asked: float | None = None
        self._longest_round = 0.0
        self._save = 0.0 if end is None else min(UNMEASURED_SAVE_S, max(0.0, (end - now()) / 10))
        self._measured = False

    def is_near(self) -> bool:
        """Say whether another step might not leave the time to save; ask once per step."""
        now = self._now()
        if self._asked is not None:  # before the first question lies the start-up
            self._longest_round = max(self._longest_round, now - self._asked)
        self._asked = now
        return self._end is not None and now + self.margin() >= self._end

    def margin(self) -> float:
        """Return the seconds before the end at which the run stops."""
        return self._longest_round + (2 * self._save if self._measured else self._save)

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Measure a save."""
        started = self._now()
        yield
        took = self._now() - started
        self._save = max(self._save, took) if self._measured else took
        self._measured = True


def find_end(setting: str, started: float, environment: Mapping[str, str] = os.environ) -> float | None:
    """Turn `loop.time_limit`, counted from Unix time `started`, into that of the end; None for no limit."""
    if setting == "slurm":
        end = environment.get(SLURM_END, "")
        if not end.isdigit():
            lacking = f"slurm was given, but {SLURM_END} is {end or 'not set'}"
            raise InputError(f"loop.time_limit: {lacking}; give minutes or H:MM:SS instead")
        return float(end)
    limit = parse_limit(setting)
    return started + limit if limit else None


class StopSignal:
    """Notices SIGTERM, SIGUSR1 and the end of the time, so that a job that must leave saves first.

    A second signal ends the process at once. Use as a context manager; the handlers are put back after.
    """

    def __init__(self, accelerator: Accelerator, deadline: Deadline) -> None:
        self._accelerator, self._deadline = accelerator, deadline
        self._asked = False
        self.reason = ""
        """Why the run stops; the same on all ranks."""
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopSignal:
        for number in (signal.SIGTERM, signal.SIGUSR1):
            self._before[number] = signal.signal(number, self._notice)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def __call__(self) -> bool:
        """Ask all ranks whether any of them must stop; all get the same answer."""
        flags = torch.tensor([float(self._asked), float(self._deadline.is_near())])
        if self._accelerator.num_processes > 1:
            flags = self._accelerator.reduce(flags.to(self._accelerator.device), reduction="sum")
        asked, late = (flag > 0 for flag in flags.tolist())
        self.reason = "asked to stop" if asked else "time limit" if late else ""
        return bool(self.reason)

    def _notice(self, number: int, _frame: FrameType | None) -> None:
        if self._asked:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self._asked = True
